//! Whom announcements go to: the hosts of this domain, and two relays in each
//! other domain, which pass them on there.
//!
//! Each origin chooses its own relays, by rendezvous over the hosts of a domain
//! that it knows to be up: so the work of relaying spreads over all of them, and a
//! relay that goes is replaced without anyone having to agree. Nobody else needs
//! to know the choice: what a relay is to do stands in what is sent to it.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::{
    core::{HEARTBEAT, HEARTBEAT_SPACING},
    machine::Gossip,
};
use crate::pop::{Domain, rendezvous, seal::To};

/// Relays per origin and domain: the first passes on at once, the other what it
/// does not hear the first one pass on.
pub const RELAYS: usize = 2;

/// Whom batches go to.
#[derive(Clone, Default, Debug)]
pub(super) struct Targets {
    /// The domain's multicast group, if anyone is in it.
    pub group: Option<To>,
    /// Hosts of this domain that do not hear it.
    pub unheard: Vec<To>,
    /// Hosts of domains with so few that they need no relay.
    pub few: Vec<To>,
    /// The relays in other domains.
    pub first_relays: Vec<To>,
    pub other_relays: Vec<To>,
}

impl Targets {
    /// Copies of a batch.
    pub fn len(&self) -> usize {
        let group = usize::from(self.group.is_some());
        let relays = self.first_relays.len() + self.other_relays.len();
        group + self.unheard.len() + self.few.len() + relays
    }

    /// Everyone in this domain.
    pub fn near(&self) -> Vec<To> {
        self.group.iter().chain(&self.unheard).copied().collect()
    }

    /// Everyone who is not to pass it on.
    pub fn direct(&self) -> Vec<To> {
        let mut direct = self.near();
        direct.extend(&self.few);
        direct
    }
}

impl Gossip {
    /// Whom batches go to.
    pub(super) fn targets(&mut self) -> &Targets {
        if self.targets.is_none() {
            self.targets = Some(self.find_targets());
        }
        self.targets.get_or_insert_default()
    }

    fn find_targets(&mut self) -> Targets {
        let mut targets = Targets::default();
        let settings = &self.core.settings;
        let (mut near, mut far) = (0, 0);
        for (&host, peer) in self.peers.iter().filter(|(_, peer)| peer.up) {
            if peer.domain != Some(settings.domain) {
                far += 1;
                continue;
            }
            near += 1;
            if settings.multicast {
                targets.group = Some(To::Domain);
            }
            if !(settings.multicast && peer.hears_us) {
                targets.unheard.push(To::Host(host));
            }
        }
        for (few, hosts) in self.relays().into_values() {
            match hosts[..] {
                [first, other] if !few => {
                    targets.first_relays.push(To::Host(first));
                    targets.other_relays.push(To::Host(other));
                }
                _ => targets.few.extend(hosts.into_iter().map(To::Host)),
            }
        }
        self.relay.set_foreign_hosts(far);
        self.core.relay_delay = self.relay.delay();
        self.core.near_interval = HEARTBEAT.max(HEARTBEAT_SPACING * near);
        targets
    }

    /// The relays of this host in a domain, the first one first: as many as there
    /// are hosts up, at most [`RELAYS`]. None for this host's own domain, whose
    /// hosts need none.
    pub fn relays_of(&self, domain: Domain) -> Vec<HostId> {
        if domain == self.core.settings.domain {
            return Vec::new();
        }
        let up = self.peers.iter().filter(|(_, peer)| peer.up);
        let there = up.filter(|(_, peer)| peer.domain == Some(domain));
        self.choose(there.map(|(&host, _)| host))
    }

    /// The other domains in which a host is up: whether they have so few that all
    /// are relays, and this host's relays there.
    pub(super) fn relays(&self) -> BTreeMap<Domain, (bool, Vec<HostId>)> {
        let mut domains: BTreeMap<_, (bool, Vec<HostId>)> = BTreeMap::new();
        for (&host, peer) in self.peers.iter().filter(|(_, peer)| peer.up) {
            if let Some(domain) = peer.domain
                && domain != self.core.settings.domain
            {
                domains.entry(domain).or_default().1.push(host);
            }
        }
        for (few, hosts) in domains.values_mut() {
            *few = hosts.len() <= RELAYS;
            *hosts = self.choose(hosts.iter().copied());
        }
        domains
    }

    /// The other domains in which a host is up.
    pub fn other_domains(&self) -> Vec<Domain> {
        self.relays().into_keys().collect()
    }

    fn choose(&self, hosts: impl Iterator<Item = HostId>) -> Vec<HostId> {
        rendezvous::choose(u64::from(self.core.settings.host.0), hosts, RELAYS)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        gossip::machine::Settings,
        pop::{Fingerprint, Member, Stream},
    };

    fn domain(name: &str) -> Domain {
        Domain::try_from(name).unwrap()
    }

    fn member(host: u16, name: &str) -> Member {
        let address = format!("10.0.0.{host}:7946").parse().unwrap();
        let stream = Stream {
            incarnation: 1,
            generation: 1,
        };
        Member::starting(
            HostId(host),
            stream,
            address,
            domain(name),
            Fingerprint::default(),
        )
    }

    fn host(id: u16) -> Gossip {
        let settings = Settings {
            host: HostId(id),
            domain: domain("a"),
            stream: Stream::default(),
            multicast: true,
            void_after: Duration::from_secs(1),
            claims_max: 100,
            first_bulk: 1,
        };
        let mut gossip = Gossip::new(0, 0, settings, std::iter::empty(), std::iter::empty());
        for host in 100..200 {
            gossip.member_up(
                0,
                &member(host, ["a", "b", "c", "d"][usize::from(host % 4)]),
            );
        }
        gossip.member_up(0, &member(200, "e"));
        gossip
    }

    #[test]
    fn two_relays_in_each_other_domain_and_another_when_one_goes() {
        let mut gossip = host(1);
        assert!(gossip.relays_of(domain("a")).is_empty());
        assert!(gossip.relays_of(domain("nowhere")).is_empty());
        assert_eq!(gossip.relays_of(domain("e")), [HostId(200)]);
        let relays = gossip.relays();
        assert_eq!(relays.len(), 4);
        assert_eq!(
            gossip.other_domains(),
            relays.keys().copied().collect::<Vec<_>>()
        );
        for (&domain, (few, relays)) in &relays {
            assert_eq!(*few, relays.len() == 1);
            assert_eq!(relays, &gossip.relays_of(domain));
        }
        let [first, second] = relays[&domain("b")].1[..] else {
            panic!("{relays:?}")
        };
        gossip.member_down(0, first, false);
        let now = gossip.relays_of(domain("b"));
        assert_eq!(now[0], second, "the other one knows most");
        assert!(now[1] != first && now[1].0 % 4 == 1);
    }

    #[test]
    fn origins_spread_over_the_relays() {
        let mut load = BTreeMap::new();
        for id in 201..=1000 {
            for relay in host(id).relays_of(domain("c")) {
                *load.entry(relay).or_insert(0) += 1;
            }
        }
        assert_eq!(load.len(), 25);
        // 64 each on average.
        assert!(load.values().all(|n| (30..100).contains(n)), "{load:?}");
    }
}
