//! The lab: two hosts with an agent and the server on each, one client.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{admin::Admin, application};
use crate::{
    lab::{Lab, Node, unique, wait_until},
    movable::NetCounts,
};

/// The hosts between which sessions go to and fro.
pub const HOSTS: [u16; 2] = [1, 2];
/// The service's port.
const PORT: u16 = 9000;
/// How long sessions may take to be known.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that stands for a run.
pub struct Site {
    /// Ends before the lab does.
    servers: Vec<Child>,
    /// By host: 1, 2.
    admins: [Admin; 2],
    lab: Lab,
    service: SocketAddr,
}

impl Site {
    /// Builds it.
    pub fn build() -> Result<Self> {
        let lab = Lab::builder()
            .name(&unique("bench"))
            .hosts(HOSTS.len() as u16)
            .racks(1)
            .clients(1)
            .up()?;
        let service = lab.plan().service(PORT)[0];
        let servers = HOSTS.map(|host| serve(&lab, host, service));
        let admin = |host| Admin::open(&lab.sockets(host).admin);
        let admins = [admin(HOSTS[0])?, admin(HOSTS[1])?];
        let mut site = Self {
            servers: Vec::new(),
            admins,
            lab,
            service,
        };
        for server in servers {
            site.servers.push(server?);
        }
        Ok(site)
    }

    /// Has all new sessions begin at the first host.
    pub fn begin_at_first(&mut self) -> Result<()> {
        self.lab.set_ecmp(&HOSTS[..1])?;
        Ok(())
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where the client connects to.
    pub fn service(&self) -> SocketAddr {
        self.service
    }

    /// A host's agent.
    pub fn admin(&mut self, host: u16) -> &mut Admin {
        &mut self.admins[usize::from(host) - 1]
    }

    /// Waits until a host has so many sessions.
    pub fn wait_sessions(&mut self, host: u16, wanted: u64) -> Result<()> {
        let mut count = 0;
        let there = wait_until(PATIENCE, || {
            let status = self.admin(host).get("/status")?;
            let found = status.pointer("/sessions/count");
            count = found
                .and_then(serde_json::Value::as_u64)
                .context("no sessions")?;
            Ok(count == wanted)
        })?;
        ensure!(there, "h{host} has {count} sessions, not {wanted}");
        Ok(())
    }

    /// Waits until no host has a session.
    pub fn wait_sessions_over(&mut self) -> Result<()> {
        HOSTS
            .into_iter()
            .try_for_each(|host| self.wait_sessions(host, 0))
    }

    /// What the client's kernel counts.
    pub fn client_counts(&self) -> Result<NetCounts> {
        NetCounts::of(&self.lab, Node::Client(1))
    }

    /// Takes all down.
    pub fn down(mut self) -> Result<()> {
        self.end_servers();
        Ok(())
    }

    fn end_servers(&mut self) {
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
        self.servers.clear();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end_servers();
    }
}

/// Starts the server on a host and waits until its agent knows it.
fn serve(lab: &Lab, host: u16, service: SocketAddr) -> Result<Child> {
    let node = Node::Host(host);
    let log = lab.folder_of(node).join("bench-server.log");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("serve")
        .arg(lab.sockets(host).apps)
        .arg(service.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?);
    let mut child = lab.spawn(node, &mut command)?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    if line.trim() != application::READY {
        child.kill().ok();
        child.wait().ok();
    }
    ensure!(
        line.trim() == application::READY,
        "the server on h{host} did not register; see {}",
        log.display()
    );
    Ok(child)
}
