//! Flows: the sessions of UDP services. Nothing in UDP says that one begins or
//! ends, so packets are counted, and the POP hears only of a flow that has shown
//! that it goes on.

/// What is remembered of a flow that the POP has not heard of: the value of the map
/// `FLOWS`, by session id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Packets of the client, as far as they were counted.
    pub packets: u32,
    /// 1 once the service has answered.
    pub answered: u32,
}

const _: () = assert!(size_of::<Flow>() == 8);

impl Flow {
    /// So many packets of a client make a session even without an answer.
    pub const PACKETS: u32 = 4;
    /// So many make one if they are answered: the client goes on after it could
    /// have read the answer. One packet never does, so a sender of forged sources
    /// cannot make the POP talk by sending one in each name.
    pub const PACKETS_ANSWERED: u32 = 2;
    /// For so long at least a flow's packets are to be remembered, nanoseconds: what is
    /// between two packets of a client that goes on at once.
    pub const KEPT_NS: u64 = 5_000_000_000;
    /// How often the time of a flow's last packet is written down, nanoseconds.
    pub const SEEN_EVERY_NS: u64 = 1_000_000_000;

    /// Whether it is a session by now.
    #[inline(always)]
    pub const fn goes_on(&self) -> bool {
        self.packets >= Self::PACKETS
            || self.answered != 0 && self.packets >= Self::PACKETS_ANSWERED
    }
}

/// Entries of `FLOWS`.
pub const FLOWS_ENTRIES: u32 = 1 << 16;
