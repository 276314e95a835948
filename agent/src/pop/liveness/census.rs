//! How many of the POP this host reaches.

use homing_common::host::HostId;
use rand::seq::SliceRandom as _;

use super::{Event, Liveness, MISSES_MAX, WATCH_AFTER_CENSUS, WATCHED_MAX};

/// The hosts that are asked in order to count how many of the POP are reached: all
/// where there are no more, else so many, picked at random each time.
pub const CENSUS_MAX: usize = 128;

/// A count that is under way.
pub(super) struct Census {
    began_at: u64,
    ends_at: u64,
    retry_at: u64,
    asked: Vec<HostId>,
}

impl Census {
    pub fn due_at(&self) -> u64 {
        self.retry_at.min(self.ends_at)
    }
}

/// The result of one.
pub(super) struct Reach {
    pub began_at: u64,
    /// Hosts of the sample that were heard, and all of it; with this host.
    pub reached: u32,
    pub of: u32,
}

impl Reach {
    pub fn is_half(&self) -> bool {
        2 * self.reached >= self.of
    }
}

impl Liveness {
    /// Sees to it that a count is under way that began a moment ago at most, or
    /// has ended.
    pub(super) fn count(&mut self, now: u64) {
        let fresh = now.saturating_sub(2 * self.timing.window);
        if self.census.is_some() || self.reach.as_ref().is_some_and(|r| r.began_at >= fresh) {
            return;
        }
        let alive = self.peers.iter().filter(|(_, peer)| !peer.is_dead());
        let mut asked: Vec<_> = alive.map(|(host, _)| host).collect();
        if asked.len() > CENSUS_MAX {
            asked = asked.partial_shuffle(&mut self.rng, CENSUS_MAX).0.to_vec();
        }
        self.counters.censuses += 1;
        for &host in &asked {
            self.ask(host);
        }
        self.census = Some(Census {
            began_at: now,
            ends_at: now + self.timing.window,
            retry_at: now + self.timing.retry,
            asked,
        });
    }

    /// The result of a count that began at this time or later.
    pub(super) fn counted_since(&self, at: u64) -> Option<&Reach> {
        self.reach.as_ref().filter(|reach| reach.began_at >= at)
    }

    pub(super) fn tend_census(&mut self, now: u64) {
        let Some(census) = self.census.take_if(|census| census.due_at() <= now) else {
            return;
        };
        let heard = |host: &HostId| {
            let peer = self.peers.get(*host);
            peer.is_some_and(|peer| peer.heard_since(census.began_at))
        };
        let missing: Vec<_> = census
            .asked
            .iter()
            .copied()
            .filter(|host| !heard(host))
            .collect();
        if now < census.ends_at {
            for &host in &missing {
                self.ask(host);
            }
            self.census = Some(Census {
                retry_at: now + self.timing.retry,
                ..census
            });
            return;
        }
        let of = 1 + census.asked.len() as u32;
        let reach = Reach {
            began_at: census.began_at,
            reached: of - missing.len() as u32,
            of,
        };
        if !reach.is_half() {
            let (reached, of) = (reach.reached, reach.of);
            self.event(Event::Minority { reached, of });
        }
        self.reach = Some(reach);
        self.watch_missing(now, &missing);
    }

    /// Watches those that a census did not hear: where many went at once, their
    /// watchers may have gone with them.
    fn watch_missing(&mut self, now: u64, missing: &[HostId]) {
        for &host in missing {
            let Some(peer) = self.peers.get_mut(host) else {
                continue;
            };
            let is_full = self.watched.len() >= WATCHED_MAX;
            let cannot_be_asked = peer.heard_at.is_none() && peer.agent_up;
            if peer.is_dead() || cannot_be_asked || is_full {
                continue;
            }
            peer.watched_until = now + WATCH_AFTER_CENSUS * self.timing.interval;
            if !self.watched.contains_key(&host) {
                // It has missed as much as it could have.
                peer.missed = MISSES_MAX - 1;
                peer.unanswered = true;
                self.watched.insert(host, now + self.timing.interval);
            }
        }
    }
}
