//! How applications take part in moves: the agent's end of the protocol that
//! `homing-client` speaks.
//!
//! A process that owns the sockets of a movable service connects to a Unix socket and
//! registers. [`Apps`] then has it give up single connections, and take others over. An
//! export ends with [`Apps::committed`] or [`Apps::resume`], an import with
//! [`Apps::adopt`] or [`Apps::drop_import`]; the move's number says which one is meant.
//!
//! What this promises:
//!
//! - A descriptor that [`Apps::export`] returns is one of the connection that was asked
//!   for, and one of [`Apps::import`] a fresh socket: nobody has another connection moved
//!   with the agent's rights.
//! - Nothing is held for an application that has gone: neither descriptors nor states.
//!   Moves that wait for its answer fail with [`Failure::Gone`], the others are listed in
//!   [`Event::Gone`].
//! - An application that connects tells first of all moves that are pending with it
//!   ([`Event::Pending`], with its descriptor), and counts as registered only then. So an
//!   agent that has restarted can settle each of them.
//! - Every wait has a time, every queue a limit ([`Limits`]). What an application is sent
//!   and does not read, or is asked and does not answer, costs it its registration or the
//!   move, and nobody else anything.
//! - States are wiped once they are sent or dropped.
//!
//! What it does not do: it neither reads nor restores connections, and does not know why
//! a move happens. [`core`] is the sans-IO part of it, [`server`] the thin one around it.

pub mod core;
mod descriptor;
mod handle;
pub mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use homing_client::wire::{BLOB_CEILING, MOVES_CEILING};

pub use self::{
    core::{AppId, AppStatus, Closed, Counters, Event, Failure, Left, Peer},
    handle::{Apps, Events, Exported, TurnedAway},
};
pub use crate::unix::AppListener;
pub use homing_client::{
    Blob, Protocol, Reason,
    wire::{Closing, Family, Pending},
};

/// What an operator can do about an application that was turned away.
pub fn remedy(closing: Closing) -> &'static str {
    match closing {
        Closing::Version => "give it a library of this agent's version",
        Closing::NotAService => {
            "name the service in [[services]] on all hosts, or the application's right one"
        }
        Closing::Taken => "stop the other one, which `homing apps` names",
        Closing::TooLarge => "raise apps.state_max on all hosts",
        _ => "look at its log",
    }
}

/// What applications may use of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Applications that are connected.
    pub apps: usize,
    /// Services that are registered, by all of them.
    pub services: usize,
    /// Moves that are pending with one application; at most [`MOVES_CEILING`].
    pub moves: u16,
    /// Bytes of one state; at most [`BLOB_CEILING`].
    pub blob: u32,
    /// Bytes of states that are held for all applications: of exports until they are
    /// committed or resumed, and of what was not sent yet.
    pub blobs: usize,
    /// How long an application may take to register and to tell what is pending.
    pub register_within: Duration,
    /// How long it may take to export a connection.
    pub export_within: Duration,
    /// How long it may take for each step of an import.
    pub import_within: Duration,
    /// How long a message may wait to be read.
    pub read_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            apps: 64,
            services: 1024,
            moves: 256,
            blob: 1 << 20,
            blobs: 64 << 20,
            register_within: Duration::from_secs(5),
            export_within: Duration::from_secs(1),
            import_within: Duration::from_secs(1),
            read_within: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The same, where the protocol's ceilings allow it.
    fn within_ceilings(self) -> Self {
        Self {
            moves: self.moves.min(MOVES_CEILING),
            blob: self.blob.min(BLOB_CEILING),
            ..self
        }
    }
}
