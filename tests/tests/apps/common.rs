//! What the tests share: an agent's end, application processes, clients.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use homing_agent::migration::app::{
    AppListener, Apps, Blob, Event, Events, Exported, Family, Limits, server::serve,
};
use homing_common::{
    net::{Port, Service, TCP},
    session::Tuple,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::{SockAddr, SockRef};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Longer than anything takes, on whatever machine.
pub const LONG: Duration = Duration::from_secs(60);

/// The applications.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Rust,
    Python,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Rust, Self::Python];
}

/// An address of this machine and a port that nobody else uses.
pub fn new_service() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [a, b] = (std::process::id() as u16).to_be_bytes();
    let port = 7000 + NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, a, b, 77], port))
}

pub fn service(endpoint: SocketAddr) -> Service {
    Service::new(endpoint.ip().into(), Port::new(endpoint.port()), TCP)
}

/// An agent's end, for one service.
pub struct Agent {
    pub apps: Apps,
    events: Events,
    folder: PathBuf,
    service: SocketAddr,
    task: JoinHandle<()>,
}

impl Agent {
    pub fn start(service: SocketAddr) -> Self {
        let name = format!("homing-apps-{}-{}", std::process::id(), service.port());
        let folder = std::env::temp_dir().join(name);
        Self::start_in(folder, service)
    }

    fn start_in(folder: PathBuf, endpoint: SocketAddr) -> Self {
        let socket = AppListener::bind(&folder.join("app.sock"), "apps").expect("bind");
        // A machine that is busy with other tests takes its time.
        let limits = Limits {
            register_within: LONG,
            export_within: LONG,
            import_within: LONG,
            read_within: LONG,
            ..Limits::default()
        };
        let (apps, events) = Apps::new([service(endpoint)], limits);
        let task = tokio::spawn(serve(socket, apps.clone(), std::future::pending()));
        Self {
            apps,
            events,
            folder,
            service: endpoint,
            task,
        }
    }

    pub fn service(&self) -> SocketAddr {
        self.service
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join("app.sock")
    }

    /// The agent ends, from one moment to the next, and another one starts.
    pub async fn restart(self) -> Self {
        let (folder, service) = (self.folder.clone(), self.service);
        self.task.abort();
        let _ = self.task.await;
        Self::start_in(folder, service)
    }

    pub async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(LONG, self.events.recv()).await;
        event.expect("in vain: an event").expect("the agent runs")
    }

    /// Starts an application, and waits until it is registered.
    pub async fn run(&mut self, kind: Kind) -> Process {
        let process = Process::start(kind, &self.path(), self.service);
        self.registered().await;
        process
    }

    /// An agent of a new service, and an application of it.
    pub async fn with(kind: Kind) -> (Self, Process) {
        let mut agent = Self::start(new_service());
        let process = agent.run(kind).await;
        (agent, process)
    }

    /// The same, with a client that has said its first line.
    pub async fn serving(kind: Kind) -> (Self, Process, Client) {
        let (agent, process) = Self::with(kind).await;
        let mut client = Client::connect(agent.service).await;
        client.ask("first", 1).await;
        (agent, process, client)
    }

    pub async fn registered(&mut self) {
        match self.event().await {
            Event::Registered {
                protocol, services, ..
            } => {
                assert_eq!((protocol.name.as_str(), protocol.version), ("line-echo", 1));
                assert_eq!(services, [service(self.service)]);
            }
            event => panic!("not registered: {event:?}"),
        }
    }

    pub fn end(self) {
        self.task.abort();
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// The session of a client.
    pub fn session(&self, client: &Client) -> Tuple {
        Tuple::between(client.address, self.service, TCP)
    }

    pub async fn export(&self, number: u64, client: &Client) -> Exported {
        let exported = self.apps.export(number, self.session(client)).await;
        exported.expect("exported")
    }

    /// A socket for a connection to come.
    pub async fn import(&self, number: u64) -> OwnedFd {
        let imported = self
            .apps
            .import(number, self.to_come(), self.family())
            .await;
        imported.expect("a socket")
    }

    /// The session of [`Agent::import`].
    pub fn to_come(&self) -> Tuple {
        let client: IpAddr = match self.service {
            SocketAddr::V4(_) => [198, 51, 100, 7].into(),
            SocketAddr::V6(_) => "2001:db8::7".parse().expect("valid"),
        };
        Tuple::between((client, 40312).into(), self.service, TCP)
    }

    fn family(&self) -> Family {
        Family::of(self.service.ip())
    }
}

/// An application that runs; it ends with this.
pub struct Process(Child);

impl Process {
    pub fn start(kind: Kind, agent: &Path, service: SocketAddr) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let child = match kind {
            Kind::Rust => Command::new(env!("CARGO_BIN_EXE_homing-echo"))
                .arg(agent)
                .arg(service.to_string())
                .spawn()
                .expect("homing-echo runs"),
            Kind::Python => Command::new("python3")
                .arg(root.join("client/examples/movable.py"))
                .arg(agent)
                .arg(service.ip().to_string())
                .arg(service.port().to_string())
                .spawn()
                .expect("python3 runs (Debian's package python3 has it)"),
        };
        Self(child)
    }

    /// Stops it where it is: it answers nothing any more.
    pub fn freeze(&self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGSTOP).expect("stopped");
        // It is, once its state says so.
        let stat = format!("/proc/{}/stat", self.0.id());
        homing_tests::sandbox::eventually("the process is stopped", || {
            let text = fs::read_to_string(&stat).expect("it runs");
            text.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        });
    }

    pub fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.0.id());
        fs::read_dir(folder).expect("it runs").count()
    }

    pub fn wait(&mut self) -> bool {
        self.0.wait().expect("waited for").success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client of an application.
pub struct Client {
    pub address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Client {
    pub async fn connect(service: SocketAddr) -> Self {
        let stream = TcpStream::connect(service).await.expect("connected");
        Self {
            address: stream.local_addr().expect("an address"),
            stream: BufReader::new(stream),
        }
    }

    /// The client of a socket that was made for a connection to come, which is connected
    /// with this.
    pub async fn of(socket: &OwnedFd) -> Self {
        let socket = SockRef::from(socket);
        let is_v4 = socket.domain().expect("a family") == socket2::Domain::IPV4;
        let any = if is_v4 { "127.0.0.1:0" } else { "[::1]:0" };
        let listener = TcpListener::bind(any).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        // The socket does not block: the listener's kernel completes what this begins.
        let _ = socket.connect(&SockAddr::from(address));
        let (stream, address) = listener.accept().await.expect("accepted");
        Self {
            address,
            stream: BufReader::new(stream),
        }
    }

    pub async fn write(&mut self, text: &str) {
        self.stream
            .write_all(text.as_bytes())
            .await
            .expect("written");
    }

    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(LONG, self.stream.read_line(&mut line)).await;
        read.expect("in vain: an answer").expect("an answer");
        line
    }

    /// Says a line, and hears which one it was.
    pub async fn ask(&mut self, text: &str, number: u64) {
        self.write(&format!("{text}\n")).await;
        assert_eq!(self.line().await, format!("{number}: {text}\n"));
    }

    /// The connection has ended: closed or reset.
    pub async fn ended(&mut self) {
        let read = tokio::time::timeout(LONG, self.stream.read(&mut [0; 16])).await;
        let read = read.expect("in vain: the end");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

/// The state of a connection on which so many lines were answered: what has come of the
/// next one, and what of the answers is not written yet.
pub fn state(answered: u64, begun: &str, unwritten: &str) -> Blob {
    let mut state = answered.to_be_bytes().to_vec();
    state.extend((begun.len() as u32).to_be_bytes());
    state.extend(begun.as_bytes());
    state.extend(unwritten.as_bytes());
    state.into()
}

/// What was sent to a connection and is not read by anybody: waits until it ends so.
pub async fn unread(descriptor: &OwnedFd, end: &str) {
    let socket = SockRef::from(descriptor);
    homing_tests::sandbox::eventually("what nobody reads is there", || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
        match socket.peek(&mut buffer) {
            Ok(len) => {
                let bytes: Vec<u8> = buffer[..len]
                    .iter()
                    // SAFETY: `peek` has written so many of them.
                    .map(|byte| unsafe { byte.assume_init() })
                    .collect();
                bytes.ends_with(end.as_bytes())
            }
            Err(_) => false,
        }
    });
}
