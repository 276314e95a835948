//! Moves that are over: what became of them, so that a message that comes late or
//! again begins nothing and is answered as before.

use std::collections::{HashMap, VecDeque};

use super::{MoveId, limits::REMEMBERED};

/// The last moves that ended, with what became of each.
pub(super) struct Memory<V> {
    of: HashMap<MoveId, V>,
    order: VecDeque<MoveId>,
    limit: usize,
}

impl<V: Copy> Default for Memory<V> {
    fn default() -> Self {
        Self {
            of: HashMap::new(),
            order: VecDeque::new(),
            limit: REMEMBERED,
        }
    }
}

impl<V: Copy> Memory<V> {
    pub fn insert(&mut self, id: MoveId, value: V) {
        if self.of.insert(id, value).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
    }

    pub fn get(&self, id: MoveId) -> Option<V> {
        self.of.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use homing_common::host::HostId;

    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let mut memory = Memory {
            limit: 3,
            ..Memory::default()
        };
        let id = |number| MoveId {
            source: HostId(1),
            number,
        };
        for n in 0..5 {
            memory.insert(id(n), n);
            memory.insert(id(n), n + 10);
        }
        let all: Vec<_> = (0..5).map(|n| memory.get(id(n))).collect();
        assert_eq!(all, [None, None, Some(12), Some(13), Some(14)]);
    }
}
