//! The lab and what the end-to-end tests share.
//!
//! [`lab`] builds a POP in network namespaces of this machine, [`workload`]
//! holds checked connections through it, and [`demo`] puts both together into
//! the project's main claim. None of these knows the inside of the agent: it is
//! the program `homing`, spoken to through its own command line. [`program`],
//! [`packet`], [`sandbox`], [`memory`], [`object`], [`owners`], [`traced`] and [`bench`] are for the
//! kernel programs alone.

pub mod bench;
pub mod demo;
pub mod fuzz;
pub mod lab;
pub mod memory;
pub mod object;
pub mod owners;
pub mod packet;
pub mod program;
pub mod random;
pub mod raw;
pub mod sandbox;
pub mod scale;
pub mod traced;
pub mod workload;
