//! Members that an agent before this one knew. Until they are heard they are called
//! like seeds, a few at a time; after a while they count as down.
//!
//! The library is not told that they are: it would not believe them to be up before
//! they took that back, each of them.

use homing_common::host::HostId;
use rand::seq::SliceRandom as _;

use super::{Change, Membership, Seed, State};
use crate::pop::{Member, SECOND};

/// A member that is up is heard, or heard of, within this time.
const HEARD_WITHIN: u64 = 3 * SECOND;
/// How many a host that is alone calls at a time.
pub(super) const CALLED_ALONE: usize = 3;

/// Those that were not heard yet.
#[derive(Default)]
pub(super) struct Remembered {
    members: Vec<Member>,
    missed_at: Option<u64>,
}

impl Remembered {
    /// When they are to be looked through.
    pub fn due_at(&self) -> u64 {
        self.missed_at.unwrap_or(u64::MAX)
    }
}

impl Membership {
    /// Before this agent began, these were members.
    pub fn remember(&mut self, now: u64, mut members: Vec<Member>) {
        members.retain(|member| member.host != self.me.host && self.is_of_this_pop(member));
        self.remembered = Remembered {
            missed_at: (!members.is_empty()).then_some(now + HEARD_WITHIN),
            members,
        };
    }

    /// Those that were not heard are down.
    pub(super) fn miss_remembered(&mut self, now: u64) {
        self.remembered.missed_at = None;
        self.forget_heard();
        for member in self.remembered.members.clone() {
            if !self.entries.contains_key(&member.host) {
                self.counters.downs += 1;
                self.set(now, member, State::Down);
                self.changes.push_back(Change::Down(member));
            }
        }
    }

    /// Calls some that were not heard yet.
    pub(super) fn call_remembered(&mut self, n: usize) {
        if self.remembered.members.is_empty() {
            return;
        }
        self.forget_heard();
        let some = self.remembered.members.partial_shuffle(&mut self.rng, n).0;
        let some: Vec<_> = some
            .iter()
            .map(|member| (member.host, member.address))
            .collect();
        for (host, address) in some {
            self.announce(Seed { host, address });
        }
    }

    /// Leaves those that are not known, or still down.
    fn forget_heard(&mut self) {
        let entries = &self.entries;
        let state = |host: HostId| entries.get(&host).map(|entry| entry.state);
        self.remembered
            .members
            .retain(|member| matches!(state(member.host), None | Some(State::Down)));
    }
}
