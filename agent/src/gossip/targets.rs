//! Whom announcements go to: the hosts of this domain, and two relays in each
//! other domain, which pass them on there.
//!
//! Each origin chooses its own relays, by rendezvous over the hosts of a domain
//! that it knows to be up: so the work of relaying spreads over all of them, and a
//! relay that goes is replaced without anyone having to agree. Nobody else needs
//! to know the choice: what a relay is to do stands in what is sent to it.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::machine::Gossip;
use crate::pop::{Domain, rendezvous};

/// Relays per origin and domain: the first passes on at once, the other what it
/// does not hear the first one pass on.
pub const RELAYS: usize = 2;

impl Gossip {
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

    /// The other domains in which a host is up, and this host's relays there.
    pub fn relays(&self) -> BTreeMap<Domain, Vec<HostId>> {
        let mut domains: BTreeMap<Domain, Vec<HostId>> = BTreeMap::new();
        for (&host, peer) in self.peers.iter().filter(|(_, peer)| peer.up) {
            if let Some(domain) = peer.domain
                && domain != self.core.settings.domain
            {
                domains.entry(domain).or_default().push(host);
            }
        }
        for hosts in domains.values_mut() {
            *hosts = self.choose(hosts.iter().copied());
        }
        domains
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
        Member::starting(HostId(host), stream, address, domain(name), Fingerprint(1))
    }

    fn host(id: u16) -> Gossip {
        let settings = Settings {
            host: HostId(id),
            domain: domain("a"),
            stream: Stream::default(),
            multicast: true,
            void_after: Duration::from_secs(1),
            claims_max: 100,
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
        for (&domain, relays) in &relays {
            assert_eq!(relays, &gossip.relays_of(domain));
        }
        let [first, second] = relays[&domain("b")][..] else {
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
