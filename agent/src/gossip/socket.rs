//! The sockets of membership and gossip: one for unicast, bound to the fabric
//! address, and one that hears the domain's multicast group.
//!
//! Multicast is sent from the unicast socket too, so that every datagram of a
//! host comes from its fabric address.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::AsFd,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::node::Destination;
use crate::pop::{SECOND, counters::counters};

/// Receive and send buffers: a second of gossip at the designed load, so that a
/// pause of the agent loses nothing. Beyond the machine's limit with CAP_NET_ADMIN.
const BUFFER_BYTES: usize = 4 << 20;

/// How often the interface of the fabric address is looked up. One that went and
/// came back is another interface to the kernel, on which nobody has joined.
const LOOK_INTERVAL: u64 = 2 * SECOND;

/// Multicast stays within the broadcast domain.
const MULTICAST_TTL: u32 = 1;

counters! {
    /// What happened at the sockets.
    Counters {
        /// Datagrams heard.
        datagrams_received,
        /// Bytes of datagrams heard.
        received_bytes,
        /// Datagrams sent.
        datagrams_sent,
        /// Bytes of datagrams sent.
        sent_bytes,
        /// Datagrams not sent because the send buffer was full.
        send_buffer_full,
        /// Datagrams not sent because the system refused.
        send_errors,
        /// Times that receiving failed.
        receive_errors,
        /// Times that the multicast group was joined on another interface than before.
        rejoined,
    }
}

/// Why the sockets could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The fabric address could not be used.
    #[error(
        "cannot listen on pop.address {address} (UDP): {source}; it must be an address of this \
         host, and no other agent may use the port"
    )]
    Unicast {
        /// The fabric address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The multicast group could not be joined.
    #[error(
        "cannot join pop.multicast {group} on the interface that has {address}: {source}; use \
         another group, or leave the key out: then unicast is used within the domain too"
    )]
    Multicast {
        /// The group.
        group: SocketAddr,
        /// The fabric address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Both sockets.
pub(super) struct Sockets {
    unicast: UdpSocket,
    multicast: Option<Group>,
    address: SocketAddr,
    look_at: u64,
    pub counters: Counters,
}

/// The multicast group, joined.
struct Group {
    /// As configured.
    group: SocketAddr,
    /// Hears the group, and nothing else.
    socket: UdpSocket,
    /// The address to send to it.
    to: SocketAddr,
    /// The interface that it was joined on.
    ifindex: u32,
}

impl Sockets {
    /// Opens the sockets. Must be called within a tokio runtime.
    pub fn open(address: SocketAddr, group: Option<SocketAddr>) -> Result<Self, SocketError> {
        let unicast =
            unicast(address).map_err(|source| SocketError::Unicast { address, source })?;
        let unicast = UdpSocket::from_std(unicast.into())
            .map_err(|source| SocketError::Unicast { address, source })?;
        let join = |group| {
            join(&unicast, address, group).map_err(|source| SocketError::Multicast {
                group,
                address,
                source,
            })
        };
        Ok(Self {
            multicast: group.map(join).transpose()?,
            unicast,
            address,
            look_at: 0,
            counters: Counters::default(),
        })
    }

    /// Joins the group anew where its interface is another one than before. To be
    /// called now and then; looks at most every two seconds.
    pub fn tend(&mut self, now: u64) {
        let Some(multicast) = self.multicast.as_mut().filter(|_| now >= self.look_at) else {
            return;
        };
        self.look_at = now + LOOK_INTERVAL;
        // While the address is gone there is nothing to join on; unicast is lost too.
        let ifindex = interface_of(self.address.ip());
        if ifindex.is_ok_and(|ifindex| ifindex != multicast.ifindex)
            && let Ok(joined) = join(&self.unicast, self.address, multicast.group)
        {
            *multicast = joined;
            self.counters.rejoined += 1;
            tracing::warn!(
                group = %multicast.group,
                fix = "nothing, if the interface was made anew on purpose; if it is another one now, name it in host.interfaces",
                "the interface of pop.address is another one than before: joined the group anew"
            );
        }
    }

    /// Waits until there may be something to hear.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.multicast {
            Some(multicast) => tokio::select! {
                result = self.unicast.readable() => result,
                result = multicast.socket.readable() => result,
            },
            None => self.unicast.readable().await,
        }
    }

    /// Hears at most so many datagrams per socket, without waiting. Says whether
    /// there may be more.
    pub fn receive(&mut self, limit: usize, mut each: impl FnMut(SocketAddr, &[u8])) -> bool {
        // One byte more than the largest datagram: what is larger shows as that.
        let mut buffer = [0; crate::pop::DATAGRAM_LEN_MAX + 1];
        let mut more = false;
        let group = self.multicast.as_ref().map(|group| &group.socket);
        for socket in [Some(&self.unicast), group].into_iter().flatten() {
            more |= (0..limit).all(|_| match socket.try_recv_from(&mut buffer) {
                Ok((len, from)) => {
                    self.counters.datagrams_received += 1;
                    self.counters.received_bytes += len as u64;
                    each(from, &buffer[..len]);
                    true
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(_) => {
                    // An ICMP error that a datagram of ours caused, or the like:
                    // membership finds out who is gone.
                    self.counters.receive_errors += 1;
                    true
                }
            });
        }
        more
    }

    /// Sends a datagram, or counts why not: what is lost is repaired.
    pub fn send(&mut self, to: Destination, bytes: &[u8]) {
        let to = match (to, &self.multicast) {
            (Destination::Address(address), _) => address,
            (Destination::Multicast, Some(group)) => group.to,
            (Destination::Multicast, None) => return,
        };
        match self.unicast.try_send_to(bytes, to) {
            Ok(len) => {
                self.counters.datagrams_sent += 1;
                self.counters.sent_bytes += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.send_buffer_full += 1;
            }
            Err(_) => self.counters.send_errors += 1,
        }
    }
}

fn unicast(address: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn join(unicast: &UdpSocket, address: SocketAddr, group: SocketAddr) -> io::Result<Group> {
    let unicast = SockRef::from(unicast);
    let socket = new_socket(group)?;
    socket.set_reuse_address(true)?;
    let ifindex = interface_of(address.ip())?;
    let to = match (address.ip(), group) {
        (IpAddr::V4(ip), SocketAddr::V4(v4)) => {
            // Bound to the group, the socket hears nothing else; and of that only
            // what comes by the interface it joined on.
            socket.bind(&group.into())?;
            socket.set_multicast_all_v4(false)?;
            let interface = InterfaceIndexOrAddress::Index(ifindex);
            socket.join_multicast_v4_n(v4.ip(), &interface)?;
            unicast.set_multicast_if_v4(&ip)?;
            unicast.set_multicast_ttl_v4(MULTICAST_TTL)?;
            unicast.set_multicast_loop_v4(false)?;
            group
        }
        (IpAddr::V6(_), SocketAddr::V6(v6)) => {
            let scoped: SocketAddr = SocketAddrV6::new(*v6.ip(), v6.port(), 0, ifindex).into();
            socket.bind(&scoped.into())?;
            socket.set_multicast_all_v6(false)?;
            socket.join_multicast_v6(v6.ip(), ifindex)?;
            unicast.set_multicast_if_v6(ifindex)?;
            unicast.set_multicast_hops_v6(MULTICAST_TTL)?;
            unicast.set_multicast_loop_v6(false)?;
            scoped
        }
        _ => {
            return Err(io::Error::other(
                "group and fabric address are of different families",
            ));
        }
    };
    Ok(Group {
        group,
        socket: UdpSocket::from_std(socket.into())?,
        to,
        ifindex,
    })
}

/// The index of the interface that has an address.
fn interface_of(address: IpAddr) -> io::Result<u32> {
    for interface in getifaddrs()? {
        let Some(found) = interface.address else {
            continue;
        };
        let found = match (found.as_sockaddr_in(), found.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if found == address {
            return Ok(if_nametoindex(interface.interface_name.as_str())?);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("no interface has {address}"),
    ))
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Forcing needs CAP_NET_ADMIN; without it the machine's limit applies.
    if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
    }
    if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(BUFFER_BYTES)?;
    }
    Ok(socket)
}
