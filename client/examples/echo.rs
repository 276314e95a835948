//! A line echo server whose connections can move to another host: it answers each line
//! with its number in that connection, and goes on counting where it is moved to.
//!
//! ```console
//! $ echo AGENT_SOCKET ADDRESS:PORT
//! ```
//!
//! `movable.py` is the same in Python; connections move between the two.

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use homing_client::{
    Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// The longest line; who sends a longer one is cut off.
const LINE_MAX: usize = 64 * 1024;

/// What the server knows of a connection: all of it travels.
#[derive(Default)]
struct State {
    /// Lines that were answered.
    count: u64,
    /// The beginning of a line.
    input: Vec<u8>,
    /// Answers that were not sent yet.
    output: Vec<u8>,
}

impl State {
    /// The count, the length of the input, the input, the output.
    fn to_blob(&self) -> Blob {
        // With room for all of it from the beginning: so no copy is left behind.
        let mut bytes = Vec::with_capacity(12 + self.input.len() + self.output.len());
        bytes.extend(self.count.to_be_bytes());
        bytes.extend((self.input.len() as u32).to_be_bytes());
        bytes.extend(&self.input);
        bytes.extend(&self.output);
        bytes.into()
    }

    fn from_blob(blob: &Blob) -> Option<Self> {
        let (count, rest) = blob.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (input, output) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        Some(Self {
            count: u64::from_be_bytes(*count),
            input: input.to_vec(),
            output: output.to_vec(),
        })
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.input.push(byte);
            if byte == b'\n' {
                self.count += 1;
                self.output.extend(format!("{}: ", self.count).as_bytes());
                self.output.append(&mut self.input);
            }
        }
    }
}

/// Who stops a connection gets what is left of it.
type Stop = oneshot::Sender<oneshot::Sender<(TcpStream, State)>>;

#[derive(Default, Clone)]
struct Server {
    connections: Arc<Mutex<HashMap<Connection, Stop>>>,
}

impl Server {
    fn start(&self, connection: Connection, stream: TcpStream, state: State) {
        let (stop, stopped) = oneshot::channel();
        self.lock().insert(connection, stop);
        let server = self.clone();
        tokio::spawn(async move {
            if let Some(stream) = serve(stream, state, stopped).await {
                // Before it is closed: its tuple may be used again then.
                server.lock().remove(&connection);
                drop(stream);
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Connection, Stop>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a connection until it ends, or is stopped: then it is somebody else's.
async fn serve(
    stream: TcpStream,
    mut state: State,
    mut stop: oneshot::Receiver<oneshot::Sender<(TcpStream, State)>>,
) -> Option<TcpStream> {
    loop {
        // A turn waits only for the socket, and does all else at once: whenever it is
        // dropped, no byte is in between.
        tokio::select! {
            biased;
            stopped = &mut stop => {
                let _ = stopped.ok()?.send((stream, state));
                return None;
            }
            turn = turn(&stream, &mut state) => match turn {
                Ok(true) => {}
                Ok(false) | Err(_) => return Some(stream),
            },
        }
    }
}

/// Writes what is to be written, or else reads. False: that was the end.
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
    match stream.try_read(&mut buffer) {
        Ok(len) => {
            state.take(&buffer[..len]);
            Ok(len > 0 && state.input.len() <= LINE_MAX)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

impl Application for Server {
    type Kept = TcpStream;
    type Begun = State;

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
        // It is what this server wrote itself.
        let state = State::from_blob(&state).unwrap_or_default();
        self.start(connection, stream, state);
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, service] = arguments.as_slice() else {
        return Err("usage: echo AGENT_SOCKET ADDRESS:PORT".into());
    };
    let service: SocketAddr = service.parse()?;
    let listener = TcpListener::bind(service).await?;
    let server = Server::default();
    let registration = Registration::new(agent, Protocol::new("line-echo", 1)).service(service);
    tokio::select! {
        ended = registration.serve(Arc::new(server.clone())) => match ended? {},
        ended = accept(&server, &listener) => Ok(ended?),
    }
}

async fn accept(server: &Server, listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let connection = Connection::new(client, stream.local_addr()?);
        server.start(connection, stream, State::default());
    }
}
