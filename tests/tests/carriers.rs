//! Carriers over real TCP, between hosts on loopback addresses in a network namespace
//! of their own.

#[path = "carriers/flow.rs"]
mod flow;
#[path = "carriers/lives.rs"]
mod lives;
#[path = "carriers/secrecy.rs"]
mod secrecy;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use homing_agent::{
    mux::{Carriers, Channel, Counters, Fate, Inboxes, Limits, Options, Peer, Received, Told},
    pop::{
        Stream,
        keys::{KeyFile, Keys},
    },
};
use homing_common::host::HostId;
use homing_tests::{sandbox, wire::Wire};
use tokio::{runtime, time::sleep};

/// The port of agents.
const PORT: u16 = 7946;

/// Where a host is.
fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host as u8], PORT))
}

/// A life of a host.
fn life(incarnation: u64) -> Stream {
    Stream {
        incarnation,
        generation: 1,
    }
}

/// The POP's keys.
fn keys() -> Keys {
    Keys::of(&KeyFile::of([7; 32]))
}

/// Bounds with times that tests need not wait long for.
fn limits() -> Limits {
    Limits {
        back_off: [Duration::from_millis(1), Duration::from_millis(20)],
        ..Limits::default()
    }
}

/// Who is a member, and where: hosts in their first life.
fn members(hosts: &[u16]) -> BTreeMap<HostId, Peer> {
    let member = |&host: &u16| {
        let peer = Peer {
            address: address(host),
            stream: life(1),
        };
        (HostId(host), peer)
    };
    hosts.iter().map(member).collect()
}

/// A host with its carriers.
struct Host {
    id: HostId,
    carriers: Carriers,
    inboxes: Inboxes,
}

impl Host {
    /// A host in its first life that knows hosts 1 to 3.
    fn start(host: u16) -> Self {
        Self::with(host, |_| {})
    }

    /// The same, with other options.
    fn with(host: u16, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            host: HostId(host),
            stream: life(1),
            address: address(host),
            keys: keys(),
            limits: limits(),
            plain: false,
        };
        change(&mut options);
        let (carriers, inboxes) = Carriers::open(options, None).unwrap();
        carriers.set_peers(&members(&[1, 2, 3]));
        Self {
            id: HostId(host),
            carriers,
            inboxes,
        }
    }

    fn counters(&self) -> Counters {
        self.carriers.status().counters
    }

    async fn send(&self, to: &Self, channel: Channel, body: Bytes) -> Fate {
        self.carriers.send(to.id, channel, body).await
    }

    async fn queue(&self, to: u16, channel: Channel, body: Bytes) -> Told {
        self.carriers
            .queue(HostId(to), channel, body)
            .await
            .unwrap()
    }

    /// The next message of a channel.
    async fn next(&mut self, channel: Channel) -> Received {
        let inbox = match channel {
            homing_agent::mux::GOSSIP => &mut self.inboxes.gossip,
            _ => &mut self.inboxes.migration,
        };
        inbox.next().await.unwrap()
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

    /// Waits until the counters say so.
    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        eventually(what, || holds(&self.counters())).await;
    }
}

/// Leads what host 1 sends to host 2 over a wire.
async fn wire_to_two(one: &Host) -> Wire {
    let at = SocketAddr::from(([127, 0, 0, 9], PORT));
    let wire = Wire::lead(at, address(1).ip(), address(2)).await.unwrap();
    let mut peers = members(&[1, 2, 3]);
    let stream = life(1);
    let address = at;
    peers.insert(HostId(2), Peer { address, stream });
    one.carriers.set_peers(&peers);
    wire
}

/// Waits until hosts have no carriers.
async fn until_alone(hosts: [&Host; 2]) {
    for host in hosts {
        host.until_alone().await;
    }
}

/// Waits until something holds; fails if it does not within ten seconds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(waited.is_ok(), "in vain: {what}");
}

/// A message whose content says which one it is.
fn message(number: usize, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let mut hash = blake3::Hasher::new();
    hash.update(&number.to_le_bytes());
    hash.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Runs a test in a network namespace of its own. A test that hangs fails.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    sandbox::run(|_| {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let test = tokio::time::timeout(Duration::from_secs(120), test());
            assert!(test.await.is_ok(), "the test hangs");
        });
    });
}

/// The messages of a channel until `count` have come, as a set of their bodies.
async fn collect(host: &mut Host, channel: Channel, count: usize) -> BTreeSet<Bytes> {
    let mut bodies = BTreeSet::new();
    for _ in 0..count {
        let received = host.next(channel).await;
        assert!(bodies.insert(received.body.clone()), "a message came twice");
    }
    bodies
}
