//! An XDP program for the router's ports, so that what hosts send by XDP arrives.
//!
//! A veth device hands a frame from `XDP_TX` to its peer's ring, and wakes the peer
//! only if that has an XDP program of its own (`veth_xdp_flush` in
//! `drivers/net/veth.c`; NAPI by GRO makes the ring, but nobody wakes it). The
//! program passes everything on.

use std::path::Path;

use anyhow::{Context, Result};

use super::xdp::{Instruction, Program, instruction, verdict};

/// `r0 = XDP_PASS; exit`.
const INSTRUCTIONS: [Instruction; 2] = [
    instruction(0xb7, 0, 0, 0, verdict::PASS),
    instruction(0x95, 0, 0, 0, 0),
];

/// Loads the program and pins it at `path` on a BPF file system.
pub fn pin(path: &Path) -> Result<()> {
    let program = Program::load("lab_port_pass", &INSTRUCTIONS)
        .context("cannot load an XDP program; does the kernel have BPF?")?;
    program
        .pin(path)
        .with_context(|| format!("cannot pin a program at {}", path.display()))
}
