//! The lab: two hosts of one rack with agents, and on each a process that sends or
//! receives.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;

use super::{case::Case, client::Sent, end::Order, server::Arrived, transport::Transport};
use crate::lab::{Lab, Node, node, unique};

const CLIENT: u16 = 1;
const SERVER: u16 = 2;

/// All that stands for a run.
pub struct Site {
    /// End before the lab does.
    client: End,
    server: End,
    lab: Lab,
}

/// One round of one case.
pub struct Round {
    /// What the client says.
    pub sent: Sent,
    /// What the server says.
    pub arrived: Arrived,
    /// Processor time of all that runs on both hosts.
    pub cpu: Duration,
}

impl Site {
    /// Builds it, with or without encryption of Homing's messages between the hosts.
    pub fn build(encryption: bool) -> Result<Self> {
        let lab = Lab::builder()
            .name(&unique("bench"))
            .hosts(2)
            .racks(1)
            .clients(1)
            .encryption(encryption)
            .up()?;
        Ok(Self {
            client: End::start(&lab, CLIENT)?,
            server: End::start(&lab, SERVER)?,
            lab,
        })
    }

    /// Has a transport do a case's work for so long.
    pub fn round(&mut self, transport: Transport, case: Case, seconds: f64) -> Result<Round> {
        let before = self.cpu()?;
        let at = self.lab.plan().host_v4(SERVER).into();
        self.server.order(&Order::Serve {
            transport,
            case,
            at,
        })?;
        let to = self.server.answer()?;
        self.client.order(&Order::Send {
            transport,
            case,
            to,
            seconds,
        })?;
        let sent: Sent = self.client.answer()?;
        let arrived: Arrived = self.server.answer()?;
        let cpu = self.cpu()? - before;
        ensure!(
            sent.messages == arrived.messages,
            "{} messages were sent and {} arrived",
            sent.messages,
            arrived.messages
        );
        Ok(Round { sent, arrived, cpu })
    }

    fn cpu(&self) -> Result<Duration> {
        let lab = &self.lab.plan().name;
        let of = |host| node::processor_time(lab, Node::Host(host));
        Ok(of(CLIENT)? + of(SERVER)?)
    }
}

/// A process on a host.
struct End {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: String,
}

impl End {
    fn start(lab: &Lab, host: u16) -> Result<Self> {
        let node = Node::Host(host);
        let log = lab.folder_of(node).join("mux-end.log");
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("mux-end")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?);
        let mut child = lab.spawn(node, &mut command)?;
        let orders = child.stdin.take().context("no input")?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self {
            child,
            orders,
            answers,
            log: log.display().to_string(),
        })
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders
            .write_all(line.as_bytes())
            .with_context(|| format!("a process has ended; see {}", self.log))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a process has ended; see {}", self.log);
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
