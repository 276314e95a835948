//! The Homing agent: daemon and command line, one folder per subsystem.
//!
//! Imports run one way: `datapath` ← `pop` ← `mux` ← `gossip` ← `migration` ← `admin` ← `doctor` ←
//! `cli`;
//! `bound`, `config`, `packet` and `unix` are used by all and know none of them; `daemon` puts them
//! together.

pub mod admin;
pub mod bound;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod gossip;
pub mod migration;
pub mod mux;
pub mod packet;
pub mod pop;
pub mod unix;
