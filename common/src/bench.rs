//! What the benchmark of the fast path tells the programs it runs.

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
