//! Message sockets: descriptors on which one datagram is one message of an application, to
//! a service on another host of the POP, or on this one.
//!
//! What it promises:
//!
//! - A message arrives whole or not at all, and never mixed with another. There is no
//!   order between messages.
//! - Its fate is told, never guessed: delivered (to whoever asks for that), not sent,
//!   unknown. A message that is marked repeatable is sent again if its fate is unknown,
//!   and received once.
//! - A reply finds the very message socket that asked.
//! - Message sockets take turns. Who reads slowly holds up those who send to it, and
//!   nobody else; all that is held for it is bounded ([`Limits`]).
//! - Who is at the other end of a message socket that has gone is told.
//!
//! [`core`] is the sans-IO machine, [`bundle`] what agents say to each other; [`task`]
//! drives it with descriptors and carriers, [`server`] hands the descriptors out.
//!
//! # The engine
//!
//! All that the rest of the agent knows of how messages travel is [`Sockets`]: it makes a
//! message socket that offers a service, or one that is connected to one, and gives its
//! descriptor. Another engine, such as the kernel's connection multiplexer (`AF_KCM`), would
//! give descriptors of the same meaning from the same three calls.

pub mod bundle;
pub mod core;
mod limits;
mod offers;
mod once;
pub mod port;
pub mod server;
mod table;
mod task;

use homing_client::message::record;

use crate::pop::Stream;

pub use self::{
    core::{Counters, SocketStatus, Status, Wanted},
    limits::Limits,
    task::{Made, Sockets},
};

/// What a message takes of bounds beside its body, in bytes: its header, and what is kept
/// about it.
const COST: usize = record::HEADER_LEN + 64;

/// What is known of another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// Its life.
    pub stream: Stream,
    /// The filter of the services that it offers.
    pub offers: u64,
    /// It drains: another host is chosen where there is one.
    pub draining: bool,
}

/// The longest datagram of an application, in bytes.
fn datagram_max(limits: &Limits) -> usize {
    record::BATCH_MAX.max(limits.message_max + record::HEADER_LEN)
}
