//! What the state machine is told, what it asks for, and what it shows.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use homing_common::host::HostId;

use crate::datapath::{hosts::Change, template::Mac};

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its Ethernet address; none, if it is of another kind.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes from the IP header on.
    pub mtu: u32,
    /// The interface below and the VLAN id, if it is a VLAN device (802.1Q).
    pub vlan: Option<(u32, u16)>,
}

/// What the kernel's routes say of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// By which interface.
    pub ifindex: u32,
    /// By which gateway; none, if the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The route's own MTU.
    pub mtu: Option<u32>,
}

/// Why there is no route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoute {
    /// The kernel has none, or one that forbids.
    Unreachable,
    /// The address is this host's own.
    Local,
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbour {
    /// It has this address, confirmed or once confirmed.
    Known {
        /// The Ethernet address.
        mac: Mac,
        /// Confirmed some time ago, and not looked after since.
        stale: bool,
    },
    /// It is being asked for.
    Pending,
    /// It did not answer.
    Failed,
}

/// A next hop: an address on an interface.
pub type NextHop = (u32, IpAddr);

/// What the machine is told.
///
/// Notifications are hints: they say what to ask for, and only answers are taken
/// as the truth, because the order in which the two arrive is not the one in which
/// the kernel gave them. Of two questions that are equal, the second must be asked
/// after the first is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A host is a member, with this fabric address.
    Member(HostId, IpAddr),
    /// A host is no member any more.
    Gone(HostId),
    /// The answer to [`Action::FindRoute`].
    Route(HostId, IpAddr, Result<Route, NoRoute>),
    /// The answer to [`Action::ReadLinks`]: the interfaces that there are.
    Links(Vec<(u32, Link)>),
    /// The answer to [`Action::FindNeighbour`]; none: there is no entry.
    Neighbour(NextHop, Option<Neighbour>),
    /// Interfaces may have changed.
    LinksChanged,
    /// An entry of the neighbour table may have changed.
    NeighbourChanged(NextHop),
    /// Routes to this prefix may have changed.
    RouteChanged(IpAddr, u8),
    /// Anything may have changed.
    Refresh,
}

/// What the machine asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel for the route to a host's address.
    FindRoute(HostId, IpAddr),
    /// Ask the kernel for an entry of its neighbour table.
    FindNeighbour(NextHop),
    /// Have the kernel resolve a next hop.
    Probe(NextHop),
    /// Have the kernel, which is resolving a next hop, begin with that anew.
    Renew(NextHop),
    /// Read all interfaces.
    ReadLinks,
    /// Write to `HOSTS`.
    Write(HostId, Change),
}

/// The way to a host, for people to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// The host's fabric address.
    pub address: IpAddr,
    /// Where its packets go first: itself, or a gateway.
    pub next_hop: Option<IpAddr>,
    /// The next hop's Ethernet address.
    pub mac: Option<Mac>,
    /// The interface, by its name; a VLAN device by its own.
    pub interface: Option<String>,
    /// The largest outer packet in bytes.
    pub mtu: Option<u16>,
    /// Whether packets can go.
    pub state: State,
}

/// The ways to all members.
pub type Ways = BTreeMap<HostId, Way>;

/// Whether the way to a host is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is.
    Resolved,
    /// The kernel has been asked. A way that was known before is still in use.
    Resolving,
    /// There is no route to its address.
    NoRoute,
    /// Its address is one of this host's own: the configuration of one is wrong.
    OwnAddress,
    /// The interface is down or gone.
    LinkDown,
    /// The interface is not Ethernet, or a VLAN within a VLAN.
    NotEthernet,
    /// The next hop does not answer.
    Unanswered,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolved => "resolved",
            Self::Resolving => "resolving",
            Self::NoRoute => "no route",
            Self::OwnAddress => "own address",
            Self::LinkDown => "link down",
            Self::NotEthernet => "not Ethernet",
            Self::Unanswered => "unanswered",
        })
    }
}
