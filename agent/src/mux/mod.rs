//! Messages between hosts: the agents' own, and those of applications.
//!
//! - [`carriers`]: TCP connections between agents that carry whole messages. There is one
//!   implementation of framing, encryption and connections between agents, and this is it.
//! - [`sockets`]: message sockets, which applications send and receive whole messages on,
//!   without a connection of their own.

pub mod carriers;
pub mod sockets;

pub use carriers::*;
