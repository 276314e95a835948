//! Packets that the kernel side hands to the agent until it is known where they
//! belong: what stands in the ring buffer `ASK`.

use core::mem::offset_of;

use crate::{net::Address, session::Tuple};

/// Head of every record in `ASK`; `captured` bytes of frame follow it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parked {
    /// The session, where [`Why::Unknown`]; zero otherwise.
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

/// Why a record stands in `ASK`.
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
}

/// The longest frame that can be parked, bytes.
pub const PARKED_FRAME_MAX: usize = 2048;

/// What all fragments of a datagram carry: the key of the map `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Datagram {
    /// Where it comes from.
    pub source: [u8; 16],
    /// The low half of a hash over destination, identification and protocol.
    pub rest: u64,
}

impl Datagram {
    /// The key of a datagram.
    pub const fn new(source: Address, rest: u64) -> Self {
        Self {
            source: source.0,
            rest,
        }
    }
}

const _: () = assert!(size_of::<Datagram>() == 24);

/// Bytes of `ASK`.
pub const ASK_BYTES: u32 = 4 << 20;
/// Entries of `CLOSED`.
pub const CLOSED_ENTRIES: u32 = 1 << 16;
/// Entries of `FRAGMENTS`.
pub const FRAGMENTS_ENTRIES: u32 = 1 << 13;
