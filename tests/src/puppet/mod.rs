//! A movable application that does what a test tells it, when it is told: so that a
//! connection can be in just the state in which a test wants to move it, and the
//! application slow, unwilling or gone at just the moment.
//!
//! [`app`] is the application, a process of a lab's host; [`Puppet`] is what a test holds
//! of it. They speak over its standard input and output, a line of JSON each: an
//! [`Ask`], then its [`Answer`].
//!
//! What both ends of a connection say are [`crate::random::stream`]s whose seeds follow
//! from the client's port, so that every byte is checked on either side. On [`ECHO`] the
//! puppet answers each byte that it reads with one of its own, by itself; on [`STILL`] it
//! neither reads nor writes but when it is told. Both on the service addresses of IPv4
//! and IPv6.

pub mod app;
mod conn;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    lab::{Lab, Node, own_program},
    workload::down,
};

/// The port of connections that the puppet serves by itself.
pub const ECHO: u16 = 443;
/// The port of connections with which it does what it is told.
pub const STILL: u16 = 9000;

/// How long anything may take that a puppet is asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The seeds of what a client says, and of what it is told.
pub fn seeds(client: SocketAddr) -> [u64; 2] {
    let up = 0x7075_7070_6574_0000 | u64::from(client.port());
    [up, down(up)]
}

/// What a puppet is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Wait until it has the connection of this client.
    Here(SocketAddr),
    /// Does it have the connection of this client?
    Has(SocketAddr),
    /// Read and check so many bytes of it.
    Read(SocketAddr, u64),
    /// Write so many bytes to it, as far as there is room. Answered by how many.
    Write(SocketAddr, u64),
    /// Shut down writing.
    Shut(SocketAddr),
    /// Read its end.
    End(SocketAddr),
    /// Let go of it.
    Close(SocketAddr),
    /// Reset it.
    Abort(SocketAddr),
    /// What stands in its queues?
    Queues(SocketAddr),
    /// Have so many more descriptors of it, for as long as the process lives, and so many
    /// children that have one, for as long as the machine lives.
    Hold(SocketAddr, usize, usize),
    /// Answer the agent so from now on.
    Behave(Moment, How),
    /// Close the listeners, and open them again.
    Listen,
    /// What did the agent tell it so far?
    Told,
}

/// What a puppet answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// So many bytes; or for [`Ask::Has`], connections.
    Count(u64),
    /// For [`Ask::Queues`].
    Queues(Queues),
    /// For [`Ask::Told`].
    Told(Told),
    /// It could not be done.
    Failed(String),
}

/// What stands in a connection's queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Queues {
    /// Bytes that were received and not read.
    pub unread: u64,
    /// Bytes that were written and not acknowledged, …
    pub unacknowledged: u64,
    /// … and those of them that were never sent.
    pub unsent: u64,
    /// TCP's state, as the kernel counts them (`include/net/tcp_states.h`).
    pub state: u8,
}

/// A moment at which the agent asks the application.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Moment {
    /// It is to give a connection.
    Export,
    /// It is to look at a state.
    Begin,
    /// It is to take a connection over.
    Adopt,
}

/// How the application answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum How {
    /// As it should.
    #[default]
    Well,
    /// It refuses.
    Refuse,
    /// As it should, so many milliseconds later.
    Slowly(u64),
}

/// How often the agent told it what.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// Whether the agent knows it now, and all that it holds of earlier moves.
    pub is_registered: bool,
    /// To give a connection.
    pub exports: u64,
    /// That a connection stays.
    pub resumed: u64,
    /// That a connection has gone.
    pub committed: u64,
    /// To look at a state.
    pub begun: u64,
    /// To take a connection over.
    pub adopted: u64,
    /// Bytes that no client should have said.
    pub wrong: Vec<String>,
}

/// A puppet on a host, seen from a test. The process ends with this.
pub struct Puppet {
    host: u16,
    child: Child,
    orders: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Puppet {
    /// Starts one on a host, which registers with the agent that listens on `agent`, and
    /// waits until it listens.
    pub fn start(lab: &Lab, host: u16, agent: &Path) -> Result<Self> {
        let log = lab.folder_of(Node::Host(host)).join("puppet.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let mut command = Command::new(own_program()?);
        command
            .arg("puppet")
            .arg("--agent")
            .arg(agent)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = lab.spawn(Node::Host(host), &mut command)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(stdout)) = (stdin, stdout) else {
            bail!("a puppet without strings");
        };
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let puppet = Self {
            host,
            child,
            orders,
            answers,
        };
        match puppet.answer()? {
            Answer::Done => Ok(puppet),
            other => bail!("the puppet of h{host} says {other:?}"),
        }
    }

    /// Has it do something.
    pub fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let mut line = serde_json::to_string(ask)?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .with_context(|| format!("the puppet of h{} is gone", self.host))?;
        match self.answer()? {
            Answer::Failed(why) => bail!("the puppet of h{}: {ask:?}: {why}", self.host),
            answer => Ok(answer),
        }
    }

    /// Has it do something that is answered by a number.
    pub fn count(&mut self, ask: &Ask) -> Result<u64> {
        match self.ask(ask)? {
            Answer::Count(count) => Ok(count),
            other => bail!("{ask:?} was answered by {other:?}"),
        }
    }

    /// Whether it has the connection of this client.
    pub fn has(&mut self, client: SocketAddr) -> Result<bool> {
        Ok(self.count(&Ask::Has(client))? > 0)
    }

    /// What stands in a connection's queues.
    pub fn queues(&mut self, client: SocketAddr) -> Result<Queues> {
        match self.ask(&Ask::Queues(client))? {
            Answer::Queues(queues) => Ok(queues),
            other => bail!("not an answer: {other:?}"),
        }
    }

    /// What the agent told it so far.
    pub fn told(&mut self) -> Result<Told> {
        match self.ask(&Ask::Told)? {
            Answer::Told(told) => Ok(told),
            other => bail!("not an answer: {other:?}"),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Kills it on the spot (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn answer(&self) -> Result<Answer> {
        let line = self.answers.recv_timeout(PATIENCE);
        let line = line.with_context(|| {
            format!(
                "the puppet of h{} says nothing; see its puppet.log",
                self.host
            )
        })?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.kill().ok();
    }
}
