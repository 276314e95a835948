//! A flood of packets that belong to nobody, 100,000 a second towards one host, with
//! real kernels: known sessions do not notice, and what hosts ask each other about it
//! stays within its bounds.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use homing_tests::{
    lab::{
        Lab, Node,
        flood::Flood,
        node::in_namespace,
        plan::{AGENT_PORT, GROUP_PORT},
    },
    raw::{Raw, index_of},
};

use super::common::{PATIENCE, Pop};

/// Packets a second.
const RATE: u64 = 100_000;
/// For so long at least.
const TIME: Duration = Duration::from_secs(4);
/// The host that it comes to.
const FLOODED: u16 = 1;

/// What the kernel lets through to the agent: so many packets in each window of 2^27 ns.
const PARKED_PER_WINDOW: u64 = 2_048;
const WINDOW: Duration = Duration::from_nanos(1 << 27);
/// Asks that a host sends: so many a second, and at once.
const ASKS: (u64, u64) = (2_000, 200);
/// Whatever else agents say to each other, a second and host: a lot.
const GOSSIP: u64 = 500;

/// Counts the datagrams that agents put on their hosts' wires.
struct Wires {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wires {
    fn listen(lab: &Lab) -> Self {
        let mut wires = Self {
            count: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for host in 1..=lab.plan().hosts {
            let listener = in_namespace(&lab.namespace(Node::Router), || {
                Ok(Raw::listener(index_of(&format!("h{host}"))?)?)
            })
            .unwrap();
            let (count, stop) = (wires.count.clone(), wires.stop.clone());
            wires.threads.push(thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Relaxed) {
                    let frame = listener.receive(&mut buffer, Duration::from_millis(50));
                    if frame.unwrap().is_some_and(is_of_an_agent) {
                        count.fetch_add(1, Relaxed);
                    }
                }
            }));
        }
        wires
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.count.load(Relaxed)
    }
}

/// Whether a frame carries a datagram to agents: IPv4 without options, UDP.
fn is_of_an_agent(frame: &[u8]) -> bool {
    let port = frame.get(36..38);
    let port = port.map(|port| u16::from_be_bytes([port[0], port[1]]));
    frame.get(12..15) == Some(&[0x08, 0x00, 0x45])
        && frame[23] == 17
        && matches!(port, Some(AGENT_PORT | GROUP_PORT))
}

#[test]
fn a_flood_of_unknown_packets_harms_no_session_and_stays_bounded() {
    let mut pop = Pop::up("flood");
    let service: SocketAddr = pop.lab.plan().service(443)[0];
    let clients = pop.load(30);
    // All known sessions' packets come to the host that is to be flooded.
    pop.lab.set_ecmp(&[FLOODED]).unwrap();
    let rounds = || {
        let start = Instant::now();
        let live = clients.wait_rounds(10, PATIENCE).unwrap();
        assert_eq!(live, clients.total(), "{}", pop.outcomes());
        start.elapsed()
    };
    let calm = rounds();
    let asked_of = |host| pop.lab.gossip_count(host, "ask_datagrams").unwrap();
    let asks_before = [1, 2, 3].map(asked_of);
    let of_the_flood = ["asked", "ask_limited_source", "ask_limited", "ask_full"];
    let before = of_the_flood.map(|name| pop.lab.outcomes(&[name]).unwrap());
    let wires = Wires::listen(&pop.lab);
    let start = Instant::now();
    let flood = Flood::start(&pop.lab, FLOODED, service, RATE, 0).unwrap();
    let mut flooded = Vec::new();
    while start.elapsed() < TIME {
        flooded.push(rounds());
    }
    let sent = flood.finish().unwrap();
    println!("{sent:?}: {:.0} a second", sent.per_second());
    println!("10 rounds of all sessions: {calm:?} before it, {flooded:?} in it");

    // Loosely, because a machine may be busy with other things: some rounds take no
    // longer than without it.
    let best = flooded.iter().min().unwrap();
    assert!(*best < 3 * calm, "known sessions are delayed");

    let asks = [1, 2, 3].map(|host| asked_of(host) - asks_before[usize::from(host) - 1]);
    let datagrams = wires.finish();
    let lasted = start.elapsed();
    let after = of_the_flood.map(|name| pop.lab.outcomes(&[name]).unwrap());
    let ended: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    println!(
        "in {lasted:?}: {of_the_flood:?} {ended:?}; asks {asks:?}, {datagrams} datagrams in all"
    );
    // Most of it arrived, and most of that was more than the limits let through.
    let [asked, limited] = [ended[0], ended[2]];
    let arrived: u64 = ended.iter().sum();
    assert!(arrived * 2 > sent.packets, "{arrived} of {sent:?}");
    assert!(limited > 0, "never at the limit: {sent:?}");
    let windows = lasted.as_nanos() / WINDOW.as_nanos() + 2;
    // Two CPUs that meet may count one packet instead of two.
    let bound = windows as u64 * PARKED_PER_WINDOW * 21 / 20;
    assert!(asked <= bound, "{asked} asked, the bound is {bound}");
    let seconds = lasted.as_secs() + 1;
    let bound = seconds * ASKS.0 + ASKS.1;
    assert!(asks.iter().all(|asks| *asks <= bound), "{asks:?}: {bound}");
    let bound = asks.len() as u64 * (bound + seconds * GOSSIP);
    assert!(
        datagrams <= bound,
        "{datagrams} datagrams, the bound is {bound}"
    );

    // Moved while the flood's sessions are still remembered, they live on.
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}
