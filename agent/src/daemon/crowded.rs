//! Tables in which the oldest entries make room: whether entries go before their time.
//!
//! The kernel side counts that. What an operator wants to know is whether it goes on,
//! so the counters are looked at every few seconds, and a rise is remembered for a
//! minute.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use homing_common::{limit::Room, outcome::Hook};
use tokio::time::{MissedTickBehavior, interval};

use crate::datapath::stats::Stats;

/// Between two looks at the counters.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// So long a rise is news.
const NEWS_FOR: Duration = Duration::from_secs(60);

/// The counter of each table.
const COUNTERS: [(Room, Hook); 3] = [
    (Room::Closed, Hook::ClosedEvicted),
    (Room::Fragments, Hook::FragmentsEvicted),
    (Room::Flows, Hook::FlowsEvicted),
];

/// Which tables had too little room lately.
#[derive(Clone, Default)]
pub(super) struct Crowded(Arc<Mutex<BTreeMap<u8, Rise>>>);

impl Crowded {
    /// The tables from which entries went before their time within the last minute.
    pub fn lately(&self) -> Vec<Room> {
        let now = Instant::now();
        let rises = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rooms = COUNTERS.iter().map(|(room, _)| *room);
        rooms
            .filter(|room| {
                let rise = rises.get(&(*room as u8));
                rise.is_some_and(|rise| rise.is_news(now))
            })
            .collect()
    }

    /// Looks at the counters for as long as the agent runs.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub async fn follow(self, stats: Arc<Stats>) -> io::Result<()> {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for (room, hook) in COUNTERS {
                let count = stats.hook(hook)?;
                let mut rises = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let rise = rises.entry(room as u8).or_insert(Rise::new(count));
                rise.look(count, Instant::now());
            }
        }
    }
}

/// A counter, and when it was last seen to have grown.
struct Rise {
    count: u64,
    at: Option<Instant>,
}

impl Rise {
    /// What was counted before is no news.
    const fn new(count: u64) -> Self {
        Self { count, at: None }
    }

    fn look(&mut self, count: u64, now: Instant) {
        if count > self.count {
            self.at = Some(now);
        }
        // A new map counts from zero.
        self.count = count;
    }

    fn is_news(&self, now: Instant) -> bool {
        let since = self.at.map(|at| now.saturating_duration_since(at));
        since.is_some_and(|since| since < NEWS_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_is_news_for_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rise = Rise::new(7);
        rise.look(7, at(1));
        assert!(!rise.is_news(at(1)));
        rise.look(9, at(5));
        rise.look(9, at(10));
        assert!(rise.is_news(at(64)) && !rise.is_news(at(65)));
        rise.look(0, at(70));
        assert!(!rise.is_news(at(70)));
        rise.look(1, at(75));
        assert!(rise.is_news(at(75)));
    }
}
