//! Sessions: their tuple, their id, and what the kernel side records of them.

use crate::net::{Address, Port, Service};

/// The tuple that names a session, as its service sees it: the key of the map
/// `SESSIONS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The client's address.
    pub client: Address,
    /// The service's address.
    pub service: Address,
    /// The client's port.
    pub client_port: Port,
    /// The service's port.
    pub service_port: Port,
    /// The IP protocol number.
    pub protocol: u8,
    /// Always zero; makes the padding explicit.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<Tuple>() == 40);

impl Tuple {
    /// The tuple of a session between a client and a service.
    #[inline(always)]
    pub const fn new(
        client: Address,
        client_port: Port,
        service: Address,
        service_port: Port,
        protocol: u8,
    ) -> Self {
        Self {
            client,
            service,
            client_port,
            service_port,
            protocol,
            zero: [0; 3],
        }
    }

    /// The service this session belongs to.
    #[inline(always)]
    pub const fn service(&self) -> Service {
        Service::new(self.service, self.service_port, self.protocol)
    }

    /// The session id: SipHash-1-3 under `key` of
    /// `client ‖ service ‖ client port ‖ service port ‖ protocol`, all
    /// big-endian, with 4-byte addresses for IPv4 (13 bytes in all) and 16-byte
    /// addresses for IPv6 (37 bytes).
    ///
    /// A client that chooses its address and port cannot aim at an id without
    /// the key. SipHash is from Aumasson and Bernstein, "SipHash: a fast
    /// short-input PRF" (2012).
    #[inline(always)]
    pub const fn id(&self, key: &SessionKey) -> SessionId {
        let ports = u16::from_le_bytes(self.client_port.0) as u64
            | (u16::from_le_bytes(self.service_port.0) as u64) << 16
            | (self.protocol as u64) << 32;
        let mut hash = Sip::new(key);
        if self.client.is_v4() {
            hash.word(self.client.word(1) >> 32 | self.service.word(1) >> 32 << 32);
            hash.word(ports | 13 << 56);
        } else {
            hash.word(self.client.word(0));
            hash.word(self.client.word(1));
            hash.word(self.service.word(0));
            hash.word(self.service.word(1));
            hash.word(ports | 37 << 56);
        }
        SessionId(hash.finish())
    }
}

/// The key of the session-id hash, shared by the POP; other uses of SipHash have keys of
/// this form, too.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionKey(pub [u64; 2]);

/// A session's 64-bit id: the key of the map `OWNERS`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The bits that spread a session's packets over outer headers.
    #[inline(always)]
    pub const fn entropy(self) -> u32 {
        self.0 as u32
    }
}

/// What the kernel side records of an open session of this host: the value of
/// the map `SESSIONS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The session's id.
    pub id: SessionId,
    /// The kernel's cookie of the socket; tells apart two sessions that use one
    /// tuple after each other.
    pub cookie: u64,
    /// When it was recorded: `CLOCK_MONOTONIC`, nanoseconds.
    pub opened_ns: u64,
    /// UDP: when a packet of it was last seen, give or take a second. TCP: zero.
    pub seen_ns: u64,
    /// How often the session has moved between hosts.
    pub generation: u32,
    /// [`Session::ADOPTED`] and later flags.
    pub flags: u32,
}

impl Session {
    /// The agent recorded it, having found its socket: the hooks on sockets may
    /// not hear of its end.
    pub const ADOPTED: u32 = 1;
}

const _: () = assert!(size_of::<Session>() == 40);

/// SipHash-1-3 over whole little-endian words.
pub(crate) struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl Sip {
    #[inline(always)]
    pub(crate) const fn new(key: &SessionKey) -> Self {
        let [k0, k1] = key.0;
        Self {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    pub(crate) const fn word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    pub(crate) const fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}
