//! The lab and what the end-to-end tests share.
//!
//! [`lab`] builds a POP in network namespaces of this machine, [`workload`]
//! holds checked connections through it, [`movable`] such as can move from host to host, and
//! [`demo`] puts all of it together into the project's main claims. None of these knows the inside of the agent: it is
//! the program `homing`, spoken to through its own command line. For tests of moves there
//! are [`puppet`], an application that does what it is told; [`capture`], which shows who
//! answered whom; and [`steps`], which holds a process at any step. [`contained`] is for what needs a
//! whole system, such as systemd. [`capabilities`], [`program`],
//! [`packet`], [`sandbox`], [`memory`], [`object`], [`owners`], [`traced`] and [`bench`] are for the
//! kernel programs alone.

pub mod bench;
pub mod capabilities;
pub mod capture;
pub mod contained;
pub mod demo;
pub mod fuzz;
pub mod lab;
pub mod memory;
pub mod movable;
pub mod object;
pub mod owners;
pub mod packet;
pub mod program;
pub mod puppet;
pub mod random;
pub mod raw;
pub mod sandbox;
pub mod scale;
pub mod steps;
pub mod traced;
pub mod wire;
pub mod workload;
