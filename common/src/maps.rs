//! The sizes that kernel side and agent agree on before configuration.

use crate::{
    host::DOMAIN_LEN_MAX,
    net::{Address, Port},
};

/// The value of the map `IDENTITY`: which life of the host's kernel this is. It
/// lives as long as the pinned maps do, that is, as long as the kernel.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Larger in every life of the host's kernel.
    pub incarnation: u64,
    /// Larger with every start of the agent in one incarnation.
    pub generation: u64,
}

/// The value of the map `MEMBERS`, by host id: a member as it was last heard of, for
/// the agent's next start. An incarnation of zero says that there is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct KnownMember {
    /// The host's incarnation.
    pub incarnation: u64,
    /// Its agent's generation.
    pub generation: u64,
    /// Its fabric address …
    pub address: Address,
    /// … and the port of its agent.
    pub port: Port,
    /// How often it has announced itself anew in this life.
    pub renewal: u16,
    /// The fingerprint of its tunnel network …
    pub network: u32,
    /// … and of its services.
    pub services: u32,
    /// The public ids of its session keys.
    pub session_keys: [u8; 2],
    /// The public id of its key of fragments.
    pub fragments_key: u8,
    /// Always zero; makes the padding explicit.
    pub zero: u8,
    /// A bit for each address of its services.
    pub addresses: u64,
    /// Its domain's name, then zeros.
    pub domain: [u8; DOMAIN_LEN_MAX],
}

const _: () = assert!(size_of::<KnownMember>() == 88);

/// Entries of the table of owners unless the configuration says otherwise.
pub const OWNERS_ENTRIES: u32 = 1 << 20;
/// Entries of `SESSIONS` unless the configuration says otherwise.
pub const SESSIONS_ENTRIES: u32 = 1 << 18;
/// Services of a POP at most.
pub const SERVICES_MAX: u32 = 1024;
/// Entries of `SERVICES`: one more for each address.
pub const SERVICES_ENTRIES: u32 = 2 * SERVICES_MAX;
/// Bytes of `EVENTS`: room for some 10,000 events.
pub const EVENTS_BYTES: u32 = 1 << 20;
