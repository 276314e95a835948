//! The agent's end on real sockets, with applications that say what a test wants.

use std::{
    fs,
    io::Read as _,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use homing_client::{
    seqpacket::Socket,
    wire::{Closing, MESSAGE_MAX, Message},
};
use homing_common::{
    net::{Service, TCP},
    session::Tuple,
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{server::serve, *};
use crate::config::Group;

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

/// An agent's end that runs.
struct Agent {
    apps: Apps,
    events: Events,
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(service: Service, limits: Limits) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("homing-apps-{}-{n}", std::process::id()));
        let path = folder.join("app.sock");
        let socket = AppListener::bind(&path, "apps").expect("bind");
        let (apps, events) = Apps::new([service], limits);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(socket, apps.clone(), async {
            let _ = stopped.await;
        }));
        Self {
            apps,
            events,
            path,
            stop,
            task,
        }
    }

    fn connect(&self) -> App {
        App(Socket::connect(&self.path).expect("connect"))
    }

    /// An application that serves a service and has nothing pending.
    async fn app(&mut self, service: Service) -> App {
        let app = self.connect();
        app.register(service).await;
        assert!(matches!(app.next().await, Message::Registered { .. }));
        app.say(Message::Ready, None).await;
        assert!(matches!(self.event().await, Event::Registered { .. }));
        app
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(LONG, self.events.recv()).await;
        event.expect("in vain: an event").expect("it runs")
    }

    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.task.await.expect("it ended well");
        assert!(!self.path.exists(), "the file is gone");
        fs::remove_dir_all(self.path.parent().expect("a folder")).expect("removed");
    }
}

/// An application.
struct App(Socket);

impl App {
    async fn say(&self, message: Message<'_>, descriptor: Option<BorrowedFd<'_>>) {
        self.0
            .send(&message.encode(), descriptor)
            .await
            .expect("sent");
    }

    async fn register(&self, service: Service) {
        let register = Message::Register {
            protocol: Protocol::new("test", 1),
            services: vec![service.endpoint()],
        };
        self.say(register, None).await;
    }

    /// The next message, which has nothing that it could borrow.
    async fn next(&self) -> Message<'static> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let received = tokio::time::timeout(LONG, self.0.receive(&mut buffer)).await;
        let received = received.expect("in vain: a message").expect("received");
        assert_ne!(received.len, 0, "the connection was closed");
        // A test may leak so little.
        Message::decode(buffer[..received.len].to_vec().leak()).expect("a message")
    }

    /// Nothing else comes before the end, which has a reason.
    async fn closed(&self) -> Closing {
        let Message::Closing { closing, .. } = self.next().await else {
            panic!("not closed");
        };
        let mut buffer = [0; 16];
        let end = self.0.receive(&mut buffer).await.expect("the end");
        assert_eq!(end.len, 0);
        closing
    }
}

/// A connection of a service: its two ends, and what it is called.
struct Line {
    client: TcpStream,
    server: TcpStream,
    service: Service,
    session: Tuple,
}

fn line() -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, peer) = listener.accept().expect("accept");
    let session = Tuple::between(peer, server.local_addr().expect("address"), TCP);
    Line {
        client,
        server,
        service: session.service(),
        session,
    }
}

/// A descriptor of which one can tell that all copies of it are closed.
struct Tracer {
    sent: OwnedFd,
    end: std::io::PipeReader,
}

impl Tracer {
    fn new() -> Self {
        let (end, sent) = std::io::pipe().expect("pipe");
        let sent = sent.into();
        Self { sent, end }
    }

    async fn assert_closed(self) {
        drop(self.sent);
        let mut end = self.end;
        let read = tokio::task::spawn_blocking(move || end.read(&mut [0]));
        assert_eq!(read.await.expect("read").expect("read"), 0);
    }
}

#[tokio::test]
async fn a_registration_cut_at_every_byte_ends_that_connection_and_nothing_else() {
    let line = line();
    let mut agent = Agent::start(line.service, Limits::default());
    let app = agent.app(line.service).await;
    let register = Message::Register {
        protocol: Protocol::new("test", 1),
        services: vec![line.service.endpoint()],
    }
    .encode();
    for len in 1..register.len() {
        let other = agent.connect();
        other.0.send(&register[..len], None).await.expect("sent");
        assert_eq!(other.closed().await, Closing::Malformed, "{len}");
    }
    let counters = agent.apps.counters();
    assert_eq!(counters.closed_malformed, register.len() as u64 - 1);
    assert!(agent.apps.registered(&line.service).is_some());
    drop(app);
    agent.stop().await;
}

#[tokio::test]
async fn what_comes_with_what_is_wrong_is_closed() {
    let line = line();
    let mut agent = Agent::start(line.service, Limits::default());

    let tracer = Tracer::new();
    let app = agent.connect();
    app.0
        .send(b"\x02garbage", Some(tracer.sent.as_fd()))
        .await
        .expect("sent");
    assert_eq!(app.closed().await, Closing::Version);
    let away = agent.apps.turned_away().expect("it was").closed;
    assert_eq!(away.closing, Closing::Version);
    assert_eq!(away.peer.pid, std::process::id().cast_signed());
    tracer.assert_closed().await;

    // A descriptor where none is meant.
    let tracer = Tracer::new();
    let app = agent.connect();
    app.say(Message::Ready, Some(tracer.sent.as_fd())).await;
    assert_eq!(app.closed().await, Closing::Malformed);
    tracer.assert_closed().await;

    // A datagram that is too long.
    let app = agent.connect();
    app.0
        .send(&vec![1; MESSAGE_MAX + 1], None)
        .await
        .expect("sent");
    assert_eq!(app.closed().await, Closing::Malformed);

    // More descriptors than one.
    let tracers: Vec<Tracer> = (0..9).map(|_| Tracer::new()).collect();
    let app = agent.app(line.service).await;
    let export = agent.apps.clone();
    let export = tokio::spawn(async move { export.export(1, line.session).await });
    assert!(matches!(app.next().await, Message::Export { .. }));
    send_many(&app.0, &Message::Exported { number: 1 }.encode(), &tracers);
    assert_eq!(app.closed().await, Closing::Malformed);
    for tracer in tracers {
        tracer.assert_closed().await;
    }
    assert_eq!(export.await.expect("joined").unwrap_err(), Failure::Gone);
    assert!(matches!(agent.event().await, Event::Gone { .. }));
    agent.stop().await;
}

fn send_many(socket: &Socket, datagram: &[u8], tracers: &[Tracer]) {
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let descriptors: Vec<_> = tracers.iter().map(|one| one.sent.as_raw_fd()).collect();
    let parts = [std::io::IoSlice::new(datagram)];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let fd = socket.as_fd().as_raw_fd();
    sendmsg::<()>(fd, &parts, &control, MsgFlags::empty(), None).expect("sent");
}

#[tokio::test]
async fn a_descriptor_of_something_else_is_refused_and_closed() {
    let (line, other) = (line(), line());
    let mut agent = Agent::start(line.service, Limits::default());
    let app = agent.app(line.service).await;
    let apps = agent.apps.clone();
    let export = tokio::spawn(async move { apps.export(1, line.session).await });
    assert!(matches!(
        app.next().await,
        Message::Export { number: 1, .. }
    ));
    app.say(Message::Exported { number: 1 }, Some(other.server.as_fd()))
        .await;
    let failure = export.await.expect("joined").unwrap_err();
    assert_eq!(failure, Failure::Descriptor("it is of another connection"));
    assert!(matches!(app.next().await, Message::State { total: 0, .. }));
    assert_eq!(
        app.next().await,
        Message::Resume {
            number: 1,
            state: true
        }
    );

    let apps = agent.apps.clone();
    let import = tokio::spawn(async move { apps.import(2, line.session, Family::V4).await });
    assert!(matches!(
        app.next().await,
        Message::Import { number: 2, .. }
    ));
    app.say(Message::Imported { number: 2 }, Some(other.server.as_fd()))
        .await;
    let failure = import.await.expect("joined").unwrap_err();
    assert_eq!(failure, Failure::Descriptor("it is not a fresh socket"));
    assert_eq!(app.next().await, Message::Drop { number: 2 });
    assert_eq!(agent.apps.counters().wrong_descriptor, 2);

    // Nobody has a copy of it any more: the other end sees it close.
    drop(other.server);
    let mut client = other.client;
    let read = tokio::task::spawn_blocking(move || client.read(&mut [0]));
    assert_eq!(read.await.expect("joined").expect("the end"), 0);

    // Nor is one taken that is said to be pending.
    drop(app);
    assert!(matches!(agent.event().await, Event::Gone { .. }));
    let app = agent.connect();
    app.register(line.service).await;
    assert!(matches!(app.next().await, Message::Registered { .. }));
    let pending = Message::Pending {
        number: 1,
        pending: Pending::Export,
        connection: homing_client::Connection::new(
            line.session.client_endpoint(),
            line.session.service_endpoint(),
        ),
    };
    app.say(pending, Some(line.client.as_fd())).await;
    assert_eq!(app.closed().await, Closing::Malformed);
    agent.stop().await;
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_taken_back() {
    let line = line();
    let mut agent = Agent::start(line.service, Limits::default());
    let app = agent.app(line.service).await;

    let apps = agent.apps.clone();
    let export = tokio::spawn(async move { apps.export(1, line.session).await });
    assert!(matches!(app.next().await, Message::Export { .. }));
    export.abort();
    assert!(export.await.unwrap_err().is_cancelled());
    let (number, offset, part) = (1, 0, &b"state"[..]);
    let state = Message::State {
        number,
        total: 5,
        offset,
        part,
    };
    app.say(state.clone(), None).await;
    app.say(Message::Exported { number }, Some(line.server.as_fd()))
        .await;
    assert_eq!(app.next().await, state);
    assert_eq!(
        app.next().await,
        Message::Resume {
            number,
            state: true
        }
    );

    let apps = agent.apps.clone();
    let import = tokio::spawn(async move { apps.import(2, line.session, Family::V4).await });
    assert!(matches!(app.next().await, Message::Import { .. }));
    import.abort();
    assert!(import.await.unwrap_err().is_cancelled());
    let fresh = fresh();
    app.say(Message::Imported { number: 2 }, Some(fresh.as_fd()))
        .await;
    assert_eq!(app.next().await, Message::Drop { number: 2 });
    assert_eq!(agent.apps.held_bytes(), 0);
    agent.stop().await;
}

fn fresh() -> socket2::Socket {
    use socket2::{Domain, Protocol, Socket, Type};
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("socket")
}

#[tokio::test]
async fn an_application_that_does_not_answer_or_read_harms_itself_alone() {
    let line = line();
    let limits = Limits {
        export_within: Duration::from_millis(50),
        read_within: Duration::from_millis(50),
        ..Limits::default()
    };
    let mut agent = Agent::start(line.service, limits);
    let app = agent.app(line.service).await;
    let export = agent.apps.export(1, line.session).await;
    assert_eq!(export.unwrap_err(), Failure::TimedOut);
    assert!(matches!(
        app.next().await,
        Message::Export { number: 1, .. }
    ));
    assert_eq!(
        app.next().await,
        Message::Resume {
            number: 1,
            state: false
        }
    );
    let refuse = Message::Refuse {
        number: 1,
        reason: Reason::Cancelled,
        text: "",
    };
    app.say(refuse, None).await;

    // Another session: of the first one the answer may still be on its way.
    let client = ([198, 51, 100, 7], 40312).into();
    let session = Tuple::between(client, line.service.endpoint(), TCP);
    let apps = agent.apps.clone();
    let import = tokio::spawn(async move { apps.import(2, session, Family::V4).await });
    assert!(matches!(app.next().await, Message::Import { .. }));
    app.say(Message::Imported { number: 2 }, Some(fresh().as_fd()))
        .await;
    import.await.expect("joined").expect("a socket");
    // More than the socket holds, and nobody reads.
    let given = agent.apps.give(2, vec![1; 1 << 20].into()).await;
    assert!(
        matches!(given, Err(Failure::Gone | Failure::TimedOut)),
        "{given:?}"
    );
    assert!(matches!(agent.event().await, Event::Gone { .. }));
    assert_eq!(agent.apps.counters().closed_slow, 1);
    assert_eq!(agent.apps.held_bytes(), 0);
    assert_eq!(agent.apps.status(), []);
    agent.stop().await;
}

#[tokio::test]
async fn an_application_that_is_started_again_at_once_is_not_taken_for_a_second_one() {
    let line = line();
    let agent = Agent::start(line.service, Limits::default());
    // Nobody reads the events, so the agent's end comes to wait before it sees ends.
    while agent.events.len() < agent.events.max_capacity() {
        let app = agent.connect();
        app.register(line.service).await;
        assert!(matches!(app.next().await, Message::Registered { .. }));
    }
    let app = agent.connect();
    app.register(line.service).await;
    assert!(matches!(app.next().await, Message::Registered { .. }));
    app.say(Message::Ready, None).await;
    while agent.apps.registered(&line.service).is_none() {
        tokio::task::yield_now().await;
    }
    let second = agent.connect();
    second.register(line.service).await;
    assert_eq!(second.closed().await, Closing::Taken);
    drop(app);
    let again = agent.connect();
    again.register(line.service).await;
    assert!(matches!(again.next().await, Message::Registered { .. }));
    agent.stop().await;
}

#[tokio::test]
async fn who_is_there_is_known_and_a_stop_is_told() {
    let line = line();
    let mut agent = Agent::start(line.service, Limits::default());
    let mode = fs::metadata(&agent.path)
        .expect("file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o660);
    let refused = AppListener::bind(&agent.path, "apps").expect_err("it is live");
    assert!(
        format!("{refused:#}").contains("an agent answers there"),
        "{refused:#}"
    );
    let app = agent.app(line.service).await;
    let status = &agent.apps.status()[0];
    assert_eq!(status.peer.pid, std::process::id().cast_signed());
    assert_eq!(status.peer.uid, nix::unistd::getuid().as_raw());
    assert!(status.ready);
    let (apps, waiting) = (agent.apps.clone(), agent.apps.clone());
    let waiting = tokio::spawn(async move { waiting.export(1, line.session).await });
    assert!(matches!(app.next().await, Message::Export { .. }));
    agent.stop().await;
    assert_eq!(app.closed().await, Closing::Stopping);
    assert_eq!(apps.turned_away(), None);
    assert_eq!(waiting.await.expect("joined").unwrap_err(), Failure::Gone);
}

#[tokio::test]
async fn a_group_is_let_in_or_is_said_why_not() {
    let folder = std::env::temp_dir().join(format!("homing-apps-group-{}", std::process::id()));
    let path = folder.join("app.sock");
    let socket = AppListener::bind(&path, "apps").expect("bind");
    let meta = || fs::metadata(&path).expect("file");
    socket
        .access()
        .admit(&Group::Id(meta().gid()))
        .expect("its own");
    let nobody = Group::Name("no-such-group-anywhere".to_owned());
    let refused = socket.access().admit(&nobody).expect_err("no group");
    assert!(
        format!("{refused:#}").contains("there is no such group"),
        "{refused:#}"
    );
    match socket.access().admit(&Group::Id(54_321)) {
        Ok(()) => assert_eq!(meta().gid(), 54_321),
        Err(refused) => assert!(
            format!("{refused:#}").contains("add SupplementaryGroups=54321 to its unit"),
            "{refused:#}"
        ),
    }
    assert_eq!(meta().permissions().mode() & 0o7777, 0o660);
    drop(socket);
    fs::remove_dir_all(&folder).expect("folder");
}
