//! Moves of sessions, and what they stand on: carriers, applications.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Service;

/// `GET /carriers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carriers {
    /// Where they are accepted: TCP.
    pub address: SocketAddr,
    /// The public id of the key that they are opened with.
    pub key: String,
    /// The other hosts, by id.
    pub peers: Vec<CarrierPeer>,
}

/// The carriers to and from a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierPeer {
    /// The host.
    pub host: u16,
    /// The latest life of its kernel that is known.
    pub incarnation: u64,
    /// The latest start of its agent that is known.
    pub generation: u64,
    /// What comes from it.
    pub from: CarriersFrom,
    /// What goes to it, by channel; only those that were ever used.
    pub to: Vec<CarriersTo>,
}

/// What comes from a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriersFrom {
    /// Carriers that it has to this host.
    pub carriers: u64,
    /// Messages received from it.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// What goes to a host on one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriersTo {
    /// What the channel is for: `migration` or `mux`.
    pub channel: String,
    /// How it stands.
    pub state: CarrierState,
    /// Carriers that are open.
    pub carriers: u64,
    /// Messages that arrived there.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that wait for a carrier.
    pub queued: u64,
    /// Bytes that wait or are under way, each message with 256 more.
    pub queued_bytes: u64,
    /// Why the last attempt to open a carrier failed; null if it did not.
    pub problem: Option<String>,
    /// For how long no carrier could be opened, in seconds; null if the last attempt did
    /// not fail.
    pub failing_s: Option<u64>,
}

/// How a channel to a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CarrierState {
    /// There is a carrier.
    Open,
    /// The first one is being opened.
    Opening,
    /// None could be opened.
    Failing,
    /// There is none, and none is needed.
    Idle,
}

impl CarrierState {
    /// The name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Opening => "opening",
            Self::Failing => "failing",
            Self::Idle => "idle",
        }
    }
}

/// All carriers in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriersSum {
    /// Carriers that this host has to others.
    pub to: u64,
    /// Carriers that others have to this host.
    pub from: u64,
    /// Channels to hosts on which no carrier could be opened.
    pub failing: u64,
    /// Bytes that wait or are under way to other hosts, each message with 256 more.
    pub queued_bytes: u64,
}

/// `GET /apps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apps {
    /// Where applications register.
    pub socket: PathBuf,
    /// The group whose members may, by name or number.
    pub group: String,
    /// The longest state of one connection that they may give, in bytes.
    pub state_max_bytes: u64,
    /// The applications that are connected, in the order in which they came.
    pub apps: Vec<App>,
    /// The last one that lost its connection for something it did; null if none did.
    pub turned_away: Option<TurnedAway>,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its connection: a number that is never used again.
    pub id: u64,
    /// What it calls its protocol; null until it has registered.
    pub name: Option<String>,
    /// The version of the states that it gives and takes; null likewise.
    pub version: Option<u32>,
    /// What it has registered.
    pub services: Vec<Service>,
    /// Whether it can be asked: it has registered, and told what is pending with it.
    pub ready: bool,
    /// Its process; 0 if that is in another PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Moves that wait for its answer.
    pub asked: u64,
    /// Moves that it waits to be told the end of.
    pub pending: u64,
}

/// An application that lost its connection for something it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnedAway {
    /// When, in Unix milliseconds.
    pub at_unix_ms: u64,
    /// Its process; 0 if that is in another PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Why.
    pub why: String,
}

/// All applications in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppsSum {
    /// Those that can be asked.
    pub ready: u64,
    /// Those that are connected, and not ready yet.
    pub connecting: u64,
    /// Services that have been registered.
    pub services: u64,
    /// Moves that are pending with them.
    pub pending: u64,
    /// Bytes of states that are held for them.
    pub state_bytes: u64,
}

/// Moves of sessions in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesSum {
    /// From this host, before they are confirmed.
    pub from_here: u64,
    /// To this host.
    pub to_here: u64,
    /// Those that wait for their turn.
    pub waiting: u64,
    /// Bytes of states that are held for moves from here and to here.
    pub state_bytes: u64,
    /// Packets of sessions that are moving here, which wait for them to be served.
    pub parked: u64,
}
