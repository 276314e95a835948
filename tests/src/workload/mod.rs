//! Real TCP connections that notice everything that goes wrong with them.
//!
//! A client and a server exchange pseudo-random bytes both ways over one
//! long-lived connection; both know what every byte must be, and check it. A
//! connection is **broken** if it ends in any way other than its client closing
//! it: reset, silence beyond a deadline, wrong bytes, or an early end.
//!
//! The exchange: the client sends 16 bytes, [`MAGIC`] and a seed, once; then, again
//! and again, two 32-bit big-endian lengths and as many bytes of its stream as the
//! first says; the server answers each with as many bytes of its own stream as the
//! second says. The streams are [`crate::random::stream`]s of the seed.

pub mod client;
mod connection;
mod flow;
pub mod idle;
pub mod server;

pub use client::{Clients, Options, Report};
pub(crate) use connection::end_of;
pub use connection::{End, churn};
pub use flow::{FLOW_LEN, FlowReport, FlowServers, Flows, forge};

/// The first eight bytes of every connection.
pub const MAGIC: [u8; 8] = *b"homing\x001";

/// The most bytes of one request and of one answer.
pub const MAX_LEN: u32 = 64 * 1024;

/// The seed of what the server sends, from the connection's.
pub const fn down(seed: u64) -> u64 {
    !seed
}
