//! A large POP in one thread, deterministic by seed: real nodes (seal, membership
//! and gossip as the agent runs them) over a network in memory.
//!
//! The kernel's tables are left out: what is watched is how far each host has
//! applied each other host's log.

mod carried;
mod observe;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use homing_agent::{
    gossip::{
        bulk::Bulk,
        node::{Config, Destination, Node, Note},
    },
    pop::{Domain, Fingerprint, MS, Member, SECOND, Stream, keys::Keys, membership::Seed},
};
use homing_common::{echo::Echo, host::HostId, session::SessionId};

use self::carried::is_cut;
use super::histogram::Histogram;
use crate::random::Random;

/// `CLOCK_REALTIME` at the start.
const WALL: u64 = 1_700_000_000_000_000;
/// How often it is looked who has applied what: what is reported as a delay is
/// rounded up to this.
const LOOK: u64 = 5 * MS;
/// Bytes of IPv4 and UDP headers, which are counted with every datagram.
pub(super) const HEADERS: u64 = 28;
/// Lost datagrams, in a million.
const LOSS_PPM: u64 = 100;
/// The seal's header says at this offset which protocol a datagram belongs to.
const CHANNEL_AT: usize = 3;
const GOSSIP: u8 = 2;

/// How large the POP is and what happens in it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Hosts.
    pub hosts: u16,
    /// Domains, of equal size.
    pub domains: u16,
    /// Sessions that are opened in the whole POP each second; as many are closed.
    pub opens_per_s: u64,
}

struct Host {
    node: Option<Node>,
    stream: Stream,
    /// When its next call is due; an entry of the queue for another time is stale.
    due: u64,
    open: VecDeque<SessionId>,
    next_session: u64,
    churn_at: u64,
    /// When each announcement of this life was made.
    announced: Vec<u64>,
    /// Datagrams sent in the present second.
    sent: u64,
    /// Datagrams sent since the last measurement.
    sent_lately: u64,
    /// Bulk messages of which it does not know the fate, and the most there ever were.
    carried: usize,
    carried_max: usize,
}

/// What was counted since the last [`Pop::measure`].
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Delays of announcements at each host that had to learn of them.
    pub delays: Histogram,
    /// Bytes of gossip received by all hosts, IP and UDP headers included.
    pub gossip_bytes: u64,
    /// Datagrams of gossip received.
    pub gossip_datagrams: u64,
    /// Bytes of membership and the seal's own, likewise.
    pub other_bytes: u64,
    /// Announcements applied, each once per host.
    pub learned: u64,
    /// Datagrams sent per second: one entry per host that runs.
    pub rates: Histogram,
}

enum Flight {
    Unicast { to: u16, bytes: Vec<u8> },
    Multicast { bytes: Vec<u8> },
}

struct Event {
    at: u64,
    number: u64,
    what: What,
}

enum What {
    Arrive {
        from: u16,
        flight: Flight,
    },
    Carried {
        from: u16,
        bulk: Bulk,
    },
    /// The fate of a bulk message: the number, and the life that has it.
    Told {
        from: u16,
        to: HostId,
        number: u64,
        has: Option<Stream>,
    },
    Due(u16),
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The POP.
pub struct Pop {
    size: Size,
    /// Now, in microseconds.
    pub now: u64,
    random: Random,
    hosts: Vec<Host>,
    queue: BinaryHeap<Reverse<Event>>,
    events: u64,
    /// How far each host has applied each other host's log.
    applied: Vec<u64>,
    look_at: u64,
    second_at: u64,
    /// Sessions are opened and closed.
    churn: bool,
    /// The domain that nothing gets into or out of, and since when none is.
    cut: Option<u16>,
    healed_at: u64,
    /// The domain that was cut off last.
    was_cut: Option<u16>,
    measured: Measured,
    measured_at: u64,
    sent_max: u64,
    /// When the last bulk message was sent from one host to another.
    carried_at: BTreeMap<(u16, u16), u64>,
}

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (host >> 8) as u8, host as u8], 7946))
}

impl std::fmt::Debug for Pop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "at {} ms {} pairs of hosts are not alive to each other and {} differ",
            self.now / MS,
            self.not_alive(),
            self.differing()
        )
    }
}

impl Pop {
    /// A POP whose agents all start within half a second.
    pub fn new(size: Size, seed: u64) -> Self {
        let mut pop = Self {
            size,
            now: 0,
            random: Random::new(seed),
            hosts: Vec::new(),
            queue: BinaryHeap::new(),
            events: 0,
            applied: vec![0; usize::from(size.hosts) * usize::from(size.hosts)],
            look_at: LOOK,
            second_at: SECOND,
            churn: false,
            cut: None,
            healed_at: 0,
            was_cut: None,
            measured: Measured::default(),
            measured_at: 0,
            sent_max: 0,
            carried_at: BTreeMap::new(),
        };
        for _ in 0..size.hosts {
            pop.hosts.push(Host {
                node: None,
                stream: Stream {
                    incarnation: 1,
                    generation: 0,
                },
                due: u64::MAX,
                open: VecDeque::new(),
                next_session: 0,
                churn_at: u64::MAX,
                announced: Vec::new(),
                sent: 0,
                sent_lately: 0,
                carried: 0,
                carried_max: 0,
            });
        }
        pop
    }

    /// The domain of a host.
    pub fn domain(&self, index: u16) -> u16 {
        index % self.size.domains
    }

    /// Starts a host's agent.
    pub fn start(&mut self, index: u16) {
        let hosts = self.size.hosts;
        let domain = format!("rack {}", self.domain(index));
        let random = std::array::from_fn(|_| self.random.next() as u8);
        // Some hosts of several racks, the same for all, as an operator would.
        let seeds = (0..hosts).step_by(usize::from((hosts / 8).max(1)) + 1);
        let host = &mut self.hosts[usize::from(index)];
        host.stream.generation += 1;
        host.announced.clear();
        host.carried = 0;
        let config = Config {
            me: Member::starting(
                HostId(index + 1),
                host.stream,
                address(index + 1),
                Domain::try_from(domain.as_str()).unwrap_or_else(|error| unreachable!("{error}")),
                Fingerprint::default(),
            ),
            seeds: seeds
                .map(|seed| Seed {
                    host: HostId(seed + 1),
                    address: address(seed + 1),
                })
                .collect(),
            keys: Keys::derive(&[5; 32]),
            multicast: true,
            void_after: Duration::from_secs(600),
            kernel_dead_after: Duration::from_secs(3),
            claims_max: 1 << 24,
            random,
        };
        let sessions = host.open.iter().map(|&id| (id, 0));
        let node = Node::new(
            self.now,
            WALL + self.now,
            config,
            sessions,
            std::iter::empty(),
        );
        host.node = Some(node);
        for other in 0..usize::from(hosts) {
            self.applied[other * usize::from(hosts) + usize::from(index)] = 0;
            self.applied[usize::from(index) * usize::from(hosts) + other] = 0;
        }
        self.settle(index);
    }

    /// A host's agent vanishes.
    pub fn kill(&mut self, index: u16) {
        self.hosts[usize::from(index)].node = None;
    }

    /// Nothing gets into or out of a domain.
    pub fn cut(&mut self, domain: u16) {
        self.cut = Some(domain);
        self.was_cut = Some(domain);
    }

    /// Everything gets everywhere again.
    pub fn heal(&mut self) {
        self.cut = None;
        self.healed_at = self.now;
    }

    /// From now on sessions are opened and closed, or not.
    pub fn set_churn(&mut self, churn: bool) {
        self.look();
        self.churn = churn;
        if churn {
            let interval = self.churn_interval();
            for index in 0..self.size.hosts {
                let at = self.now + self.random.below(interval);
                self.hosts[usize::from(index)].churn_at = at;
                self.plan(index);
            }
        }
    }

    fn churn_interval(&self) -> u64 {
        SECOND * u64::from(self.size.hosts) / (2 * self.size.opens_per_s)
    }

    /// Lets time pass.
    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            let next = self.queue.peek().map_or(u64::MAX, |event| event.0.at);
            let look = self.look_at.min(self.second_at);
            if look <= next.min(end) {
                self.now = look;
                if look == self.second_at {
                    self.second();
                } else {
                    self.look();
                }
                continue;
            }
            if next > end {
                break;
            }
            let Some(Reverse(event)) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(event.at);
            match event.what {
                What::Arrive { from, flight } => self.arrive(from, flight),
                What::Carried { from, bulk } => self.arrive_carried(from, bulk),
                What::Told {
                    from,
                    to,
                    number,
                    has,
                } => self.told(from, to, number, has),
                What::Due(index) => {
                    if self.hosts[usize::from(index)].due == event.at {
                        self.hosts[usize::from(index)].due = u64::MAX;
                        self.due(index);
                    }
                }
            }
        }
        self.now = end;
    }

    fn due(&mut self, index: u16) {
        let (now, churn) = (self.now, self.churn);
        let interval = self.churn_interval();
        let next = now + interval / 2 + self.random.below(interval);
        let host = &mut self.hosts[usize::from(index)];
        let Some(node) = &mut host.node else { return };
        if churn && host.churn_at <= now {
            host.churn_at = next;
            // Sessions are short here, so that a thousand tables of them fit into
            // one machine.
            host.announced.push(now);
            let close = host.announced.len().is_multiple_of(2);
            match host.open.pop_front() {
                Some(id) if close && host.open.len() > 10 => node.close(now, id, WALL + now),
                kept => {
                    if let Some(id) = kept {
                        host.open.push_front(id);
                    }
                    host.next_session += 1;
                    let mut id = Random::new(u64::from(index) << 40 | host.next_session);
                    let id = SessionId(id.next());
                    host.open.push_back(id);
                    node.open(now, id, 0, WALL + now);
                }
            }
        }
        if node.next_time() <= now {
            node.on_time(now);
        }
        self.settle(index);
    }

    fn arrive(&mut self, from: u16, flight: Flight) {
        match flight {
            Flight::Unicast { to, bytes } => self.deliver(from, to, &bytes),
            Flight::Multicast { bytes } => {
                for to in (self.domain(from)..self.size.hosts).step_by(self.size.domains.into()) {
                    if to != from && self.random.below(1_000_000) >= LOSS_PPM {
                        self.deliver(from, to, &bytes);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, from: u16, to: u16, bytes: &[u8]) {
        let Some(node) = &mut self.hosts[usize::from(to)].node else {
            return;
        };
        let len = bytes.len() as u64 + HEADERS;
        if bytes[CHANNEL_AT] == GOSSIP {
            self.measured.gossip_bytes += len;
            self.measured.gossip_datagrams += 1;
        } else {
            self.measured.other_bytes += len;
        }
        node.receive(self.now, address(from + 1), bytes);
        self.settle(to);
    }

    /// Sends what a host wants to send.
    fn settle(&mut self, index: u16) {
        let now = self.now;
        let host = &mut self.hosts[usize::from(index)];
        let Some(node) = &mut host.node else { return };
        if node.next_time() <= now {
            node.on_time(now);
        }
        while let Some(note) = node.poll_note() {
            if let Note::Outdated { above, .. } = note {
                host.stream.incarnation = host.stream.incarnation.max(above + 1);
                node.restart(now, host.stream);
            }
        }
        while node.poll_route().is_some() {}
        node.routes_applied(WALL + now);
        let bulks: Vec<_> = std::iter::from_fn(|| node.poll_bulk()).collect();
        while let Some(transmit) = node.poll_transmit() {
            host.sent += 1;
            host.sent_lately += 1;
            if transmit.bytes.starts_with(&Echo::MAGIC) {
                // For a kernel, and there is none here to answer.
                continue;
            }
            let (to, base, spread) = match transmit.to {
                Destination::Multicast => (None, 30, 50),
                Destination::Address(address) => {
                    let SocketAddr::V4(v4) = address else {
                        continue;
                    };
                    let [_, _, high, low] = v4.ip().octets();
                    let to = (u16::from(high) << 8 | u16::from(low)) - 1;
                    let near = to % self.size.domains == index % self.size.domains;
                    let crosses = !near && is_cut(self.cut, self.size, [index, to]);
                    if crosses || self.random.below(1_000_000) < LOSS_PPM {
                        continue;
                    }
                    (
                        Some(to),
                        if near { 30 } else { 60 },
                        if near { 50 } else { 140 },
                    )
                }
            };
            self.events += 1;
            let at = now + base + self.random.below(spread);
            let bytes = transmit.bytes;
            let flight = match to {
                Some(to) => Flight::Unicast { to, bytes },
                None => Flight::Multicast { bytes },
            };
            self.queue.push(Reverse(Event {
                at,
                number: self.events,
                what: What::Arrive {
                    from: index,
                    flight,
                },
            }));
        }
        for bulk in bulks {
            self.carry(index, bulk);
        }
        self.plan(index);
    }

    fn plan(&mut self, index: u16) {
        let host = &mut self.hosts[usize::from(index)];
        let Some(node) = &host.node else { return };
        let mut next = node.next_time();
        if self.churn {
            next = next.min(host.churn_at);
        }
        let next = next.max(self.now);
        if next < host.due {
            host.due = next;
            self.events += 1;
            self.queue.push(Reverse(Event {
                at: next,
                number: self.events,
                what: What::Due(index),
            }));
        }
    }
}
