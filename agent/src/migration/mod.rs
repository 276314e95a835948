//! Migration: one session changes hosts while its client notices nothing.
//!
//! What it promises:
//!
//! - At every instant at most one host answers for a session. **The source alone
//!   decides**: before it has written *released* into its journal any failure means
//!   that the session goes on at the source, and after it the source never resumes.
//! - A copy of a session that has gone on elsewhere since is never served.
//! - A step may be repeated, lost, late or overtaken, and either agent may be killed
//!   at any of them: as soon as the two hosts reach each other, be it through a third,
//!   the session goes on at one of them.
//! - Everything has a bound: moves and bytes at once, each step's time, how long a
//!   host stays in doubt. What is given up at a bound is counted by its reason.
//!
//! How, step by step, and what holds at each when whom dies, is in
//! `docs/migration.md`; the messages byte by byte in `docs/protocol.md`.
//!
//! Parts: [`wire`] the messages between agents; [`order`] what the machines ask of
//! the application and the datapath, and what comes out of a move; [`local`] what they
//! look up on their own host; [`limits`]; `source` and `target`, the two sides of a
//! move; [`moves`] all moves of one host; [`task`] drives them.
//!
//! The machines are sans-IO: inputs and the time go in, orders, messages and results
//! come out. Times are microseconds of `CLOCK_MONOTONIC`, because the journal (the map
//! `MOVING`) holds such times and outlives the agent.
//!
//! What the machines do not do: they know no socket, no descriptor and no TCP state;
//! those are opaque bytes. Who carries messages authenticates their sender, keeps them
//! secret and brings them whole; it may lose, repeat, delay and reorder them.
//!
//! Of what carries out their orders, [`app`] is here: how applications take part. They
//! give connections up, and take them over. [`drain`] has all sessions of a host moved.

pub mod app;
mod context;
pub mod drain;
mod ended;
pub mod limits;
pub mod local;
pub mod moves;
pub mod order;
mod passing;
mod repeat;
mod source;
mod target;
pub mod task;
mod times;
pub mod wire;

#[cfg(test)]
mod simulation;

use homing_common::{host::HostId, session::Tuple};

pub use homing_common::moving::Phase;
pub use limits::{Counters, Limits};
pub use local::Local;
pub use moves::{At, Command, Moves, UnderWay};
pub use order::{Answer, Ended, Order, Outcome, Output, Reason, Step};
pub use target::Step as TargetStep;
pub use times::StepTime;

/// What names a move everywhere: its source, and the number that the source gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MoveId {
    /// The host that the session leaves.
    pub source: HostId,
    /// The move's number: see [`MoveId::number`].
    pub number: u64,
}

/// Bits of a move's number that its source counts with.
const COUNT_BITS: u32 = 40;

impl MoveId {
    /// The number of a source's move: 24 bits from the incarnation of its kernel over
    /// 40 bits that an agent counts on from a random start.
    ///
    /// So a source that does not know a number can tell whether this kernel gave it:
    /// then the move was never released, or is long over.
    pub fn number(incarnation: u64, count: u64) -> u64 {
        tag(incarnation) << COUNT_BITS | count & ((1 << COUNT_BITS) - 1)
    }

    /// Whether the number may be of a kernel of this incarnation.
    pub fn is_of(self, incarnation: u64) -> bool {
        self.number >> COUNT_BITS == tag(incarnation)
    }
}

/// 24 bits that two incarnations of one host hardly share: Fibonacci hashing (Knuth,
/// The Art of Computer Programming, volume 3, 6.4).
fn tag(incarnation: u64) -> u64 {
    incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> COUNT_BITS
}

/// An entry of the journal: what an agent finds in `MOVING` at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The session.
    pub tuple: Tuple,
    /// The move, as its source numbers it.
    pub number: u64,
    /// When this was written.
    pub since: u64,
    /// The session's generation before the move.
    pub generation: u32,
    /// The other host of the move.
    pub peer: HostId,
    /// How far the move is.
    pub phase: Phase,
}
