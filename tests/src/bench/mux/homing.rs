//! Homing's message sockets: descriptors that the agents of both hosts give.

use std::{
    env, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use homing_client::message::{
    Agent, MessageSocket,
    record::{self, BATCH_MAX, HEADER_LEN, Header, Kind},
};
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use tokio::runtime;

use super::{
    case::{Case, Work},
    transport::{Listener, Pipe},
};

/// How long a service is looked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service of a connection.
fn name(index: usize) -> String {
    format!("bench {index}")
}

fn agent(case: &Case) -> Result<Agent> {
    let socket = env::var_os("HOMING_MUX_SOCKET").context("HOMING_MUX_SOCKET is not set")?;
    let agent = Agent::at(PathBuf::from(socket));
    Ok(agent.batches(case.work == Work::OneWayBatched))
}

/// Asks the agent, once for each connection.
fn ask<F>(case: &Case, ask: impl Fn(usize) -> F) -> Result<Vec<Descriptor>>
where
    F: Future<Output = Result<MessageSocket, homing_client::message::Error>>,
{
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let one = |index| {
        let given = runtime.block_on(async {
            let socket = ask(index).await?;
            anyhow::Ok(socket.into_descriptor()?)
        })?;
        anyhow::Ok(Descriptor::new(given, case.len))
    };
    (0..case.connections).map(one).collect()
}

/// Offers a service for each connection.
pub fn listen(case: &Case) -> Result<Box<dyn Listener>> {
    let agent = agent(case)?;
    let pipes = ask(case, |index| {
        let agent = agent.clone();
        async move { agent.offer(&name(index)).await }
    })?;
    Ok(Box::new(Offered(pipes)))
}

/// Connects to each service.
pub fn connect(case: &Case) -> Result<Vec<Box<dyn Pipe>>> {
    let agent = agent(case)?;
    let pipes = ask(case, |index| {
        let agent = agent.clone();
        async move { agent.connect(&name(index), None, PATIENCE).await }
    })?;
    Ok(boxed(pipes))
}

fn boxed(pipes: Vec<Descriptor>) -> Vec<Box<dyn Pipe>> {
    let boxed = pipes
        .into_iter()
        .map(|pipe| Box::new(pipe) as Box<dyn Pipe>);
    boxed.collect()
}

struct Offered(Vec<Descriptor>);

impl Listener for Offered {
    fn address(&self) -> String {
        "by name".to_owned()
    }

    fn accept(self: Box<Self>) -> Result<Vec<Box<dyn Pipe>>> {
        Ok(boxed(self.0))
    }
}

/// A message socket, used without any help.
struct Descriptor {
    fd: OwnedFd,
    /// From whom the last message came.
    peer: u64,
    /// What came, and what of it was looked at.
    came: Vec<u8>,
    at: usize,
    end: usize,
    batch: Vec<u8>,
}

impl Descriptor {
    fn new(fd: OwnedFd, longest: usize) -> Self {
        Self {
            fd,
            peer: 0,
            came: vec![0; BATCH_MAX.max(longest + HEADER_LEN)],
            at: 0,
            end: 0,
            batch: Vec::new(),
        }
    }

    fn head(&self, len: usize) -> [u8; HEADER_LEN] {
        let peer = self.peer;
        let header = Header {
            peer,
            ..Header::message(len)
        };
        header.encode()
    }

    fn write(&self, parts: [&[u8]; 2]) -> Result<()> {
        let parts = parts.map(io::IoSlice::new);
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.fd.as_raw_fd(), &parts, &[], flags, None)?;
        Ok(())
    }
}

impl Pipe for Descriptor {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.write([&self.head(message.len()), message])
    }

    fn send_batch(&mut self, messages: &[Vec<u8>]) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        for message in messages {
            if batch.len() + HEADER_LEN + message.len() > BATCH_MAX {
                self.write([&batch, &[]])?;
                batch.clear();
            }
            batch.extend(self.head(message.len()));
            batch.extend(message);
        }
        self.write([&batch, &[]])?;
        self.batch = batch;
        Ok(())
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Result<()> {
        if self.at == self.end {
            self.end = recv(self.fd.as_raw_fd(), &mut self.came, MsgFlags::empty())?;
            self.at = 0;
            ensure!(self.end > 0, "the other end has gone");
        }
        let mut rest = &self.came[self.at..self.end];
        let Some((header, body)) = record::split(&mut rest) else {
            bail!("a datagram that is no record");
        };
        ensure!(header.kind == Kind::Message, "a fate: {header:?}");
        self.at = self.end - rest.len();
        self.peer = header.peer;
        message.clear();
        message.extend(body);
        Ok(())
    }
}
