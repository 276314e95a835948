//! Messages that wait to be sent, in order.
//!
//! Both ends of the protocol have one. It has no limit of its own: who fills it is
//! bounded by the moves that may be pending.

use std::collections::VecDeque;

use zeroize::Zeroizing;

use crate::{
    Blob,
    wire::{Message, PART_MAX, Reason},
};

/// A queue of messages, of which some come with a descriptor `D`.
#[derive(Debug)]
pub struct Outbox<D> {
    queue: VecDeque<Entry<D>>,
    state_bytes: usize,
}

#[derive(Debug)]
enum Entry<D> {
    Message(Message<'static>, Option<D>),
    Refusal(u64, Reason, String),
    State {
        number: u64,
        blob: Blob,
        offset: usize,
    },
}

impl<D> Default for Outbox<D> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            state_bytes: 0,
        }
    }
}

impl<D> Outbox<D> {
    /// Adds a message.
    pub fn push(&mut self, message: Message<'static>, descriptor: Option<D>) {
        debug_assert_eq!(message.has_descriptor(), descriptor.is_some());
        self.queue.push_back(Entry::Message(message, descriptor));
    }

    /// Adds a refusal with a text of its own.
    pub fn push_refusal(&mut self, number: u64, reason: Reason, text: String) {
        self.queue.push_back(Entry::Refusal(number, reason, text));
    }

    /// Adds a state, which goes in parts.
    pub fn push_state(&mut self, number: u64, blob: Blob) {
        self.state_bytes += blob.len();
        self.queue.push_back(Entry::State {
            number,
            blob,
            offset: 0,
        });
    }

    /// The next datagram, and its descriptor.
    pub fn pop(&mut self) -> Option<(Zeroizing<Vec<u8>>, Option<D>)> {
        match self.queue.pop_front()? {
            Entry::Message(message, descriptor) => {
                Some((Zeroizing::new(message.encode()), descriptor))
            }
            Entry::Refusal(number, reason, text) => {
                let text = &text;
                let message = Message::Refuse {
                    number,
                    reason,
                    text,
                };
                Some((Zeroizing::new(message.encode()), None))
            }
            Entry::State {
                number,
                blob,
                offset,
            } => {
                let (end, total) = (blob.len().min(offset + PART_MAX), blob.len());
                let message = Message::State {
                    number,
                    total: total as u32,
                    offset: offset as u32,
                    part: &blob[offset..end],
                };
                let datagram = Zeroizing::new(message.encode());
                if end < total {
                    let offset = end;
                    self.queue.push_front(Entry::State {
                        number,
                        blob,
                        offset,
                    });
                } else {
                    self.state_bytes -= total;
                }
                Some((datagram, None))
            }
        }
    }

    /// How many messages wait; a state counts as one.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bytes of states that are held.
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Assembly;

    #[test]
    fn a_state_goes_in_parts_between_its_neighbours() {
        let state: Vec<u8> = (0..2 * PART_MAX + 5).map(|n| n as u8).collect();
        let mut outbox = Outbox::<()>::default();
        outbox.push(Message::Ready, None);
        outbox.push_state(7, state.clone().into());
        outbox.push_state(8, Blob::default());
        outbox.push(Message::Exported { number: 7 }, Some(()));
        assert_eq!(outbox.state_bytes(), state.len());

        let mut next = || outbox.pop().expect("one more");
        assert_eq!(*next().0, Message::Ready.encode());
        let mut assembly = Assembly::new(state.len() as u32);
        for _ in 0..3 {
            let (datagram, _) = next();
            let Ok(Message::State {
                number: 7,
                total,
                offset,
                part,
            }) = Message::decode(&datagram)
            else {
                panic!("no part");
            };
            assembly.push(total, offset, part).expect("the next part");
        }
        assert_eq!(*assembly.finish(), *state);
        let (empty, _) = next();
        assert!(matches!(
            Message::decode(&empty),
            Ok(Message::State {
                number: 8,
                total: 0,
                part: [],
                ..
            })
        ));
        let (exported, descriptor) = next();
        assert_eq!(*exported, Message::Exported { number: 7 }.encode());
        assert!(descriptor.is_some());
        assert!(outbox.pop().is_none());
        assert_eq!(outbox.state_bytes(), 0);
    }
}
