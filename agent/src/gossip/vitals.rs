//! What the kernel side must know of gossip itself: that it runs, and whether it
//! knows the sessions of the whole POP.
//!
//! The beat comes from the loop that does the work, so that an agent that hangs
//! shows. [`Standing`] is pure: counts and the time go in.

use homing_common::control::Control;

use crate::pop::{MS, SECOND};

/// How often the loop beats and looks at where it stands, in microseconds.
pub(super) const BEAT_INTERVAL: u64 = Control::BEAT_EVERY_NS / 1_000;
/// No host that was not heard of before came up for so long: the POP is complete.
const QUIET: u64 = 500 * MS;
/// A host with seeds that hears nobody for so long is alone.
const ALONE_AFTER: u64 = 5 * SECOND;
/// A loop that stood still for longer has missed too much to trust what it knows …
const STALL: u64 = 3 * SECOND;
/// … until every member's next heartbeat has told what was missed.
const CATCH_UP: u64 = 1_500 * MS;

/// Hears of gossip's state, from its own loop. Must not block.
pub trait Vitals: Send + 'static {
    /// The loop runs. Comes every [`Control::BEAT_EVERY_NS`].
    fn beat(&mut self);
    /// Whether this host knows the sessions of the whole POP. Comes when it
    /// changes; it does not at first.
    fn synced(&mut self, synced: bool);
    /// Whether there are sessions of others that found no room here. Comes when it
    /// changes; there are none at first.
    fn full(&mut self, full: bool);
}

/// Nobody who cares: for gossip without a kernel side.
impl Vitals for () {
    fn beat(&mut self) {}
    fn synced(&mut self, _: bool) {}
    fn full(&mut self, _: bool) {}
}

/// The POP as the loop sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sight {
    /// Members that are up, other than this host.
    pub alive: usize,
    /// Members that are down but have not left.
    pub down: usize,
    /// The log of some member that is up is not followed.
    pub behind: bool,
}

/// Whether this host knows the sessions of the whole POP.
///
/// Once it does, a host that joins or a gap in a log changes nothing: unknown
/// packets of those few are asked about. It no longer does when it reaches under
/// half of the POP or when its loop stood still for long.
pub(super) struct Standing {
    synced: bool,
    has_seeds: bool,
    known: usize,
    grown_at: u64,
    looked_at: u64,
    not_before: u64,
}

impl Standing {
    /// A host that has only just started.
    pub fn new(now: u64, has_seeds: bool) -> Self {
        Self {
            synced: false,
            has_seeds,
            known: 0,
            grown_at: now,
            looked_at: now,
            not_before: now,
        }
    }

    /// What it came to when it last looked.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Looks; says what is new.
    pub fn look(&mut self, now: u64, sight: Sight) -> Option<bool> {
        if now > self.looked_at + STALL {
            self.not_before = now + CATCH_UP;
        }
        self.looked_at = now;
        let known = sight.alive + sight.down;
        if known > self.known {
            self.grown_at = now;
        }
        self.known = known;
        let reaches_half = 2 * (sight.alive + 1) > known;
        let trusted = now >= self.not_before && reaches_half;
        let synced = trusted && (self.synced || self.is_complete(now, sight));
        let changed = synced != self.synced;
        self.synced = synced;
        changed.then_some(synced)
    }

    fn is_complete(&self, now: u64, sight: Sight) -> bool {
        let quiet = match (self.known, self.has_seeds) {
            (0, false) => 0,
            (0, true) => ALONE_AFTER,
            _ => QUIET,
        };
        !sight.behind && now >= self.grown_at + quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sight = Sight {
        alive: 4,
        down: 0,
        behind: false,
    };

    fn synced() -> (Standing, u64) {
        let mut standing = Standing::new(0, true);
        assert_eq!(standing.look(BEAT_INTERVAL, ALL), None);
        let mut now = BEAT_INTERVAL;
        while standing.look(now, ALL).is_none() {
            now += BEAT_INTERVAL;
        }
        assert_eq!(now, BEAT_INTERVAL + 600 * MS);
        (standing, now)
    }

    #[test]
    fn a_host_that_joins_waits_until_it_follows_all() {
        let mut standing = Standing::new(0, true);
        let behind = Sight {
            behind: true,
            ..ALL
        };
        for n in 1..100 {
            assert_eq!(standing.look(n * BEAT_INTERVAL, behind), None);
        }
        assert_eq!(standing.look(100 * BEAT_INTERVAL, ALL), Some(true));
    }

    #[test]
    fn news_of_hosts_defers_it_and_later_joins_and_gaps_do_not_undo_it() {
        let (mut standing, now) = synced();
        let joined = Sight {
            alive: 9,
            down: 0,
            behind: true,
        };
        assert_eq!(standing.look(now + BEAT_INTERVAL, joined), None);
    }

    #[test]
    fn a_host_without_seeds_knows_at_once_and_a_lone_one_after_a_while() {
        let nobody = Sight {
            alive: 0,
            down: 0,
            behind: false,
        };
        assert_eq!(Standing::new(0, false).look(1, nobody), Some(true));
        let mut standing = Standing::new(0, true);
        let mut now = 0;
        while standing.look(now, nobody).is_none() {
            now += BEAT_INTERVAL;
        }
        assert_eq!(now, ALONE_AFTER);
    }

    #[test]
    fn who_reaches_under_half_knows_nothing_until_it_reaches_half_again() {
        let (mut standing, now) = synced();
        let half = Sight {
            alive: 2,
            down: 2,
            behind: false,
        };
        let under = Sight {
            alive: 1,
            down: 3,
            behind: false,
        };
        assert_eq!(standing.look(now, half), None);
        assert_eq!(standing.look(now, under), Some(false));
        let behind = Sight {
            behind: true,
            ..half
        };
        assert_eq!(standing.look(now, behind), None);
        assert_eq!(standing.look(now, half), Some(true));
    }

    #[test]
    fn a_loop_that_stood_still_listens_first() {
        let (mut standing, now) = synced();
        let woken = now + STALL + 1;
        assert_eq!(standing.look(woken, ALL), Some(false));
        assert_eq!(standing.look(woken + CATCH_UP - 1, ALL), None);
        assert_eq!(standing.look(woken + CATCH_UP, ALL), Some(true));
    }
}
