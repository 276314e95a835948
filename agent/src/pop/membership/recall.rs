//! A host for which most others are down has been away itself. Once it hears one of
//! them again, it calls all of them, some at a time: each of them learns that it is
//! back, and it learns that they are up, from themselves. By the library's own pace
//! that takes a rack as many seconds as it has been away from hosts.

use homing_common::host::HostId;

use super::{Membership, Seed, State};
use crate::pop::MS;

/// Between two steps.
const STEP: u64 = 50 * MS;
/// Hosts called in one step: a POP of a thousand in less than 2 s, by under a tenth
/// of the datagrams that a host may send.
const CALLS: usize = 32;

/// A round of calls that is under way.
#[derive(Default)]
pub(super) struct Recall {
    next_at: Option<u64>,
    /// The host that was called last.
    after: HostId,
    /// How many are still to be called in this round.
    left: usize,
}

impl Recall {
    /// When the next step is due.
    pub fn due_at(&self) -> u64 {
        self.next_at.unwrap_or(u64::MAX)
    }
}

impl Membership {
    /// A host was heard again, or this one has taken a new identity because it was
    /// called down: if most others are down, they are called.
    pub(super) fn recall(&mut self, now: u64, anew: bool) {
        let in_state = |state| self.entries.values().filter(move |e| e.state == state);
        let (down, up) = (
            in_state(State::Down).count(),
            in_state(State::Alive).count(),
        );
        if down > up && (anew || self.recall.next_at.is_none()) {
            self.recall.left = down;
            self.recall.next_at.get_or_insert(now);
        }
    }

    /// Calls the next ones.
    pub(super) fn recall_some(&mut self, now: u64) {
        let after = HostId(self.recall.after.0.saturating_add(1));
        let later = self.entries.range(after..);
        let round = later.chain(self.entries.range(..after));
        let down = round.filter(|(_, entry)| entry.state == State::Down);
        let some: Vec<_> = down
            .take(CALLS.min(self.recall.left))
            .map(|(&host, entry)| (host, entry.member.address))
            .collect();
        self.recall.left = self.recall.left.saturating_sub(CALLS);
        let is_over = self.recall.left == 0 || some.is_empty();
        self.recall.next_at = (!is_over).then_some(now + STEP);
        for (host, address) in some {
            self.recall.after = host;
            self.announce(Seed { host, address });
        }
    }
}
