//! What comes out of a node: datagrams, and notes of what has happened.

use std::net::SocketAddr;

use homing_common::host::HostId;

use super::machine;
use crate::pop::{liveness, membership::Change};

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To one address.
    Address(SocketAddr),
    /// To the domain's multicast group.
    Multicast,
}

/// A datagram to send.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to.
    pub to: Destination,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Something an operator may want to read, or that the driver must act on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Note {
    /// A member's state changed.
    Member(Change),
    /// From gossip.
    Gossip(machine::Note),
    /// From liveness.
    Liveness(liveness::Event),
    /// A member knows a later life of this host: one whose incarnation is above
    /// this must begin, by [`Node::restart`](super::node::Node::restart).
    Outdated {
        /// The incarnation to begin above.
        above: u64,
        /// Who knows it.
        by: HostId,
    },
    /// A member hears this host's id at another address, and refuses this host.
    InUse {
        /// Who refuses.
        by: HostId,
    },
    /// Two machines use one host id.
    Contested {
        /// The id.
        host: HostId,
        /// Where the machine is that keeps it.
        holder: SocketAddr,
        /// Where the other one is.
        other: SocketAddr,
    },
    /// A datagram was sealed with another POP's key, or forged.
    Stranger {
        /// Where it came from.
        from: SocketAddr,
    },
    /// Another machine uses this host's own id.
    OwnIdElsewhere {
        /// Where it is.
        at: SocketAddr,
    },
}
