//! The relay within gossip: what it sends, and what is heard of relays.

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
            let Some(peer) = peer.filter(|peer| peer.up && peer.source(origin).tag == tag) else {
                core.counters.relay_unknown += 1;
                continue;
            };
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
