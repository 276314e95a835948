//! The POP as one host sees it: its key, its sealed datagrams, its members.
//!
//! What it promises:
//!
//! - [`keys`]: one key file, from which every other key is derived.
//! - [`seal`]: a datagram that [`seal::Seal::open`] lets through was made by a
//!   holder of the POP's key, for this host, in the sender's present life, and
//!   was not let through before. This holds from the first datagram on, also at a
//!   receiver that has only just started.
//! - [`membership`]: who is a member now, who is down, who left and for how long
//!   its sessions are to be kept.
//!
//! All of it is sans-IO: bytes and the time go in, bytes and events come out. The
//! sockets are driven by [`crate::gossip::task`], which shares them between
//! membership and gossip. Times are microseconds on a clock that never steps
//! back, counted from a moment of the caller's choice.
//!
//! What it does not do: members are trusted. Whoever holds the key can speak for
//! any host of the POP.

pub mod counters;
mod fingerprint;
pub mod keys;
pub mod liveness;
mod member;
pub mod membership;
pub mod rendezvous;
pub mod seal;
pub mod slots;
mod window;

pub use fingerprint::{Difference, Fingerprint};
pub use member::{DOMAIN_LEN_MAX, Domain, Member, Stream};

/// The largest UDP payload that a host sends: with IPv6 and UDP headers the
/// packet is 1400 bytes, which leaves room for tunnels on the fabric.
pub const DATAGRAM_LEN_MAX: usize = 1400 - 40 - 8;

/// The largest body in a sealed datagram.
pub const BODY_LEN_MAX: usize = DATAGRAM_LEN_MAX - seal::OVERHEAD_LEN;

/// One millisecond, in the unit of all times here.
pub const MS: u64 = 1_000;
/// One second, in the unit of all times here.
pub const SECOND: u64 = 1_000_000;
