//! Message sockets as applications use them: the agent's engine, real carriers over TCP,
//! real descriptors, and the crate for applications. Hosts have loopback addresses in a
//! network namespace of their own.

#[path = "messages/cuts.rs"]
mod cuts;
#[path = "messages/ends.rs"]
mod ends;
#[path = "messages/flow.rs"]
mod flow;
#[path = "messages/hostile.rs"]
mod hostile;
#[path = "messages/python.rs"]
mod python;
#[path = "messages/turns.rs"]
mod turns;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use homing_agent::{
    mux::{
        Carriers, Options, Peer,
        sockets::{Counters, Limits, PeerInfo, Sockets, server},
    },
    pop::{
        Stream,
        keys::{KeyFile, Keys},
    },
    unix::AppListener,
};
use homing_client::message::{Agent, MessageSocket, Outgoing, Received};
use homing_common::host::HostId;
use homing_tests::{sandbox, wire::Wire};
use tokio::{runtime, sync::oneshot, time::sleep};

/// The port of agents.
const PORT: u16 = 7946;

/// Hosts of the POP.
const HOSTS: [u16; 3] = [1, 2, 3];

const PATIENCE: Duration = Duration::from_secs(10);

fn life(generation: u64) -> Stream {
    Stream {
        incarnation: 1,
        generation,
    }
}

/// A host: what an agent has of message sockets.
struct Host {
    sockets: Sockets,
    carriers: Carriers,
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
}

impl Host {
    fn start(folder: &Path, id: u16) -> Self {
        Self::with(folder, id, Limits::default(), |_| {})
    }

    fn with(folder: &Path, id: u16, limits: Limits, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            host: HostId(id),
            stream: life(1),
            address: address(id),
            keys: Keys::of(&KeyFile::of([7; 32])),
            limits: homing_agent::mux::Limits {
                back_off: [Duration::from_millis(1), Duration::from_millis(20)],
                ..Default::default()
            },
            plain: false,
        };
        change(&mut options);
        let sockets = Sockets::new(HostId(id), limits).unwrap();
        let (carriers, _inboxes) = Carriers::open(options, Some(sockets.exchange())).unwrap();
        sockets.travel_by(carriers.clone());
        let path = folder.join(format!("{id}.mux.sock"));
        let listener = AppListener::bind(&path, "mux").unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = sockets.clone();
        tokio::spawn(server::serve(listener, served, async {
            drop(stopped.await)
        }));
        let host = Self {
            sockets,
            carriers,
            path,
            stop: Some(stop),
        };
        host.meet(&HOSTS.map(|host| (host, 1)));
        host
    }

    /// Says which hosts there are, and which lives they have. Services are looked for on
    /// all of them.
    fn meet(&self, hosts: &[(u16, u64)]) {
        let info = |generation| PeerInfo {
            stream: life(generation),
            offers: u64::MAX,
            draining: false,
        };
        let infos = hosts
            .iter()
            .map(|(host, generation)| (HostId(*host), info(*generation)));
        self.sockets.set_peers(infos.collect());
        let peer = |&(host, generation): &(u16, u64)| {
            let peer = Peer {
                address: address(host),
                stream: life(generation),
            };
            (HostId(host), peer)
        };
        let peers: BTreeMap<_, _> = hosts.iter().map(peer).collect();
        self.carriers.set_peers(&peers);
    }

    fn agent(&self) -> Agent {
        Agent::at(&self.path)
    }

    async fn offer(&self, name: &str) -> MessageSocket {
        self.agent().offer(name).await.unwrap()
    }

    async fn connect(&self, name: &str, host: Option<u16>) -> MessageSocket {
        self.agent().connect(name, host, PATIENCE).await.unwrap()
    }

    fn counters(&self) -> Counters {
        self.sockets.status().counters
    }

    /// Waits until it has no carriers, of its own and of others.
    async fn until_alone(&self) {
        let is_alone = || {
            let status = self.carriers.status();
            let mut lines = status.peers.iter().flat_map(|peer| &peer.lines);
            status.accepted + status.handshakes == 0
                && lines.all(|line| line.carriers == 0 && !line.opening)
        };
        eventually("all carriers have ended", is_alone).await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        eventually(what, || holds(&self.counters())).await;
    }

    /// Ends as an agent does that is told to stop.
    async fn stop(mut self) {
        drop(self.stop.take());
        self.sockets.stop().await;
        self.carriers.stop().await;
    }
}

/// Where a host is.
fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host as u8], PORT))
}

/// Leads what hosts 1 and 2 send to each other over a wire each: the first one is that of
/// host 1. Each knows the other one by the address of the wire to it, so that is also where
/// the other's carriers come from.
async fn wires(one: &Host, two: &Host) -> [Wire; 2] {
    let [one_at, two_at] = [address(8), address(9)];
    let there = Wire::lead(two_at, one_at.ip(), address(2)).await.unwrap();
    let back = Wire::lead(one_at, two_at.ip(), address(1)).await.unwrap();
    for (host, other, at) in [(one, 2, two_at), (two, 1, one_at)] {
        let peer = |host, address| {
            let stream = life(1);
            (HostId(host), Peer { address, stream })
        };
        let mut peers: BTreeMap<_, _> = HOSTS.map(|host| peer(host, address(host))).into();
        peers.extend([peer(other, at)]);
        host.carriers.set_peers(&peers);
    }
    [there, back]
}

/// Waits until something holds; fails if it does not within ten seconds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "in vain: {what}");
}

/// Bytes that say which message they are.
fn body(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hash = blake3::Hasher::new();
    hash.update(&number.to_le_bytes());
    hash.finalize_xof().fill(&mut bytes);
    bytes
}

/// A message without a name.
fn one_way(body: &[u8]) -> Outgoing<'_> {
    Outgoing {
        body,
        ..Outgoing::default()
    }
}

/// The next message: its body, its name and from whom it is.
async fn next(socket: &mut MessageSocket) -> (Vec<u8>, u64, u64) {
    let received = tokio::time::timeout(PATIENCE, socket.receiver.receive()).await;
    match received.expect("a message comes").unwrap() {
        Some(Received::Message { body, name, peer }) => (body.to_vec(), name, peer),
        other => panic!("no message but {other:?}"),
    }
}

/// Answers every message with its body and its name, until its clients' agent goes.
async fn echo(mut socket: MessageSocket) {
    while let Ok(Some(received)) = socket.receiver.receive().await {
        if let Received::Message { body, name, peer } = received {
            let reply = Outgoing {
                body,
                name,
                peer,
                ..Outgoing::default()
            };
            if socket.sender.send(&reply).await.is_err() {
                return;
            }
        }
    }
}

/// Runs a test in a network namespace of its own. A test that hangs fails.
fn run<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send) {
    sandbox::run(|sandbox| {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let test = tokio::time::timeout(Duration::from_secs(120), test(sandbox.files.clone()));
            assert!(test.await.is_ok(), "the test hangs");
        });
    });
}
