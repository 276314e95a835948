//! Which snapshots are pulled at once. Hosts that need one and find no room stand in
//! a queue, and the first of them begins as soon as another's pull is over: nobody
//! has to look again and again, and nobody is passed over.

use std::collections::VecDeque;

use homing_common::host::HostId;

/// Snapshots that are pulled at once. Each may need a carrier each way.
pub(super) const PULLS_MAX: usize = 8;

/// The pulls that take up room, and the queue: each host at most once in either.
#[derive(Default)]
pub(super) struct Pulls {
    active: Vec<HostId>,
    queue: VecDeque<HostId>,
}

impl Pulls {
    /// A host's pull may begin, or has to stand in the queue: says which.
    pub fn enter(&mut self, host: HostId) -> bool {
        if self.active.contains(&host) {
            return true;
        }
        if self.queue.is_empty() && self.active.len() < PULLS_MAX {
            self.active.push(host);
            return true;
        }
        if !self.queue.contains(&host) {
            self.queue.push_back(host);
        }
        false
    }

    /// A host's pull is over, or waits for a host that does not answer: there is
    /// room for another.
    pub fn leave(&mut self, host: HostId) {
        self.active.retain(|&active| active != host);
    }

    /// Whether some host's turn has come.
    pub fn is_due(&self) -> bool {
        !self.queue.is_empty() && self.active.len() < PULLS_MAX
    }

    /// The next host whose turn it is.
    pub fn next(&mut self) -> Option<HostId> {
        if !self.is_due() {
            return None;
        }
        let host = self.queue.pop_front()?;
        self.active.push(host);
        Some(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_turn_in_order_and_no_more_than_there_is_room_for_at_once() {
        let mut pulls = Pulls::default();
        let limit = PULLS_MAX as u16;
        let begun: Vec<_> = (0..30).filter(|&n| pulls.enter(HostId(n))).collect();
        assert_eq!(begun, (0..limit).collect::<Vec<_>>());
        assert!(!pulls.enter(HostId(29)) && !pulls.is_due());
        for n in 0..30 - limit {
            assert_eq!(pulls.next(), None);
            pulls.leave(HostId(n));
            assert!(!pulls.enter(HostId(40)), "who comes later waits");
            assert_eq!(pulls.next(), Some(HostId(limit + n)));
            assert!(pulls.enter(HostId(limit + n)), "it is its turn");
        }
        pulls.leave(HostId(29));
        assert_eq!(pulls.next(), Some(HostId(40)));
        assert_eq!(pulls.next(), None);
    }
}
