//! The states of a connection that can be carried, and where it stands in both
//! directions.

/// A state in which a connection has a descriptor and can be carried. The numbers are
/// the kernel's (`include/net/tcp_states.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Open both ways.
    Established = 1,
    /// This side has shut down writing; the peer has not acknowledged that yet.
    FinWait1 = 4,
    /// This side has shut down writing, and the peer has acknowledged that.
    FinWait2 = 5,
    /// The peer has shut down writing.
    CloseWait = 8,
}

impl State {
    pub(super) const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            8 => Self::CloseWait,
            _ => return None,
        })
    }

    /// What the kernel calls a state that cannot be carried.
    pub(super) const fn name(number: u8) -> &'static str {
        match number {
            2 => "SYN_SENT",
            3 | 12 => "SYN_RECV",
            6 => "TIME_WAIT",
            7 => "CLOSED",
            9 => "LAST_ACK",
            10 => "LISTEN",
            11 => "CLOSING",
            _ => "a state that is not known",
        }
    }

    /// Whether this side has shut down writing.
    pub(super) const fn has_sent_fin(self) -> bool {
        matches!(self, Self::FinWait1 | Self::FinWait2)
    }
}

/// Where a connection stands. Two that are equal: nothing has arrived, been read,
/// written or acknowledged in between. (The kernel may have sent what was written, even in
/// repair mode; as long as that does not leave the host, it changes nothing.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Its state.
    pub state: State,
    /// The number after the last that was written; a FIN has one.
    pub written: u32,
    /// How many before that the peer has not acknowledged.
    pub unacknowledged: u32,
    /// The number that is expected next from the peer; its FIN had one.
    pub expected: u32,
    /// Bytes that have been received and not read.
    pub unread: u32,
}
