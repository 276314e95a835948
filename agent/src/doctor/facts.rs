//! What there is to know of a host, before it is judged.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::{
    admin::api,
    config::{Config, Problems, XdpMode},
};

/// What was read, or why it could not be.
pub(crate) type Read<T> = Result<T, String>;

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The configuration, or what is wrong with it.
    pub config: Result<Config, Problems>,
    /// Whether root asks.
    pub is_root: bool,
    /// This machine's kernel.
    pub kernel: Kernel,
    /// The clock.
    pub clock: Read<Clock>,
    /// What the agent says, or why it says nothing.
    pub agent: Read<AgentFacts>,
    /// What the configuration names; none without one.
    pub host: Option<Host>,
}

impl Facts {
    /// The configuration and what it names; none where that is wrong.
    pub(super) fn configured(&self) -> Option<(&Config, &Host)> {
        Some((self.config.as_ref().ok()?, self.host.as_ref()?))
    }
}

/// This machine's kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// Whether it describes its own types.
    pub btf: bool,
    /// What the kernel programs need, and whether it is there.
    pub features: Vec<(&'static str, Read<bool>)>,
    /// How programs are run.
    pub jit: Read<Jit>,
}

/// How programs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jit {
    /// As machine code.
    On,
    /// They are interpreted.
    Off,
}

/// The clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Whether something keeps it right.
    pub synchronized: bool,
    /// What it shows.
    pub now_unix_ms: u64,
}

/// What the agent says.
#[derive(Debug, Clone)]
pub(crate) struct AgentFacts {
    /// Its process, as this one sees it.
    pub pid: Option<u32>,
    /// `GET /config`; none of an agent that does not tell.
    pub in_force: Option<api::InForce>,
    /// `GET /status`.
    pub status: api::Status,
    /// `GET /hosts`.
    pub hosts: api::Hosts,
}

/// What the configuration names.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Whether pins find a BPF file system: the error says what to mount where.
    pub bpffs: Read<()>,
    /// What would have to be one.
    pub bpffs_at: PathBuf,
    /// The cgroup that the services run under.
    pub cgroup: Read<()>,
    /// Where cgroups of version 2 are mounted.
    pub cgroup_mounts: Vec<PathBuf>,
    /// The file with the POP's key.
    pub key: Key,
    /// The interfaces of `host.interfaces`, in that order.
    pub interfaces: Vec<Interface>,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: Read<u8>,
    /// TCP segments and UDP datagrams over IPv4 that came in with a wrong checksum since
    /// the machine's start.
    pub checksum_errors: Read<u64>,
    /// VLAN interfaces, and what each is above.
    pub vlans: BTreeMap<String, String>,
    /// The interface that has the fabric address; none: no interface has it.
    pub fabric: Read<Option<Holder>>,
    /// The services' addresses, and whether packets to each are for this host.
    pub services: Vec<(IpAddr, Read<bool>)>,
    /// The process that holds the instance's pins, if one does.
    pub pins_held_by: Read<Option<Process>>,
    /// Sockets that have the port of the fabric address.
    pub ports: Vec<Port>,
}

/// The file with the POP's key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// Whether it can be used; the error is the agent's own.
    pub usable: Result<(), KeyFault>,
    /// Its owner; none where there is no such file.
    pub owner: Option<u32>,
}

/// Why a key file is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyFault {
    /// There is none, or it cannot be read.
    Unreadable(String),
    /// Others can read or change it.
    Open(String),
    /// It holds something else.
    Content(String),
}

/// An interface that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its name.
    pub name: String,
    /// Whether it takes and sends multicast.
    pub multicast: bool,
}

/// An interface that the kernel programs belong on.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    /// Its name.
    pub name: String,
    /// What the kernel says of it; the error where there is none of this name.
    pub link: Read<Link>,
}

/// What the kernel says of an interface.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Bytes of the longest packet.
    pub mtu: u32,
    /// Its driver.
    pub driver: Read<String>,
    /// Whether the driver runs XDP itself; none where the kernel does not say.
    pub native: Read<Option<bool>>,
    /// The XDP program it runs.
    pub xdp: Option<Xdp>,
    /// `net.ipv4.conf.<interface>.rp_filter`.
    pub rp_filter: Read<u8>,
    /// Its features by the kernel's names, and whether each is in force.
    pub features: Read<BTreeMap<String, bool>>,
    /// The other end of a virtual link, if it is in this network namespace, and whether
    /// that end leaves checksums to be filled in later.
    pub peer: Option<(String, Read<bool>)>,
}

/// The XDP program that an interface runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xdp {
    /// Its id.
    pub program_id: u32,
    /// Where it runs; none: in the network card itself, or several at once.
    pub mode: Option<XdpMode>,
    /// Whose it is.
    pub whose: Whose,
}

/// Whose XDP program it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This instance's.
    Ours,
    /// Another instance's of Homing.
    Instance(String),
    /// Somebody else's.
    Other,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// A socket that has the port of the fabric address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Who has it; none where that cannot be told.
    pub by: Option<Process>,
}
