//! The maps, all typed by BTF so that `bpftool map dump` names their fields.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use homing_common::{
    control::{Control, RENDEZVOUS_ENTRIES, Rendezvous},
    event::Event,
    flow::{FLOWS_ENTRIES, Flow},
    host::{Host, MAX_HOSTS},
    limit::LIMITS_ENTRIES,
    maps::{EVENTS_BYTES, Identity, KnownMember, SERVICES_ENTRIES, SESSIONS_ENTRIES},
    moving::{MOVING_ENTRIES, Moving, PARKED_BYTES},
    net::Service,
    outcome::STATS_ENTRIES,
    owners::{Bucket, Header, TABLES},
    park::{ASK_BYTES, CLOSED_ENTRIES, Course, Datagram, FRAGMENTS_ENTRIES, Parked},
    session::{Session, Tuple},
};

/// The buckets of a table of owners; as many as the agent makes.
pub type OwnerBuckets = Array<Bucket, 1, { (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize }>;

/// Tables of foreign sessions' owners: the one in force, and the larger one that is to
/// take its place. Written by the agent.
#[btf_map]
pub static OWNERS: ArrayOfMaps<OwnerBuckets, { TABLES as usize }> = ArrayOfMaps::new();

/// Which of them is in force, and what readers must know of it. Mapped by the agent.
#[btf_map]
pub static OWNERS_HEADER: Array<Header, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// By host id: membership and the way to it. Written by the agent.
#[btf_map]
pub static HOSTS: Array<Host, { MAX_HOSTS as usize }> = Array::new();

/// The services of the POP. Written by the agent.
#[btf_map]
pub static SERVICES: HashMap<Service, u32, { SERVICES_ENTRIES as usize }> = HashMap::new();

/// This host's own open sessions. Written by the hooks on sockets.
#[btf_map]
pub static SESSIONS: HashMap<Tuple, Session, { SESSIONS_ENTRIES as usize }> = HashMap::new();

/// Sessions that are moving between this host and another. Written by the agent, whose
/// journal it is.
#[btf_map]
pub static MOVING: HashMap<Tuple, Moving, { MOVING_ENTRIES as usize }> = HashMap::new();

/// What the hooks on sockets tell the agent.
#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// Ids of the sessions that this host closed itself lately, and when
/// (`CLOCK_MONOTONIC`, nanoseconds). Written by the hooks on sockets; the oldest
/// make room, and what goes too early is counted ([`homing_common::limit::Room`]).
#[btf_map]
pub static CLOSED: LruHashMap<u64, u64, { CLOSED_ENTRIES as usize }> = LruHashMap::new();

/// UDP flows that the POP has not heard of, by session id. Written by XDP and by
/// what leaves; the oldest make room.
#[btf_map]
pub static FLOWS: LruHashMap<u64, Flow, { FLOWS_ENTRIES as usize }> = LruHashMap::new();

/// Packets that belong to nobody known, for the agent to ask about: a [`Parked`]
/// and the frame behind it.
#[btf_map]
pub static ASK: RingBuf<Parked, { ASK_BYTES as usize }> = RingBuf::new();

/// Packets of sessions that are moving here, for the agent to hold: a [`Parked`] and the
/// frame behind it. Apart from `ASK`, so that no flood of strangers crowds them out.
#[btf_map]
pub static PARKED: RingBuf<Parked, { PARKED_BYTES as usize }> = RingBuf::new();

/// Where the rest of a fragmented datagram goes. Written by XDP; the oldest make
/// room.
#[btf_map]
pub static FRAGMENTS: LruHashMap<Datagram, Course, { FRAGMENTS_ENTRIES as usize }> =
    LruHashMap::new();

/// What the agent tells the programs while they run. Mapped by the agent.
#[btf_map]
pub static CONTROL: Array<Control, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Where packets go that nobody here may decide on, by session id. Mapped by the
/// agent.
#[btf_map]
pub static RENDEZVOUS: Array<
    Rendezvous,
    { RENDEZVOUS_ENTRIES as usize },
    { BPF_F_MMAPABLE as usize },
> = Array::new();

/// Room for what is too large for the stack, on the ways of fragments, of ICMP errors
/// and of moving sessions.
#[btf_map]
pub static SCRATCH: PerCpuArray<Parked, 1> = PerCpuArray::new();

/// How often what is limited was done lately.
#[btf_map]
pub static LIMITS: Array<u64, { LIMITS_ENTRIES as usize }> = Array::new();

/// One counter per outcome and hook.
#[btf_map]
pub static STATS: PerCpuArray<u64, { STATS_ENTRIES as usize }> = PerCpuArray::new();

/// Which life of the host's kernel this is. Written by the agent, kept by its
/// pin; no program reads it.
#[btf_map]
pub static IDENTITY: Array<Identity, 1> = Array::new();

/// The members as the agent last heard of them, by host id. Written by the agent, for
/// its next start; no program reads it.
#[btf_map]
pub static MEMBERS: Array<KnownMember, { MAX_HOSTS as usize }> = Array::new();
