//! The fast path as the agent sees it: programs, maps, links, next hops.

/// The kernel programs' object, as the build script made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/homing.bpf.o"));
