//! The lab and the end-to-end tests.
//!
//! [`lab`] builds a POP in network namespaces of this machine, [`workload`]
//! holds checked connections through it, and [`demo`] puts both together into
//! the project's main claim. None of them knows the inside of the agent: it is
//! the program `homing`, spoken to through its own command line.

pub mod demo;
pub mod lab;
pub mod random;
pub mod workload;
