//! Questions about segments of unknown sessions, as the agent puts them to this
//! host's kernel: the data that the program `homing_answer` is run on.

use crate::session::Tuple;

/// A question, and the place of its answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The session.
    pub tuple: Tuple,
    /// The session's id.
    pub id: u64,
    /// The segment's sequence number, big-endian.
    pub seq: [u8; 4],
    /// The segment's acknowledgement number, big-endian.
    pub ack: [u8; 4],
    /// The segment's TCP flags (the low byte).
    pub flags: u8,
    /// [`Found`] as a number: the answer.
    pub found: u8,
    /// Always zero; makes the padding explicit.
    pub zero: [u8; 6],
}

const _: () = assert!(size_of::<Question>() == 64);

/// What this host's kernel has for a segment.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Nothing = 0,
    /// A socket that serves the session.
    Socket = 1,
    /// A listener, and the segment completes a handshake by SYN cookie.
    Cookie = 2,
    /// A socket in TIME_WAIT.
    Closing = 3,
    /// No socket any more: this host closed the session a moment ago.
    Closed = 4,
}

/// Questions in one run of the program: what fits into the one page that the
/// kernel runs a program on, with room for its own use of it.
pub const QUESTIONS_MAX: usize = 48;
