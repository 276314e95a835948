//! What the kernel side tells the agent through the ring buffer `EVENTS`.

use crate::session::{Session, Tuple};

/// A session of this host was opened or closed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which session.
    pub tuple: Tuple,
    /// What `SESSIONS` holds, or held, of it.
    pub session: Session,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// [`EventKind`] as a number.
    pub kind: u32,
    /// Always zero; makes the padding explicit.
    pub zero: u32,
}

const _: () = assert!(size_of::<Event>() == 96);

/// What happened to a session.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It was established.
    Opened = 1,
    /// Its socket reached `TCP_CLOSE`.
    Closed = 2,
}
