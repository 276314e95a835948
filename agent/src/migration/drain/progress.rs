//! How a drain is going.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{End, Options, Why};
use crate::{gossip::Latency, pop::SECOND};

/// How a drain is going.
#[derive(Clone, Debug)]
pub struct Progress {
    /// How it ended; none while it goes on.
    pub end: Option<End>,
    /// What is in force.
    pub options: Options,
    /// What came of sessions that are no longer here, and of moves.
    pub counts: Counts,
    /// Sessions whose move is to be begun.
    pub queued: u64,
    /// Sessions whose move is under way.
    pub moving: u64,
    /// Sessions that do not move as it stands, by why. When it has ended: that are left.
    pub left: BTreeMap<Why, u64>,
    /// Sessions on their way here that were agreed to before.
    pub arriving: u64,
    /// Connections that are closed and that the kernel still answers for.
    pub time_wait: u64,
    /// Sessions moved in a second, of late.
    pub per_s: f64,
    /// How long the rest takes at that.
    pub rest: Option<Duration>,
    /// How long it has taken.
    pub elapsed: Duration,
    /// Until the deadline.
    pub remaining: Option<Duration>,
}

impl Progress {
    /// Sessions that are here: those that are to move, and those that do not.
    pub fn here(&self) -> u64 {
        self.queued + self.moving + self.left.values().sum::<u64>()
    }
}

/// What has happened. Every session that was seen is in exactly one of `moved`, `ended`,
/// `gone` and `lost`, or still here.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    /// Sessions that were seen here.
    pub seen: u64,
    /// Sessions that go on elsewhere.
    pub moved: u64,
    /// Sessions that came to their end here.
    pub ended: u64,
    /// Sessions that were gone, or whose application was, in the middle of their move; by
    /// why that was given up.
    pub gone: BTreeMap<Why, u64>,
    /// Sessions that were released and that no host is known to have, by why.
    pub lost: BTreeMap<Why, u64>,
    /// Moves that failed, by why; most are tried again.
    pub failed: BTreeMap<Why, u64>,
    /// How long the sessions that moved were frozen.
    pub frozen: Latency,
}

impl Counts {
    pub(super) fn gone(&mut self, why: Why) {
        *self.gone.entry(why).or_default() += 1;
    }

    pub(super) fn lost(&mut self, why: Why) {
        *self.lost.entry(why).or_default() += 1;
    }

    pub(super) fn failed(&mut self, why: Why) {
        *self.failed.entry(why).or_default() += 1;
    }
}

/// Seconds that the rate is the mean of.
const SPAN: u64 = 5;

/// How many there were of late.
#[derive(Default)]
pub(super) struct Meter {
    /// By second, the latest last.
    seconds: VecDeque<(u64, u64)>,
}

impl Meter {
    pub fn count(&mut self, now: u64) {
        let second = now / SECOND;
        match self.seconds.back_mut() {
            Some((last, count)) if *last == second => *count += 1,
            _ => self.seconds.push_back((second, 1)),
        }
        while self.seconds.len() > SPAN as usize {
            self.seconds.pop_front();
        }
    }

    /// In a second.
    pub fn per_s(&self, now: u64) -> f64 {
        let first = (now / SECOND).saturating_sub(SPAN - 1);
        let recent = self.seconds.iter().filter(|(second, _)| *second >= first);
        let count: u64 = recent.map(|(_, count)| count).sum();
        let span = (now - first * SECOND).max(SECOND / 10);
        count as f64 / (span as f64 / SECOND as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        assert_eq!(meter.per_s(0), 0.0);
        for at in 0..100 {
            meter.count(at * 10_000);
        }
        assert!((meter.per_s(SECOND) - 100.0).abs() < 1.0);
        assert!((meter.per_s(2 * SECOND) - 50.0).abs() < 1.0);
        assert_eq!(meter.per_s(20 * SECOND), 0.0);
        for second in 20..40 {
            meter.count(second * SECOND);
        }
        assert!((meter.per_s(40 * SECOND) - 1.0).abs() < 0.2);
        assert!(meter.seconds.len() <= SPAN as usize);
    }
}
