//! Configuration: one TOML file, read strictly.
//!
//! [`Config::load`] turns the file into types that cannot hold a wrong value, or
//! says everything that is wrong with it at once: each [`Problem`] names the
//! line, the key and what to write instead. An unknown key is an error, never
//! ignored: a misspelt limit must not silently become the default.
//!
//! Only the file is judged here. Whether an interface exists, or the key file can
//! be read, is for those who use them to say.

mod check;
mod keys;
mod problem;
mod read;
mod relations;
#[cfg(test)]
mod tests;
mod values;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use homing_common::{
    host::{Encapsulation, HostId, TunnelNetwork},
    net::{Address, Service},
};

pub use keys::{Change, KEYS, Key, Takes};
pub use problem::{Problem, Problems};
pub use values::{LIMIT_MAX, MOVES_MAX, Prefix, is_name, parse_duration};

/// Where the configuration is looked for unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/homing/homing.toml";

/// The instance's name unless the configuration says otherwise.
pub const DEFAULT_INSTANCE: &str = "homing";

/// What one agent is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from.
    pub path: PathBuf,
    /// Whether `admin.socket` was given on the command line, and is not what the file says.
    pub socket_given: bool,
    /// The name that tells apart several agents of one machine: pins and socket
    /// are named after it.
    pub instance: String,
    /// This machine.
    pub host: Host,
    /// The POP that it belongs to.
    pub pop: Pop,
    /// How packets travel between hosts.
    pub tunnel: Tunnel,
    /// What all hosts of the POP answer for; at least one, each once.
    pub services: Vec<Service>,
    /// What is particular to UDP services.
    pub udp: Udp,
    /// Sizes of tables.
    pub limits: Limits,
    /// How many sessions move at once.
    pub migration: Migration,
    /// The applications whose connections move.
    pub apps: Apps,
    /// Message sockets.
    pub mux: Mux,
    /// What the operator has run when this host drains.
    pub drain: Drain,
    /// The admin socket.
    pub admin: Admin,
}

/// `[host]`: this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its id in the POP.
    pub id: HostId,
    /// Its broadcast domain.
    pub domain: String,
    /// The interfaces that the XDP program is attached to; at least one, each
    /// once.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub xdp_mode: XdpMode,
    /// The cgroup (version 2) under which the services run.
    pub cgroup: PathBuf,
}

/// How the XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path: slower, works with any driver.
    Skb,
}

impl XdpMode {
    /// The name in configuration and tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
        }
    }
}

/// `[pop]`: the POP that this host belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pop {
    /// File with the POP's key.
    pub key_file: PathBuf,
    /// This host's fabric address: gossip and membership are sent to it, and the
    /// other hosts resolve their next hop to it.
    pub address: SocketAddr,
    /// The domain's multicast group, of the same family as `address`; without it
    /// unicast is used within the domain too.
    pub multicast: Option<SocketAddr>,
    /// How long the close of a session is held back from the POP: the kernel
    /// reports a socket as closed while it still answers for it.
    pub close_linger: Duration,
    /// How long the others keep this host's claims after a graceful stop.
    pub leave_hold: Duration,
    /// Within this time of the end of a host's kernel the others void its claims.
    pub kernel_dead_after: Duration,
    /// How long the claims of a host are kept whose agent is down and whose kernel
    /// cannot be asked.
    pub void_after: Duration,
    /// Other hosts to announce this one to, without this one.
    pub seeds: Vec<Seed>,
}

/// `[[pop.seeds]]`: another host of the POP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed {
    /// Its id.
    pub host: HostId,
    /// Its fabric address, of the same family as this host's.
    pub address: SocketAddr,
}

/// `[tunnel]`: how packets travel between hosts.
#[derive(Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The outer headers.
    pub encapsulation: Encapsulation,
    /// The tunnel network as the fast path wants it. Every host id in this
    /// configuration fits it.
    pub network: TunnelNetwork,
    /// The tunnel network as it was written.
    pub prefix: Prefix,
    /// Length of each host's own prefix in it.
    pub host_prefix_len: u8,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
    /// The largest MSS that services offer.
    pub mss: Mss,
}

/// The largest MSS that services offer, so that clients' segments fit into the tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mss {
    /// What fits on all ways that are known.
    Auto,
    /// This many bytes, over IPv4 and IPv6 alike.
    Fixed(u16),
    /// Whatever the kernel offers.
    Off,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `network` is `prefix` and `host_prefix_len` over again.
        f.debug_struct("Tunnel")
            .field("encapsulation", &self.encapsulation)
            .field("prefix", &self.prefix)
            .field("host_prefix_len", &self.host_prefix_len)
            .field("hop_limit", &self.hop_limit)
            .field("mss", &self.mss)
            .finish_non_exhaustive()
    }
}

impl Tunnel {
    /// The prefix of the tunnel network that belongs to a host.
    pub fn prefix_of(&self, host: HostId) -> Prefix {
        let first = self.network.address_of(host);
        let address = if self.network.is_v4() {
            first
        } else {
            // The tunnel address ends in `::1`, its prefix in zeros.
            let mut bytes = first.0;
            bytes[15] = 0;
            Address(bytes)
        };
        Prefix {
            address: address.into(),
            len: self.host_prefix_len,
        }
    }
}

/// `[udp]`: what is particular to UDP services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// A flow without a packet for so long is over.
    pub idle_timeout: Duration,
}

/// `[limits]`: sizes of tables, `1..=`[`LIMIT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Foreign sessions: entries of `OWNERS`.
    pub owners: u32,
    /// This host's own open sessions: entries of `SESSIONS`.
    pub sessions: u32,
    /// Sessions that this host closed in the last minute: entries of `CLOSED`.
    pub closed: u32,
    /// Fragmented datagrams of the last seconds: entries of `FRAGMENTS`.
    pub fragments: u32,
}

/// `[migration]`: how many sessions move at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Moves under way at once from this host, and as many to it: `1..=`[`MOVES_MAX`].
    pub moves: u16,
    /// Bytes of states held at once for moves from this host, and as many for moves to
    /// it.
    pub memory: usize,
}

/// `[apps]`: the applications whose connections move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apps {
    /// Path of the Unix socket that they register at.
    pub socket: PathBuf,
    /// Who may, beside the agent's own user.
    pub group: Group,
    /// Bytes of one connection's state, as its application gives it.
    pub state_max: u32,
}

/// `[mux]`: message sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mux {
    /// Path of the Unix socket that applications ask for them at.
    pub socket: PathBuf,
    /// Who may, beside the agent's own user.
    pub group: Group,
    /// Messages are encrypted between hosts.
    pub encryption: bool,
    /// Carriers to one host: so many, or as many as are needed.
    pub carriers: Option<usize>,
    /// Bytes of the longest message.
    pub message_max: usize,
    /// The most message sockets.
    pub sockets: usize,
    /// Bytes that are held for all message sockets, and as many that wait to be read.
    pub memory: usize,
}

/// A group of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// By its number.
    Id(u32),
    /// By its name.
    Name(String),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `[drain]`: commands of the operator's, each a program and its arguments; none if empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Before this host takes no new sessions.
    pub on_drain: Vec<String>,
    /// After it takes them again.
    pub on_undrain: Vec<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// `[admin]`: the admin sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket at which the agent answers and does what it is told.
    pub socket: PathBuf,
    /// Who may use it, beside the agent's own user.
    pub group: Group,
    /// Path of the one at which it only answers.
    pub read_socket: PathBuf,
    /// Who may use that; without a group there is none.
    pub readers: Option<Group>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or something is wrong in it: then every problem
    /// that could be found is in the list, in the order of the lines.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => Err(Problems::unreadable(path, &error)),
        }
    }

    /// Has the admin socket elsewhere than the file says, whenever it is read.
    pub fn give_socket(&mut self, socket: PathBuf) {
        self.admin.socket = socket;
        self.socket_given = true;
    }

    /// Reads and checks the same file again.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn again(&self) -> Result<Self, Problems> {
        let mut config = Self::load(&self.path)?;
        if self.socket_given {
            config.give_socket(self.admin.socket.clone());
        }
        Ok(config)
    }

    /// Checks the text of a file; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        check::config(path, text)
    }

    /// The folder under which everything of this instance is pinned.
    pub fn pin_dir(&self) -> PathBuf {
        pin_dir(&self.instance)
    }

    /// This host's tunnel address.
    pub fn tunnel_address(&self) -> Address {
        self.tunnel.network.address_of(self.host.id)
    }
}

/// The folder under which everything of an instance is pinned.
pub fn pin_dir(instance: &str) -> PathBuf {
    Path::new("/sys/fs/bpf/homing").join(instance)
}

/// The admin socket of an instance unless the configuration says otherwise.
pub fn default_socket(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/homing/{instance}.sock"))
}

/// The admin socket for reading of an instance unless the configuration says otherwise.
pub fn default_read_socket(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/homing/{instance}.read.sock"))
}

/// The socket for messages of an instance unless the configuration says otherwise.
pub fn default_mux_socket(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/homing/{instance}.mux.sock"))
}

/// The applications' socket of an instance unless the configuration says otherwise.
pub fn default_apps_socket(instance: &str) -> PathBuf {
    PathBuf::from(format!("/run/homing/{instance}.app.sock"))
}
