//! One connection of a puppet, and what it knows of it: which travels.

use std::{io, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use homing_client::{Blob, Connection};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, sync::oneshot, time::timeout};

use super::{PATIENCE, Queues, seeds};
use crate::random::stream;

/// What of the send queue was never sent (`include/uapi/linux/sockios.h`).
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// The most that is owed to a client while more is read of it.
const OWED_MAX: u64 = 1 << 20;

/// The most bytes of one read or write.
const PART: usize = 64 << 10;

/// How far both sides are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Bytes read, and checked.
    heard: u64,
    /// Bytes written.
    said: u64,
    /// Bytes read and not answered.
    owed: u64,
    /// The client has ended its side.
    ended: bool,
}

impl State {
    pub fn to_blob(self) -> Result<Blob> {
        Ok(serde_json::to_vec(&self)?.into())
    }

    pub fn from_blob(blob: &Blob) -> Result<Self> {
        Ok(serde_json::from_slice(blob)?)
    }
}

/// A connection that nobody serves at the moment.
pub struct Conn {
    pub connection: Connection,
    pub stream: TcpStream,
    pub state: State,
}

/// Who stops a connection that is served gets it.
pub type Stop = oneshot::Sender<oneshot::Sender<Conn>>;

/// How serving a connection came to an end.
pub enum Served {
    /// It was stopped, and is somebody else's.
    Stopped,
    /// It has ended: it can be closed.
    Ended(Conn),
    /// It says what it should not.
    Wrong(Conn, String),
}

impl Conn {
    /// Answers each byte with one, until it ends or is stopped.
    pub async fn echo(mut self, mut stop: oneshot::Receiver<oneshot::Sender<Self>>) -> Served {
        loop {
            // A turn waits only for the socket, and does all else at once: whenever it is
            // dropped, no byte is in between.
            let turn = tokio::select! {
                biased;
                stopped = &mut stop => {
                    let taken = stopped.is_ok_and(|send| send.send(self).is_ok());
                    debug_assert!(taken, "who stops a connection takes it");
                    return Served::Stopped;
                }
                turn = self.turn() => turn,
            };
            match turn {
                // Who wants something of it is not to wait for as long as there is
                // something to read and to write.
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => return Served::Ended(self),
                Err(error) if error.downcast_ref::<io::Error>().is_some() => {
                    return Served::Ended(self);
                }
                Err(error) => return Served::Wrong(self, format!("{error:#}")),
            }
        }
    }

    /// Reads or writes once; false once all is answered and the client has ended.
    async fn turn(&mut self) -> Result<bool> {
        let reads = !self.state.ended && self.state.owed < OWED_MAX;
        let interest = match (reads, self.state.owed > 0) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => return Ok(false),
        };
        let ready = self.stream.ready(interest).await?;
        if self.state.owed > 0 && ready.is_writable() {
            self.state.owed -= self.write(self.state.owed)?;
        }
        if reads && ready.is_readable() {
            match self.read(PART as u64)? {
                Some(0) => self.state.ended = true,
                Some(len) => self.state.owed += len,
                None => {}
            }
        }
        Ok(true)
    }

    /// Reads and checks so much at most; none if nothing is there.
    fn read(&mut self, most: u64) -> Result<Option<u64>> {
        let mut got = vec![0; PART.min(most as usize)];
        let len = match self.stream.try_read(&mut got) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut wanted = vec![0; len];
        stream(
            seeds(self.connection.client)[0],
            self.state.heard,
            &mut wanted,
        );
        ensure!(
            got[..len] == wanted,
            "{}: wrong bytes within {len} from {}",
            self.connection,
            self.state.heard
        );
        self.state.heard += len as u64;
        Ok(Some(len as u64))
    }

    /// Writes so much, as far as there is room.
    fn write(&mut self, most: u64) -> io::Result<u64> {
        let mut part = vec![0; PART.min(most as usize)];
        stream(seeds(self.connection.client)[1], self.state.said, &mut part);
        match self.stream.try_write(&part) {
            Ok(len) => {
                self.state.said += len as u64;
                Ok(len as u64)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Reads so many bytes.
    pub async fn read_all(&mut self, len: u64) -> Result<()> {
        let mut left = len;
        while left > 0 {
            self.readable().await?;
            match self.read(left)? {
                Some(0) => anyhow::bail!("an end, {left} bytes before it was to come"),
                Some(len) => left -= len,
                None => {}
            }
        }
        Ok(())
    }

    /// Writes so many bytes, as far as there is room.
    pub fn write_most(&mut self, len: u64) -> Result<u64> {
        let mut written = 0;
        while written < len {
            let mut part = vec![0; PART.min((len - written) as usize)];
            stream(seeds(self.connection.client)[1], self.state.said, &mut part);
            // Past the runtime, which may not have heard yet that there is room.
            match SockRef::from(&self.stream).send(&part) {
                Ok(len) => {
                    self.state.said += len as u64;
                    written += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// Reads the end.
    pub async fn read_end(&mut self) -> Result<()> {
        loop {
            self.readable().await?;
            match self.read(PART as u64)? {
                Some(0) => return Ok(()),
                Some(len) => anyhow::bail!("{len} bytes and not the end"),
                None => {}
            }
        }
    }

    async fn readable(&self) -> Result<()> {
        let ready = timeout(PATIENCE, self.stream.readable()).await;
        Ok(ready.context("nothing came")??)
    }

    pub fn queues(&self) -> Result<Queues> {
        let queued = |request| -> Result<u64> {
            let mut value: libc::c_int = 0;
            let fd = self.stream.as_raw_fd();
            // SAFETY: these requests write one integer, which outlives the call.
            let done = unsafe { libc::ioctl(fd, request, &raw mut value) };
            ensure!(done == 0, io::Error::last_os_error());
            Ok(value as u64)
        };
        let (mut state, mut len) = (0u8, 1);
        // SAFETY: the kernel writes no more of the structure than it is told there is
        // room for: its first byte, which is the state.
        let done = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut state).cast(),
                &raw mut len,
            )
        };
        ensure!(done == 0, io::Error::last_os_error());
        Ok(Queues {
            unread: queued(libc::FIONREAD)?,
            unacknowledged: queued(libc::TIOCOUTQ)?,
            unsent: queued(SIOCOUTQNSD)?,
            state,
        })
    }
}
