//! Packets that the kernel side hands to the agent until it is known where they
//! belong: what stands in the ring buffers `ASK` and `PARKED`.

use core::mem::offset_of;

use crate::{
    control::RENDEZVOUS_ENTRIES,
    net::Address,
    session::{SessionKey, Sip, Tuple},
};

/// Head of every record in `ASK` and `PARKED`; `captured` bytes of frame follow it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parked {
    /// The session, where [`Why::Unknown`] or [`Why::Moving`]; without meaning otherwise.
    pub tuple: Tuple,
    /// The fragmented datagram, where the packet is a fragment; zero otherwise.
    pub datagram: Datagram,
    /// The session id; zero for fragments.
    pub id: u64,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// The interface that the frame came in by.
    pub ifindex: u32,
    /// How many bytes of frame follow: all of them, from the Ethernet header on,
    /// outer headers included; none where there is no frame to hold.
    pub captured: u32,
    /// [`Why`] as a number.
    pub why: u16,
    /// The host that sent it through the tunnel; zero: it came off the wire.
    pub from: u16,
    /// TCP flags of the segment (the low byte), where [`Why::Unknown`].
    pub flags: u8,
    /// Always zero; makes the padding explicit.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<Parked>() == 96 && offset_of!(Parked, flags) == 92);

/// Why a record stands in `ASK`, or in `PARKED`.
#[repr(u16)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nobody here knows the session: ask the POP.
    Unknown = 1,
    /// A fragment that came before the datagram's first one.
    Fragment = 2,
    /// The way of a fragmented datagram is decided, and `FRAGMENTS` holds it:
    /// fragments held for it can go. No frame follows.
    Decided = 3,
    /// In `PARKED`, and there alone: the session is moving here, and not served yet.
    Moving = 4,
}

/// The longest frame that can be parked, bytes.
pub const PARKED_FRAME_MAX: usize = 2048;

/// What all fragments of a datagram carry: the key of the map `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Datagram {
    /// Where it comes from.
    pub source: [u8; 16],
    /// A keyed hash over source, destination, identification and, with IPv4, the
    /// protocol.
    pub rest: u64,
}

impl Datagram {
    /// The key of a datagram. `protocol` is zero with IPv6, where only the first
    /// fragment is sure to say it (RFC 8200, section 4.5).
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        identification: u32,
        protocol: u8,
        key: &SessionKey,
    ) -> Self {
        let mut hash = Sip::new(key);
        hash.word(source.word(0));
        hash.word(source.word(1));
        hash.word(destination.word(0));
        hash.word(destination.word(1));
        hash.word(identification as u64 | (protocol as u64) << 32 | 37 << 56);
        Self {
            source: source.0,
            rest: hash.finish(),
        }
    }

    /// The slot of `RENDEZVOUS` that names the host where its fragments meet.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        self.rest as u32 & (RENDEZVOUS_ENTRIES - 1)
    }
}

const _: () = assert!(size_of::<Datagram>() == 24);

/// Bytes of `ASK`.
pub const ASK_BYTES: u32 = 4 << 20;
/// Entries of `CLOSED`.
pub const CLOSED_ENTRIES: u32 = 1 << 16;
/// Entries of `FRAGMENTS`.
pub const FRAGMENTS_ENTRIES: u32 = 1 << 13;

/// Where the fragments of a datagram go: the value of the map `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Course {
    /// The host; it may be this one. Zero: the first fragment has not come yet, and
    /// others wait for it.
    pub host: u16,
    /// Always zero; makes the padding explicit.
    pub zero: u16,
    /// When it was written: `CLOCK_MONOTONIC`, milliseconds, modulo 2^32.
    pub at_ms: u32,
}

const _: () = assert!(size_of::<Course>() == 8);

impl Course {
    /// A course is followed for so long, in milliseconds. The fragments of a datagram
    /// follow each other closely; a sender in a hurry uses an identification anew after
    /// a few seconds.
    pub const LIFE_MS: u32 = 5_000;

    /// A course that is written now.
    #[inline(always)]
    pub const fn new(host: u16, now_ns: u64) -> Self {
        Self {
            host,
            zero: 0,
            at_ms: (now_ns / 1_000_000) as u32,
        }
    }

    /// Whether it is to be followed still.
    #[inline(always)]
    pub const fn holds(&self, now_ns: u64) -> bool {
        ((now_ns / 1_000_000) as u32).wrapping_sub(self.at_ms) < Self::LIFE_MS
    }
}
