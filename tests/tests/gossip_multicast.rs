//! Gossip over a real wire between two network namespaces: multicast of both
//! families carries announcements within a domain, and a domain whose multicast
//! does not get through falls back to unicast.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use homing_agent::{
    datapath::local::{Ids, LocalEvent, News},
    gossip::{
        Table, TableFull,
        task::{self, Handle, Options, Status},
    },
    mux::{self, Carriers, Inbox, Limits, Peer},
    pop::{Domain, Fingerprint, Member, Stream, keys::Keys, membership::Seed},
};
use homing_common::{host::HostId, session::SessionId};
use homing_tests::sandbox::{self, ip};
use nix::{
    sched::{CloneFlags, setns},
    time::{ClockId, clock_gettime},
};
use tokio::{runtime::Runtime, sync::mpsc};

/// Hosts 1 and 2 have one of these each, in this order.
const V4: [&str; 2] = ["10.9.0.1:7946", "10.9.0.2:7946"];
const V6: [&str; 2] = ["[fd09::1]:7946", "[fd09::2]:7946"];

/// A wire to a namespace `peer`.
fn wire() {
    ip("netns add peer");
    ip("link add eth0 type veth peer name eth0 netns peer");
    for (here, addresses) in [
        ("", ["10.9.0.1/24", "fd09::1/64"]),
        ("-n peer ", ["10.9.0.2/24", "fd09::2/64"]),
    ] {
        ip(&format!("{here}link set eth0 up"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("{here}addr add {address} dev eth0 {nodad}"));
        }
    }
}

#[derive(Clone, Default)]
struct Routes(Arc<Mutex<BTreeMap<SessionId, HostId>>>);

impl Table for Routes {
    fn set(&mut self, id: SessionId, owner: HostId) -> Result<(), TableFull> {
        self.0.lock().unwrap().insert(id, owner);
        Ok(())
    }

    fn clear(&mut self, id: SessionId) {
        self.0.lock().unwrap().remove(&id);
    }
}

/// A host's carriers, to the hosts at these addresses in their first lives.
fn carriers(options: &Options, addresses: [&str; 2]) -> (Carriers, Inbox) {
    let (carriers, inboxes) = Carriers::open(
        mux::Options {
            host: options.me.host,
            stream: options.me.stream,
            address: options.me.address,
            keys: options.keys.clone(),
            limits: Limits::default(),
            plain: false,
        },
        None,
    )
    .unwrap();
    let stream = Stream {
        incarnation: 1,
        generation: 1,
    };
    let peers = [1, 2]
        .map(HostId)
        .into_iter()
        .zip(addresses.map(|address| Peer {
            address: address.parse().unwrap(),
            stream,
        }));
    carriers.set_peers(&peers.collect());
    (carriers, inboxes.gossip)
}

/// A host's gossip, in a thread of its own and in the namespace that it shares
/// with no other.
struct Host {
    handle: Handle,
    routes: Routes,
    events: mpsc::Sender<News>,
    asking: Runtime,
}

impl Host {
    fn start(
        id: u16,
        addresses: [&'static str; 2],
        group: Option<&str>,
        namespace: Option<&str>,
    ) -> Self {
        let [one, two] = addresses.map(|address| address.parse::<SocketAddr>().unwrap());
        let routes = Routes::default();
        let (events, reader) = mpsc::channel(16);
        let stream = Stream {
            incarnation: 1,
            generation: 1,
        };
        let domain = Domain::try_from("rack-1").unwrap();
        let me = if id == 1 { one } else { two };
        let options = Options {
            me: Member::starting(HostId(id), stream, me, domain, Fingerprint::default()),
            seeds: vec![Seed {
                host: HostId(1),
                address: one,
            }],
            keys: Keys::derive(&[4; 32]),
            multicast: group.map(|group| group.parse().unwrap()),
            void_after: Duration::from_secs(60),
            kernel_dead_after: Duration::from_secs(3),
            claims_max: 1000,
            routes: Vec::new(),
            remembered: Vec::new(),
            vitals: Box::new(()),
            fast_path: None,
        };
        let table = routes.clone();
        let namespace = namespace.map(|name| File::open(format!("/run/netns/{name}")).unwrap());
        let (handle_to, handle) = std::sync::mpsc::channel();
        thread::spawn(move || {
            if let Some(namespace) = namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            }
            one_thread().block_on(async {
                let raise: task::Raise = Box::new(|_| Err(io::Error::other("not in this test")));
                let carriers = carriers(&options, addresses);
                let (handle, task) = task::open(options, table, reader, raise, carriers).unwrap();
                handle_to.send(handle).unwrap();
                task.run().await.unwrap();
            });
        });
        events.try_send(News::default()).unwrap();
        Self {
            handle: handle.recv().unwrap(),
            routes,
            events,
            asking: one_thread(),
        }
    }

    fn status(&self) -> Box<Status> {
        self.asking.block_on(self.handle.status()).unwrap()
    }

    /// Whether the other host says that it hears this one's multicast.
    fn is_heard(&self) -> bool {
        let hosts = self.asking.block_on(self.handle.hosts()).unwrap();
        hosts.iter().any(|host| host.hears_us)
    }

    fn open(&self, ids: std::ops::Range<u64>) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        let at_ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let opened = |id| LocalEvent::Opened {
            ids: Ids {
                id: SessionId(id),
                other: None,
            },
            generation: 0,
            at_ns,
        };
        let events: Vec<_> = ids.map(opened).collect();
        self.events.try_send(events.into()).unwrap();
    }

    fn routes(&self) -> usize {
        self.routes.0.lock().unwrap().len()
    }

    fn leave(self) {
        let left = self.handle.leave(Duration::ZERO);
        self.asking.block_on(left).unwrap();
    }
}

fn one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Waits for a while that is longer than any timer of the protocol.
fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn announce_over(addresses: [&'static str; 2], group: &str) {
    let one = Host::start(1, addresses, Some(group), None);
    let two = Host::start(2, addresses, Some(group), Some("peer"));
    soon("both follow", || {
        [&one, &two]
            .iter()
            .all(|h| h.status().alive == 1 && h.status().in_sync)
    });
    soon("both hear each other's multicast", || {
        one.is_heard() && two.is_heard()
    });

    let before = one.status();
    for n in 0..100 {
        one.open(n..n + 1);
        soon("the route is there", || two.routes() as u64 == n + 1);
    }
    let after = one.status();
    // By multicast alone: no copy by unicast, and nothing to repair.
    assert_eq!(
        after.gossip.multicast_unheard,
        before.gossip.multicast_unheard
    );
    assert_eq!(after.gossip.repairs_sent, 0);
    assert_eq!(one.status().seal.own, 0, "heard itself");
    let latency = two.status().latency;
    println!(
        "{group}: open to applied p50 {:?} us, p99 {:?} us",
        latency.quantile_us(0.5),
        latency.quantile_us(0.99)
    );
    two.leave();
    one.leave();
}

#[test]
fn announcements_go_by_multicast_of_both_families() {
    sandbox::run(|_| {
        wire();
        announce_over(V4, "239.77.77.77:7947");
        announce_over(V6, "[ff02::77:77]:7947");
    });
}

#[test]
fn domain_without_multicast_falls_back_to_unicast() {
    sandbox::run(|_| {
        wire();
        // Each listens to a group that the other does not send to.
        let one = Host::start(1, V4, Some("239.77.77.77:7947"), None);
        let two = Host::start(2, V4, Some("239.77.77.78:7947"), Some("peer"));
        soon("both follow", || {
            [&one, &two]
                .iter()
                .all(|h| h.status().alive == 1 && h.status().in_sync)
        });
        one.open(0..300);
        soon("the routes are there", || two.routes() == 300);
        assert!(!one.is_heard());
        assert!(one.status().gossip.multicast_unheard > 0);
        assert_eq!(two.status().gossip.repairs_asked, 0);
        two.leave();
        one.leave();
    });
}

#[test]
fn group_that_cannot_be_joined_is_named() {
    sandbox::run(|_| {
        wire();
        let open = |group: &str| {
            one_thread().block_on(async {
                let (_, reader) = mpsc::channel(1);
                let domain = Domain::try_from("rack-1").unwrap();
                let options = Options {
                    me: Member::starting(
                        HostId(1),
                        Stream::default(),
                        V4[0].parse().unwrap(),
                        domain,
                        Fingerprint::default(),
                    ),
                    seeds: Vec::new(),
                    keys: Keys::derive(&[4; 32]),
                    multicast: Some(group.parse().unwrap()),
                    void_after: Duration::from_secs(60),
                    kernel_dead_after: Duration::from_secs(3),
                    claims_max: 1000,
                    routes: Vec::new(),
                    remembered: Vec::new(),
                    vitals: Box::new(()),
                    fast_path: None,
                };
                let raise: task::Raise = Box::new(|_| Err(io::Error::other("not in this test")));
                let carriers = carriers(&options, V4);
                let result = task::open(options, Routes::default(), reader, raise, carriers);
                result.err().unwrap().to_string()
            })
        };
        for group in ["10.1.2.3:7947", "[ff02::77]:7947"] {
            let error = open(group);
            assert!(error.contains(&format!("pop.multicast {group}")), "{error}");
        }
    });
}
