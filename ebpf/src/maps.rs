//! The maps, all typed by BTF so that `bpftool map dump` names their fields.

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use homing_common::{
    event::Event,
    host::{Host, MAX_HOSTS},
    maps::{EVENTS_BYTES, Identity, OWNERS_ENTRIES, Owner, SERVICES_ENTRIES, SESSIONS_ENTRIES},
    net::Service,
    outcome::STATS_ENTRIES,
    session::{Session, Tuple},
};

/// Session id to owning host: foreign sessions only. Written by the agent.
#[btf_map]
pub static OWNERS: HashMap<u64, Owner, { OWNERS_ENTRIES as usize }> = HashMap::new();

/// By host id: membership and the way to it. Written by the agent.
#[btf_map]
pub static HOSTS: Array<Host, { MAX_HOSTS as usize }> = Array::new();

/// The services of the POP. Written by the agent.
#[btf_map]
pub static SERVICES: HashMap<Service, u32, { SERVICES_ENTRIES as usize }> = HashMap::new();

/// This host's own open sessions. Written by the hooks on sockets.
#[btf_map]
pub static SESSIONS: HashMap<Tuple, Session, { SESSIONS_ENTRIES as usize }> = HashMap::new();

/// What the hooks on sockets tell the agent.
#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// One counter per outcome and hook.
#[btf_map]
pub static STATS: PerCpuArray<u64, { STATS_ENTRIES as usize }> = PerCpuArray::new();

/// Which life of the host's kernel this is. Written by the agent, kept by its
/// pin; no program reads it.
#[btf_map]
pub static IDENTITY: Array<Identity, 1> = Array::new();
