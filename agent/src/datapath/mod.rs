//! The fast path as the agent sees it: programs, maps, links, next hops.
//!
//! [`Datapath::load`] puts the kernel programs in force and opens their maps;
//! each map has one small module here that knows its format. Everything is
//! pinned, so the fast path goes on when the agent stops, and the next agent
//! finds it as it was: programs are replaced in place, without a packet passing
//! by in between. [`unload`] takes all of it away.
//!
//! [`keeper`] attaches them again when an interface has gone and come back.
//!
//! What they miss is found in the kernel's own tables by [`sockets`].
//!
//! The way to each host is found by [`resolver`], which follows the kernel's
//! route and neighbour tables. The sessions that this host has itself are
//! reported by [`events`], and packets that the programs cannot decide on by
//! [`parked`]; [`inject`] gives them back. [`answer`] asks this host's kernel what
//! it knows itself. [`moving`] has the sessions that are on their way to another host
//! or from one.
//!
//! [`beside`] has further instances of the programs, for who wants to know what they do.
//!
//! [`repair`] takes a connection out of this host's kernel, and puts one into it.
//!
//! Nothing in here knows of gossip or of membership: what it is told, it writes.

pub mod answer;
pub mod beside;
pub(crate) mod clock;
pub mod control;
pub mod error;
pub(crate) mod ethtool;
pub mod events;
pub mod flows;
pub mod frame;
pub mod held;
pub mod hosts;
pub mod identity;
pub mod inject;
pub(crate) mod interface;
pub mod keeper;
pub mod kernel_log;
pub mod link;
pub mod load;
pub mod local;
mod mapped;
pub mod members;
pub mod moving;
pub mod owners;
pub mod parked;
pub mod pins;
pub mod rendezvous;
pub mod repair;
pub mod resolver;
pub mod services;
pub mod sessions;
pub mod sockets;
pub mod stack;
pub mod stats;
mod sys;
pub mod template;
pub mod unload;
pub(crate) mod xdp_features;

use std::io;

use aya::maps::MapError;

pub use error::Error;
pub use load::{Datapath, LoadOptions, XdpMode};
pub use unload::{Report, unload};

/// The kernel programs: the BPF object that this binary carries.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/homing.bpf.o"));

/// The program that captures packets, likewise.
pub static CAPTURE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture.bpf.o"));

/// The MTU of an interface of this network namespace, if there is one of this name.
/// More than an IP packet can have counts as that.
pub fn interface_mtu(name: &str) -> Option<u16> {
    let mtu = interface::look_up(name).ok()?.mtu;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// The error of the system call behind a map error.
fn map_io(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        MapError::CreateError { io_error, .. } => io_error,
        error => io::Error::other(error),
    }
}
