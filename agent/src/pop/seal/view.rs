//! What comes out of the seal.

use std::net::SocketAddr;

use homing_common::host::HostId;

use super::Channel;
use crate::pop::{Stream, counters::counters};

counters! {
    /// What happened to datagrams at the seal.
    Counters {
        /// Datagrams sealed.
        sealed,
        /// Datagrams accepted.
        accepted,
        /// Datagrams dropped: too short or too long to be a datagram of the POP.
        bad_length,
        /// Datagrams dropped: no datagram of Homing.
        foreign,
        /// Datagrams dropped: of a version that this agent does not speak.
        unknown_version,
        /// Datagrams dropped: sealed with another POP key.
        wrong_key,
        /// Datagrams dropped: the tag is wrong, so it was changed or forged.
        forged,
        /// Datagrams dropped: authentic, but its header makes no sense.
        malformed,
        /// Datagrams dropped: for another host.
        wrong_destination,
        /// Datagrams dropped: this host's own multicast, heard back.
        own,
        /// Datagrams dropped: sealed by this agent, and sent back by another machine.
        own_returned,
        /// Datagrams dropped: another machine uses this host's id.
        own_id_elsewhere,
        /// Datagrams dropped: no window is open for its origin's present life and address.
        no_window,
        /// Datagrams dropped: its sequence number was used before.
        replayed,
        /// Datagrams dropped: its sequence number is too far behind to tell.
        too_old,
        /// Datagrams dropped: an answer or refusal to nothing that this host asked.
        unasked,
        /// Replies not sent because of their rate limit.
        rate_limited,
        /// Challenges sent.
        challenges_sent,
        /// Answers sent.
        answers_sent,
        /// Windows opened by an answer.
        windows_opened,
        /// Answers refused: the origin's life is older than a known one.
        stale_refused,
        /// Answers refused: the host id is in use at another address.
        contested_refused,
        /// Refusals heard: a member knows a later life of this host.
        told_stale,
        /// Refusals heard: a member hears this host's id at another address.
        told_in_use,
    }
}

/// Whom a datagram is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// One host.
    Host(HostId),
    /// Every host of the domain.
    Domain,
}

/// What a datagram turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A fresh message.
    Message {
        /// Who made it.
        origin: HostId,
        /// In which life.
        stream: Stream,
        /// For which protocol.
        channel: Channel,
        /// Whether it was multicast.
        multicast: bool,
        /// Its body.
        body: &'a [u8],
    },
    /// Something must be sent back to where the datagram came from.
    Reply {
        /// The host it goes to.
        peer: HostId,
        /// Whether this answers a challenge: the peer can hear us from now on.
        answer: bool,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// The windows of this host are open from now on.
    Opened(HostId),
    /// A later life of this very host is known in the POP: begin one whose
    /// incarnation is above this.
    Outdated {
        /// The incarnation that is known.
        above: u64,
        /// Who said so.
        by: HostId,
    },
    /// The POP hears this host's id at another address; this host is refused.
    InUse {
        /// Who said so.
        by: HostId,
    },
    /// Two machines use one host id. The one heard first keeps it.
    Contested {
        /// The id.
        host: HostId,
        /// Where the machine that keeps it is.
        holder: SocketAddr,
        /// The refusal for the other one.
        bytes: Vec<u8>,
    },
    /// Another machine uses this host's own id.
    OwnIdElsewhere,
}

/// A datagram was dropped; why is counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped;
