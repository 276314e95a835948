//! What carries the messages: one small trait, and who implements it.

use std::net::IpAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{case::Case, homing, tcp, zmq};

/// What messages are sent with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Transport {
    /// Plain TCP, each message behind its length.
    Tcp,
    /// ZeroMQ, DEALER to ROUTER.
    Zmq,
    /// Homing's message sockets.
    Homing,
}

/// One end of connections that carry messages: whole, once and (if the transport
/// [keeps it](Transport::keeps_order)) in order. What it sends may block until there is room.
pub trait Pipe: Send {
    /// Sends a message. A server's end sends it to where the last one came from.
    fn send(&mut self, message: &[u8]) -> Result<()>;

    /// Sends several, in as few calls into the kernel as it can.
    fn send_batch(&mut self, messages: &[Vec<u8>]) -> Result<()> {
        messages.iter().try_for_each(|message| self.send(message))
    }

    /// Waits for a message, and puts it in place of what was in `message`.
    fn receive(&mut self, message: &mut Vec<u8>) -> Result<()>;
}

/// Where clients connect to.
pub trait Listener {
    /// What is told to the client.
    fn address(&self) -> String;

    /// Waits for all of the client's connections. Pipes may stand for several of them, but
    /// each for as many.
    fn accept(self: Box<Self>) -> Result<Vec<Box<dyn Pipe>>>;
}

impl Transport {
    /// What its figures stand under, by case.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Zmq => "zmq",
            Self::Homing => "homing",
        }
    }

    /// What stands behind the names of figures that targets name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Zmq => "_zmq",
            Self::Homing => "",
        }
    }

    /// For a person to read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "plain TCP",
            Self::Zmq => "ZeroMQ",
            Self::Homing => "Homing",
        }
    }

    /// Over how many connections an application sends small messages beside large ones
    /// that are not to hold them up.
    pub fn lanes(self) -> usize {
        match self {
            Self::Tcp | Self::Zmq => 1,
            Self::Homing => 2,
        }
    }

    /// Whether messages arrive in the order in which they were sent.
    pub fn keeps_order(self) -> bool {
        self != Self::Homing
    }

    /// Listens on an address of this host, for the connections of a case.
    pub fn listen(self, at: IpAddr, case: &Case) -> Result<Box<dyn Listener>> {
        match self {
            Self::Tcp => tcp::listen(at, case.connections),
            Self::Zmq => zmq::listen(at, case),
            Self::Homing => homing::listen(case),
        }
    }

    /// Opens the connections of a case, each with a pipe of its own.
    pub fn connect(self, to: &str, case: &Case) -> Result<Vec<Box<dyn Pipe>>> {
        match self {
            Self::Tcp => tcp::connect(to, case.connections),
            Self::Zmq => zmq::connect(to, case),
            Self::Homing => homing::connect(case),
        }
    }
}
