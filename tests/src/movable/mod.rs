//! A server whose connections can move to another host, and clients that notice
//! everything that goes wrong with them.
//!
//! [`server`] is the program `homing-movable`: one process per host of the lab, which is
//! registered with that host's agent through `homing-client`. It serves every kind of
//! connection on each of its ports; what a client says first decides which one it is:
//!
//! | first line | then |
//! |---|---|
//! | `bulk SEED LEN RATE` | both ways at once: the client sends [`stream`] of the seed, the server that of [`down`], `LEN` bytes of it at `RATE` a second (0: as fast as it goes) |
//! | `echo` | every byte comes back |
//! | `GET /LEN?rate=RATE&seed=SEED HTTP/1.1` | HTTP with keep-alive: so many bytes of the stream of the seed (default: 0) |
//! | anything else | it is answered, and so is each line after it: the number of the line, `: `, the line |
//!
//! Both ends of a bulk connection check every byte. If the client ends its half first,
//! the server ends with a [trailer](TRAILER_LEN), as soon as `LEN` bytes are sent, or at
//! once if that is [`ENDLESS`]. If the server has sent `LEN` bytes first, it ends its half
//! without a trailer and goes on reading; wrong bytes it answers with a reset then, for
//! there is nothing else that it can still say.
//!
//! [`client`] holds connections to it, thousands from one thread. [`lab`] puts both into
//! a lab.
//!
//! [`stream`]: crate::random::stream

pub mod client;
mod connection;
mod half;
mod kernel;
pub mod lab;
mod pace;
mod record;
pub mod server;
mod state;

pub use client::{Clients, Options, Report, Seen, Work};
pub use kernel::{NetCounts, raise_file_limit};
pub use lab::Server;
pub use server::ServerOptions;

use crate::lab::plan::SERVICE_PORTS;

/// The port of everything but HTTP, on both service addresses.
pub const PORT: u16 = SERVICE_PORTS[4];
/// The port of HTTP.
pub const HTTP_PORT: u16 = SERVICE_PORTS[0];

/// The length of a bulk connection that ends when its client ends it.
pub const ENDLESS: u64 = u64::MAX;
/// The last bytes of a bulk connection that its client has ended: how many bytes came,
/// and [`RIGHT`] or [`WRONG`].
pub const TRAILER_LEN: usize = 16;
/// All bytes that came were right.
pub const RIGHT: u64 = u64::from_be_bytes(*b"\nright\n\n");
/// Not all of them were.
pub const WRONG: u64 = u64::from_be_bytes(*b"\nwrong\n\n");

/// The seed of what the server sends, from the connection's.
pub const fn down(seed: u64) -> u64 {
    !seed
}
