//! What carriers are to those who have their messages ready at the very moment at which
//! one can be sent, and take in at once what arrives.
//!
//! A channel's messages are either pushed ([`super::Carriers::send`]) and come out of an
//! [`super::Inbox`], or they are an exchange's: it says which **source** has something to
//! send to which host ([`super::Carriers::ready`]), and whichever carrier has room pulls
//! it. So nothing waits in two places, what waits can still grow into one message, and
//! sources take turns.

use bytes::Bytes;
use homing_common::host::HostId;
use tokio::runtime::Handle;

use super::{frame::Hint, view::Fate};
use crate::pop::Stream;

/// What a source has: messages that are sent unasked, or one that has to be offered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Size {
    /// At most [`super::SHORT_MAX`] bytes.
    Short,
    /// More.
    Long,
}

/// A message that was pulled from a source.
#[derive(Debug)]
pub struct Pulled {
    /// The message.
    pub body: Bytes,
    /// For whom it is, if it is long.
    pub hint: Hint,
    /// The source has more of that size.
    pub more: bool,
}

/// What became of a message that was pulled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As with every message. [`Fate::Delivered`] means that the other exchange has seen
    /// it; its note says what it did not take.
    Fate(Fate, Option<Bytes>),
    /// The other exchange has no room for it: no byte of it was sent.
    Declined,
}

/// What an exchange says of a message that has come.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Answer {
    /// The note: what was not taken of it.
    pub note: Vec<u8>,
    /// Who sent it waits to hear that it has come.
    pub is_awaited: bool,
}

/// Who has messages ready, and takes them. Its methods are called by the carriers' tasks:
/// they must not wait.
pub trait Exchange: Send + Sync + 'static {
    /// Where its carriers have their tasks; none: where carriers were opened.
    fn runtime(&self) -> Option<&Handle> {
        None
    }

    /// The next message of a source; none if it has none of that size any more.
    fn pull(&self, host: HostId, source: u64, size: Size) -> Option<Pulled>;

    /// A message that was pulled has met its end.
    fn ended(&self, host: HostId, source: u64, body: Bytes, outcome: Outcome);

    /// Whether a message may come that has to be offered. If so it is told
    /// [`Exchange::receive`] or [`Exchange::withdrawn`].
    fn offered(&self, host: HostId, hint: &Hint, len: usize) -> bool;

    /// A message that might have come does not: its carrier has ended.
    fn withdrawn(&self, hint: &Hint, len: usize);

    /// A message has come.
    fn receive(&self, host: HostId, stream: Stream, body: Bytes) -> Answer;

    /// A host has begun another life, or is no member any more.
    fn left(&self, host: HostId);
}
