//! Netlink's `sock_diag`: which TCP sockets there are, and which are destroyed.
//!
//! The formats are those of `include/uapi/linux/{netlink,sock_diag,inet_diag}.h`.

use std::{io, os::fd::AsRawFd};

use homing_common::{
    net::{Address, Port, TCP},
    session::Tuple,
};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// A TCP socket of this network namespace that is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Its ends, seen from its own side as the service.
    pub tuple: Tuple,
    /// The kernel's cookie.
    pub cookie: u64,
}

const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`.
pub(super) const ID_LEN: usize = 48;
/// `struct inet_diag_req_v2`: eight bytes and the id.
const REQUEST_LEN: usize = HEADER_LEN + 8 + ID_LEN;
/// What is read of `struct inet_diag_msg`: four bytes and the id.
const MESSAGE_LEN: usize = 4 + ID_LEN;
/// The whole of it: five more integers. Attributes follow.
pub(super) const WHOLE_MESSAGE_LEN: usize = MESSAGE_LEN + 20;
/// The extension `INET_DIAG_INFO`. What a socket signs with is told to those alone who ask
/// for this.
const WITH_INFO: u8 = 1 << 1;
/// The attribute with the keys that segments are signed with.
const INET_DIAG_MD5SIG: u16 = 18;

/// `INET_DIAG_NOCOOKIE`: whichever socket it is.
const NO_COOKIE: u64 = u64::MAX;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// The states in which a session is open, as the hooks count: from ESTABLISHED to
/// the one before CLOSE.
pub(super) const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// What stands for the timer of a socket in TIME_WAIT, which is no socket any more
/// although it says FIN_WAIT2 for a while.
pub(super) const TIMER_TIME_WAIT: u8 = 3;

/// Multicast groups, by number.
const TCP_DESTROY: u32 = 1;
const TCP6_DESTROY: u32 = 3;

/// The kernel fills at most 32 KiB at a time.
const BUFFER_LEN: usize = 64 << 10;

/// What the kernel is asked by.
pub struct Diag {
    netlink: Netlink,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Diag {
    /// Opens a socket to the kernel, in this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
        netlink.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            netlink,
            buffer: Vec::with_capacity(BUFFER_LEN),
            sequence: 0,
        })
    }

    /// Whether the kernel answers at all; no socket is looked at. `ENOENT`: it has nobody who
    /// would.
    pub(crate) fn probe(&mut self) -> io::Result<()> {
        self.ask(libc::AF_INET as u8, (NLM_F_DUMP, 0), 0, &[0; ID_LEN])?;
        self.bodies(&mut |_| {})
    }

    /// Calls `each` with every connected TCP socket. Sockets that come or go
    /// meanwhile may be left out, and so, now and then, may their neighbours in the
    /// kernel's table: ask [`Diag::find`] before a socket is taken for gone.
    pub fn dump(&mut self, mut each: impl FnMut(Socket)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let id = [0; ID_LEN];
            self.ask(family as u8, (NLM_F_DUMP, 0), STATES, &id)?;
            match self.answers(&mut each) {
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether the segments of just this socket are signed with MD5 (RFC 2385). The
    /// kernel tells who has `CAP_NET_ADMIN`.
    pub fn signs_with_md5(&mut self, socket: &Socket) -> io::Result<bool> {
        self.ask(family_of(socket), (0, WITH_INFO), STATES, &sock_id(socket))?;
        let mut signs = false;
        self.bodies(&mut |body| signs |= has_attribute(body, INET_DIAG_MD5SIG))?;
        Ok(signs)
    }

    /// Whether just this socket is still there, and connected.
    pub fn find(&mut self, socket: &Socket) -> io::Result<bool> {
        self.ask(family_of(socket), (0, 0), STATES, &sock_id(socket))?;
        let mut found = false;
        match self.answers(&mut |answer| found |= answer.cookie == socket.cookie) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            result => result.map(|()| found),
        }
    }

    /// Whether this session has a socket, connected in any way.
    pub fn has(&mut self, tuple: &Tuple) -> io::Result<bool> {
        let any = Socket {
            tuple: *tuple,
            cookie: NO_COOKIE,
        };
        self.ask(family_of(&any), (0, 0), STATES, &sock_id(&any))?;
        let mut found = false;
        // The kernel falls back to a listener of the service.
        match self.answers(&mut |answer| found |= answer.tuple == *tuple) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| found),
        }
    }

    /// Puts a question; `extensions` are bits that say what the answers shall have beyond
    /// their fixed part, `states` those that are asked for.
    pub(super) fn ask(
        &mut self,
        family: u8,
        (flags, extensions): (u16, u8),
        states: u32,
        id: &[u8; ID_LEN],
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut request = Vec::with_capacity(REQUEST_LEN);
        request.extend((REQUEST_LEN as u32).to_ne_bytes());
        request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0u32.to_ne_bytes());
        request.extend([family, TCP, extensions, 0]);
        request.extend(states.to_ne_bytes());
        request.extend(id);
        self.netlink.send(&request, 0).map(drop)
    }

    /// Reads answers to the last question until there are no more.
    fn answers(&mut self, each: &mut impl FnMut(Socket)) -> io::Result<()> {
        self.bodies(&mut |body| parse(body).into_iter().for_each(&mut *each))
    }

    /// The same, each answer as the kernel wrote it.
    pub(super) fn bodies(&mut self, each: &mut impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.netlink.recv(&mut self.buffer, 0)?;
            let mut last = false;
            for message in Messages(&self.buffer) {
                // What is left of an earlier question that failed half-way.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(error_of(message.body)),
                    SOCK_DIAG_BY_FAMILY => {
                        last |= !message.multi;
                        each(message.body);
                    }
                    _ => {}
                }
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// The kernel's notices of destroyed sockets.
pub(super) struct Destroyed {
    netlink: Netlink,
}

impl Destroyed {
    /// Opens a socket that hears nothing until it is told to listen.
    pub fn open() -> io::Result<Self> {
        let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
        netlink.bind(&SocketAddr::new(0, 0))?;
        netlink.set_non_blocking(true)?;
        Ok(Self { netlink })
    }

    /// Whether to hear of every TCP socket that is destroyed. It costs the kernel a
    /// message for each.
    pub fn listen(&self, yes: bool) -> io::Result<()> {
        for group in [TCP_DESTROY, TCP6_DESTROY] {
            match yes {
                true => self.netlink.add_membership(group)?,
                false => self.netlink.drop_membership(group)?,
            }
        }
        Ok(())
    }

    /// The cookies in the next batch of notices. `ENOBUFS`: some were lost.
    pub fn read(&self) -> io::Result<Vec<u64>> {
        let mut buffer = Vec::with_capacity(BUFFER_LEN);
        self.netlink.recv(&mut buffer, 0)?;
        // The ports of a destroyed socket may be zero already; its cookie stays.
        let messages = Messages(&buffer).filter(|message| message.kind == SOCK_DIAG_BY_FAMILY);
        Ok(messages
            .filter_map(|message| message.body.get(..MESSAGE_LEN).map(cookie))
            .collect())
    }
}

impl AsRawFd for Destroyed {
    fn as_raw_fd(&self) -> i32 {
        self.netlink.as_raw_fd()
    }
}

struct Message<'a> {
    kind: u16,
    /// Whether others of the same answer follow.
    multi: bool,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram. Ends at the first that is cut short.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER_LEN)?;
        let len = u32_at(header, 0) as usize;
        let body = self.0.get(HEADER_LEN..len)?;
        // Each begins at a multiple of four.
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(header, 4),
            multi: u16_at(header, 6) & libc::NLM_F_MULTI as u16 != 0,
            sequence: u32_at(header, 8),
            body,
        })
    }
}

fn error_of(body: &[u8]) -> io::Error {
    match body.get(..4) {
        Some(code) => io::Error::from_raw_os_error(-(u32_at(code, 0) as i32)),
        None => io::Error::from(io::ErrorKind::InvalidData),
    }
}

/// A socket of `struct inet_diag_msg`; none if it is one in TIME_WAIT.
fn parse(body: &[u8]) -> Option<Socket> {
    let body = body.get(..MESSAGE_LEN)?;
    (body[2] != TIMER_TIME_WAIT).then(|| ends(body))
}

/// Ends and cookie of what `struct inet_diag_msg` is of, of which the first part is given.
pub(super) fn ends(body: &[u8]) -> Socket {
    let v4 = i32::from(body[0]) == libc::AF_INET;
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&body[at..at + 16]);
        match v4 {
            true => Address::v4([bytes[0], bytes[1], bytes[2], bytes[3]]),
            false => Address(bytes),
        }
    };
    let port = |at: usize| Port([body[at], body[at + 1]]);
    let (service, client) = (address(8), address(24));
    Socket {
        tuple: Tuple::new(client, port(6), service, port(4), TCP),
        cookie: cookie(body),
    }
}

/// Whether an attribute of this kind follows a whole `struct inet_diag_msg`.
fn has_attribute(body: &[u8], kind: u16) -> bool {
    let mut rest = body.get(WHOLE_MESSAGE_LEN..).unwrap_or_default();
    while let Some(header) = rest.get(..4) {
        let len = usize::from(u16_at(header, 0));
        if u16_at(header, 2) == kind {
            return true;
        }
        // Four bytes are its header; each begins at a multiple of four.
        rest = rest
            .get(len.max(4).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

fn family_of(socket: &Socket) -> u8 {
    match socket.tuple.client.is_v4() {
        true => libc::AF_INET as u8,
        false => libc::AF_INET6 as u8,
    }
}

fn cookie(body: &[u8]) -> u64 {
    u64::from(u32_at(body, 44)) | u64::from(u32_at(body, 48)) << 32
}

/// `struct inet_diag_sockid` of one socket: ports, addresses, interface, cookie.
fn sock_id(socket: &Socket) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    let tuple = &socket.tuple;
    id[0..2].copy_from_slice(&tuple.service_port.0);
    id[2..4].copy_from_slice(&tuple.client_port.0);
    for (at, address) in [(4, &tuple.service), (20, &tuple.client)] {
        match address.as_v4() {
            Some(octets) => id[at..at + 4].copy_from_slice(&octets),
            None => id[at..at + 16].copy_from_slice(&address.0),
        }
    }
    id[40..44].copy_from_slice(&(socket.cookie as u32).to_ne_bytes());
    id[44..48].copy_from_slice(&((socket.cookie >> 32) as u32).to_ne_bytes());
    id
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    fn all(diag: &mut Diag) -> Vec<Socket> {
        let mut sockets = Vec::new();
        diag.dump(|socket| sockets.push(socket)).unwrap();
        sockets
    }

    /// Connections on the loopback of this machine; reading needs no privilege.
    fn seen_and_found(address: IpAddr) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let service = listener.local_addr().unwrap();
        let client = TcpStream::connect(SocketAddr::new(
            match address {
                IpAddr::V6(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                address => address,
            },
            service.port(),
        ))
        .unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut diag = Diag::open().unwrap();
        let tuple = Tuple::between(
            client.local_addr().unwrap(),
            client.peer_addr().unwrap(),
            TCP,
        );
        let seen: Vec<_> = all(&mut diag)
            .into_iter()
            .filter(|socket| socket.tuple == tuple)
            .collect();
        assert_eq!(seen.len(), 1, "the server's socket, and not the client's");
        let socket = seen[0];
        assert!(diag.find(&socket).unwrap());
        let another = Socket {
            cookie: socket.cookie + 1,
            ..socket
        };
        assert!(!diag.find(&another).unwrap());
        // A reset leaves no TIME_WAIT.
        let linger = socket2::SockRef::from(&server);
        linger.set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        assert!(!diag.find(&socket).unwrap());
        assert!(!all(&mut diag).contains(&socket));
    }

    #[test]
    fn sockets_are_seen_and_found_by_their_cookie() {
        seen_and_found(Ipv4Addr::LOCALHOST.into());
        seen_and_found(Ipv6Addr::LOCALHOST.into());
        // An IPv4 connection of a listener for both counts as IPv4.
        seen_and_found(Ipv6Addr::UNSPECIFIED.into());
    }

    #[test]
    fn who_has_closed_is_no_session_although_it_waits() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let tuple = Tuple::between(
            client.local_addr().unwrap(),
            client.peer_addr().unwrap(),
            TCP,
        );
        drop(server);
        drop(client);
        let mut diag = Diag::open().unwrap();
        let gone = || all(&mut diag).iter().all(|socket| socket.tuple != tuple);
        assert!(
            std::iter::repeat_with(gone).take(10_000).any(|gone| gone),
            "TIME_WAIT was taken for a socket"
        );
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let mut whole = Vec::new();
        whole.extend(20u32.to_ne_bytes());
        whole.extend(NLMSG_DONE.to_ne_bytes());
        whole.extend([0; 10]);
        whole.extend([0; 4]);
        assert_eq!(Messages(&whole).count(), 1);
        for len in 0..whole.len() {
            assert_eq!(Messages(&whole[..len]).count(), 0);
        }
        // A length that leads nowhere does not go round for ever.
        whole[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(Messages(&whole).count(), 0);
        assert!(parse(&[0; MESSAGE_LEN - 1]).is_none());
    }
}
