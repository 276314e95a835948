//! What benchmarks tell the programs they run.

use crate::session::SessionId;

/// Bytes of a frame that the wrapper gives back: Ethernet and the longest outer
/// IP header. They may reach into the inner packet's headers, which the fast path
/// does not change.
pub const HEADER_LEN: usize = 14 + 40;

/// The wrapper's state.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bench {
    /// The generator's state.
    pub state: u64,
    /// Number of flows to choose from.
    pub flows: u32,
    /// Offset in the frame of four bytes of the client's address.
    pub address_offset: u32,
    /// By how many bytes the head is moved to undo what the fast path did:
    /// positive where it added a header, negative where it took one off.
    pub undo: i32,
    /// The frame's first bytes.
    pub header: [u8; HEADER_LEN],
    /// Always zero; makes the padding explicit.
    pub zero: [u8; 6],
}

const _: () = assert!(size_of::<Bench>() == 80);

impl Bench {
    /// The number of the next flow: neither in order nor twice in a row.
    #[inline(always)]
    pub const fn next(&mut self) -> u32 {
        // A linear congruential generator.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let flows = if self.flows == 0 { 1 } else { self.flows };
        ((self.state >> 32) as u32) % flows
    }
}

/// The id of a made-up session: spread like those of real ones, as the table of owners
/// wants it (the last steps of SplitMix64, by Steele, Lea and Flood, 2014).
#[inline(always)]
pub const fn session_id(number: u64) -> SessionId {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    SessionId(z ^ (z >> 31))
}
