//! What Homing's kernel programs and its agent must agree on, and nothing else.
//!
//! Every type here crosses the border between kernel and agent through a BPF
//! map, so each is `repr(C)`, has no implicit padding and has its size asserted
//! at compile time. Addresses and ports are big-endian bytes, as on the wire.
//! The crate is `no_std` and has no dependency that the kernel side cannot have;
//! what only the agent needs stands behind the feature `user`.

#![cfg_attr(not(feature = "std"), no_std)]

pub mod ask;
pub mod bench;
pub mod capture;
pub mod control;
pub mod echo;
pub mod event;
pub mod flow;
pub mod host;
pub mod limit;
pub mod maps;
pub mod moving;
pub mod net;
pub mod outcome;
pub mod owners;
pub mod park;
pub mod session;
pub mod settings;
#[cfg(feature = "user")]
mod user;
