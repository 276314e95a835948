//! The server in a lab: a process of its own on a host, in that host's cgroup.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    HTTP_PORT, PORT, ServerOptions,
    server::{LISTENING, REGISTERED},
};
use crate::lab::{Lab, Node, program, wait_until};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(15);

/// A server on a host; it is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    host: u16,
    child: Child,
    said: Arc<Said>,
}

/// What it has said on its standard output.
#[derive(Debug, Default)]
struct Said {
    listening: AtomicBool,
    registered: AtomicU64,
}

impl Lab {
    /// Starts the movable server on a host, and waits until it listens. Its log is
    /// `movable.log` in the host's folder.
    pub fn start_movable(&self, host: u16, options: &ServerOptions) -> Result<Server> {
        let folder = self.folder_of(Node::Host(host));
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("movable.log"))?;
        let mut command = Command::new(program("homing-movable")?);
        command
            .args(options.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for port in [PORT, HTTP_PORT] {
            for address in self.plan().service(port) {
                command.arg("--listen").arg(address.to_string());
            }
        }
        let mut child = self.spawn(Node::Host(host), &mut command)?;
        let stdout = child.stdout.take().context("no output")?;
        let said = Arc::new(Said::default());
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match line.as_str() {
                    LISTENING => heard.listening.store(true, Relaxed),
                    REGISTERED => drop(heard.registered.fetch_add(1, Relaxed)),
                    _ => {}
                }
            }
        });
        let mut server = Server { host, child, said };
        let listens = wait_until(START, || {
            let ended = server.child.try_wait()?;
            ensure!(
                ended.is_none(),
                "the server on h{host} ended at once: {ended:?}"
            );
            Ok(server.said.listening.load(Relaxed))
        });
        let listens = listens.with_context(|| format!("see {}", folder.display()))?;
        ensure!(listens, "the server on h{host} does not listen");
        Ok(server)
    }

    /// Starts the movable server on every host, and waits until each is registered with
    /// its agent.
    pub fn start_movables(&self, options: &ServerOptions) -> Result<Vec<Server>> {
        let servers = (1..=self.plan().hosts)
            .map(|host| self.start_movable(host, options))
            .collect::<Result<Vec<_>>>()?;
        for server in &servers {
            server.wait_registered(1, START)?;
        }
        Ok(servers)
    }
}

impl Server {
    /// The host that it is on.
    pub fn host(&self) -> u16 {
        self.host
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How often an agent has registered it.
    pub fn registered(&self) -> u64 {
        self.said.registered.load(Relaxed)
    }

    /// Waits until agents have registered it so often.
    pub fn wait_registered(&self, times: u64, timeout: Duration) -> Result<()> {
        let done = wait_until(timeout, || Ok(self.registered() >= times))?;
        ensure!(
            done,
            "the server on h{} was not registered within {timeout:?}; see its movable.log",
            self.host
        );
        Ok(())
    }

    /// Stops it in its tracks (SIGSTOP), until [`Server::go_on`].
    pub fn pause(&self) -> Result<()> {
        Ok(kill(self.as_pid(), Signal::SIGSTOP)?)
    }

    /// Lets it go on (SIGCONT).
    pub fn go_on(&self) -> Result<()> {
        Ok(kill(self.as_pid(), Signal::SIGCONT)?)
    }

    /// Kills it on the spot (SIGKILL).
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
