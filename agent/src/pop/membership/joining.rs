//! Finding the POP: whom a host announces itself to, and how often.

use rand::RngExt as _;

use super::{Membership, Seed, State, remembered::CALLED_ALONE};
use crate::pop::{MS, Member, SECOND};

/// Between two announcements of a host that is alone, or has only just joined.
pub(super) const JOIN_INTERVAL: u64 = 200 * MS;
/// After this many of those a lone host slows down to [`HEAL_INTERVAL`].
const JOIN_ROUNDS: u32 = 50;
/// A host that has joined asks for members until it has heard of no new one for
/// this many intervals.
const QUIET_ROUNDS: u32 = 5;
/// Between two announcements to seeds that are no members at the moment.
const HEAL_INTERVAL: u64 = SECOND;

impl Membership {
    /// Announces this host to those that may not know it.
    pub(super) fn join(&mut self, now: u64) {
        self.rounds = self.rounds.saturating_add(1);
        if self.is_alone() {
            self.announce_at = now
                + if self.rounds <= JOIN_ROUNDS {
                    JOIN_INTERVAL
                } else {
                    HEAL_INTERVAL
                };
            for seed in self.seeds.clone() {
                self.announce(seed);
            }
            self.call_remembered(CALLED_ALONE);
        } else if self.rounds <= QUIET_ROUNDS {
            // One answer holds some thirty members: go on asking around while
            // there is news.
            self.announce_at = now + JOIN_INTERVAL;
            let pick = self.rng.random_range(0..self.foca.num_members());
            let picked = self.foca.iter_members().nth(pick).map(|m| *m.id());
            if let Some(member) = picked {
                self.announce(Seed {
                    host: member.host,
                    address: member.address,
                });
            }
        } else {
            self.announce_at = now + HEAL_INTERVAL;
            for seed in self.seeds.clone() {
                let known = self.entries.get(&seed.host);
                if !known.is_some_and(|e| matches!(e.state, State::Alive | State::Mismatched)) {
                    self.announce(seed);
                }
            }
            self.call_remembered(1);
        }
    }

    pub(super) fn announce(&mut self, seed: Seed) {
        self.counters.announcements += 1;
        let to = Member::seed(seed.host, seed.address, self.me.domain);
        let result = self.foca.announce(to, &mut self.runtime);
        self.note(result);
    }
}
