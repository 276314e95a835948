//! The JSON of the admin socket.
//!
//! Field names are stable: scripts read them. Units stand last in a name; an
//! instant is Unix time in milliseconds. Counters begin at zero with the kernel
//! objects (outcomes, hooks) or with the agent (gossip).

mod bases;
mod capture;
mod drain;
mod explain;
mod mux;
mod reload;
mod stats;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use bases::{
    App, Apps, AppsSum, CarrierPeer, CarrierState, Carriers, CarriersFrom, CarriersSum, CarriersTo,
    MovesSum, TurnedAway,
};
pub use capture::{CAPTURE_NUMBER, CaptureEnded, End};
pub use drain::{CommandState, Drain, DrainCommand, DrainEnd, DrainRun, MoveOutcome, Moved, Why};
pub use explain::{EXPLAIN_MAX, ExplainOrder, ExplainPacket, Explained, Explanations, Fact};
pub use mux::{Mux, MuxSocket, MuxSum};
pub use reload::{Change, InForce, Problem, Reloaded};
pub use stats::{Counter, Outcome, Stats, StepTime, Watch};

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The instance's name.
    pub instance: String,
    /// This host's id.
    pub host: u16,
    /// Its broadcast domain.
    pub domain: String,
    /// Version of the agent.
    pub version: String,
    /// The life of the host's kernel.
    pub incarnation: u64,
    /// Which start of the agent in this incarnation.
    pub generation: u64,
    /// Process id of the agent.
    pub pid: u32,
    /// How long the agent runs, in seconds.
    pub uptime_s: u64,
    /// This host's fabric address.
    pub address: SocketAddr,
    /// The domain's multicast group, if gossip uses one.
    pub multicast: Option<SocketAddr>,
    /// How packets travel between hosts.
    pub tunnel: Tunnel,
    /// Where the XDP program is attached.
    pub interfaces: Vec<Interface>,
    /// The cgroup that the hook on sockets is attached to.
    pub cgroup: PathBuf,
    /// What the POP answers for.
    pub services: Vec<Service>,
    /// Whether this host takes no new sessions.
    pub draining: bool,
    /// The moving of sessions to other hosts that was begun last since the agent's start.
    pub drain: Option<DrainRun>,
    /// The POP's keys.
    pub keys: Keys,
    /// How many hosts are in which state, this one among the living.
    pub members: Members,
    /// This host's own open sessions.
    pub sessions: Usage,
    /// Sessions that other hosts own: entries of the table of owners.
    pub foreign: Usage,
    /// Bytes of memory that the table takes.
    pub foreign_bytes: u64,
    /// How often there was no memory for it to grow.
    pub foreign_growths_failed: u64,
    /// How gossip is doing.
    pub gossip: Gossip,
    /// Carriers, in short.
    pub carriers: CarriersSum,
    /// The applications whose connections can move, in short.
    pub apps: AppsSum,
    /// Message sockets, in short.
    pub mux: MuxSum,
    /// Sessions on their way from and to this host, in short.
    pub moves: MovesSum,
    /// What an operator should look at, one sentence each; empty when all is
    /// well.
    pub problems: Vec<String>,
}

/// What a problem begins with that names hosts which do not hear this host's multicast.
pub const UNHEARD: &str = "the multicast of this host does not reach";

/// How packets travel between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `ipip` or `gue`.
    pub encapsulation: String,
    /// The tunnel network, such as `10.77.0.0/16`.
    pub network: String,
    /// This host's prefix in it.
    pub prefix: String,
    /// This host's tunnel address.
    pub address: IpAddr,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
}

/// An interface with the XDP program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `native` or `skb`.
    pub mode: String,
    /// Whether it has the egress program, which needs Linux 6.6.
    pub egress: bool,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its address and port.
    pub address: SocketAddr,
    /// `tcp`.
    pub protocol: String,
}

/// The POP's keys as this host uses them, by their public ids: two hexadecimal
/// digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Signs what this host sends.
    pub signs: String,
    /// Is accepted beside it, during a rotation.
    pub accepts: Option<String>,
    /// By ids under this one sessions are looked up.
    pub session: String,
    /// By ids under this one this host tells of its sessions as well, during a rotation.
    pub session_other: Option<String>,
}

/// How many hosts are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Reachable, this host among them.
    pub alive: u32,
    /// Not reachable.
    pub down: u32,
    /// Left gracefully.
    pub left: u32,
}

/// How full a table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Entries in it.
    pub count: u64,
    /// Entries that it has room for.
    pub limit: u64,
}

/// How gossip is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gossip {
    /// Whether everything that the living hosts are known to have announced has
    /// been applied here.
    pub in_sync: bool,
    /// Whether this host knows the sessions of the whole POP, and so asks about
    /// packets of others. Until it does, it sends them to hosts that may know.
    pub synced: bool,
    /// Whether sessions of others found no room here: then, too, packets of unknown
    /// sessions are sent to other hosts first.
    pub full: bool,
    /// Announcements that this host has made.
    pub announced: u64,
    /// Announcements of others that have been applied here.
    pub applied: u64,
    /// From the opening of a session on another host to its entry here.
    pub open_to_applied_us: Latency,
    /// What became of packets of unknown sessions.
    pub asks: Asks,
}

/// Sessions that the POP was asked about, because nobody here knew them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asks {
    /// Sessions that are being asked about now.
    pub open: u64,
    /// Asks about sessions since the agent started.
    pub asked: u64,
    /// Another host was found to have the session.
    pub found: u64,
    /// Its last owner said that it is closed, or nobody had it when it came again:
    /// the local stack was given its packets.
    pub reset: u64,
    /// Routes that an ask brought and that no announcement has confirmed yet.
    pub provisional: u64,
}

/// A distribution of times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median; null without samples.
    pub p50: Option<u64>,
    /// 99 of 100 are at most this; null without samples.
    pub p99: Option<u64>,
    /// How many were measured.
    pub samples: u64,
    /// Their sum.
    pub sum_us: u64,
    /// How many are at most `le_us` and more than the bucket before, by rising
    /// `le_us`. What is more than the last is counted in `samples` only.
    pub buckets: Vec<Bucket>,
}

/// A part of a [`Latency`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Upper bound, inclusive.
    pub le_us: u64,
    /// How many fell in it.
    pub count: u64,
}

/// `GET /hosts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hosts {
    /// By id.
    pub hosts: Vec<Host>,
}

/// A host of the POP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub host: u16,
    /// Whether it is the one that answers.
    pub this_host: bool,
    /// Its broadcast domain; null when it has not said yet.
    pub domain: Option<String>,
    /// What membership says of its agent.
    pub state: HostState,
    /// What this host hears of its kernel: echoes answered by XDP.
    pub kernel: KernelState,
    /// When its kernel last answered this host, in Unix milliseconds; null if it
    /// never did.
    pub kernel_heard_unix_ms: Option<u64>,
    /// Whether it takes no new sessions.
    pub draining: bool,
    /// The public id of the key that it signs with; null until it was heard.
    pub key: Option<String>,
    /// The public ids of the keys of session ids that it tells of its sessions by: first
    /// the one that it looks them up by. Empty until it was heard.
    pub session_keys: Vec<String>,
    /// Since when, in Unix milliseconds.
    pub since_unix_ms: u64,
    /// The life of its kernel.
    pub incarnation: u64,
    /// Which start of its agent.
    pub generation: u64,
    /// Its fabric address; null when it has not said yet.
    pub address: Option<SocketAddr>,
    /// Its tunnel address.
    pub tunnel_address: IpAddr,
    /// The way there; null for the host itself, and where none is looked for.
    pub next_hop: Option<NextHop>,
    /// Sessions that it claims, as far as is known here.
    pub claims: u64,
    /// Its last announcement that has been applied here; for the host itself, its
    /// last announcement.
    pub applied_seq: u64,
    /// How much of its announcements is known here.
    pub sync: SyncState,
    /// Whether it hears this host's multicast; null where it is not to: in another
    /// domain, or without a group.
    pub hears_us: Option<bool>,
}

/// What membership says of a host's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It answers.
    Alive,
    /// It does not.
    Down,
    /// It left gracefully.
    Left,
}

impl HostState {
    /// The name in tables and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

/// What is heard of a host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelState {
    /// It answers.
    Alive,
    /// It has stopped answering this host, and is not confirmed dead.
    Silent,
    /// It is dead by the POP's judgement, and its claims are void.
    Voided,
    /// It has not been heard yet in its present life.
    Unheard,
}

impl KernelState {
    /// The name in tables and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Silent => "silent",
            Self::Voided => "voided",
            Self::Unheard => "unheard",
        }
    }
}

/// The way to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Whether packets can be sent: everything below is known.
    pub resolved: bool,
    /// The neighbour on the way: the host itself or its gateway.
    pub via: Option<IpAddr>,
    /// The neighbour's MAC address.
    pub mac: Option<String>,
    /// The interface.
    pub interface: Option<String>,
    /// The VLAN on that interface.
    pub vlan: Option<u16>,
    /// The largest outer packet, in bytes.
    pub mtu: Option<u16>,
}

/// How much of a host's announcements is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SyncState {
    /// All that are known to exist.
    InSync,
    /// Some are missing and have been asked for again.
    Gap {
        /// How many.
        missing: u64,
    },
    /// A full synchronization is under way.
    Syncing,
    /// Nothing has been heard yet.
    Waiting,
}

/// `GET /sessions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// This host's own sessions, in the order of their tuples.
    pub sessions: Vec<Session>,
    /// How many there are in all.
    pub total: u64,
    /// What to ask for, as `after=`, to get the next ones; null at the end.
    pub next: Option<String>,
}

/// The name of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionName {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The service's address and port.
    pub service: SocketAddr,
    /// `tcp`.
    pub protocol: String,
    /// The session id in 16 hexadecimal digits.
    pub id: String,
}

/// One of this host's own sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Which.
    #[serde(flatten)]
    pub name: SessionName,
    /// How long it has been recorded as open, in seconds.
    pub age_s: f64,
    /// How often it has moved between hosts.
    pub generation: u32,
}

/// `GET /owner`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    /// Which session.
    #[serde(flatten)]
    pub name: SessionName,
    /// Who owns it.
    pub answer: Answer,
    /// The owner's host id; null when it is unknown.
    pub owner: Option<u16>,
    /// How this host knows, in a sentence.
    pub how: String,
    /// Every claim to it that this host knows of, the one in force first.
    pub claims: Vec<Claim>,
}

/// Who owns a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The host that answers.
    ThisHost,
    /// Another host.
    OtherHost,
    /// Nobody that this host knows of.
    Unknown,
}

/// A host's claim to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The host.
    pub host: u16,
    /// The session's generation in the claim.
    pub generation: u32,
}

/// `GET /healthz`: status 200 when healthy, 503 when not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the agent does its work, whatever becomes of other hosts.
    pub healthy: bool,
    /// Why it does not.
    pub problems: Vec<String>,
}

/// `POST /leave`: status 202.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Always true: the stop has begun.
    pub leaving: bool,
}

/// `GET /log` and `POST /log`: status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// What is logged: a level, or directives.
    pub level: String,
    /// What was at the start of the agent, and will be at the next.
    pub at_start: String,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed, why, and what to do.
    pub error: String,
    /// What is wrong in the configuration, if it is that: status 422.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// What a reload would change, if it was refused because of a part of that: status 409.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}
