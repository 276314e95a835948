//! Sessions that are moving between this host and another: the value of the map
//! `MOVING`, by tuple.
//!
//! The map is pinned, so it lives exactly as long as the kernel and its sockets do:
//! it is the journal of the moves of this host. The agent writes it, an entry at
//! once; the programs obey it whether the agent lives or not. In every phase what
//! this host would send for the session is dropped, and what the hooks on sockets see
//! of it is recorded nowhere.

use crate::host::HostId;

/// A session that is moving.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moving {
    /// The move, as its source numbers it.
    pub number: u64,
    /// When this was written: `CLOCK_MONOTONIC`, nanoseconds.
    pub since_ns: u64,
    /// The session's generation before the move.
    pub generation: u32,
    /// The other host of the move.
    pub peer: u16,
    /// [`Phase`] as a number.
    pub phase: u8,
    /// Always zero; makes the padding explicit.
    pub zero: u8,
}

const _: () = assert!(size_of::<Moving>() == 24);

/// How far a move has come on this host.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Target: packets are parked; nothing was promised yet. An agent that finds it at its
    /// start drops its copy.
    Awaiting = 1,
    /// Target: it has said that it is prepared; packets are parked. An agent that finds
    /// it is in doubt, and asks.
    Prepared = 2,
    /// Source: ingress is diverted to the target, egress dropped. An agent that finds it
    /// resumes.
    Frozen = 3,
    /// Source: the same, and it never resumes: the session is the target's, or nobody's.
    Released = 4,
}

impl Phase {
    /// The phase that a number stands for.
    #[inline(always)]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Awaiting),
            2 => Some(Self::Prepared),
            3 => Some(Self::Frozen),
            4 => Some(Self::Released),
            _ => None,
        }
    }

    /// Whether this host is the move's target: what arrives is parked. Otherwise it is
    /// the source, and what arrives is diverted to the other host.
    #[inline(always)]
    pub const fn parks(self) -> bool {
        matches!(self, Self::Awaiting | Self::Prepared)
    }
}

impl Moving {
    /// How far the move has come; none, if a later build wrote what this one does not
    /// know.
    #[inline(always)]
    pub const fn phase(&self) -> Option<Phase> {
        Phase::of(self.phase)
    }

    /// The other host of the move.
    #[inline(always)]
    pub const fn peer(&self) -> HostId {
        HostId(self.peer)
    }
}

/// Entries of `MOVING`: sessions that can be moving at once on a host.
pub const MOVING_ENTRIES: u32 = 4096;
/// Bytes of the ring buffer `PARKED`: room for some 1,900 long frames.
pub const PARKED_BYTES: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_its_number() {
        let phases = [
            Phase::Awaiting,
            Phase::Prepared,
            Phase::Frozen,
            Phase::Released,
        ];
        for (number, phase) in (1..).zip(phases) {
            assert_eq!((phase as u8, Phase::of(number)), (number, Some(phase)));
            assert_eq!(phase.parks(), number < 3);
        }
        assert_eq!((Phase::of(0), Phase::of(5)), (None, None));
    }
}
