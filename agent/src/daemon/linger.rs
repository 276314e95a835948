//! Closed sessions, held back for a moment before the POP is told.
//!
//! The kernel reports a socket as closed while it still answers for its session
//! (FIN_WAIT2, TIME_WAIT): the client's last packets must still find this host.
//! A session that is opened again in that time was never closed, as far as the
//! POP is concerned.
//!
//! Pure: the time goes in.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use homing_common::session::SessionId;
use tokio::time::Instant;

use crate::datapath::local::Ids;

/// At most so many closes are held back; more are told at once, oldest first.
pub(super) const HELD_MAX: usize = 1 << 18;

/// The closes that are held back.
pub(super) struct Linger {
    hold: Duration,
    /// In the order of their deadlines. Entries that are no longer in `held`, or
    /// there under another number, are void.
    queue: VecDeque<(Instant, Ids, u64)>,
    held: HashMap<SessionId, u64>,
    number: u64,
}

impl Linger {
    pub fn new(hold: Duration) -> Self {
        Self {
            hold,
            queue: VecDeque::new(),
            held: HashMap::new(),
            number: 0,
        }
    }

    /// Holds what is closed from now on back for so long. What is held back already is told
    /// first.
    pub fn hold_for(&mut self, hold: Duration) {
        self.hold = hold;
    }

    /// A session was closed.
    pub fn closed(&mut self, now: Instant, ids: Ids) {
        self.number += 1;
        self.held.insert(ids.id, self.number);
        let last = self.queue.back().map_or(now, |(at, _, _)| *at);
        let at = last.max(now + self.hold);
        self.queue.push_back((at, ids, self.number));
    }

    /// A session was opened: an earlier close of it is forgotten.
    pub fn opened(&mut self, id: SessionId) {
        self.held.remove(&id);
    }

    /// A session's close must not be held back. Says whether it was.
    pub fn release(&mut self, id: SessionId) -> bool {
        self.held.remove(&id).is_some()
    }

    /// When [`Linger::due`] has something next.
    pub fn next_time(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _, _)| *at)
    }

    /// A session whose close is due to be told.
    pub fn due(&mut self, now: Instant) -> Option<Ids> {
        while let Some(&(at, ids, number)) = self.queue.front() {
            if at > now && self.queue.len() <= HELD_MAX {
                return None;
            }
            self.queue.pop_front();
            if self.held.get(&ids.id) == Some(&number) {
                self.held.remove(&ids.id);
                return Some(ids);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(2);

    fn ids(id: u64) -> Ids {
        Ids {
            id: SessionId(id),
            other: Some(SessionId(!id)),
        }
    }

    #[test]
    fn a_close_is_told_after_the_hold_and_once() {
        let mut linger = Linger::new(HOLD);
        let start = Instant::now();
        linger.closed(start, ids(1));
        assert_eq!(linger.next_time(), Some(start + HOLD));
        assert_eq!(linger.due(start + HOLD / 2), None);
        assert_eq!(linger.due(start + HOLD), Some(ids(1)));
        assert_eq!(linger.due(start + HOLD), None);
        assert_eq!(linger.next_time(), None);
    }

    #[test]
    fn another_hold_counts_for_later_closes_and_overtakes_none() {
        let mut linger = Linger::new(HOLD);
        let start = Instant::now();
        linger.closed(start, ids(1));
        linger.hold_for(HOLD / 4);
        linger.closed(start, ids(2));
        assert_eq!(linger.due(start + HOLD / 2), None);
        assert_eq!(linger.due(start + HOLD), Some(ids(1)));
        assert_eq!(linger.due(start + HOLD), Some(ids(2)));
        linger.closed(start + HOLD, ids(3));
        assert_eq!(linger.next_time(), Some(start + HOLD + HOLD / 4));
    }

    #[test]
    fn a_session_that_is_opened_again_was_never_closed() {
        let mut linger = Linger::new(HOLD);
        let start = Instant::now();
        linger.closed(start, ids(1));
        linger.opened(SessionId(1));
        linger.closed(start + HOLD / 2, ids(1));
        assert_eq!(linger.due(start + HOLD), None);
        assert_eq!(linger.due(start + HOLD * 3 / 2), Some(ids(1)));
        linger.opened(SessionId(1));
        assert_eq!(linger.due(start + HOLD * 4), None);
    }

    #[test]
    fn what_exceeds_the_limit_is_told_at_once() {
        let mut linger = Linger::new(HOLD);
        let start = Instant::now();
        for id in 0..HELD_MAX as u64 + 2 {
            linger.closed(start, ids(id));
        }
        assert_eq!(linger.due(start), Some(ids(0)));
        assert_eq!(linger.due(start), Some(ids(1)));
        assert_eq!(linger.due(start), None);
    }
}
