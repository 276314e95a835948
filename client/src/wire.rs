//! Messages between an application and its agent, byte by byte. `docs/migration.md` has
//! the same as tables.
//!
//! Each message is one datagram. What does not decode is no message: there is nothing
//! that is skipped, and every bit that has no meaning is zero.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

mod read;
#[cfg(test)]
mod tests;
mod write;

use crate::reasons::reasons;
use read::Reader;

/// The version of this protocol.
pub const VERSION: u8 = 1;
/// The length of a header.
pub const HEADER_LEN: usize = 16;
/// The longest message, header included.
pub const MESSAGE_MAX: usize = 32 * 1024;
/// The longest part of a state.
pub const PART_MAX: usize = MESSAGE_MAX - HEADER_LEN - 8;
/// No agent takes a longer state.
pub const BLOB_CEILING: u32 = 16 * 1024 * 1024;
/// No agent lets an application have more moves pending.
pub const MOVES_CEILING: u16 = 1024;
/// Services in one registration.
pub const SERVICES_MAX: usize = 256;
/// The longest name of a [`Protocol`].
pub const NAME_MAX: usize = 64;
/// The longest text of a refusal.
pub const TEXT_MAX: usize = 255;
/// IP protocol number of TCP, the only one that can be moved.
pub const TCP: u8 = 6;

/// What an application speaks with its clients, and the form of its states: those of one
/// name and version can be exchanged.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Protocol {
    /// A name: 1 to 64 bytes.
    pub name: String,
    /// The version of the form of states.
    pub version: u32,
}

impl Protocol {
    /// The protocol with this name and version.
    pub fn new(name: impl Into<String>, version: u32) -> Self {
        Self {
            name: name.into(),
            version,
        }
    }

    /// Whether the name can be sent.
    pub fn is_valid(&self) -> bool {
        (1..=NAME_MAX).contains(&self.name.len()) && !self.name.chars().any(char::is_control)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}

/// A TCP connection as its service sees it. Addresses that are IPv4-mapped count as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Connection {
    /// The client.
    pub client: SocketAddr,
    /// The service: this end of it.
    pub service: SocketAddr,
}

impl Connection {
    /// The connection between two endpoints.
    pub fn new(client: SocketAddr, service: SocketAddr) -> Self {
        Self {
            client: canonical(client),
            service: canonical(service),
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.client, self.service)
    }
}

/// An endpoint in the form that the protocol knows it in.
pub(crate) fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

/// The family of a socket. One of IPv6 may hold a connection over IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family of a socket that can hold a connection with this address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

reasons! {
    /// Why an application does not do what its agent asks for.
    Reason {
        /// It has no such connection.
        Unknown = 1 "the application has no such connection",
        /// The connection takes part in something that must end first.
        Busy = 2 "the connection is busy",
        /// No boundary was reached in time.
        NoBoundary = 3 "no boundary was reached in time",
        /// The application has no room for it.
        NoRoom = 4 "the application has no room for it",
        /// The state is longer than the agent takes.
        TooLarge = 5 "the state is longer than the agent takes",
        /// The agent itself no longer wants it.
        Cancelled = 6 "it was cancelled",
        /// Something else; the text says what.
        Failed = 7 "the application failed",
    }
}

reasons! {
    /// Why an agent closes the connection to an application.
    Closing {
        /// It does not speak the version of the protocol.
        Version = 1 "another version of the protocol",
        /// What came is no message.
        Malformed = 2 "not a message",
        /// The message was not the one to send.
        Unexpected = 3 "not the message to send now",
        /// The agent has no such service, or it is none of TCP.
        NotAService = 4 "no TCP service of this host",
        /// Another application has registered the service.
        Taken = 5 "another application has the service",
        /// There are too many applications, services or moves.
        TooMany = 6 "too many",
        /// A state is longer than the agent said that it takes.
        TooLarge = 7 "the state is too long",
        /// The application did not register, or did not read, in time.
        Slow = 8 "too slow",
        /// The agent stops.
        Stopping = 9 "the agent stops",
    }
}

/// What a move that is pending is to the application that tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pending {
    /// It has exported the connection, and was told neither committed nor resume.
    Export,
    /// It has given a socket, but has no state, or has not said that it can go on from it.
    Import,
    /// It has given a socket, and has said that it can go on from the state.
    Kept,
}

/// A message, its header included.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are those of docs/migration.md")]
pub enum Message<'a> {
    /// Application: who it is and what it serves.
    Register {
        protocol: Protocol,
        services: Vec<SocketAddr>,
    },
    /// Application: a move that was pending when the agent before this one ended. With a
    /// descriptor.
    Pending {
        number: u64,
        pending: Pending,
        connection: Connection,
    },
    /// Application: these were all that are pending.
    Ready,
    /// Application: the answer to [`Message::Export`], after the state. With a descriptor.
    Exported { number: u64 },
    /// Application: the answer to [`Message::Import`]. With a descriptor.
    Imported { number: u64 },
    /// Application: it can go on from the state that came.
    Kept { number: u64 },
    /// Application: it serves the connection.
    Adopted { number: u64 },
    /// Application: the answer to any request, if it is no.
    Refuse {
        number: u64,
        reason: Reason,
        text: &'a str,
    },
    /// Either: a part of a state.
    State {
        number: u64,
        total: u32,
        offset: u32,
        part: &'a [u8],
    },
    /// Agent: registered, and its limits.
    Registered { blob_max: u32, moves_max: u16 },
    /// Agent: the last message before it closes the connection.
    Closing { closing: Closing, text: &'a str },
    /// Agent: export a connection.
    Export {
        number: u64,
        within_ms: u32,
        connection: Connection,
    },
    /// Agent: the exported connection lives elsewhere.
    Committed { number: u64 },
    /// Agent: go on with the connection. `state`: it has come before this message.
    Resume { number: u64, state: bool },
    /// Agent: make a socket for a connection.
    Import {
        number: u64,
        within_ms: u32,
        family: Family,
        connection: Connection,
    },
    /// Agent: the socket is connected; serve it.
    Adopt { number: u64 },
    /// Agent: close the socket; the connection does not come.
    Drop { number: u64 },
}

/// Why a datagram is no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    /// It is of another version.
    #[error("version {0}, not {VERSION}")]
    Version(u8),
    /// It contradicts itself or the protocol; here is what does.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Kinds of messages, as numbers.
mod kind {
    pub const REGISTER: u8 = 1;
    pub const PENDING: u8 = 2;
    pub const READY: u8 = 3;
    pub const EXPORTED: u8 = 4;
    pub const IMPORTED: u8 = 5;
    pub const KEPT: u8 = 6;
    pub const ADOPTED: u8 = 7;
    pub const REFUSE: u8 = 8;
    pub const STATE: u8 = 16;
    pub const REGISTERED: u8 = 32;
    pub const CLOSING: u8 = 33;
    pub const EXPORT: u8 = 34;
    pub const COMMITTED: u8 = 35;
    pub const RESUME: u8 = 36;
    pub const IMPORT: u8 = 37;
    pub const ADOPT: u8 = 38;
    pub const DROP: u8 = 39;
}

impl<'a> Message<'a> {
    /// The message as a datagram.
    pub fn encode(&self) -> Vec<u8> {
        write::encode(self)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// It is no message of this version.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Wrong> {
        Reader::message(datagram)
    }

    /// Whether a descriptor comes with it: then it must, and with no other.
    pub fn has_descriptor(&self) -> bool {
        matches!(
            self,
            Self::Pending { .. } | Self::Exported { .. } | Self::Imported { .. }
        )
    }
}

/// As much of a text as a message can hold.
pub(crate) fn cut_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}
