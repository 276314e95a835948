//! What bounds message sockets.

use std::time::Duration;

/// What bounds the message sockets of a host. A message counts with its header and 64
/// bytes more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Message sockets; beyond, requests are refused.
    pub sockets: usize,
    /// The longest message, in bytes; beyond, it is not sent.
    pub message_max: usize,
    /// What was read from one message socket and has no fate yet; beyond, nothing is read
    /// from it.
    pub held_per_socket: usize,
    /// Of that, what waits for one message socket that does not read while the sender has
    /// others to send to; beyond, it is not sent.
    pub held_per_peer: usize,
    /// What was read from all message sockets and has no fate yet; beyond, nothing is
    /// read.
    pub held_total: usize,
    /// What has arrived for one message socket and waits for its reader, beside what the
    /// kernel holds; beyond, it waits where it comes from. A long message may exceed it.
    pub unread_per_socket: usize,
    /// What has arrived for all and waits for readers; beyond, it waits where it comes
    /// from.
    pub unread_total: usize,
    /// Requests to connect that have no answer yet; beyond, they are refused.
    pub connecting: usize,
    /// Who waits for room is let go on after so long in any case.
    pub probe_every: Duration,
    /// What a closed message socket has left to send is given up after so long.
    pub linger: Duration,
    /// Hosts are asked anew for a service so often, until one offers it.
    pub ask_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sockets: 16_384,
            message_max: 1 << 20,
            held_per_socket: 512 << 10,
            held_per_peer: 256 << 10,
            held_total: 256 << 20,
            unread_per_socket: 256 << 10,
            unread_total: 256 << 20,
            connecting: 1024,
            probe_every: Duration::from_secs(1),
            linger: Duration::from_secs(60),
            ask_every: Duration::from_millis(500),
        }
    }
}
