//! Messages to other hosts that are too long for datagrams, and what is known of their
//! way: each arrives whole or not at all, once at most, in no order, and its fate is
//! told. Who carries them is not gossip's business; the task gives them to carriers.

use std::collections::VecDeque;

use bytes::Bytes;
use homing_common::host::HostId;

/// A message to be carried.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Its number: its fate is to be told by it.
    pub number: u64,
    /// To whom.
    pub to: HostId,
    /// Its body.
    pub body: Bytes,
}

/// What waits to be carried. Each message belongs to a pull or to a snapshot that is
/// being given, of which there are few at once.
pub(super) struct Bulks {
    /// The number of the next one.
    next: u64,
    waiting: VecDeque<Bulk>,
}

impl Bulks {
    /// None yet; the first one gets this number.
    pub fn new(first: u64) -> Self {
        Self {
            next: first,
            waiting: VecDeque::new(),
        }
    }

    /// The number that the next message gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Puts a message in, and gives its number.
    pub fn push(&mut self, to: HostId, body: Vec<u8>) -> u64 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        let body = Bytes::from(body);
        self.waiting.push_back(Bulk { number, to, body });
        number
    }

    /// The next message to be carried.
    pub fn pop(&mut self) -> Option<Bulk> {
        self.waiting.pop_front()
    }
}
