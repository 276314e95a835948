//! The relay within gossip: what it sends, and what is heard of relays.

use homing_common::host::HostId;

use super::{
    machine::Gossip,
    wire::{Relayed, Section},
};

impl Gossip {
    /// Passes on in this domain what hosts of others have asked for.
    pub(super) fn pass_on(&mut self, now: u64) {
        self.targets();
        let Some(targets) = &self.targets else {
            return;
        };
        let near = targets.near();
        let bodies = self.relay.on_time(now, self.core.out.is_congested());
        for body in bodies {
            self.core.send(&near, body);
        }
        self.count_relayed();
    }

    /// Counts what the relay has done.
    fn count_relayed(&mut self) {
        let tallied = std::mem::take(&mut self.relay.tallied);
        let counters = &mut self.core.counters;
        counters.relay_passed_on += tallied.passed;
        counters.relay_stood_in += tallied.in_place;
        counters.relay_covered += tallied.covered;
        counters.relay_dropped += tallied.dropped;
    }

    /// A host of another domain that is down here, in the life in which a relay has
    /// just passed something of it on.
    pub fn take_spoke(&mut self) -> Option<HostId> {
        self.spoke.take()
    }

    /// Hears what a relay, a member, passes on of others.
    pub(super) fn hear_relayed(&mut self, now: u64, relayed: Relayed<'_>) {
        let core = &mut self.core;
        for section in relayed.iter() {
            let (origin, tag) = match section {
                Section::Records { origin, tag, .. } | Section::Heartbeat { origin, tag, .. } => {
                    (origin, tag)
                }
            };
            let peer = self.peers.get_mut(&origin);
            let Some(peer) = peer.filter(|peer| peer.source(origin).tag == tag) else {
                core.counters.relay_unknown += 1;
                continue;
            };
            if !peer.up {
                core.counters.relay_unknown += 1;
                self.spoke = Some(origin);
                continue;
            }
            match section {
                Section::Records { first, records, .. } => {
                    // The number nearest to where the log stands here.
                    let next = peer.replica.next;
                    let ahead = first.wrapping_sub(next as u32) as i32;
                    let first = next.saturating_add_signed(ahead.into()).max(1);
                    let source = peer.source(origin);
                    self.relay.heard(now, source, first, records.len() as u64);
                    core.hear_batch(now, origin, peer, first, relayed.opened_us, records);
                }
                Section::Heartbeat { heartbeat, .. } => {
                    let delay = core.relay_delay;
                    core.hear_heartbeat(now, peer, &heartbeat, delay);
                }
            }
            let next = core.tend_heard(now, origin, peer);
            self.agenda.plan(origin, peer, next);
        }
        self.count_relayed();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        gossip::{
            machine::Settings,
            wire::{self, Heartbeat, Writer},
        },
        pop::{Domain, Fingerprint, Member, Stream},
    };

    fn member(host: u16, domain: &str, generation: u64) -> Member {
        let address = format!("10.0.0.{host}:7946").parse().unwrap();
        let stream = Stream {
            incarnation: 1,
            generation,
        };
        let domain = Domain::try_from(domain).unwrap();
        Member::starting(
            HostId(host),
            stream,
            address,
            domain,
            Fingerprint::default(),
        )
    }

    #[test]
    fn a_host_that_is_down_here_and_that_a_relay_hears_is_noticed_in_that_life_only() {
        let settings = Settings {
            host: HostId(1),
            domain: Domain::try_from("a").unwrap(),
            stream: Stream::default(),
            multicast: true,
            void_after: Duration::from_secs(1),
            claims_max: 100,
            first_bulk: 1,
        };
        let mut gossip = Gossip::new(0, 0, settings, std::iter::empty(), std::iter::empty());
        let (relay, origin) = (member(2, "a", 1), member(3, "b", 7));
        gossip.member_up(0, &relay);
        gossip.member_up(0, &origin);
        let passed_on = |life: Member| {
            let heartbeat = Heartbeat {
                hears: false,
                calls: false,
                next: 1,
                oldest: 1,
                count: 0,
                digest: 0,
            };
            let mut writer = Writer::new();
            assert!(writer.heartbeat(life.host, wire::life_tag(life.stream), &heartbeat));
            writer.finish().unwrap()
        };
        let hear = |gossip: &mut Gossip, life: Member| {
            gossip.receive(0, relay.host, relay.stream, true, &passed_on(life));
            gossip.take_spoke()
        };
        assert_eq!(hear(&mut gossip, origin), None, "it is up here, too");
        gossip.member_down(0, origin.host, true);
        assert_eq!(hear(&mut gossip, member(3, "b", 6)), None);
        assert_eq!(hear(&mut gossip, origin), Some(origin.host));
        assert_eq!(gossip.counters().relay_unknown, 2);
    }
}
