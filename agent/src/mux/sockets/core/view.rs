//! What message sockets show of themselves.

use std::sync::Arc;

use homing_common::host::HostId;

use super::{Core, Counters, Role};
use crate::mux::sockets::{bundle::SocketId, port::Port};

/// How message sockets are.
#[derive(Clone, Debug)]
pub struct Status {
    /// What was read from applications and has no fate yet, in bytes, each message with
    /// 96 more.
    pub held_bytes: usize,
    /// What waits for applications to read it, beside what the kernel holds.
    pub unread_bytes: usize,
    /// Requests to connect that have no answer yet.
    pub connecting: usize,
    /// Message sockets of other hosts whose repeatable messages are remembered.
    pub remembered: usize,
    /// Message sockets that wait for memory.
    pub starved: usize,
    /// What happened.
    pub counters: Counters,
    /// The message sockets.
    pub sockets: Vec<SocketStatus>,
}

/// How a message socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SocketStatus {
    /// Its id.
    pub id: SocketId,
    /// The service that it offers; none if it is connected to one.
    pub offers: Option<Arc<str>>,
    /// The host and the message socket that it is connected to.
    pub connected: Option<(HostId, SocketId)>,
    /// Messages that its application sent.
    pub sent: u64,
    /// Bytes that have no fate yet, each message with 96 more.
    pub held_bytes: usize,
    /// Others that have no room for what it sends.
    pub blocked: usize,
    /// Bytes that wait for its application to read them.
    pub unread_bytes: usize,
    /// Others that wait for room here.
    pub waiting: usize,
    /// It has ended, and what it has left is still under way.
    pub ending: bool,
}

impl<P: Port> Core<P> {
    /// How message sockets are.
    pub fn status(&self) -> Status {
        let sockets = self.sockets.iter().map(|(id, socket)| SocketStatus {
            id,
            offers: match &socket.role {
                Role::Service { name, .. } => Some(name.clone()),
                Role::Client { .. } => None,
            },
            connected: match socket.role {
                Role::Client { host, service } => Some((host, service)),
                Role::Service { .. } => None,
            },
            sent: socket.sent,
            held_bytes: socket.held,
            blocked: socket.blocked.len(),
            unread_bytes: socket.outbox_len,
            waiting: socket.waiting.len(),
            ending: socket.ending.is_some(),
        });
        Status {
            held_bytes: self.held,
            unread_bytes: self.unread,
            connecting: self.connecting.len(),
            remembered: self.once.len(),
            starved: self.starved.len(),
            counters: self.counters,
            sockets: sockets.collect(),
        }
    }
}
