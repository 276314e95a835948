//! What is remembered of sessions for a while: bounded in time and in number, the
//! oldest forgotten first.

use std::collections::VecDeque;

use homing_common::session::SessionId;

use crate::gossip::claims::IdMap;

/// What happened to sessions lately.
pub(super) struct Recent<V> {
    lifetime: u64,
    limit: usize,
    entries: IdMap<(u64, V)>,
    /// In the order of their times. What `entries` has under another time, or no
    /// longer has, is void.
    order: VecDeque<(u64, SessionId)>,
}

impl<V: Copy> Recent<V> {
    pub(super) fn new(lifetime: u64, limit: usize) -> Self {
        Self {
            lifetime,
            limit,
            entries: IdMap::default(),
            order: VecDeque::new(),
        }
    }

    /// Remembers something of a session, in the place of what was remembered.
    pub(super) fn insert(&mut self, now: u64, id: SessionId, value: V) {
        self.entries.insert(id, (now, value));
        self.order.push_back((now, id));
        while let Some(&(at, id)) = self.order.front()
            && (now - at.min(now) > self.lifetime || self.order.len() > self.limit)
        {
            self.order.pop_front();
            if self.entries.get(&id).is_some_and(|entry| entry.0 == at) {
                self.entries.remove(&id);
            }
        }
    }

    pub(super) fn get(&self, now: u64, id: SessionId) -> Option<V> {
        let &(at, value) = self.entries.get(&id)?;
        (now.saturating_sub(at) <= self.lifetime).then_some(value)
    }

    pub(super) fn remove(&mut self, id: SessionId) -> bool {
        self.entries.remove(&id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SessionId = SessionId(1);

    #[test]
    fn a_session_is_forgotten_after_its_time_since_the_last_change() {
        let mut recent = Recent::new(10, 100);
        recent.insert(0, ONE, 'a');
        recent.insert(8, ONE, 'b');
        assert_eq!(recent.get(18, ONE), Some('b'));
        assert_eq!(recent.get(19, ONE), None);
        recent.insert(15, SessionId(2), 'c');
        assert_eq!(recent.get(15, ONE), Some('b'), "its first entry is void");
        recent.insert(30, SessionId(3), 'd');
        assert_eq!(recent.entries.len(), 1);
        assert!(!recent.remove(ONE));
        assert!(recent.remove(SessionId(3)));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut recent = Recent::new(1_000, 3);
        for n in 0..1_000 {
            recent.insert(n, SessionId(n), n);
            recent.insert(n, ONE, n);
        }
        assert_eq!(recent.order.len(), 3);
        assert_eq!(recent.get(1_000, SessionId(999)), Some(999));
        assert_eq!(recent.get(1_000, SessionId(990)), None);
    }
}
