//! Benchmarks: each compares in one run, interleaved, and reports minimum and
//! median. None is a test, and none fails for being slow.

pub mod fastpath;
pub mod gossip;
mod measure;
pub mod owners;
