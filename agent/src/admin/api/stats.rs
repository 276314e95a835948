//! What is counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Host, Status};

/// `GET /stats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When this was counted, by the clock of the host's kernel that never goes back, in
    /// microseconds: rates are made of two answers and the time between them.
    pub monotonic_us: u64,
    /// The life of the host's kernel: outcomes and hooks are counted from its beginning.
    pub incarnation: u64,
    /// Which start of the agent in this incarnation: what agents count begins with it.
    pub generation: u64,
    /// How packets' ways through XDP ended: each packet in exactly one outcome.
    pub outcomes: Vec<Outcome>,
    /// What the hooks on sockets counted, and what comparisons with the kernel's
    /// sockets found.
    pub hooks: Vec<Counter>,
    /// What gossip and membership counted.
    pub gossip: Vec<Counter>,
    /// What carriers counted.
    pub carriers: Vec<Counter>,
    /// What applications whose connections can move did.
    pub apps: Vec<Counter>,
    /// What happened to message sockets and their messages.
    pub mux: Vec<Counter>,
    /// What happened to moves of sessions from and to this host.
    pub moves: Vec<Counter>,
    /// How long moves stood at each step, in the order in which they are taken.
    pub steps: Vec<StepTime>,
    /// What became of packets of sessions that were moving here.
    pub parked: Vec<Counter>,
    /// Datagrams dropped because their key is not accepted, by its public id.
    pub wrong_keys: BTreeMap<String, u64>,
    /// The interfaces' own counters of XDP errors, by interface, as the driver
    /// names them; empty where it has none.
    pub interfaces: BTreeMap<String, BTreeMap<String, u64>>,
}

/// `GET /watch`: what changes from moment to moment, in one answer, so that who looks every
/// second asks once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// What `GET /status` answers.
    pub status: Status,
    /// What `GET /hosts` has, by id.
    pub hosts: Vec<Host>,
    /// What `GET /stats` answers.
    pub stats: Stats,
}

/// A counter of the fast path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The outcome's name.
    pub name: String,
    /// What became of the packet: `pass`, `forward` or `drop`.
    pub verdict: String,
    /// How many packets.
    pub packets: u64,
    /// What it means.
    pub help: String,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Its value.
    pub count: u64,
    /// What it means.
    pub help: String,
}

/// How long moves stood at one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// What this host was to them: `source` or `target`.
    pub side: String,
    /// The step.
    pub step: String,
    /// How many moves have passed it.
    pub times: u64,
    /// The sum of what they took.
    pub sum_us: u64,
    /// What half of them took at most; null without any.
    pub p50_us: Option<u64>,
    /// The same for 99 of 100.
    pub p99_us: Option<u64>,
}
