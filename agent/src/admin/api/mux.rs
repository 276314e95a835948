//! Message sockets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CarrierPeer;

/// `GET /mux`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mux {
    /// Where applications ask for message sockets.
    pub socket: PathBuf,
    /// The group whose members may, by name or number.
    pub group: String,
    /// Whether this host has messages encrypted that go to others.
    pub encryption: bool,
    /// The longest message, in bytes.
    pub message_max_bytes: u64,
    /// All of them in short.
    pub sum: MuxSum,
    /// The message sockets, services first.
    pub sockets: Vec<MuxSocket>,
    /// The other hosts, by id, and the carriers of messages alone.
    pub peers: Vec<CarrierPeer>,
}

/// A message socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MuxSocket {
    /// Its id: with the host's in the upper 16 bits, as applications see it.
    pub id: u64,
    /// The service that it offers; null if it is connected to one.
    pub offers: Option<String>,
    /// The host to which it is connected; null if it offers a service.
    pub host: Option<u16>,
    /// The message socket to which it is connected; null likewise.
    pub peer: Option<u64>,
    /// Messages that its application sent.
    pub sent: u64,
    /// Bytes of them that have no fate yet, each message with 96 more.
    pub held_bytes: u64,
    /// Others that have no room for what it sends.
    pub blocked: u64,
    /// Bytes that wait for its application to read them, beside what the kernel holds.
    pub unread_bytes: u64,
    /// Others that wait for room here.
    pub waiting: u64,
    /// It has ended, and what it sent is still under way.
    pub ending: bool,
}

/// All message sockets in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MuxSum {
    /// Those that offer a service.
    pub services: u64,
    /// Those that are connected to one.
    pub connected: u64,
    /// Requests to be connected that have no answer yet.
    pub connecting: u64,
    /// Message sockets that wait because others have no room for what they send.
    pub blocked: u64,
    /// Message sockets that wait for memory.
    pub starved: u64,
    /// Bytes of messages that have no fate yet, each message with 96 more.
    pub held_bytes: u64,
    /// Bytes that wait for applications to read them, beside what the kernel holds.
    pub unread_bytes: u64,
    /// Message sockets of other hosts whose repeatable messages are remembered.
    pub remembered: u64,
}
