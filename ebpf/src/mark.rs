//! Marks in outer headers: what the sender of a packet says of its way. They bound
//! the way of every packet, whatever hosts believe: to two hosts after the one that it
//! came to off the wire.
//!
//! A mark stands where hosts that do not know it neither write nor look:
//!
//! | | over IPv4 | over IPv6 |
//! |---|---|---|
//! | [`Mark::Decided`] | identification 1 | the flow label's last bit (before fragments alone) |
//! | [`Mark::SentOn`] | identification 2 | a source that ends in `::2`, not `::1` |
//! | [`Mark::Diverted`] | identification 4 | a source that ends in `::4` |
//! | [`Mark::DivertedOn`] | identification 6 | a source that ends in `::6` |
//!
//! The identification has no meaning in a packet that must not be fragmented (RFC
//! 6864), and the whole of an IPv6 prefix is its host's.

use crate::{packet::Frame, settings};

/// What an outer header says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None = 0,
    /// A fragment for the host that it is sent to, which takes it as it is.
    Decided = 1,
    /// It was sent on to this host by one that is not its owner any more: it is not
    /// sent on a second time.
    SentOn = 2,
    /// Its session is moving, or has moved, to this host: it is for that session, or for
    /// nothing here.
    Diverted = 4,
    /// Both.
    DivertedOn = 6,
}

impl Mark {
    /// What stands in the low byte of an IPv4 identification.
    pub const IDENTIFICATION_OFFSET: usize = 5;
    /// The last byte of an IPv6 source.
    pub const SOURCE_OFFSET: usize = 23;

    /// Whether an IPv6 source says it.
    #[inline(always)]
    pub const fn is_in_source(self) -> bool {
        self as u8 & Self::DivertedOn as u8 != 0
    }

    /// Whether the outer header, which begins at `start`, says this, be it with more.
    ///
    /// Off the ways of packets that are many: nothing is read there for it.
    #[inline(always)]
    pub fn is_on(self, frame: &Frame, start: usize) -> bool {
        // One length for both: in an IPv4 packet this long another one follows.
        let Some(outer) = frame.at::<[u8; Self::SOURCE_OFFSET + 1]>(start) else {
            return false;
        };
        // SAFETY: `at` has checked that the bytes lie within the frame.
        let outer = unsafe { &*outer };
        let bit = self as u8;
        if settings::tunnel_network().is_v4() {
            outer[Self::IDENTIFICATION_OFFSET] & bit != 0
        } else if let Self::Decided = self {
            outer[3] & bit != 0
        } else {
            outer[Self::SOURCE_OFFSET] & bit != 0
        }
    }
}
