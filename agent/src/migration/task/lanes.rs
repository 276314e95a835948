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
pub(super) struct Lanes(HashMap<MoveId, Lane>);

impl Lanes {
    /// The lane of a move; a new one, if there is none.
    pub fn of(&mut self, id: MoveId, tuple: Tuple) -> &mut Lane {
        self.0.entry(id).or_insert_with(|| Lane {
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
        self.0.get_mut(&id)
    }

    /// More of the reason that a move had.
    pub fn detail(&self, id: MoveId) -> Option<String> {
        self.0.get(&id)?.detail.clone()
    }

    /// Forgets a move, unless something is still to be done for it.
    pub fn close(&mut self, id: MoveId) {
        let idle = self
            .0
            .get(&id)
            .is_some_and(|lane| !lane.busy && lane.queue.is_empty());
        if idle {
            self.0.remove(&id);
        }
    }
}
