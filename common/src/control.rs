//! What the agent tells the kernel programs while they run: the value of the map
//! `CONTROL`, an array of one.

use crate::session::SessionKey;

/// The agent's word to the programs.
///
/// Fields change one at a time, and each is read at once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// When the agent last said that it lives: `CLOCK_MONOTONIC`, nanoseconds.
    pub beat_ns: u64,
    /// This life of the host's kernel, as echoes carry it.
    pub incarnation: u64,
    /// The keys of echoes, as SipHash keys; one that is all zeros is none. A
    /// question is signed with the first, either is accepted, and an answer is
    /// signed with the key of its question.
    pub echo_keys: [SessionKey; 2],
    /// [`Control::SYNCED`] and the other flags.
    pub flags: u32,
    /// The largest MSS that SYN|ACKs of services may offer over IPv4; 0: any.
    pub mss_v4: u16,
    /// The same over IPv6.
    pub mss_v6: u16,
}

const _: () = assert!(size_of::<Control>() == 56);

impl Control {
    /// This host knows the sessions of the whole POP.
    pub const SYNCED: u32 = 1;
    /// This host takes no new sessions.
    pub const DRAINING: u32 = 2;
    /// Flows have taken their share of `SESSIONS`: no more are recorded.
    pub const FLOWS_FULL: u32 = 4;
    /// Sessions of others found no room in `OWNERS` here; elsewhere they may have.
    pub const OWNERS_FULL: u32 = 8;
    /// `MOVING` may have entries: without this nobody looks there. Set before the first
    /// one is made, cleared after the last one has gone.
    pub const MOVING: u32 = 16;
    /// An agent whose last beat is older than this is down, nanoseconds.
    pub const BEAT_MAX_NS: u64 = 1_000_000_000;
    /// After a silence of so long the members count the agent as down, nanoseconds: what
    /// membership takes to notice, give or take a second.
    pub const AWAY_NS: u64 = 3_000_000_000;
    /// How often the agent beats, nanoseconds.
    pub const BEAT_EVERY_NS: u64 = 200_000_000;
}

/// How long a session counts as closed a moment ago, nanoseconds: what arrives for
/// it on the host that closed it goes up without asking. As long as TIME_WAIT, in
/// which a kernel expects such packets too (Linux: 60 s).
pub const CLOSED_NS: u64 = 60_000_000_000;

/// Entries of the map `RENDEZVOUS`. Entry `id % RENDEZVOUS_ENTRIES` names the
/// hosts that a session's packets go to when nobody here may decide on them.
pub const RENDEZVOUS_ENTRIES: u32 = 1 << 14;

/// The value of the map `RENDEZVOUS`: the two hosts that rank first, among those
/// that take new sessions. Zero names no host.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rendezvous {
    /// Ranks first.
    pub first: u16,
    /// Takes the first one's place where that is this very host.
    pub second: u16,
}

const _: () = assert!(size_of::<Rendezvous>() == 4);
