//! Orders of each move, one after the other.

use std::collections::{HashMap, VecDeque};

use homing_common::session::Tuple;

use super::hold::Hold;
use crate::migration::{MoveId, Order};

/// A move's orders, and what is held of its session.
pub(super) struct Lane {
    pub tuple: Tuple,
    /// Away while an order is carried out.
    pub hold: Hold,
    /// An order is being carried out.
    pub busy: bool,
    /// Orders that wait for that.
    pub queue: VecDeque<(u64, Order)>,
    /// The ticket of an order that waits for the application to come back.
    pub awaited: Option<u64>,
    /// The cookie of the socket that was destroyed here.
    pub cookie: u64,
    /// More of the last reason that something could not be done for.
    pub detail: Option<String>,
}

/// The lanes of all moves that are not over.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: HashMap<MoveId, Lane>,
    /// Those of which an order was done with: they may be over.
    idle: Vec<MoveId>,
}

impl Lanes {
    /// The lane of a move; a new one, if there is none.
    pub fn of(&mut self, id: MoveId, tuple: Tuple) -> &mut Lane {
        self.lanes.entry(id).or_insert_with(|| Lane {
            tuple,
            hold: Hold::Nothing,
            busy: false,
            queue: VecDeque::new(),
            awaited: None,
            cookie: 0,
            detail: None,
        })
    }

    /// The lane of a move, if there is one.
    pub fn get(&mut self, id: MoveId) -> Option<&mut Lane> {
        self.lanes.get_mut(&id)
    }

    /// More of the reason that a move had.
    pub fn detail(&self, id: MoveId) -> Option<String> {
        self.lanes.get(&id)?.detail.clone()
    }

    /// An order of a move was carried out, or not.
    pub fn done_with(&mut self, id: MoveId) {
        self.idle.push(id);
    }

    /// Forgets moves that are over, and for which nothing is still to be done. What is
    /// ordered at a move's end must have been given before.
    pub fn close(&mut self, is_over: impl Fn(MoveId) -> bool) {
        for id in self.idle.drain(..) {
            let idle = self.lanes.get(&id);
            let idle = idle.is_some_and(|lane| !lane.busy && lane.queue.is_empty());
            if idle && is_over(id) {
                self.lanes.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use homing_common::host::HostId;

    use super::*;

    #[test]
    fn a_lane_stays_until_what_was_ordered_at_the_end_is_done() {
        let source = HostId::try_from(1_u16).expect("an id");
        let id = MoveId { source, number: 7 };
        let ends: [SocketAddr; 2] = ["198.51.100.7:1", "203.0.113.10:443"].map(|end| {
            let end = end.parse();
            end.expect("an address")
        });
        let tuple = Tuple::between(ends[0], ends[1], 6);
        let mut lanes = Lanes::default();
        let lane = lanes.of(id, tuple);
        (lane.cookie, lane.busy) = (5, true);
        // Its last order but one was done, and the move is over.
        lanes.of(id, tuple).busy = false;
        lanes.done_with(id);
        // The last one is given before anything is closed.
        lanes.of(id, tuple).busy = true;
        lanes.close(|_| true);
        assert_eq!(lanes.of(id, tuple).cookie, 5);
        lanes.of(id, tuple).busy = false;
        lanes.done_with(id);
        lanes.close(|_| false);
        assert!(lanes.get(id).is_some());
        lanes.done_with(id);
        lanes.close(|_| true);
        assert!(lanes.get(id).is_none());
    }
}
