//! How fast moves are begun.

use std::num::NonZeroU32;

/// Nanoseconds ahead of its pace that a move may begin: timers are that coarse.
const AHEAD_NS: u64 = 10_000_000;

/// Lets so many begin in a second, evenly: in any time t at most `rate` × (t + 10 ms) + 1.
pub(super) struct Pace {
    every_ns: u64,
    /// When the next would begin if all kept their distance.
    next_ns: u64,
}

impl Pace {
    pub fn new(rate: Option<NonZeroU32>) -> Self {
        let every_ns = rate.map_or(0, |rate| 1_000_000_000 / u64::from(rate.get()));
        Self {
            every_ns,
            next_ns: 0,
        }
    }

    /// From when on one more may begin, in microseconds.
    pub fn next_time(&self) -> u64 {
        if self.every_ns == 0 {
            return 0;
        }
        self.next_ns.saturating_sub(AHEAD_NS).div_ceil(1_000)
    }

    /// One begins.
    pub fn begin(&mut self, now: u64) {
        self.next_ns = self.next_ns.max(now * 1_000) + self.every_ns;
    }
}
