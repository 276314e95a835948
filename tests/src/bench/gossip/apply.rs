//! How many announcements one core applies in a second: sealed datagrams as a
//! relay sends them go in at one end, entries of `OWNERS` come out at the other.
//!
//! Time is processor time of the one thread that does it all, so that other work
//! on the machine counts for little. And how much memory a node takes for the claims
//! of others.

use anyhow::{Context as _, Result, ensure};
use homing_agent::{
    datapath::Datapath,
    gossip::{
        Table, TableFull,
        apply::Applier,
        node::{Config, Destination, Node},
    },
    pop::{Domain, Fingerprint, MS, Member, Stream, keys::Keys},
};
use homing_common::{bench::session_id, host::HostId, session::SessionId};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{random::Random, sandbox};

/// Sessions that are open at any time.
const OPEN: usize = 100_000;
/// Announcements that are measured: as many opened as closed.
const MEASURED: usize = 1_000_000;
/// Routes that are put in force at once, as the agent does.
const DATAGRAMS_PER_TURN: usize = 64;

/// The life of every node here.
const LIFE: Stream = Stream {
    incarnation: 1,
    generation: 1,
};

/// How long the claims of a host are kept that is not heard.
const VOID_AFTER: Duration = Duration::from_secs(5);

/// Announcements applied per second and core.
pub struct Applied {
    /// With the kernel's table.
    pub with_table: f64,
    /// With a table that does nothing: what gossip itself costs.
    pub without_table: f64,
}

/// Measures.
pub fn run() -> Result<Applied> {
    let (to, from) = std::sync::mpsc::channel();
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.owners_entries = 2 * OPEN as u32;
        let result = Datapath::load(&options)
            .context("cannot load the fast path")
            .and_then(|datapath| measure(datapath.owners));
        // The receiver outlives the sandbox.
        to.send(result).ok();
    });
    Ok(Applied {
        with_table: from.recv()??,
        without_table: measure(Nothing)?,
    })
}

/// A table that does nothing.
struct Nothing;

impl Table for Nothing {
    fn set(&mut self, _: SessionId, _: HostId) -> Result<(), TableFull> {
        Ok(())
    }

    fn clear(&mut self, _: SessionId) {}
}

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8], 7946))
}

/// Bytes of memory that a node takes for each of so many sessions of others: what this
/// process has more of in memory once it holds their claims, as it does after a restart
/// of the agent.
pub fn claim_bytes(sessions: u64) -> Result<f64> {
    let routes = (0..sessions).map(|n| (session_id(n), HostId(2 + (n % 999) as u16)));
    let before = resident_bytes()?;
    let node = Node::new(
        0,
        0,
        config(1, sessions as usize)?,
        std::iter::empty(),
        routes,
    );
    let bytes = resident_bytes()? - before;
    ensure!(
        node.gossip().owner(session_id(sessions - 1)).is_some(),
        "the node does not hold the claims"
    );
    Ok(bytes / sessions as f64)
}

/// How long it takes from the verdict on a host that has one of `share` of so many
/// sessions until none of its claims and routes is left. The rest are those of host 2,
/// which is alive. `sweep` removes a host's entries from the table.
pub fn void(
    sessions: u32,
    share: u32,
    gone: HostId,
    sweep: impl FnOnce(HostId),
) -> Result<Duration> {
    let is_gone = |n: &u32| n.is_multiple_of(share);
    let ids = |which: bool| {
        let numbers = (0..sessions).filter(move |n| is_gone(n) == which);
        numbers.map(|n| session_id(n.into()))
    };
    let routes = ids(true).map(|id| (id, gone));
    let config = |host| config(host, sessions as usize);
    let own = ids(false).map(|id| (id, 1));
    let mut nodes = [
        Node::new(0, 0, config(1)?, std::iter::empty(), routes),
        Node::new(0, 0, config(2)?, own, std::iter::empty()),
    ];
    let mut now = 0;
    while now + MS < VOID_AFTER.as_micros() as u64 {
        now += MS;
        nodes.iter_mut().for_each(|node| node.on_time(now));
        exchange(now, &mut nodes);
        while nodes[0].poll_route().is_some() {}
        nodes[0].routes_applied(now);
    }
    let node = &mut nodes[0];
    let owned = |node: &Node, which| {
        ids(which)
            .filter(|id| node.gossip().owner(*id).is_some())
            .count() as u32
    };
    let (its, others) = (owned(node, true), owned(node, false));
    ensure!(
        its + others == sessions,
        "{its} and {others} claims of {sessions}"
    );
    let start = Instant::now();
    node.on_time(now + MS);
    let void = node.poll_void();
    void.map(sweep);
    let took = start.elapsed();
    let left = (owned(node, true), owned(node, false));
    ensure!(
        void == Some(gone) && left == (0, others),
        "{void:?} is void, {left:?} claims are left"
    );
    Ok(took)
}

fn resident_bytes() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib.context("/proc/self/status has no VmRSS")?.parse()?;
    Ok(kib * 1024.0)
}

fn node(host: u16) -> Result<Node> {
    let config = config(host, 4 * OPEN)?;
    let (sessions, routes) = (std::iter::empty(), std::iter::empty());
    Ok(Node::new(0, 0, config, sessions, routes))
}

fn config(host: u16, claims_max: usize) -> Result<Config> {
    let domain = Domain::try_from("rack")?;
    Ok(Config {
        me: Member::starting(
            HostId(host),
            LIFE,
            address(host),
            domain,
            Fingerprint::default(),
        ),
        seeds: vec![homing_agent::pop::membership::Seed {
            host: HostId(3 - host),
            address: address(3 - host),
        }],
        keys: Keys::derive(&[3; 32]),
        multicast: true,
        void_after: VOID_AFTER,
        kernel_dead_after: Duration::from_secs(3),
        claims_max,
        random: [host as u8; 32],
    })
}

/// Gives each of two nodes what the other sends, until neither has more to say.
fn exchange(now: u64, nodes: &mut [Node; 2]) {
    for turn in 0..1_000 {
        let (from, to) = (turn % 2, 1 - turn % 2);
        let mut quiet = true;
        while let Some(transmit) = nodes[from].poll_transmit() {
            quiet = false;
            nodes[to].receive(now, address(from as u16 + 1), &transmit.bytes);
        }
        while let Some(bulk) = nodes[from].poll_bulk() {
            quiet = false;
            let sender = HostId(from as u16 + 1);
            nodes[to].receive_bulk(now, sender, LIFE, &bulk.body);
            nodes[from].bulk_told(now, bulk.to, bulk.number, Some(LIFE));
        }
        if quiet && turn % 2 == 1 {
            return;
        }
    }
}

fn processor_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn measure(table: impl Table) -> Result<f64> {
    let mut nodes = [node(1)?, node(2)?];
    let mut now = 0;
    for _ in 0..2_000 {
        now += MS;
        nodes.iter_mut().for_each(|node| node.on_time(now));
        exchange(now, &mut nodes);
    }
    let mut applier = Applier::new(table);
    let mut random = Random::new(1);
    let mut open = VecDeque::new();
    let (mut spent, mut measured) = (0, 0);
    while measured < MEASURED {
        // Some datagrams of the first host, at its own pace.
        let mut datagrams = Vec::new();
        while datagrams.len() < DATAGRAMS_PER_TURN {
            now += MS;
            for _ in 0..128 {
                let id = SessionId(random.next());
                open.push_back(id);
                nodes[0].open(now, id, 0, now);
                if open.len() > OPEN
                    && let Some(id) = open.pop_front()
                {
                    nodes[0].close(now, id, now);
                }
            }
            nodes[0].on_time(now);
            while let Some(transmit) = nodes[0].poll_transmit() {
                if transmit.to == Destination::Multicast {
                    datagrams.push(transmit.bytes);
                } else {
                    nodes[1].receive(now, address(1), &transmit.bytes);
                }
            }
        }
        let before = nodes[1].gossip().counters().records_applied;
        let start = processor_ns()?;
        for datagram in &datagrams {
            nodes[1].receive(now, address(1), datagram);
        }
        while let Some((id, owner)) = nodes[1].poll_route() {
            applier.apply(id, owner);
        }
        nodes[1].routes_applied(now);
        let time = processor_ns()? - start;
        if open.len() > OPEN - 128 {
            spent += time;
            let applied = nodes[1].gossip().counters().records_applied;
            measured += (applied - before) as usize;
        }
        nodes[1].on_time(now);
        while let Some(transmit) = nodes[1].poll_transmit() {
            nodes[0].receive(now, address(2), &transmit.bytes);
        }
        ensure!(applier.counters.table_full == 0, "the table refused routes");
    }
    Ok(measured as f64 * 1e9 / spent as f64)
}
