//! A whole POP in one thread, deterministic by seed: real nodes, sealed datagrams
//! and kernel tables in memory, over a network that loses, repeats, delays and
//! reorders, while sessions open, close and move and agents and kernels come and
//! go. In the end the network is quiet, and every host must agree with the truth.
//!
//! This file is the POP, `carried` its carriers; `random` tries random histories, `cases` chosen ones,
//! `relays` those in which announcements have to cross between domains, `kernels`
//! those in which kernels answer echoes, `racks` those in which many go at once.

mod carried;
mod cases;
mod clocks;
mod impostors;
mod kernels;
mod moved;
mod racks;
mod random;
mod relays;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use homing_common::{echo::Echo, host::HostId, session::SessionId};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    apply::{Applier, tests::Memory},
    hosts::HostView,
    machine::Progress,
    node::{Config, Destination, Node, Note},
};
use crate::pop::{
    Domain, Fingerprint, Member, SECOND, Stream,
    keys::Keys,
    liveness::answer_for_test,
    membership::{Seed, State},
};

const VOID_AFTER: Duration = Duration::from_secs(3);
/// Longer than any claim is kept, any peer is silent and any retry rests.
const QUIET: u64 = 20 * SECOND;
/// `CLOCK_REALTIME` at the start of the simulation.
const WALL: u64 = 1_700_000_000_000_000;

/// What may go wrong with what hosts send each other.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss_percent: u32,
    repeat_percent: u32,
    delay_max: u64,
    /// Multicast does not get through at all in this domain.
    deaf_domain: Option<u16>,
    /// Nothing gets from the first host to the second.
    one_way: Option<(u16, u16)>,
    /// What this host sends takes so much longer.
    slow: Option<(u16, u64)>,
    /// Bulk messages whose carrier breaks before they have arrived, and after.
    broken_percent: u32,
}

const PERFECT: Faults = Faults {
    loss_percent: 0,
    repeat_percent: 0,
    delay_max: 100,
    deaf_domain: None,
    one_way: None,
    slow: None,
    broken_percent: 0,
};

/// One machine: its kernel, and its agent while that runs.
struct Machine {
    /// The host id it uses: its own, or by mistake another one's.
    id: u16,
    stream: Stream,
    /// Every incarnation it ever had: they come from a clock, so none recurs.
    incarnations: BTreeSet<u64>,
    sessions: BTreeMap<SessionId, u16>,
    table: Option<Memory>,
    /// The members that its agent wrote down.
    members: Vec<Member>,
    agent: Option<(Node, Applier<Memory>)>,
}

/// What is on its way to a machine.
enum Flight {
    Datagram { from: SocketAddr, bytes: Vec<u8> },
    Carried(carried::Flight),
}

struct Pop {
    now: u64,
    rng: Xoshiro256PlusPlus,
    faults: Faults,
    machines: BTreeMap<u16, Machine>,
    /// By the time at which each arrives, and its number: what it is, and where to.
    flights: BTreeMap<(u64, u64), (u16, Flight)>,
    flown: u64,
    /// Bulk messages that hosts have sent.
    carried: u64,
    table_limit: usize,
    claims_max: usize,
    multicast: bool,
    /// Kernels answer echoes, so that agents that are down void nothing; otherwise
    /// no echo gets through.
    echoes: bool,
    /// Machines that are switched off or cut off: nothing reaches them.
    dark: BTreeSet<u16>,
    /// Machines that reach each other, but none of the rest.
    apart: BTreeSet<u16>,
    domains: u16,
    /// What machines' clocks of the day showed at the start, where it is not [`WALL`].
    walls: BTreeMap<u16, u64>,
}

/// The first incarnation from this one on that was not used yet; uses it.
fn unused(used: &mut BTreeSet<u64>, mut incarnation: u64) -> u64 {
    while !used.insert(incarnation) {
        incarnation += 1;
    }
    incarnation
}

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (host >> 8) as u8, host as u8], 7946))
}

fn octets(address: SocketAddr) -> [u8; 2] {
    match address.ip() {
        IpAddr::V4(ip) => [ip.octets()[2], ip.octets()[3]],
        IpAddr::V6(_) => panic!("{address} is no address of the simulation"),
    }
}

impl Pop {
    fn new(seed: u64, hosts: u16, multicast: bool) -> Self {
        let mut pop = Self {
            now: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            faults: PERFECT,
            machines: BTreeMap::new(),
            flights: BTreeMap::new(),
            flown: 0,
            carried: 0,
            table_limit: usize::MAX,
            claims_max: 1 << 20,
            multicast,
            echoes: false,
            dark: BTreeSet::new(),
            apart: BTreeSet::new(),
            domains: 2,
            walls: BTreeMap::new(),
        };
        for host in 1..=hosts {
            let machine = Machine {
                id: host,
                stream: Stream {
                    incarnation: 1_000,
                    generation: 0,
                },
                incarnations: BTreeSet::from([1_000]),
                sessions: BTreeMap::new(),
                table: Some(pop.new_table()),
                members: Vec::new(),
                agent: None,
            };
            pop.machines.insert(host, machine);
        }
        pop
    }

    fn domain(&self, host: u16) -> u16 {
        host % self.domains
    }

    fn new_table(&self) -> Memory {
        Memory {
            routes: BTreeMap::new(),
            limit: self.table_limit,
        }
    }

    fn start_all(&mut self) {
        for host in self.machines.keys().copied().collect::<Vec<_>>() {
            self.start(host);
        }
    }

    fn start(&mut self, host: u16) {
        let wall = self.wall(host);
        let random: [u8; 32] = std::array::from_fn(|_| self.rng.random());
        let hosts = self.machines.len() as u16;
        let domain = format!("rack {}", self.domain(host));
        let machine = self.machines.get_mut(&host).unwrap();
        if machine.agent.is_some() {
            return;
        }
        machine.stream.generation += 1;
        let config = Config {
            me: Member {
                host: HostId(machine.id),
                stream: machine.stream,
                renewal: 0,
                address: address(host),
                domain: Domain::try_from(domain.as_str()).unwrap(),
                fingerprint: Fingerprint::default(),
                leaving: None,
                draining: false,
                offers: 0,
            },
            seeds: (1..=hosts.min(6))
                .map(|host| Seed {
                    host: HostId(host),
                    address: address(host),
                })
                .collect(),
            keys: Keys::derive(&[5; 32]),
            multicast: self.multicast,
            void_after: VOID_AFTER,
            kernel_dead_after: Duration::from_secs(3),
            claims_max: self.claims_max,
            random,
        };
        let table = machine.table.take().unwrap();
        let mut node = Node::new(
            self.now,
            wall,
            config,
            machine.sessions.iter().map(|(&id, &g)| (id, g)),
            table.routes.clone().into_iter(),
        );
        node.remember(self.now, machine.members.clone());
        machine.agent = Some((node, Applier::new(table)));
        self.settle(host);
    }

    /// The agent vanishes; the kernel keeps its table.
    fn kill(&mut self, host: u16) {
        let machine = self.machines.get_mut(&host).unwrap();
        if let Some((node, applier)) = machine.agent.take() {
            let stays = |view: &HostView| matches!(view.state, Some(State::Alive | State::Down));
            let members = node.hosts().into_iter().filter(stays);
            machine.members = members.filter_map(|view| view.member).collect();
            machine.table = Some(applier.into_table());
        }
    }

    /// The kernel begins anew, with an incarnation that may lie below the last.
    fn reboot(&mut self, host: u16, step: i64) {
        self.kill(host);
        let table = self.new_table();
        let machine = self.machines.get_mut(&host).unwrap();
        machine.sessions.clear();
        machine.table = Some(table);
        machine.members.clear();
        let incarnation = machine.stream.incarnation.saturating_add_signed(step);
        machine.stream.incarnation = unused(&mut machine.incarnations, incarnation.max(1));
        machine.stream.generation = 0;
        self.start(host);
    }

    /// The time of day as a machine's clock has it.
    fn wall(&self, host: u16) -> u64 {
        self.walls.get(&host).unwrap_or(&WALL) + self.now
    }

    fn open(&mut self, host: u16, id: u64, generation: u16) {
        let (now, wall, id) = (self.now, self.wall(host), SessionId(id));
        let machine = self.machines.get_mut(&host).unwrap();
        machine.sessions.insert(id, generation);
        if let Some((node, _)) = &mut machine.agent {
            node.open(now, id, generation, wall);
        }
        self.settle(host);
    }

    fn close(&mut self, host: u16, id: u64) {
        let (now, wall, id) = (self.now, self.wall(host), SessionId(id));
        let machine = self.machines.get_mut(&host).unwrap();
        if machine.sessions.remove(&id).is_some()
            && let Some((node, _)) = &mut machine.agent
        {
            node.close(now, id, wall);
        }
        self.settle(host);
    }

    fn leave(&mut self, host: u16, hold: Duration) {
        let now = self.now;
        if let Some((node, _)) = &mut self.machines.get_mut(&host).unwrap().agent {
            node.leave(now, hold);
        }
        self.settle(host);
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        let mut idle_turns = 0;
        loop {
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let timers = self.machines.iter().filter_map(|(&host, machine)| {
                let (node, _) = machine.agent.as_ref()?;
                Some((node.next_time(), host))
            });
            let timer = timers.min();
            let next = timer.map(|t| t.0).into_iter().chain(flight).min();
            let Some(next) = next.filter(|&next| next <= end) else {
                break;
            };
            idle_turns = if next <= self.now { idle_turns + 1 } else { 0 };
            assert!(idle_turns < 100_000, "time stands still");
            self.now = self.now.max(next);
            if flight.is_some_and(|at| at <= self.now) {
                let Some((_, (to, flight))) = self.flights.pop_first() else {
                    continue;
                };
                match flight {
                    Flight::Datagram { from, bytes } => self.arrive(to, from, &bytes),
                    Flight::Carried(flight) => self.arrive_carried(to, flight),
                }
            } else if let Some((_, host)) = timer {
                let (node, _) = self
                    .machines
                    .get_mut(&host)
                    .unwrap()
                    .agent
                    .as_mut()
                    .unwrap();
                node.on_time(self.now);
                self.settle(host);
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, to: u16, from: SocketAddr, bytes: &[u8]) {
        if let Some(answer) = self.answer(to, from, bytes) {
            let asker = u16::from_be_bytes(octets(from));
            self.send(to, asker, &answer);
        } else if let Some((node, _)) = &mut self.machines.get_mut(&to).unwrap().agent {
            node.receive(self.now, from, bytes);
            self.settle(to);
        }
    }

    /// Sends what a node wants to send and puts its routes in force.
    fn settle(&mut self, host: u16) {
        let (now, wall) = (self.now, self.wall(host));
        let machine = self.machines.get_mut(&host).unwrap();
        let Some((node, applier)) = &mut machine.agent else {
            return;
        };
        if node.next_time() <= now {
            node.on_time(now);
        }
        let mut above_all = None;
        while let Some(note) = node.poll_note() {
            if let Note::Outdated { above, .. } = note {
                above_all = above_all.max(Some(above));
            }
        }
        if let Some(above) = above_all.filter(|&above| above >= machine.stream.incarnation) {
            machine.stream.incarnation = unused(&mut machine.incarnations, above + 1);
            node.restart(now, machine.stream);
        }
        while let Some((id, owner)) = node.poll_route() {
            applier.apply(id, owner);
        }
        applier.retry(false, |id| node.gossip().route(id));
        node.routes_applied(wall);
        for id in machine.sessions.keys() {
            let routed = applier.table().routes.get(id);
            assert_eq!(routed, None, "{id:?} is live on {host} and routed away");
        }
        let mut transmits = Vec::new();
        while let Some(transmit) = node.poll_transmit() {
            assert!(transmit.bytes.len() <= crate::pop::DATAGRAM_LEN_MAX);
            transmits.push(transmit);
        }
        let bulks: Vec<_> = std::iter::from_fn(|| node.poll_bulk()).collect();
        let stream = machine.stream;
        if node.has_left() {
            self.kill(host);
        }
        for transmit in transmits {
            let is_deaf = self.faults.deaf_domain == Some(self.domain(host));
            let to: Vec<u16> = self
                .machines
                .keys()
                .copied()
                .filter(|&other| match transmit.to {
                    Destination::Address(to) => to == address(other),
                    Destination::Multicast => {
                        other != host && self.domain(other) == self.domain(host) && !is_deaf
                    }
                })
                .collect();
            for to in to {
                self.send(host, to, &transmit.bytes);
            }
        }
        for bulk in bulks {
            self.carry(host, stream, bulk);
        }
    }

    /// What a kernel answers to an echo.
    fn answer(&self, host: u16, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let incarnation = self.machines[&host].stream.incarnation;
        let key = &Keys::derive(&[5; 32]).echo[0];
        let question = bytes.starts_with(&Echo::MAGIC).then_some(bytes)?;
        self.echoes
            .then(|| answer_for_test(HostId(host), incarnation, key, from, question))?
    }

    fn send(&mut self, from: u16, to: u16, bytes: &[u8]) {
        let faults = self.faults;
        let is_unheard = !self.echoes && bytes.starts_with(&Echo::MAGIC);
        if is_unheard || !self.reaches(from, to) {
            return;
        }
        let mut copies = 1;
        if self.rng.random_range(0..100) < faults.repeat_percent {
            copies += 1;
        }
        for _ in 0..copies {
            let is_lost = self.rng.random_range(0..100) < faults.loss_percent;
            if is_lost || faults.one_way == Some((from, to)) {
                continue;
            }
            let at = self.now + self.delay(from);
            let flight = Flight::Datagram {
                from: address(from),
                bytes: bytes.to_vec(),
            };
            self.flown += 1;
            self.flights.insert((at, self.flown), (to, flight));
        }
    }

    /// Whether there is a way from one machine to another.
    fn reaches(&self, from: u16, to: u16) -> bool {
        let is_cut = self.apart.contains(&from) != self.apart.contains(&to);
        !is_cut && !self.dark.contains(&from) && !self.dark.contains(&to)
    }

    /// How long something takes that a machine sends now.
    fn delay(&mut self, from: u16) -> u64 {
        let slow = self.faults.slow.filter(|slow| slow.0 == from);
        let delay = self.rng.random_range(20..=self.faults.delay_max.max(20));
        delay + slow.map_or(0, |slow| slow.1)
    }

    /// What the table of a host must hold: the owners, among the machines whose
    /// agents run, of all sessions that are not live here.
    fn truth(&self, at: u16) -> BTreeMap<SessionId, HostId> {
        let mut best: BTreeMap<SessionId, (u16, u16)> = BTreeMap::new();
        for (&host, machine) in &self.machines {
            if machine.agent.is_some() && host != at {
                for (&id, &generation) in &machine.sessions {
                    let entry = best.entry(id).or_default();
                    *entry = (*entry).max((generation, host));
                }
            }
        }
        let here = &self.machines[&at].sessions;
        best.into_iter()
            .filter(|(id, _)| !here.contains_key(id))
            .map(|(id, (_, host))| (id, HostId(host)))
            .collect()
    }

    fn assert_converged(&self) {
        for (&host, machine) in &self.machines {
            let Some((node, applier)) = &machine.agent else {
                continue;
            };
            for origin in node.gossip().origins() {
                let runs = self.machines[&origin.host.0].agent.is_some();
                if runs {
                    assert_eq!(
                        origin.progress,
                        Progress::Following,
                        "{host} about {:?}: {origin:?}, which sees {:?}; {:?}",
                        origin.host,
                        self.seen(origin.host.0, host),
                        node.gossip().counters()
                    );
                }
            }
            assert_eq!(
                applier.table().routes,
                self.truth(host),
                "host {host}: {:?} {:?} {:?}",
                node.hosts(),
                node.gossip().counters(),
                node.seal_counters()
            );
        }
    }

    /// What one host knows of another.
    fn seen(&self, at: u16, of: u16) -> Option<HostView> {
        let (node, _) = self.machines[&at].agent.as_ref()?;
        node.hosts().into_iter().find(|view| view.host.0 == of)
    }

    fn counters(&self, host: u16) -> super::machine::Counters {
        let (node, _) = self.machines[&host].agent.as_ref().unwrap();
        *node.gossip().counters()
    }

    fn routes(&self, host: u16) -> &BTreeMap<SessionId, HostId> {
        match &self.machines[&host] {
            Machine {
                agent: Some((_, applier)),
                ..
            } => &applier.table().routes,
            machine => &machine.table.as_ref().unwrap().routes,
        }
    }
}
