//! What the tests of this host's own sessions share.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use homing_agent::datapath::{
    Datapath,
    events::EventCounters,
    local::{LocalEvent, News, SessionKeys},
    sessions::Sessions,
};
use homing_common::{
    net::{Address, Port, Service, TCP},
    session::{SessionId, SessionKey, Tuple},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    runtime,
    sync::mpsc,
    time::{sleep, timeout},
};

/// What the server serves.
pub const SERVICES: [Service; 1] = [Service::new(
    Address::v4(Ipv4Addr::LOCALHOST.octets()),
    Port::new(8080),
    TCP,
)];

/// A listener of a service, and the connections to it.
pub struct Server {
    listener: TcpListener,
    pub open: Vec<(TcpStream, TcpStream)>,
}

impl Server {
    pub fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).unwrap();
        Self {
            listener,
            open: Vec::new(),
        }
    }

    pub fn connect(&mut self) -> Tuple {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        self.accept(client)
    }

    /// Connects from a given port.
    pub fn connect_from(&mut self, client: SocketAddr) -> Tuple {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&client.into()).unwrap();
        let service = self.listener.local_addr().unwrap();
        socket.connect(&service.into()).unwrap();
        self.accept(socket.into())
    }

    fn accept(&mut self, client: TcpStream) -> Tuple {
        let tuple = tuple(&client);
        let (server, _) = self.listener.accept().unwrap();
        self.open.push((client, server));
        tuple
    }

    /// Resets the newest connection, so that no TIME_WAIT keeps its port.
    pub fn reset(&mut self) -> Tuple {
        let (client, server) = self.open.pop().unwrap();
        let tuple = tuple(&client);
        let socket = socket2::SockRef::from(&client);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        drop(server);
        tuple
    }

    /// Closes the newest connection from one side and then from the other.
    pub fn close(&mut self, client_first: bool) {
        let (client, server) = self.open.pop().unwrap();
        match client_first {
            true => drop((client, server)),
            false => drop((server, client)),
        }
    }

    pub fn tuples(&self) -> BTreeSet<Tuple> {
        self.open.iter().map(|(client, _)| tuple(client)).collect()
    }
}

pub fn tuple(client: &TcpStream) -> Tuple {
    let service: SocketAddr = client.peer_addr().unwrap();
    Tuple::between(client.local_addr().unwrap(), service, TCP)
}

pub fn recorded(sessions: &Sessions) -> BTreeSet<Tuple> {
    let mut tuples = BTreeSet::new();
    sessions
        .scan(|tuple, _| assert!(tuples.insert(tuple)))
        .unwrap();
    tuples
}

/// Takes in what is told, and insists that it makes sense.
#[derive(Default)]
pub struct View(pub BTreeSet<SessionId>);

impl View {
    pub fn take(&mut self, events: Vec<LocalEvent>) {
        for event in events {
            match event {
                LocalEvent::Opened { ids, at_ns, .. } => {
                    assert!(at_ns > 0);
                    assert!(self.0.insert(ids.id), "opened twice");
                }
                LocalEvent::Closed { ids, .. } => assert!(self.0.remove(&ids.id), "closed twice"),
            }
        }
    }

    pub async fn until(&mut self, from: &mut mpsc::Receiver<News>, ids: &BTreeSet<SessionId>) {
        while self.0 != *ids {
            let events = timeout(Duration::from_secs(5), from.recv()).await;
            let events = events.expect("nothing is told").expect("the reader ended");
            self.take(events.events);
        }
    }
}

pub const KEY: SessionKey = SessionKey([1, 2]);
pub const KEYS: SessionKeys = SessionKeys {
    key: KEY,
    other: None,
};

pub fn ids(tuples: &BTreeSet<Tuple>) -> BTreeSet<SessionId> {
    tuples.iter().map(|tuple| tuple.id(&KEY)).collect()
}

/// Runs `test` with the reader at work.
pub fn with_reader<F: Future<Output = ()>>(
    datapath: Datapath,
    test: impl FnOnce(mpsc::Receiver<News>, Arc<EventCounters>) -> F,
) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let (to, from) = mpsc::channel(16);
        let counters = datapath.events.counters();
        let reader = tokio::spawn(datapath.events.run(KEYS, to));
        test(from, counters).await;
        reader.await.unwrap().unwrap();
    });
}

/// Waits, without blocking the runtime, until `condition` holds.
pub async fn eventually_async(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
