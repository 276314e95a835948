//! The server whose connections are moved: one process on each host.
//!
//! The first eight bytes of a connection say what it is for ([`Work`]). It is served by
//! one task, on one thread for all, as an application that is there to be fast would.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use homing_client::{
    Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
};
use libc::{SOL_SOCKET, c_int};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

/// The length of what a client says first.
pub const HELLO_LEN: usize = 8;
/// What is printed once all listens and the agent knows the application.
pub const READY: &str = "registered";

/// How often a send queue is looked at until it is full enough.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Every byte comes back, so many bytes late: these stay unread.
    Echo {
        /// How many.
        behind: u32,
    },
    /// The server writes, to a client that does not read, until so many bytes are in its
    /// send queue; then it is idle.
    Fill {
        /// How many.
        bytes: u32,
    },
    /// A byte is answered once all [`Work::Fill`] of this host have filled their queues.
    Filled,
}

impl Work {
    /// What the client says first.
    pub fn hello(self) -> [u8; HELLO_LEN] {
        let (kind, bytes) = match self {
            Self::Echo { behind } => (*b"echo", behind),
            Self::Fill { bytes } => (*b"fill", bytes),
            Self::Filled => (*b"full", 0),
        };
        let mut hello = [0; HELLO_LEN];
        hello[..4].copy_from_slice(&kind);
        hello[4..].copy_from_slice(&bytes.to_be_bytes());
        hello
    }

    fn from_hello(hello: &[u8]) -> Option<Self> {
        let (kind, bytes) = hello.split_first_chunk()?;
        let bytes = u32::from_be_bytes(bytes.try_into().ok()?);
        Some(match kind {
            b"echo" => Self::Echo { behind: bytes },
            b"fill" => Self::Fill { bytes },
            b"full" => Self::Filled,
            _ => return None,
        })
    }
}

/// A connection as it is served: all of it travels but the socket.
struct State {
    work: Work,
    /// What could not be sent back yet.
    output: Vec<u8>,
}

impl State {
    fn to_blob(&self) -> Blob {
        let mut bytes = Vec::with_capacity(HELLO_LEN + self.output.len());
        bytes.extend(self.work.hello());
        bytes.extend(&self.output);
        bytes.into()
    }

    fn from_blob(blob: &Blob) -> Option<Self> {
        let (hello, output) = blob.split_at_checked(HELLO_LEN)?;
        Some(Self {
            work: Work::from_hello(hello)?,
            output: output.to_vec(),
        })
    }
}

/// Who stops a connection gets what is left of it.
type Stop = oneshot::Sender<oneshot::Sender<(TcpStream, State)>>;
type Stopped = oneshot::Receiver<oneshot::Sender<(TcpStream, State)>>;

#[derive(Clone)]
struct Server {
    connections: Arc<Mutex<HashMap<Connection, Stop>>>,
    /// How many send queues are not full yet.
    filling: watch::Sender<u32>,
}

/// Serves connections at these addresses, registered with the agent at `agent`, until
/// the process ends.
pub fn serve(agent: &Path, addresses: &[SocketAddr]) -> Result<()> {
    crate::movable::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server {
            connections: Arc::default(),
            filling: watch::Sender::new(0),
        };
        let mut registration = Registration::new(agent, Protocol::new("bench", 1));
        for address in addresses {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            registration = registration.service(*address);
            tokio::spawn(server.clone().accept(listener));
        }
        match registration.serve(Arc::new(server)).await? {}
    })
}

impl Server {
    async fn accept(self, listener: TcpListener) -> Result<()> {
        loop {
            let (stream, client) = listener.accept().await?;
            let server = self.clone();
            tokio::spawn(async move {
                if let Err(error) = server.greet(client, stream).await {
                    eprintln!("{client}: {error:#}");
                }
            });
        }
    }

    async fn greet(&self, client: SocketAddr, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut hello = [0; HELLO_LEN];
        stream.read_exact(&mut hello).await?;
        let connection = Connection::new(client, stream.local_addr()?);
        let Some(work) = Work::from_hello(&hello) else {
            bail!("not a client of this server");
        };
        match work {
            Work::Echo { behind } => {
                if behind > 0 {
                    // Room for all of it in the window, whatever the machine's limit is.
                    set_option(&stream, libc::SO_RCVBUFFORCE, 4 * behind)?;
                }
                // From so many bytes on the socket counts as readable.
                set_option(&stream, libc::SO_RCVLOWAT, behind + 1)?;
            }
            Work::Fill { bytes } => {
                self.filling.send_modify(|filling| *filling += 1);
                fill(&stream, bytes).await?;
                self.filling.send_modify(|filling| *filling -= 1);
            }
            Work::Filled => {
                self.filling
                    .subscribe()
                    .wait_for(|filling| *filling == 0)
                    .await?;
                return Ok(stream.write_all(&[0]).await?);
            }
        }
        let output = Vec::new();
        self.start(connection, stream, State { work, output });
        Ok(())
    }

    fn start(&self, connection: Connection, stream: TcpStream, state: State) {
        let (stop, stopped) = oneshot::channel();
        self.lock().insert(connection, stop);
        let server = self.clone();
        tokio::spawn(async move {
            if let Some(stream) = serve_one(stream, state, stopped).await {
                server.lock().remove(&connection);
                drop(stream);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Connection, Stop>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a connection until it ends, or is stopped: then it is somebody else's.
async fn serve_one(stream: TcpStream, mut state: State, mut stopped: Stopped) -> Option<TcpStream> {
    loop {
        // A turn waits only for the socket, and does all else at once: whenever it is
        // dropped, no byte is in between.
        tokio::select! {
            biased;
            asked = &mut stopped => {
                let _ = asked.ok()?.send((stream, state));
                return None;
            }
            turn = turn(&stream, &mut state) => match turn {
                Ok(true) => {}
                Ok(false) | Err(_) => return Some(stream),
            },
        }
    }
}

/// Sends back what was read, or else reads. False: that was the end.
async fn turn(stream: &TcpStream, state: &mut State) -> io::Result<bool> {
    if !state.output.is_empty() {
        stream.writable().await?;
        return match stream.try_write(&state.output) {
            Ok(len) => {
                state.output.drain(..len);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        };
    }
    stream.readable().await?;
    let mut buffer = [0; 4096];
    match try_read(stream, &mut buffer, state.work) {
        Ok(0) => Ok(false),
        Ok(len) => {
            let sent = stream.try_write(&buffer[..len]).unwrap_or(0);
            state.output.extend(&buffer[sent..len]);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Reads what is there, less what is to stay unread.
fn try_read(stream: &TcpStream, buffer: &mut [u8], work: Work) -> io::Result<usize> {
    let behind = match work {
        Work::Echo { behind } if behind > 0 => behind,
        _ => return stream.try_read(buffer),
    };
    stream.try_io(tokio::io::Interest::READABLE, || {
        let unread = queued(stream, libc::FIONREAD)?;
        let len = (unread.saturating_sub(behind) as usize).min(buffer.len());
        if len == 0 {
            // Less than the low-water mark wakes nobody but for an end, and clients end
            // with a reset.
            let error = SockRef::from(stream).take_error()?;
            return Err(error.unwrap_or(io::ErrorKind::WouldBlock.into()));
        }
        nix::unistd::read(stream.as_fd(), &mut buffer[..len]).map_err(io::Error::from)
    })
}

/// Writes until so many bytes are not acknowledged.
async fn fill(stream: &TcpStream, bytes: u32) -> io::Result<()> {
    // More than their data, as segments take it. Beyond the machine's limit, too.
    set_option(stream, libc::SO_SNDBUFFORCE, 2 * bytes + (128 << 10))?;
    loop {
        let queued = queued(stream, libc::TIOCOUTQ)?;
        let missing = bytes.saturating_sub(queued) as usize;
        if missing == 0 {
            return Ok(());
        }
        stream.writable().await?;
        match stream.try_write(&vec![b'x'; missing]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => drop(result?),
        }
        // The client's kernel takes some of it, until its own queue is full; nothing says
        // when.
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The length of one of a socket's queues.
fn queued(stream: &TcpStream, request: libc::Ioctl) -> io::Result<u32> {
    let mut len: c_int = 0;
    // SAFETY: both requests write one int, which outlives the call.
    match unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut len) } {
        0 => Ok(len as u32),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_option(stream: &TcpStream, name: c_int, value: u32) -> io::Result<()> {
    let value = value as c_int;
    // SAFETY: the kernel reads one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            SOL_SOCKET,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Application for Server {
    type Kept = TcpStream;
    type Begun = State;

    fn registered(&self) {
        println!("{READY}");
    }

    fn unreachable(&self, why: &str) {
        eprintln!("no agent: {why}");
    }

    async fn export(
        &self,
        connection: Connection,
        _within: Duration,
    ) -> Result<Exported<TcpStream>, Refusal> {
        let stop = self.lock().remove(&connection).ok_or(Reason::Unknown)?;
        let (send, receive) = oneshot::channel();
        // It may have ended just now.
        stop.send(send).map_err(|_| Reason::Unknown)?;
        let (stream, state) = receive.await.map_err(|_| Reason::Unknown)?;
        match stream.as_fd().try_clone_to_owned() {
            Ok(descriptor) => Ok(Exported {
                descriptor,
                state: state.to_blob(),
                kept: stream,
            }),
            Err(error) => {
                self.start(connection, stream, state);
                Err(Refusal::failed(error))
            }
        }
    }

    async fn resume(&self, connection: Connection, stream: TcpStream, state: Blob) {
        if let Some(state) = State::from_blob(&state) {
            self.start(connection, stream, state);
        }
    }

    async fn begin(&self, _: Connection, state: Blob) -> Result<State, Refusal> {
        State::from_blob(&state).ok_or_else(|| Refusal::failed("the state makes no sense"))
    }

    async fn adopt(
        &self,
        connection: Connection,
        state: State,
        socket: OwnedFd,
    ) -> Result<(), Refusal> {
        let stream = std::net::TcpStream::from(socket);
        let stream = TcpStream::from_std(stream).map_err(Refusal::failed)?;
        self.start(connection, stream, state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_on_from_its_blob() {
        for work in [
            Work::Echo { behind: 0 },
            Work::Echo { behind: 1 << 20 },
            Work::Fill { bytes: 16 << 10 },
        ] {
            let output = b"rest".to_vec();
            let state = State { work, output };
            let back = State::from_blob(&state.to_blob()).unwrap();
            assert_eq!((back.work, back.output), (work, b"rest".to_vec()));
        }
        assert!(State::from_blob(&b"short".to_vec().into()).is_none());
        assert!(Work::from_hello(b"what????").is_none());
    }
}
