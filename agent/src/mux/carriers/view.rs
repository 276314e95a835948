//! What carriers show of themselves, and what senders are told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use homing_common::host::HostId;

use crate::pop::{Stream, counters::counters};

counters! {
    /// What happened to carriers and their messages.
    Counters {
        /// Carriers opened to other hosts.
        opened,
        /// Carriers accepted from other hosts.
        accepted,
        /// Attempts to open a carrier that failed: no connection, refused, or no handshake.
        open_failures,
        /// Carriers refused by other hosts.
        refused_by_peer,
        /// Connections closed because their address is no member's.
        refused_strangers,
        /// Connections closed because too many were within the handshake.
        refused_crowded,
        /// Carriers refused because there were too many of that host, or of all.
        refused_many,
        /// Carriers refused because their key is unknown here.
        refused_key,
        /// Carriers refused because they speak another version or are protected otherwise.
        refused_version,
        /// Carriers refused because they were meant for another host.
        refused_another_host,
        /// Carriers refused because nothing listens to their channel.
        refused_channel,
        /// Carriers refused because a later life of their host is known.
        refused_stale,
        /// Connections that did not begin like a carrier.
        handshake_garbage,
        /// Handshakes that failed: the key was not proven.
        handshake_failures,
        /// Handshakes that took too long.
        handshake_timeouts,
        /// Connections that could not be accepted because the system refused.
        accept_errors,
        /// Carriers closed because they were idle, here or there.
        closed_idle,
        /// Carriers closed because their key is no longer accepted.
        closed_key,
        /// Carriers closed because the other host began a new life, or is no member now.
        closed_life,
        /// Carriers whose connection broke.
        broken,
        /// Carriers closed because nothing was heard on them for too long.
        silent,
        /// Carriers closed because nonsense came.
        garbage,
        /// Messages that arrived at another host.
        messages_delivered,
        /// Bytes of messages that arrived at another host.
        delivered_bytes,
        /// Messages that were certainly not sent.
        messages_not_sent,
        /// Long messages that were offered, and not wanted yet.
        messages_declined,
        /// Messages of which nobody can say whether they arrived.
        messages_unknown,
        /// Messages received.
        messages_received,
        /// Bytes of messages received.
        received_bytes,
        /// Messages refused because they are over the limit.
        too_long,
        /// Messages refused because there was no room, and the sender would not wait.
        full,
        /// Messages that had to wait for room here before they could be received.
        stalls,
    }
}

/// What became of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// This life of the other host's agent has it, whole.
    Delivered(Stream),
    /// No byte of it was sent.
    NotSent(NotSent),
    /// It was at least partly sent, and its carrier ended before it was acknowledged:
    /// for this reason.
    Unknown(Arc<str>),
}

/// Why a message was not sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotSent {
    /// The host is no member of the POP.
    #[error("{0:?} is no member of the POP")]
    NoMember(HostId),
    /// Over the limit of its channel.
    #[error("a message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest that is sent.
        max: usize,
    },
    /// There is no room, and the sender would not wait.
    #[error("too much is on its way to {0:?}")]
    Full(HostId),
    /// No carrier could be opened.
    #[error("no carrier to {host:?}: {why}")]
    Unreachable {
        /// The host.
        host: HostId,
        /// What the last attempt came to.
        why: Arc<str>,
    },
    /// Carriers are being stopped.
    #[error("the agent stops")]
    Stopped,
}

/// How carriers are.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where carriers are accepted.
    pub address: SocketAddr,
    /// The public id of the key that carriers are opened with.
    pub key: u8,
    /// Bytes waiting or under way to other hosts, each message with 256 more.
    pub queued_bytes: usize,
    /// Connections within the handshake.
    pub handshakes: usize,
    /// Carriers that other hosts have to this one.
    pub accepted: usize,
    /// What happened.
    pub counters: Counters,
    /// The other hosts, in order.
    pub peers: Vec<PeerStatus>,
}

/// How the carriers to and from a host are.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The host.
    pub host: HostId,
    /// The latest life of its agent that is known.
    pub stream: Stream,
    /// Carriers that it has to this one.
    pub accepted: usize,
    /// Messages received from it.
    pub messages_received: u64,
    /// Bytes of them.
    pub bytes_received: u64,
    /// Its channels that were ever used from here, in order.
    pub lines: Vec<LineStatus>,
}

/// How the messages to a host on one channel are.
#[derive(Clone, Debug)]
pub struct LineStatus {
    /// The channel's number.
    pub channel: u8,
    /// Carriers that are open.
    pub carriers: usize,
    /// A carrier is being opened.
    pub opening: bool,
    /// Messages that wait for a carrier.
    pub queued: usize,
    /// Sources that have messages and wait for a carrier.
    pub ready: usize,
    /// Bytes waiting or under way, each message with 256 more.
    pub queued_bytes: usize,
    /// Messages that arrived.
    pub messages_delivered: u64,
    /// Bytes of them.
    pub bytes_delivered: u64,
    /// Why the last attempt to open a carrier failed, if it did.
    pub problem: Option<Arc<str>>,
    /// For how long none could be opened while there was none.
    pub failing_for: Option<Duration>,
    /// How long ago the last attempt failed, if it did.
    pub failed_ago: Option<Duration>,
}
