//! The hosts' agents: started, stopped, killed, and asked by `homing … --json`.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, setgroups},
};
use serde_json::Value;

use crate::capabilities;

use super::{
    Lab, Node, build_folder,
    state::{self, Process},
    wait_until,
};

/// What its unit has as `SupplementaryGroups=`: groups that no user is in.
pub const GROUPS: [u32; 6] = [4242, 4243, 4244, 4245, 4246, 4247];

/// How long agents may take to find each other and resolve their ways.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an agent may take to leave the POP once it is asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where `homing status --json` has the number of the host's own sessions.
pub(super) const SESSIONS: &str = "/sessions/count";
/// … and the number of entries for sessions of others.
pub(super) const OWNERS: &str = "/foreign/count";

/// How sessions stand when every host knows of all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Open sessions, summed over hosts.
    pub sessions: u64,
    /// Entries for sessions of others, summed over hosts.
    pub foreign: u64,
}

impl Lab {
    /// Starts the agents that do not run and waits until all have found each other.
    pub fn start_all(&mut self) -> Result<()> {
        for host in 1..=self.state.plan.hosts {
            if self.agent(host).is_none() {
                self.launch(host)?;
            }
        }
        self.wait_ready(READY_TIMEOUT)
    }

    /// Starts a host's agent and waits until every agent that runs has found it.
    pub fn start(&mut self, host: u16) -> Result<()> {
        ensure!(
            self.agent(host).is_none(),
            "the agent of h{host} runs already"
        );
        self.launch(host)?;
        self.wait_ready(READY_TIMEOUT)
    }

    /// Kills a host's agent on the spot (SIGKILL). Programs, links and maps stay.
    pub fn kill(&mut self, host: u16) -> Result<()> {
        self.end(host, Signal::SIGKILL)
    }

    /// Asks a host's agent to leave the POP and waits until it has ended (SIGTERM).
    pub fn stop(&mut self, host: u16) -> Result<()> {
        self.end(host, Signal::SIGTERM)
    }

    /// Stops a host's agent in its tracks (SIGSTOP), until [`Lab::resume`].
    pub fn pause(&self, host: u16) -> Result<()> {
        self.signal(host, Signal::SIGSTOP)
    }

    /// Lets a paused agent go on (SIGCONT).
    pub fn resume(&self, host: u16) -> Result<()> {
        self.signal(host, Signal::SIGCONT)
    }

    /// The program that agents are, which will be started from now on.
    pub fn homing(&self) -> Option<&Path> {
        self.state.homing.as_deref()
    }

    /// Starts agents with another program from now on.
    pub fn set_homing(&mut self, path: &Path) {
        self.state.homing = Some(path.to_owned());
    }

    /// Appends to a host's configuration, which its agent reads at its next start.
    pub fn configure(&self, host: u16, text: &str) -> Result<()> {
        let path = self.folder_of(Node::Host(host)).join("homing.toml");
        let old = fs::read_to_string(&path)?;
        fs::write(&path, format!("{old}\n{text}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// A host's agent, if it runs.
    pub fn agent(&self, host: u16) -> Option<Process> {
        self.state.agents.get(&host).copied().filter(Process::alive)
    }

    /// The hosts whose agent runs.
    pub fn running(&self) -> Vec<u16> {
        (1..=self.state.plan.hosts)
            .filter(|host| self.agent(*host).is_some())
            .collect()
    }

    /// What `homing ARGS --json` prints on a host.
    pub fn homing_json(&self, host: u16, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self.exec(Node::Host(host), "homing", &all)?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "`homing {}` on h{host} printed no JSON: {text}",
                all.join(" ")
            )
        })
    }

    /// Waits until every agent that runs reports every other one as alive, with the
    /// way to it resolved.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let running = self.running();
        let mut missing = String::new();
        let ready = wait_until(timeout, || {
            missing.clear();
            for host in &running {
                if self.agent(*host).is_none() {
                    bail!("the agent of h{host} has ended: {}", self.last_words(*host));
                }
                match self.homing_json(*host, &["hosts"]) {
                    Ok(hosts) => missing += &not_ready(*host, &hosts, &running),
                    Err(error) => missing += &format!("h{host} does not answer ({error:#}); "),
                }
            }
            Ok(missing.is_empty())
        })?;
        if !ready {
            let words: Vec<String> = running
                .iter()
                .map(|host| format!("\n--- h{host}\n{}", self.last_words(*host)))
                .collect();
            bail!(
                "not all agents were ready within {timeout:?}: {missing}{}",
                words.join("")
            );
        }
        Ok(())
    }

    /// Waits until the agents that run have `sessions` sessions in all, each of
    /// them known to every other host.
    pub fn wait_settled(&self, sessions: u64, timeout: Duration) -> Result<Settled> {
        let others = self.running().len().saturating_sub(1) as u64;
        let wanted = Settled {
            sessions,
            foreign: sessions * others,
        };
        let mut now = Settled {
            sessions: 0,
            foreign: 0,
        };
        let settled = wait_until(timeout, || {
            now = self.settled()?;
            Ok(now == wanted)
        })?;
        ensure!(
            settled,
            "after {timeout:?} the POP has {now:?}, not {wanted:?}"
        );
        Ok(now)
    }

    /// Sessions and entries for sessions of others, summed over the agents that run.
    pub fn settled(&self) -> Result<Settled> {
        let mut sum = Settled {
            sessions: 0,
            foreign: 0,
        };
        for host in self.running() {
            let status = self.homing_json(host, &["status"])?;
            sum.sessions += number(&status, SESSIONS)?;
            sum.foreign += number(&status, OWNERS)?;
        }
        Ok(sum)
    }

    /// The packets that ended in one of these outcomes, summed over all hosts
    /// whose agent runs.
    pub fn outcomes(&self, labels: &[&str]) -> Result<u64> {
        let mut sum = 0;
        for host in self.running() {
            let stats = self.homing_json(host, &["stats"])?;
            let outcomes = stats.pointer("/outcomes").and_then(Value::as_array);
            for outcome in outcomes.context("`homing stats` names no outcomes")? {
                let label = outcome.pointer("/name").and_then(Value::as_str);
                if label.is_some_and(|label| labels.contains(&label)) {
                    sum += number(outcome, "/packets")?;
                }
            }
        }
        Ok(sum)
    }

    /// A counter of a host's gossip, as `homing stats` names it.
    pub fn gossip_count(&self, host: u16, name: &str) -> Result<u64> {
        let stats = self.homing_json(host, &["stats"])?;
        let counters = stats.pointer("/gossip").and_then(Value::as_array);
        let counter = counters
            .into_iter()
            .flatten()
            .find(|counter| counter.pointer("/name").and_then(Value::as_str) == Some(name))
            .with_context(|| format!("`homing stats` on h{host} has no counter {name}"))?;
        number(counter, "/count")
    }

    /// The end of an agent's log.
    pub fn last_words(&self, host: u16) -> String {
        let path = self.folder_of(Node::Host(host)).join("agent.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Starts a host's agent and waits for nothing.
    pub fn launch(&mut self, host: u16) -> Result<()> {
        check_homing(self.state.homing.as_deref())?;
        let node = Node::Host(host);
        ensure!(self.state.plan.has(node), "the lab has no host {host}");
        let homing = self.state.homing.clone().unwrap_or_default();
        let log = self.folder_of(node).join("agent.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut command = Command::new(homing);
        command
            .arg("agent")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for the command, not for the agents.
            .process_group(0);
        self.give_clock(host, &mut command)?;
        self.place(node, &mut command)?;
        // Once it is there: as its unit has it, so that no test needs more than hosts have.
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                setgroups(&GROUPS.map(Gid::from_raw))?;
                capabilities::keep_those_of_unit()
            })
        };
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot run the agent of h{host}"))?;
        let process = Process::find(child.id() as i32);
        self.children.push(child);
        let process = process.with_context(|| {
            format!(
                "the agent of h{host} ended at once: {}",
                self.last_words(host)
            )
        })?;
        let _lock = state::lock(&self.state.plan.name)?;
        self.state.agents.insert(host, process);
        self.state.write()
    }

    fn running_agent(&self, host: u16) -> Result<Process> {
        self.agent(host)
            .with_context(|| format!("the agent of h{host} does not run"))
    }

    fn signal(&self, host: u16, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.running_agent(host)?.pid), signal)
            .with_context(|| format!("cannot send {signal} to the agent of h{host}"))
    }

    fn end(&mut self, host: u16, signal: Signal) -> Result<()> {
        let process = self.running_agent(host)?;
        self.signal(host, signal)?;
        let mut child = self
            .children
            .iter_mut()
            .find(|child| child.id() as i32 == process.pid);
        let ended = wait_until(STOP_TIMEOUT, || match &mut child {
            // The first thread may be gone while others still hold the sockets: a
            // process has ended when it can be waited for.
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(!process.alive()),
        })?;
        ensure!(
            ended,
            "the agent of h{host} still runs {STOP_TIMEOUT:?} after {signal}"
        );
        self.children
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let _lock = state::lock(&self.state.plan.name)?;
        self.state.agents.remove(&host);
        self.state.write()
    }
}

/// The program `homing`: `HOMING_BIN`, or the one built along with this program.
pub(super) fn find_homing() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("HOMING_BIN") {
        return Some(path.into());
    }
    build_folder()
        .ok()
        .map(|folder| folder.join("homing"))
        .filter(|path| path.is_file())
}

pub(super) fn check_homing(path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if path.is_file() => Ok(()),
        Some(path) => bail!("there is no program {}", path.display()),
        None => bail!(
            "the program `homing` is not built: `cargo build --package homing-agent` builds it"
        ),
    }
}

/// Whom of `running` the host does not see alive with a resolved way.
fn not_ready(host: u16, hosts: &Value, running: &[u16]) -> String {
    let list = hosts.pointer("/hosts").and_then(Value::as_array);
    let ready = |other: u16| {
        list.into_iter().flatten().any(|entry| {
            entry.pointer("/host").and_then(Value::as_u64) == Some(u64::from(other))
                && entry.pointer("/state").and_then(Value::as_str) == Some("alive")
                && (other == host
                    || entry.pointer("/next_hop/resolved").and_then(Value::as_bool) == Some(true))
        })
    };
    let missing: Vec<String> = running
        .iter()
        .filter(|other| !ready(**other))
        .map(|n| format!("h{n}"))
        .collect();
    if missing.is_empty() {
        String::new()
    } else {
        format!("h{host} waits for {}; ", missing.join(", "))
    }
}

fn number(value: &Value, pointer: &str) -> Result<u64> {
    value
        .pointer(pointer)
        .and_then(Value::as_u64)
        .with_context(|| format!("no number {pointer} in {value}"))
}
