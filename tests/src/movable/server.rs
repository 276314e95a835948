//! The server: connections of every kind, each of which can move to another host
//! between any two of its system calls.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use homing_client::{
    Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::consume_budget,
    time::{sleep, sleep_until},
};

use super::{
    pace::{Allowed, Pace},
    state::{Standing, State},
};

/// What the server says on its standard output once it listens.
pub const LISTENING: &str = "listening";
/// … and whenever an agent has registered it.
pub const REGISTERED: &str = "registered";

/// How much is read at once.
const READ: usize = 16 * 1024;

/// What the server is to be, and what it is to do wrong: for tests.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerOptions {
    /// How long it takes for each answer to its agent, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub answer_delay_ms: u64,
    /// What it refuses to do; can be given several times
    #[arg(long, value_enum)]
    pub refuse: Vec<Refused>,
    /// The size of the states that it gives, at least
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub blob_bytes: usize,
    /// Give states that are a byte off
    #[arg(long)]
    pub spoil: bool,
}

/// What an application can refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Refused {
    /// To give a connection away.
    Export,
    /// To go on from a state.
    Begin,
    /// To take a connection.
    Adopt,
}

impl ServerOptions {
    /// The same as arguments of the program.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec![
            format!("--answer-delay-ms={}", self.answer_delay_ms),
            format!("--blob-bytes={}", self.blob_bytes),
        ];
        for refused in &self.refuse {
            let name = match refused {
                Refused::Export => "export",
                Refused::Begin => "begin",
                Refused::Adopt => "adopt",
            };
            all.push(format!("--refuse={name}"));
        }
        if self.spoil {
            all.push("--spoil".to_owned());
        }
        all
    }

    /// Waits as long as each answer is to take, and refuses what is to be refused.
    async fn answer(&self, what: Refused) -> Result<(), Refusal> {
        if self.answer_delay_ms > 0 {
            sleep(Duration::from_millis(self.answer_delay_ms)).await;
        }
        if self.refuse.contains(&what) {
            return Err(Reason::Busy.into());
        }
        Ok(())
    }
}

/// Serves on all `addresses`, registered with the agent at `agent`, until the process
/// ends.
pub async fn serve(
    agent: PathBuf,
    addresses: Vec<SocketAddr>,
    options: ServerOptions,
) -> Result<()> {
    let server = Server {
        connections: Arc::default(),
        options: Arc::new(options),
        reachable: Arc::new(AtomicBool::new(true)),
    };
    let mut registration = Registration::new(agent, Protocol::new("homing-movable", 1));
    for address in addresses {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        registration = registration.service(address);
        tokio::spawn(accept(server.clone(), listener));
    }
    println!("{LISTENING}");
    match registration.serve(Arc::new(server)).await? {}
}

async fn accept(server: Server, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                stream.set_nodelay(true).ok();
                if let Ok(service) = stream.local_addr() {
                    server.start(Connection::new(client, service), stream, State::default());
                }
            }
            // It was gone before it was accepted, or there are too many files.
            Err(error) => {
                eprintln!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Who stops a connection gets what is left of it.
type Stop = oneshot::Sender<oneshot::Sender<(TcpStream, State)>>;

#[derive(Clone)]
struct Server {
    connections: Arc<Mutex<HashMap<Connection, Stop>>>,
    options: Arc<ServerOptions>,
    /// As far as is known.
    reachable: Arc<AtomicBool>,
}

impl Server {
    fn start(&self, connection: Connection, stream: TcpStream, state: State) {
        let (stop, stopped) = oneshot::channel();
        self.lock().insert(connection, stop);
        let server = self.clone();
        tokio::spawn(async move {
            if let Some(stream) = converse(connection, stream, state, stopped).await {
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
async fn converse(
    connection: Connection,
    stream: TcpStream,
    mut state: State,
    mut stop: oneshot::Receiver<oneshot::Sender<(TcpStream, State)>>,
) -> Option<TcpStream> {
    let mut pace = None;
    loop {
        // One that always has something to do is not to keep the others waiting.
        consume_budget().await;
        // A turn waits first, and then does all else at once: whenever it is dropped, no
        // byte is in between.
        tokio::select! {
            biased;
            stopped = &mut stop => {
                let _ = stopped.ok()?.send((stream, state));
                return None;
            }
            turn = turn(&stream, &mut state, &mut pace) => match turn {
                Ok(true) => {}
                Ok(false) => {
                    if let Some(wrong) = state.wrong() {
                        eprintln!("{connection:?}: {wrong}");
                    }
                    return Some(stream);
                }
                Err(error) => {
                    eprintln!("{connection:?}: {error}");
                    return Some(stream);
                }
            },
        }
    }
}

/// Reads and writes what can be read and written. False: that was the end.
async fn turn(stream: &TcpStream, state: &mut State, pace: &mut Option<Pace>) -> io::Result<bool> {
    match state.standing() {
        Standing::On => {}
        Standing::HalfOver => {
            SockRef::from(stream).shutdown(std::net::Shutdown::Write)?;
            state.half_closed();
            return Ok(true);
        }
        Standing::Over => return Ok(false),
        Standing::Reset => {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            return Ok(false);
        }
    }
    let mut not_before = None;
    if state.output().is_empty()
        && let Some((rate, of)) = state.rate()
    {
        if !pace.as_ref().is_some_and(|pace| pace.is_of(rate, of)) {
            *pace = Some(Pace::new(rate, of));
        }
        if let Some(pace) = pace {
            match pace.allowed() {
                Allowed::Bytes(allowed) => pace.sent(state.make(allowed)),
                Allowed::NotBefore(time) => not_before = Some(time),
            }
        }
    }
    let writes = (!state.output().is_empty()).then_some(Interest::WRITABLE);
    let reads = state.reads().then_some(Interest::READABLE);
    let interest = match (reads, writes) {
        (Some(reads), Some(writes)) => Some(reads | writes),
        (one, other) => one.or(other),
    };
    let ready = tokio::select! {
        ready = async {
            match interest {
                Some(interest) => stream.ready(interest).await,
                None => std::future::pending().await,
            }
        } => ready?,
        () = async {
            match not_before {
                Some(time) => sleep_until(time).await,
                None => std::future::pending().await,
            }
        } => return Ok(true),
    };
    if writes.is_some() && ready.is_writable() {
        match stream.try_write(state.output()) {
            Ok(len) => state.written(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    if reads.is_some() && ready.is_readable() {
        let mut buffer = [0; READ];
        match stream.try_read(&mut buffer) {
            Ok(len) => state.take(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

impl Application for Server {
    type Kept = TcpStream;
    type Begun = State;

    fn registered(&self) {
        self.reachable.store(true, Relaxed);
        println!("{REGISTERED}");
    }

    fn unreachable(&self, why: &str) {
        // It is tried again and again.
        if self.reachable.swap(false, Relaxed) {
            eprintln!("no agent: {why}");
        }
    }

    async fn export(
        &self,
        connection: Connection,
        _within: Duration,
    ) -> Result<Exported<TcpStream>, Refusal> {
        self.options.answer(Refused::Export).await?;
        let stop = self.lock().remove(&connection).ok_or(Reason::Unknown)?;
        let (send, receive) = oneshot::channel();
        // It may have ended just now.
        stop.send(send).map_err(|_| Reason::Unknown)?;
        let (stream, mut state) = receive.await.map_err(|_| Reason::Unknown)?;
        match stream.as_fd().try_clone_to_owned() {
            Ok(descriptor) => {
                if self.options.spoil {
                    state.spoil();
                }
                Ok(Exported {
                    descriptor,
                    state: state.to_blob(self.options.blob_bytes),
                    kept: stream,
                })
            }
            Err(error) => {
                self.start(connection, stream, state);
                Err(Refusal::failed(error))
            }
        }
    }

    async fn resume(&self, connection: Connection, stream: TcpStream, state: Blob) {
        match State::from_blob(&state) {
            Some(state) => self.start(connection, stream, state),
            None => eprintln!("{connection:?}: its own state came back as another"),
        }
    }

    async fn begin(&self, _: Connection, state: Blob) -> Result<State, Refusal> {
        self.options.answer(Refused::Begin).await?;
        State::from_blob(&state).ok_or_else(|| Refusal::failed("the state makes no sense"))
    }

    async fn adopt(
        &self,
        connection: Connection,
        state: State,
        socket: OwnedFd,
    ) -> Result<(), Refusal> {
        self.options.answer(Refused::Adopt).await?;
        let stream = std::net::TcpStream::from(socket);
        let stream = TcpStream::from_std(stream).map_err(Refusal::failed)?;
        self.start(connection, stream, state);
        Ok(())
    }
}
