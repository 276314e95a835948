//! What cannot be carried, and how that is told before anything is frozen.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use homing_common::{net::TCP, session::Tuple};
use libc::{AF_INET, AF_INET6, IPPROTO_TCP, SOL_SOCKET};
use socket2::SockRef;

use super::{
    Error, QUEUE_MAX, Said as _,
    kernel::{self, IPPROTO_MPTCP, Info, SIOCINQ, SIOCOUTQ},
    socket::Socket,
    state::State,
};
use crate::datapath::sockets;

/// Why a connection cannot be carried to another host.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is none of TCP over IPv4 or IPv6.
    #[error("the descriptor is no TCP socket")]
    NotTcp,
    /// It is one of Multipath TCP, whose other paths have state of their own.
    #[error(
        "the connection is one of Multipath TCP; let the service listen with plain TCP, and its \
         clients fall back to that"
    )]
    Mptcp,
    /// A protocol sits on top of it in the kernel: kTLS, for example.
    #[error(
        "the kernel speaks {0:?} on the connection for the application, and that state cannot be \
         read; let the application speak it itself"
    )]
    Ulp(String),
    /// Its segments are signed with keys that cannot be read.
    #[error("the connection's segments are signed ({0}), and the keys cannot be read")]
    Signed(&'static str),
    /// There is urgent data that the application has not read.
    #[error("urgent data has arrived that the application has not read")]
    Urgent,
    /// It is in a state in which it cannot be carried.
    #[error("the connection is in {0}, and only an open or half-closed one can be carried")]
    State(&'static str),
    /// There is too much data in one of its queues.
    #[error("{bytes} bytes wait to be {what}, and at most {QUEUE_MAX} can be carried")]
    TooMuch {
        /// "sent" or "read".
        what: &'static str,
        /// How many.
        bytes: u32,
    },
    /// One of its addresses means nothing on another host.
    #[error("{0} is a link-local address, which means nothing on another host")]
    LinkLocal(SocketAddr),
    /// A BPF program takes what arrives before the application does.
    #[error("the socket is in a sockmap; let the application take it out first")]
    Sockmap,
}

/// How much data a connection has in its queues, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queued {
    /// Written, and not acknowledged by the peer.
    pub to_send: u32,
    /// Received, and not read by the application.
    pub unread: u32,
}

/// Whether a connection can be carried, as far as can be told while it goes on; and how
/// much data it has in its queues just now. Changes nothing.
///
/// It is asked in the network namespace of the socket. What can be told in repair mode
/// alone, [`Frozen::enter`](super::Frozen::enter) tells.
pub fn check(socket: BorrowedFd<'_>) -> Result<Queued, Error> {
    let fd = socket;
    let socket = Socket::new(fd);
    let option = |name| socket.int(SOL_SOCKET, name).said("read the socket's kind");
    match option(libc::SO_PROTOCOL)? {
        IPPROTO_TCP => {}
        IPPROTO_MPTCP => return Err(Refusal::Mptcp.into()),
        _ => return Err(Refusal::NotTcp.into()),
    }
    if !matches!(option(libc::SO_DOMAIN)?, AF_INET | AF_INET6) {
        return Err(Refusal::NotTcp.into());
    }
    // Before all that only a connection has.
    state(socket)?;
    let (local, peer) = ends(fd)?;
    for end in [local, peer] {
        if matches!(end, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()) {
            return Err(Refusal::LinkLocal(end).into());
        }
    }
    let mut ulp = [0; 16];
    match socket.bytes(IPPROTO_TCP, libc::TCP_ULP, &mut ulp) {
        Ok(0) => {}
        Ok(len) => {
            let name = String::from_utf8_lossy(&ulp[..len]);
            return Err(Refusal::Ulp(name.trim_end_matches('\0').to_owned()).into());
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
        Err(error) => return Err(error).said("ask for an upper-layer protocol"),
    }
    // Without keys, and on a kernel that has none, this fails.
    let mut info = [0; 64];
    if socket
        .bytes(IPPROTO_TCP, kernel::TCP_AO_INFO, &mut info)
        .is_ok()
    {
        return Err(Refusal::Signed("TCP-AO").into());
    }
    if signs_with_md5(socket, local, peer).said("ask for the keys of the connection")? {
        return Err(Refusal::Signed("MD5").into());
    }
    if socket.poll(libc::POLLPRI, 0).said("ask for urgent data")? & libc::POLLPRI != 0 {
        return Err(Refusal::Urgent.into());
    }
    queued(socket)
}

/// The state, if a connection can be carried in it.
pub(super) fn state(socket: Socket<'_>) -> Result<State, Error> {
    let info = Info::read(socket).said("read TCP_INFO")?;
    info.state()
        .map_err(|number| Refusal::State(State::name(number)).into())
}

/// Both ends: this side's and the peer's. IPv4 is IPv4 in whatever kind of socket.
pub(super) fn ends(socket: BorrowedFd<'_>) -> Result<(SocketAddr, SocketAddr), Error> {
    let socket = SockRef::from(&socket);
    let plain = |address: io::Result<socket2::SockAddr>| -> Result<SocketAddr, Error> {
        let address = address.said("read the connection's addresses")?.as_socket();
        let mut address = address.ok_or(Error::Refused(Refusal::NotTcp))?;
        address.set_ip(address.ip().to_canonical());
        Ok(address)
    };
    Ok((plain(socket.local_addr())?, plain(socket.peer_addr())?))
}

/// What stands in the queues, if it is not too much.
pub(super) fn queued(socket: Socket<'_>) -> Result<Queued, Error> {
    let queued = Queued {
        to_send: socket.queued(SIOCOUTQ).said("read the length of a queue")?,
        unread: socket.queued(SIOCINQ).said("read the length of a queue")?,
    };
    for (what, bytes) in [("sent", queued.to_send), ("read", queued.unread)] {
        if bytes > QUEUE_MAX {
            return Err(Refusal::TooMuch { what, bytes }.into());
        }
    }
    Ok(queued)
}

fn signs_with_md5(socket: Socket<'_>, local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    let mut cookie = [0; 8];
    socket.bytes(SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
    sockets::Diag::open()?.signs_with_md5(&sockets::Socket {
        tuple: Tuple::between(peer, local, TCP),
        cookie: u64::from_ne_bytes(cookie),
    })
}
