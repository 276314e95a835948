//! Full-size segments with the offloads of network devices: what a sender hands over
//! in one piece of many segments (TSO, GSO), and what a receiver joins to one (GRO).
//!
//! On the links of a lab such a super-packet travels whole, up to the router's ports
//! that face hosts: those cut it up, as every device does before a wire, because XDP on
//! the other end sees frames. There it is segment by segment that Homing forwards, and
//! the owner's end joins again what was stripped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use homing_tests::{
    lab::{
        Lab, Node,
        node::in_namespace,
        plan::{CLIENT_MTU, FABRIC_MTU},
        wait_until,
    },
    raw::{Raw, index_of},
    workload::MAX_LEN,
};

use super::{
    bulk::{Bulk, exchange_all},
    common::{PATIENCE, Pop, dropped},
};

/// Connections, half of them over IPv6.
const CONNECTIONS: usize = 6;
/// Requests of each, and as many answers: 6 MiB both ways.
const REQUESTS: u64 = 96;
/// The host that owns them.
const OWNER: u16 = 2;
/// The hosts that their packets come to, in turn.
const ORDERS: [&[u16]; 5] = [&[1], &[3], &[3, 1], &[1, 3], &[1]];
/// The longest that one frame is: a link layer before what an IP packet may have.
const LONGEST: usize = 14 + 65_535 + 40;

/// Who may hand over, and make, more than one segment in one piece.
#[derive(Clone, Copy, Debug)]
struct Offloads {
    /// The sender's and the router's devices cut up segments.
    tso: bool,
    /// Their stacks do, as late as can be.
    gso: bool,
    /// Receivers join them.
    gro: bool,
}

impl Offloads {
    /// Sets them on all machines, and checks that they are in force. The offloads of
    /// sending at the ends that face XDP are fixed: the kernel has switched TSO off
    /// there, and the lab checksums.
    fn set(self, lab: &Lab) {
        let client = [(Node::Client(1), "eth0".to_owned())];
        let router = [(Node::Router, "c1".to_owned())];
        let hosts = 1..=lab.plan().hosts;
        let ports = hosts.clone().map(|host| (Node::Router, format!("h{host}")));
        let hosts = hosts.map(|host| (Node::Host(host), "eth0".to_owned()));
        for (node, device) in client.iter().chain(&router) {
            set(lab, *node, device, "tx-checksumming", true);
            set(lab, *node, device, "tcp-segmentation-offload", self.tso);
            set(lab, *node, device, "generic-segmentation-offload", self.gso);
        }
        for (node, device) in client.into_iter().chain(router).chain(ports).chain(hosts) {
            set(lab, node, &device, "generic-receive-offload", self.gro);
        }
    }
}

/// Switches a feature of a device on or off.
fn set(lab: &Lab, node: Node, device: &str, feature: &str, on: bool) {
    let short = match feature {
        "tx-checksumming" => "tx",
        "tcp-segmentation-offload" => "tso",
        "generic-segmentation-offload" => "gso",
        "generic-receive-offload" => "gro",
        _ => unreachable!("{feature}"),
    };
    let value = if on { "on" } else { "off" };
    lab.exec(node, "ethtool", &["-K", device, short, value])
        .unwrap();
    let features = lab.exec(node, "ethtool", &["-k", device]).unwrap();
    let line = format!("{feature}: {value}");
    assert!(
        features.lines().any(|have| have.trim() == line),
        "{device} of {node} has not \"{line}\":\n{features}"
    );
}

/// Watches what comes in by a device.
struct Watch {
    what: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What came in.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    frames: u64,
    /// … that are longer than the link's MTU allows.
    super_packets: u64,
    longest: usize,
}

impl Watch {
    fn start(lab: &Lab, node: Node, device: &str, mtu: u16) -> Self {
        let listener = in_namespace(&lab.namespace(node), || {
            Ok(Raw::listener(index_of(device)?)?)
        })
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            let mut buffer = vec![0; LONGEST];
            while !stopped.load(Relaxed) {
                let frame = listener.receive(&mut buffer, Duration::from_millis(50));
                let Some(frame) = frame.unwrap() else {
                    continue;
                };
                seen.frames += 1;
                seen.super_packets += u64::from(frame.len() > 14 + usize::from(mtu));
                seen.longest = seen.longest.max(frame.len());
            }
            seen
        });
        Self {
            what: format!("{device} of {node}"),
            stop,
            thread,
        }
    }

    fn finish(self) -> Seen {
        self.stop.store(true, Relaxed);
        let seen = self.thread.join().unwrap();
        println!("{}: {seen:?}", self.what);
        seen
    }
}

/// What came in, on the way up and down.
struct Found {
    /// From the client, at the router.
    router: Seen,
    /// At the owner, after XDP: all of it stripped.
    owner: Seen,
    /// From the router, at the client.
    client: Seen,
}

impl Found {
    /// Where super-packets were seen: at the router, the owner and the client.
    fn super_packets(&self) -> [bool; 3] {
        [self.router, self.owner, self.client].map(|seen| seen.super_packets > 0)
    }
}

/// Bulk data both ways over connections of one host, while ECMP sends them to the
/// others and changes again and again: every byte is right, and nothing was too large
/// for the way.
fn push(pop: &mut Pop, offloads: Offloads) -> Found {
    println!("{offloads:?}");
    offloads.set(&pop.lab);
    pop.lab.set_ecmp(&[OWNER]).unwrap();
    let services = pop.lab.plan().service(443);
    let mut connections: Vec<Bulk> = (0..CONNECTIONS)
        .map(|n| Bulk::open(&pop.lab, services[n % 2], n as u64).unwrap())
        .collect();
    pop.lab.wait_settled(CONNECTIONS as u64, PATIENCE).unwrap();
    pop.lab.set_ecmp(ORDERS[0]).unwrap();
    let forwarded = pop.lab.outcomes(&["forwarded"]).unwrap();
    let errors = driver_errors(&pop.lab);
    let lab = &pop.lab;
    let router = Watch::start(lab, Node::Router, "c1", CLIENT_MTU);
    let owner = Watch::start(lab, Node::Host(OWNER), "eth0", FABRIC_MTU);
    let client = Watch::start(lab, Node::Client(1), "eth0", CLIENT_MTU);

    let checked = AtomicU64::new(0);
    let all = CONNECTIONS as u64 * REQUESTS * u64::from(MAX_LEN);
    let failed = thread::scope(|scope| {
        let exchange = scope.spawn(|| exchange_all(&mut connections, REQUESTS, PATIENCE, &checked));
        for (order, step) in ORDERS[1..].iter().zip(1..) {
            let reached = || checked.load(Relaxed) >= all / ORDERS.len() as u64 * step;
            wait_until(8 * PATIENCE, || Ok(exchange.is_finished() || reached())).unwrap();
            pop.lab.set_ecmp(order).unwrap();
        }
        exchange.join().unwrap()
    });
    assert!(failed.is_empty(), "{failed:?}\n{}", pop.outcomes());
    assert_eq!(checked.load(Relaxed), all);
    let forwarded = pop.lab.outcomes(&["forwarded"]).unwrap() - forwarded;
    // Every byte that came up was forwarded, in segments of a full size at the most.
    assert!(forwarded >= all / u64::from(CLIENT_MTU), "{forwarded}");
    let large = pop.lab.outcomes(&["too_big", "too_big_told"]).unwrap();
    assert_eq!(large, 0, "{}", pop.outcomes());
    // A queue that a busy machine is late to empty may cost a few; a size that the
    // driver refuses costs every full segment.
    let errors = driver_errors(&pop.lab) - errors;
    assert!(errors * 100 < forwarded, "{errors} of {forwarded} frames");
    drop(connections);
    pop.lab.wait_settled(0, PATIENCE).unwrap();
    Found {
        router: router.finish(),
        owner: owner.finish(),
        client: client.finish(),
    }
}

/// What drivers refused of XDP, on all hosts.
fn driver_errors(lab: &Lab) -> u64 {
    let all = dropped(lab).into_iter();
    let drivers = all.filter(|(_, what, _)| what.starts_with("eth0 "));
    drivers.map(|(_, _, count)| count).sum()
}

#[test]
fn super_packets_of_senders_and_receivers_come_through_reshuffles() {
    let mut pop = Pop::up("super");
    for (tso, gso, gro, seen) in [
        // The client's come whole to the router, those to the client are joined there.
        (true, true, true, [true, true, true]),
        // The client's are cut up before its wire, and joined by the router.
        (false, true, true, [true, true, true]),
        // Nobody joins anything.
        (true, true, false, [true, false, false]),
        // Every segment travels alone.
        (false, false, false, [false, false, false]),
    ] {
        let offloads = Offloads { tso, gso, gro };
        let found = push(&mut pop, offloads);
        assert_eq!(found.super_packets(), seen, "{offloads:?}");
    }
    pop.down();
}
