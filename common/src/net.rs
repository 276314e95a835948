//! Addresses, ports and protocols as they stand in packets and map keys.

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of IPv4 in IP (RFC 2003).
pub const IPIP: u8 = 4;
/// IP protocol number of IPv6 in IP (RFC 4213).
pub const IPV6_IN_IP: u8 = 41;

/// IP protocol number of ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;

/// An IPv4 or IPv6 address in 16 big-endian bytes.
///
/// An IPv4 address is stored IPv4-mapped (`::ffff:a.b.c.d`), so that a
/// dual-stack socket and an IPv4 packet give the same key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// The address for four IPv4 octets.
    #[inline(always)]
    pub const fn v4(o: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, o[0], o[1], o[2], o[3],
        ])
    }

    /// The IPv4 octets, if this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        if self.is_v4() {
            let b = &self.0;
            Some([b[12], b[13], b[14], b[15]])
        } else {
            None
        }
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.word(0) == 0 && (self.word(1) as u32) == u32::from_le_bytes([0, 0, 0xff, 0xff])
    }

    /// The address of two words: see [`Address::word`].
    #[inline(always)]
    pub const fn of_words([low, high]: [u64; 2]) -> Self {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) =
            (low.to_le_bytes(), high.to_le_bytes());
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }

    /// Bytes `8*n..8*n+8` as a little-endian integer, the form in which they
    /// are hashed.
    #[inline(always)]
    pub const fn word(&self, n: usize) -> u64 {
        let b = &self.0;
        let i = n * 8;
        u64::from_le_bytes([
            b[i],
            b[i + 1],
            b[i + 2],
            b[i + 3],
            b[i + 4],
            b[i + 5],
            b[i + 6],
            b[i + 7],
        ])
    }
}

/// A port in two big-endian bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port(pub [u8; 2]);

impl Port {
    /// The port with this number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// The port's number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// A service of the POP: the key of the map `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The address that all hosts of the POP answer for.
    pub address: Address,
    /// The port.
    pub port: Port,
    /// The IP protocol number ([`TCP`] or [`UDP`]).
    pub protocol: u8,
    /// Always zero; makes the padding explicit.
    pub zero: u8,
}

impl Service {
    /// The service with these coordinates.
    #[inline(always)]
    pub const fn new(address: Address, port: Port, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            zero: 0,
        }
    }
}

const _: () = assert!(size_of::<Service>() == 20);
