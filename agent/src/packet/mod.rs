//! Packets for people: what one is, in a line, and one made of what a person says of it.
//!
//! Nothing here decides on a packet. What Homing reads of packets to decide, it reads in the
//! kernel; this is for those who look on.

mod build;
mod describe;

pub use build::{Kind, Probe, SourceHost};
pub use describe::{Described, describe};
