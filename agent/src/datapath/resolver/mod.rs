//! The way to each host: from the address that gossip is sent to, to a header
//! template in `HOSTS`.
//!
//! The kernel knows how to reach a host's fabric address: its route says which
//! interface and which gateway, its neighbour table which Ethernet address. This
//! module asks it, follows its changes, and keeps the templates in step, within
//! some 50 ms of a change. A host that the kernel does not know how to reach has
//! no template: packets for it are dropped and counted, rather than sent astray.
//!
//! [`core`] decides, without sockets or clock; [`task`] asks, listens and writes;
//! [`netlink`] translates. An entry of the neighbour table that vanishes is no
//! news about the host: its last Ethernet address stays in force while the kernel
//! is asked to resolve it again. Only when that fails is it withdrawn.

pub mod core;
pub mod model;
mod netlink;
pub mod task;

pub use self::{
    model::{State, Way, Ways},
    task::{Resolver, Task, resolver},
};
