//! Finding the POP: whom a host announces itself to, and how often.

use std::net::SocketAddr;

use homing_common::host::HostId;
use rand::RngExt as _;

use super::{Membership, Seed, State, remembered::CALLED_ALONE};
use crate::pop::{MS, Member, SECOND, Stream};

/// Between two announcements of a host that is alone, or has only just joined.
const JOIN_INTERVAL: u64 = 200 * MS;
/// After this many of those a lone host slows down to [`HEAL_INTERVAL`].
const JOIN_ROUNDS: u32 = 50;
/// A host that has joined asks for members until it has heard of no new one for
/// this many intervals.
const QUIET_ROUNDS: u32 = 5;
/// Between two announcements to seeds that are no members at the moment.
const HEAL_INTERVAL: u64 = SECOND;
/// A host that is heard and is not known to be up is spoken to this often.
const SPEAK_INTERVAL: u64 = 200 * MS;

impl Membership {
    /// A host proved that it can be talked to from now on. If that is a seed and
    /// we are alone, what we announced before was lost: announce again.
    pub fn reachable(&mut self, now: u64, host: HostId) {
        if self.is_alone()
            && self.leave.is_none()
            && let Some(&seed) = self.seeds.iter().find(|s| s.host == host)
        {
            self.announce(seed);
            self.settle(now);
        }
    }

    /// A host whose agent is down can be reached again, or others hear it: if the
    /// agent is up, it hears of this POP at once.
    pub fn call(&mut self, now: u64, host: HostId) {
        let entry = self.entries.get(&host);
        let down = entry.filter(|entry| entry.state == State::Down);
        if let Some(address) = down.map(|entry| entry.member.address) {
            self.speak_to(now, host, address);
        }
    }

    /// A host spoke, in one of its lives and from an address. News of it may not
    /// have come here yet: so it is asked itself. In a large POP whose hosts start
    /// together the last few pairs would otherwise take many seconds to meet.
    pub fn meet(&mut self, now: u64, host: HostId, stream: Stream, address: SocketAddr) {
        let known = self.entries.get(&host);
        let is_news = known.is_none_or(|entry| {
            entry.member.stream < stream
                || entry.member.stream == stream && entry.state == State::Down
        });
        let holder = self.holder(host);
        let is_refused = holder.is_some_and(|h| h.refuses(address, stream.incarnation));
        if is_news && !is_refused && host != self.me.host {
            self.speak_to(now, host, address);
        }
    }

    /// Announces this host to one that is not known to be up, now and then.
    fn speak_to(&mut self, now: u64, host: HostId, address: SocketAddr) {
        let lately = self
            .spoken_to
            .get(&host)
            .is_some_and(|&at| now < at + SPEAK_INTERVAL);
        if lately || self.leave.is_some() {
            return;
        }
        self.spoken_to.insert(host, now);
        self.counters.spoken_to += 1;
        self.announce(Seed { host, address });
        self.settle(now);
    }

    /// There is news of a member: there may be more.
    pub(super) fn ask_around(&mut self, now: u64) {
        self.rounds = 0;
        self.announce_at = self.announce_at.min(now + JOIN_INTERVAL);
    }

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
