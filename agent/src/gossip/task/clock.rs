//! The clocks of the task.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::datapath::clock::monotonic_ns;

/// Monotonic time since the start, which was then (nanoseconds of `CLOCK_MONOTONIC`),
/// and the time of day.
#[derive(Clone, Copy)]
pub(super) struct Clock(u64);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(monotonic_ns())
    }

    /// Microseconds since the start.
    pub fn now(self) -> u64 {
        monotonic_ns().saturating_sub(self.0) / 1_000
    }

    /// A moment of `now` in microseconds of `CLOCK_MONOTONIC`.
    pub fn to_monotonic(self, moment: u64) -> u64 {
        self.0 / 1_000 + moment
    }

    /// The reverse; below zero for what was before the start.
    pub fn of_monotonic(self, at: u64) -> i64 {
        at as i64 - (self.0 / 1_000) as i64
    }

    /// `CLOCK_REALTIME` in microseconds.
    pub fn wall(self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_micros() as u64)
    }

    /// A moment of `now` as a time of day.
    pub fn to_wall(self, moment: u64) -> SystemTime {
        let now = self.now();
        if moment <= now {
            SystemTime::now() - Duration::from_micros(now - moment)
        } else {
            SystemTime::now() + Duration::from_micros(moment - now)
        }
    }
}
