//! What becomes of packets here.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::SessionName;
use crate::packet::Kind;

/// Packets in one question at most.
pub const EXPLAIN_MAX: usize = 1_000;

/// Body of `POST /explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainOrder {
    /// The interface that the packets come by; null: the first that is configured.
    pub interface: Option<String>,
    /// The packets, in the order in which they come; at most [`EXPLAIN_MAX`].
    pub packets: Vec<ExplainPacket>,
}

/// A packet to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExplainPacket {
    /// From the Ethernet header on, in hexadecimal digits.
    Frame(String),
    /// One to be made.
    Made {
        /// The client's address and port.
        client: SocketAddr,
        /// The service's address and port.
        service: SocketAddr,
        /// What it is.
        kind: Kind,
        /// The host that sends it through the tunnel; null: it comes off the wire.
        from: Option<u16>,
    },
}

/// `POST /explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanations {
    /// The interface that the packets come by.
    pub interface: String,
    /// What becomes of each, in the order of the question.
    pub packets: Vec<Explained>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// What it is.
    pub packet: String,
    /// The outcome that it ends in; null if it could not be tried.
    pub outcome: Option<String>,
    /// `pass`, `forward` or `drop`.
    pub verdict: Option<String>,
    /// What the outcome means; or why the packet could not be tried.
    pub means: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
    /// The session that its ends name; null for a packet without ports.
    pub session: Option<SessionName>,
    /// What this host knows that bears on it.
    pub facts: Vec<Fact>,
    /// What it is as it goes, where the program changed it.
    pub goes: Option<String>,
    /// The same in hexadecimal digits.
    pub frame: Option<String>,
}

/// Something that this host knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// About what.
    pub name: String,
    /// What.
    pub text: String,
}
