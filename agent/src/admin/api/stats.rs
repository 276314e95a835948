//! What is counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /stats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
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
