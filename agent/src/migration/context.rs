//! What both sides of a move do with what comes out of them.

use std::collections::VecDeque;

use homing_common::{host::HostId, session::Tuple};

use super::{
    MoveId,
    limits::{Counters, Limits},
    local::Local,
    order::{Order, Output},
    repeat::member_by,
    times::Times,
    wire::{Body, Message, Passed},
};

/// Who a message came from, and by which third host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// The other host of the move.
    pub to: HostId,
    /// Who passes it on.
    pub by: Option<HostId>,
}

impl Way {
    pub fn direct(to: HostId) -> Self {
        Self { to, by: None }
    }
}

/// What came out so far, and what is counted.
pub(super) struct Out {
    pub queue: VecDeque<Output>,
    pub counters: Counters,
    pub times: Times,
    tickets: u64,
}

impl Out {
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            counters: Counters::default(),
            times: Times::default(),
            tickets: 0,
        }
    }
}

/// One input being worked on.
pub(super) struct Context<'a> {
    pub now: u64,
    pub here: HostId,
    pub limits: &'a Limits,
    pub local: &'a dyn Local,
    pub out: &'a mut Out,
}

impl Context<'_> {
    /// Says something to the other host.
    pub fn say(&mut self, way: Way, id: MoveId, body: Body<'_>) {
        let message = Message { id, body }.encode();
        let (to, bytes) = match way.by {
            None => (way.to, message),
            Some(by) => {
                let passed = Passed {
                    origin: self.here,
                    destination: way.to,
                    message: &message,
                };
                (by, passed.encode())
            }
        };
        let bytes = bytes.into();
        self.out.queue.push_back(Output::Send { to, bytes });
    }

    /// Says it again, by the way whose turn it is.
    pub fn say_again(&mut self, to: HostId, turn: Option<usize>, id: MoveId, body: Body<'_>) {
        self.out.counters.repeated += 1;
        let by = turn.and_then(|turn| member_by(&self.local.members(), turn, to));
        self.say(Way { to, by }, id, body);
    }

    /// Gives an order. The ticket that its answer must name comes back.
    pub fn order(&mut self, id: MoveId, tuple: Tuple, order: Order) -> u64 {
        self.out.tickets += 1;
        let ticket = self.out.tickets;
        self.out.queue.push_back(Output::Order {
            id,
            tuple,
            ticket,
            order,
        });
        ticket
    }
}
