//! When which peer needs tending: with a thousand peers, of which few need
//! anything at any moment, looking at all of them each time is what gossip would
//! spend its time on.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use homing_common::host::HostId;

use super::core::Peer;

/// Entries that were overtaken by earlier ones are dropped once there are so many
/// for each peer.
const STALE_MAX: usize = 8;

/// Peers by the time at which they need tending. Each peer knows its own time; an
/// entry for another time was overtaken and means nothing.
#[derive(Default)]
pub(super) struct Agenda(BinaryHeap<Reverse<(u64, HostId)>>);

impl Agenda {
    /// A peer needs tending at this time, or earlier.
    pub fn plan(&mut self, host: HostId, peer: &mut Peer, at: u64) {
        if at < peer.tend_at {
            peer.tend_at = at;
            self.0.push(Reverse((at, host)));
        }
    }

    /// When the first peer may need tending.
    pub fn next_time(&self) -> u64 {
        self.0.peek().map_or(u64::MAX, |next| next.0.0)
    }

    /// Peers that need tending now.
    pub fn take(&mut self, now: u64, peers: &mut BTreeMap<HostId, Peer>) -> Vec<HostId> {
        let mut due = Vec::new();
        while let Some(&Reverse((at, host))) = self.0.peek()
            && at <= now
        {
            self.0.pop();
            if let Some(peer) = peers.get_mut(&host)
                && peer.tend_at == at
            {
                peer.tend_at = u64::MAX;
                due.push(host);
            }
        }
        if self.0.len() > STALE_MAX * (peers.len() + 1) {
            let planned = peers.iter().filter(|(_, peer)| peer.tend_at != u64::MAX);
            self.0 = planned
                .map(|(&host, peer)| Reverse((peer.tend_at, host)))
                .collect();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_when_they_are_due_once_each_and_stale_entries_go() {
        let mut peers: BTreeMap<_, _> = (1..4).map(|n| (HostId(n), Peer::new(0))).collect();
        let mut agenda = Agenda::default();
        assert_eq!(agenda.next_time(), u64::MAX);
        for (&host, peer) in &mut peers {
            for at in (0..1_000).rev() {
                agenda.plan(host, peer, 10 * u64::from(host.0) + at);
            }
            agenda.plan(host, peer, 5_000);
        }
        assert_eq!(agenda.next_time(), 10);
        assert_eq!(agenda.take(9, &mut peers), []);
        assert_eq!(agenda.take(20, &mut peers), [HostId(1), HostId(2)]);
        assert!(agenda.0.len() <= 1, "the rest of them means nothing");
        assert_eq!(agenda.take(29, &mut peers), []);
        assert_eq!(agenda.take(2_000, &mut peers), [HostId(3)]);
        agenda.plan(HostId(1), peers.get_mut(&HostId(1)).unwrap(), 7);
        assert_eq!(agenda.take(2_000, &mut peers), [HostId(1)]);
        assert_eq!(agenda.next_time(), u64::MAX);
    }
}
