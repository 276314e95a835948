//! Faults on the lab's wires: loss, duplication, delay, reordering, cuts.
//!
//! A fault is laid on what **arrives** at a machine, at the router's port towards it,
//! so it can tell any pair of machines and any direction apart, multicast included.
//! While there are faults, the frames they may concern, and few others, make a detour: the kernel
//! redirects them into a TAP device for each port ([`redirect`]), a program in the
//! router's namespace ([`wire`]) decides on each by the rules in [`shim`], and puts
//! those that go on onto the port. So this needs neither netem nor a firewall, which
//! not every kernel has. Without faults nothing makes a detour.
//!
//! What becomes of the nth frame from one machine to another depends on nothing but
//! the seed and n.
//!
//! What it cannot tell: which host sent an answer to a client, for all hosts answer
//! with the service's address. Such frames count as the router's.

mod frame;
mod redirect;
mod shim;
pub mod wire;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Lab, Node, own_program,
    state::{self, Process},
};
pub use shim::Tally;

/// What goes wrong with some frames.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The senders it concerns; empty: all machines.
    pub from: Vec<Node>,
    /// The receivers it concerns; empty: all machines.
    pub to: Vec<Node>,
    /// The traffic it concerns.
    pub traffic: Traffic,
    /// How many of a hundred frames are lost; 100 is a cut.
    pub loss_percent: f64,
    /// How many of a hundred frames that are not lost arrive twice.
    pub duplicate_percent: f64,
    /// How long a frame is held.
    pub delay_ms: u64,
    /// How much longer at most, by chance: what reorders frames.
    pub jitter_ms: u64,
}

/// Which frames a fault concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// All.
    All,
    /// What agents tell each other, by unicast and multicast. Echoes, which kernels
    /// answer, are none of it: they go where packets of sessions go.
    Gossip,
    /// What agents send by multicast.
    Multicast,
}

impl Fault {
    /// A fault of everything that agents send, and so far none at all.
    pub fn gossip() -> Self {
        Self {
            from: Vec::new(),
            to: Vec::new(),
            traffic: Traffic::Gossip,
            loss_percent: 0.0,
            duplicate_percent: 0.0,
            delay_ms: 0,
            jitter_ms: 0,
        }
    }

    /// The same of what agents send by multicast.
    pub fn multicast() -> Self {
        Self {
            traffic: Traffic::Multicast,
            ..Self::gossip()
        }
    }

    /// The same of all traffic.
    pub fn all() -> Self {
        Self {
            traffic: Traffic::All,
            ..Self::gossip()
        }
    }

    /// Of what these hosts send.
    pub fn from(mut self, hosts: &[u16]) -> Self {
        self.from = hosts.iter().copied().map(Node::Host).collect();
        self
    }

    /// Of what these hosts are sent.
    pub fn to(mut self, hosts: &[u16]) -> Self {
        self.to = hosts.iter().copied().map(Node::Host).collect();
        self
    }

    /// Nothing gets through.
    pub fn cut(self) -> Self {
        self.loss(100.0)
    }

    /// Frames are lost.
    pub fn loss(mut self, percent: f64) -> Self {
        self.loss_percent = percent;
        self
    }

    /// Frames arrive twice.
    pub fn duplicate(mut self, percent: f64) -> Self {
        self.duplicate_percent = percent;
        self
    }

    /// Frames are held for `delay_ms`, and up to `jitter_ms` longer.
    pub fn delay(mut self, delay_ms: u64, jitter_ms: u64) -> Self {
        self.delay_ms = delay_ms;
        self.jitter_ms = jitter_ms;
        self
    }

    /// Whether it may concern what this machine sends.
    fn is_from(&self, machine: Node) -> bool {
        // Clients say nothing to agents.
        let client = matches!(machine, Node::Client(_));
        let sends = !client || self.traffic == Traffic::All;
        sends && (self.from.is_empty() || self.from.contains(&machine))
    }

    /// Whether it may concern what this machine is sent.
    fn is_to(&self, machine: Node) -> bool {
        self.to.is_empty() || self.to.contains(&machine)
    }

    fn check(&self) -> Result<()> {
        for percent in [self.loss_percent, self.duplicate_percent] {
            ensure!(
                (0.0..=100.0).contains(&percent),
                "{percent} % of frames: use 0 to 100"
            );
        }
        let longest = self.delay_ms.saturating_add(self.jitter_ms);
        ensure!(
            longest <= 60_000,
            "frames held for {longest} ms: at most a minute"
        );
        Ok(())
    }
}

/// All faults of a lab.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Decides what chance decides.
    pub seed: u64,
    /// The first one that concerns a frame is the one that applies to it.
    pub list: Vec<Fault>,
}

impl Faults {
    /// Whether some of these concern more than what agents send.
    fn concern_all(list: &[&Fault]) -> bool {
        list.iter().any(|fault| fault.traffic == Traffic::All)
    }
}

impl Lab {
    /// Lays a fault on the wires. Where several concern a frame, the latest applies.
    pub fn fault(&mut self, fault: Fault) -> Result<()> {
        fault.check()?;
        for node in fault.from.iter().chain(&fault.to) {
            ensure!(self.plan().has(*node), "the lab has no machine {node}");
        }
        let mut faults = self.state.faults.clone();
        faults.list.insert(0, fault);
        self.set_faults(faults)
    }

    /// Lets nothing pass between these hosts and those, either way.
    pub fn cut(&mut self, traffic: Traffic, these: &[u16], those: &[u16]) -> Result<()> {
        let fault = Fault {
            traffic,
            ..Fault::gossip().cut()
        };
        self.fault(fault.clone().from(these).to(those))?;
        self.fault(fault.from(those).to(these))
    }

    /// Decides by this seed what chance decides, from here on.
    pub fn seed_faults(&mut self, seed: u64) -> Result<()> {
        let faults = Faults {
            seed,
            ..self.state.faults.clone()
        };
        self.set_faults(faults)
    }

    /// Takes all faults off. Frames that are held arrive in their time.
    pub fn heal(&mut self) -> Result<()> {
        let faults = Faults {
            list: Vec::new(),
            ..self.state.faults.clone()
        };
        self.set_faults(faults)
    }

    /// The faults on the wires.
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// What became of the frames that made the detour, since the first fault.
    pub fn faults_tally(&self) -> Result<Tally> {
        match self.shim() {
            Some(_) => self.order(&self.state.faults),
            None => Ok(Tally::default()),
        }
    }

    fn shim(&self) -> Option<Process> {
        self.state.shim.filter(Process::alive)
    }

    fn set_faults(&mut self, faults: Faults) -> Result<()> {
        if self.shim().is_none() {
            if faults.list.is_empty() {
                self.state.faults = faults;
                return self.write_state();
            }
            self.start_shim()?;
        }
        // Faults apply, or do not any more, from here on, for everything that makes
        // the detour already.
        self.order(&faults)?;
        redirect::set(self.plan(), &faults)?;
        self.state.faults = faults;
        self.write_state()
    }

    fn write_state(&self) -> Result<()> {
        let _lock = state::lock(&self.state.plan.name)?;
        self.state.write()
    }

    fn start_shim(&mut self) -> Result<()> {
        let log = self.folder_of(Node::Router).join("fault.log");
        let log = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new(own_program()?);
        command
            .args(["shim", "--name", &self.plan().name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        let mut child = self.spawn(Node::Router, &mut command)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let process = Process::find(child.id() as i32);
        self.children.push(child);
        if line.trim() != READY {
            bail!(
                "the program that makes faults did not start; see {}",
                self.folder_of(Node::Router).join("fault.log").display()
            );
        }
        self.state.shim = process;
        Ok(())
    }

    fn order(&self, faults: &Faults) -> Result<Tally> {
        let what = "the program that makes faults does not answer";
        let mut stream = UnixStream::connect(socket(&self.plan().name)).context(what)?;
        let mut line = serde_json::to_string(faults)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).context(what)?;
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .context(what)?;
        serde_json::from_str(&answer).with_context(|| format!("{what}: {answer}"))
    }
}

/// What the shim prints once it is at work.
const READY: &str = "at work";

/// Where the shim takes orders.
fn socket(lab: &str) -> PathBuf {
    state::run_folder(lab).join("fault.sock")
}

/// The TAP device of the port towards a machine.
fn tap(node: Node) -> String {
    format!("x{node}")
}

/// The machines that frames are sent to: each has a port of the router.
fn ports(plan: &super::Plan) -> Vec<Node> {
    let mut nodes = plan.nodes();
    nodes.retain(|node| *node != Node::Router);
    nodes
}
