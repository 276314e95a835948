//! Packets for tests and benchmarks, built byte by byte from the RFCs and
//! independently of the kernel programs that they are run through.

use std::net::{IpAddr, SocketAddr};

/// A client.
pub const CLIENT_V4: &str = "198.51.100.7:40312";
/// A client.
pub const CLIENT_V6: &str = "[2001:db8:c::7]:40312";
/// A service of the POP.
pub const SERVICE_V4: &str = "203.0.113.10:443";
/// A service of the POP.
pub const SERVICE_V6: &str = "[2001:db8:113::10]:443";

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// TCP flags.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// Sums bytes as 16-bit big-endian words, as RFC 1071 does.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The bytes of an address: 4 or 16.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// TCP's flags.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// TCP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Tcp {
    /// A segment without payload.
    pub fn new(source: &str, destination: &str, flags: u8) -> Self {
        Self {
            source: source.parse().expect("a socket address"),
            destination: destination.parse().expect("a socket address"),
            flags,
            seq: 1,
            ack: 0,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The same with a payload.
    #[must_use]
    pub fn payload(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.payload = bytes.into();
        self
    }

    /// The IP packet that carries it.
    pub fn ip(&self) -> Ip {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.push((((20 + self.options.len()) / 4) << 4) as u8);
        bytes.push(self.flags);
        bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        let check = fold(
            sum(&octets(self.source.ip()))
                + sum(&octets(self.destination.ip()))
                + 6
                + bytes.len() as u32
                + sum(&bytes),
        );
        bytes[16..18].copy_from_slice(&check.to_be_bytes());
        Ip::new(self.source.ip(), self.destination.ip(), 6, bytes)
    }

    /// The frame that carries it.
    pub fn frame(&self) -> Vec<u8> {
        self.ip().frame(&[])
    }
}

/// A segment from the test's client to the test's service, by family.
pub fn segment(v4: bool, flags: u8) -> Tcp {
    if v4 {
        Tcp::new(CLIENT_V4, SERVICE_V4, flags)
    } else {
        Tcp::new(CLIENT_V6, SERVICE_V6, flags)
    }
}

/// A UDP datagram's bytes, checksum zero.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.to_be_bytes());
    bytes.extend(destination.to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// The checksum of a UDP datagram, whatever stands in its place.
pub fn udp_checksum(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> [u8; 2] {
    let mut bytes = datagram.to_vec();
    bytes[6..8].fill(0);
    let pseudo = sum(&octets(source)) + sum(&octets(destination)) + 17 + bytes.len() as u32;
    match fold(pseudo + sum(&bytes)) {
        0 => [0xff; 2],
        checksum => checksum.to_be_bytes(),
    }
}

/// An ICMP message's bytes: its type and code, the four bytes behind the checksum,
/// and what follows. `between` are the addresses of the packet that carries it.
pub fn icmp(between: (IpAddr, IpAddr), kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(word);
    bytes.extend(rest);
    let (source, destination) = between;
    let pseudo = match source.is_ipv4() {
        true => 0,
        false => {
            sum(&octets(source))
                + sum(&octets(destination))
                + u32::from(ICMPV6)
                + bytes.len() as u32
        }
    };
    let check = fold(pseudo + sum(&bytes));
    bytes[2..4].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Upper protocol.
    pub protocol: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification and fragment word.
    pub id: u16,
    /// IPv4 flags and fragment offset.
    pub frags: u16,
    /// IPv4 options, a multiple of four bytes; or IPv6 extension headers, complete.
    pub options: Vec<u8>,
    /// IPv6: the first header's protocol, if extension headers come before the
    /// upper one.
    pub first_header: Option<u8>,
    /// IPv6 flow label.
    pub flow: u32,
    /// What it carries.
    pub body: Vec<u8>,
}

impl Ip {
    /// A packet with the usual header values.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: Vec<u8>) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4());
        Self {
            source,
            destination,
            protocol,
            tos: 0,
            ttl: 64,
            id: 0,
            frags: 0x4000,
            options: Vec::new(),
            first_header: None,
            flow: 0,
            body,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.source.is_ipv4() {
            let header_len = 20 + self.options.len();
            bytes.extend([0x40 | (header_len / 4) as u8, self.tos]);
            bytes.extend(((header_len + self.body.len()) as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend(self.frags.to_be_bytes());
            bytes.extend([self.ttl, self.protocol, 0, 0]);
            bytes.extend(octets(self.source));
            bytes.extend(octets(self.destination));
            bytes.extend(&self.options);
            let check = fold(sum(&bytes));
            bytes[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            let first = 6 << 28 | u32::from(self.tos) << 20 | self.flow;
            bytes.extend(first.to_be_bytes());
            bytes.extend(((self.options.len() + self.body.len()) as u16).to_be_bytes());
            bytes.extend([self.first_header.unwrap_or(self.protocol), self.ttl]);
            bytes.extend(octets(self.source));
            bytes.extend(octets(self.destination));
            bytes.extend(&self.options);
        }
        bytes.extend(&self.body);
        bytes
    }

    /// The fragments that it comes in when no body may have more than `len` bytes, a
    /// multiple of eight. `id` is the identification. Not for packets with IPv4 options
    /// or IPv6 extension headers.
    pub fn fragments(&self, id: u32, len: usize) -> Vec<Self> {
        assert!(len.is_multiple_of(8) && self.options.is_empty());
        let pieces = self.body.chunks(len);
        let last = pieces.len() - 1;
        let fragment = |(n, body): (usize, &[u8])| {
            let mut fragment = Self {
                body: body.to_vec(),
                ..self.clone()
            };
            let offset = (n * len / 8) as u16;
            if self.source.is_ipv4() {
                fragment.id = id as u16;
                fragment.frags = offset | if n == last { 0 } else { 0x2000 };
            } else {
                let word = offset << 3 | u16::from(n != last);
                fragment.first_header = Some(44);
                fragment.options = vec![self.protocol, 0];
                fragment.options.extend(word.to_be_bytes());
                fragment.options.extend(id.to_be_bytes());
            }
            fragment
        };
        pieces.enumerate().map(fragment).collect()
    }

    /// The frame that carries it, with VLAN tags (TPID and VLAN id) from the
    /// outermost on.
    pub fn frame(&self, tags: &[(u16, u16)]) -> Vec<u8> {
        frame(tags, self.source.is_ipv4(), &self.bytes())
    }
}

/// The host's address in frames that come from the router.
pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The router's address in frames.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
/// Another host's address in frames.
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// A frame from the router to the host.
pub fn frame(tags: &[(u16, u16)], v4: bool, bytes: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, ROUTER_MAC, tags, v4, bytes)
}

/// A frame.
pub fn ethernet(
    destination: [u8; 6],
    source: [u8; 6],
    tags: &[(u16, u16)],
    v4: bool,
    bytes: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(destination);
    frame.extend(source);
    for (tpid, id) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend((if v4 { IPV4 } else { IPV6 }).to_be_bytes());
    frame.extend(bytes);
    frame
}
