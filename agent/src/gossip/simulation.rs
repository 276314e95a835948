//! A whole POP in one thread, deterministic by seed: real nodes, sealed datagrams
//! and kernel tables in memory, over a network that loses, repeats, delays and
//! reorders, while sessions open, close and move and agents and kernels come and
//! go. In the end the network is quiet, and every host must agree with the truth.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    time::Duration,
};

use homing_common::{host::HostId, session::SessionId};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    apply::{Applier, tests::Memory},
    machine::Progress,
    node::{Config, Destination, Node, Note},
};
use crate::pop::{Domain, Fingerprint, MS, Member, SECOND, Stream, keys::Keys, membership::Seed};

const VOID_AFTER: Duration = Duration::from_secs(3);
/// Longer than any claim is kept, any peer is silent and any retry rests.
const QUIET: u64 = 20 * SECOND;
/// `CLOCK_REALTIME` at the start of the simulation.
const WALL: u64 = 1_700_000_000_000_000;

/// What may go wrong with datagrams.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss_percent: u32,
    repeat_percent: u32,
    delay_max: u64,
    /// Multicast does not get through at all in this domain.
    deaf_domain: Option<u16>,
}

const PERFECT: Faults = Faults {
    loss_percent: 0,
    repeat_percent: 0,
    delay_max: 100,
    deaf_domain: None,
};

/// One machine: its kernel, and its agent while that runs.
struct Machine {
    stream: Stream,
    /// Every incarnation it ever had: they come from a clock, so none recurs.
    incarnations: BTreeSet<u64>,
    sessions: BTreeMap<SessionId, u16>,
    table: Option<Memory>,
    agent: Option<(Node, Applier<Memory>)>,
}

type Flight = Reverse<(u64, u64, u16, SocketAddr, Vec<u8>)>;

struct Pop {
    now: u64,
    rng: Xoshiro256PlusPlus,
    faults: Faults,
    machines: BTreeMap<u16, Machine>,
    flights: BinaryHeap<Flight>,
    flown: u64,
    table_limit: usize,
    claims_max: usize,
    multicast: bool,
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

fn domain(host: u16) -> u16 {
    host % 2
}

impl Pop {
    fn new(seed: u64, hosts: u16, multicast: bool) -> Self {
        let mut pop = Self {
            now: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            faults: PERFECT,
            machines: BTreeMap::new(),
            flights: BinaryHeap::new(),
            flown: 0,
            table_limit: usize::MAX,
            claims_max: 1 << 20,
            multicast,
        };
        for host in 1..=hosts {
            let machine = Machine {
                stream: Stream {
                    incarnation: 1_000,
                    generation: 0,
                },
                incarnations: BTreeSet::from([1_000]),
                sessions: BTreeMap::new(),
                table: Some(pop.new_table()),
                agent: None,
            };
            pop.machines.insert(host, machine);
        }
        pop
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
        let random: [u8; 32] = std::array::from_fn(|_| self.rng.random());
        let hosts = self.machines.len() as u16;
        let machine = self.machines.get_mut(&host).unwrap();
        if machine.agent.is_some() {
            return;
        }
        machine.stream.generation += 1;
        let config = Config {
            me: Member {
                host: HostId(host),
                stream: machine.stream,
                renewal: 0,
                address: address(host),
                domain: Domain::try_from(["even", "odd"][usize::from(domain(host))]).unwrap(),
                fingerprint: Fingerprint(7),
                leaving: None,
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
            claims_max: self.claims_max,
            random,
        };
        let table = machine.table.take().unwrap();
        let node = Node::new(
            self.now,
            WALL + self.now,
            config,
            machine.sessions.iter().map(|(&id, &g)| (id, g)),
            table.routes.clone().into_iter(),
        );
        machine.agent = Some((node, Applier::new(table)));
        self.settle(host);
    }

    /// The agent vanishes; the kernel keeps its table.
    fn kill(&mut self, host: u16) {
        let machine = self.machines.get_mut(&host).unwrap();
        if let Some((_, applier)) = machine.agent.take() {
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
        let incarnation = machine.stream.incarnation.saturating_add_signed(step);
        machine.stream.incarnation = unused(&mut machine.incarnations, incarnation.max(1));
        machine.stream.generation = 0;
        self.start(host);
    }

    fn open(&mut self, host: u16, id: u64, generation: u16) {
        let (now, id) = (self.now, SessionId(id));
        let machine = self.machines.get_mut(&host).unwrap();
        machine.sessions.insert(id, generation);
        if let Some((node, _)) = &mut machine.agent {
            node.open(now, id, generation, WALL + now);
        }
        self.settle(host);
    }

    fn close(&mut self, host: u16, id: u64) {
        let (now, id) = (self.now, SessionId(id));
        let machine = self.machines.get_mut(&host).unwrap();
        if machine.sessions.remove(&id).is_some()
            && let Some((node, _)) = &mut machine.agent
        {
            node.close(now, id, WALL + now);
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
            let flight = self.flights.peek().map(|f| f.0.0);
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
                let Some(Reverse((_, _, to, from, bytes))) = self.flights.pop() else {
                    continue;
                };
                if let Some((node, _)) = &mut self.machines.get_mut(&to).unwrap().agent {
                    node.receive(self.now, from, &bytes);
                    self.settle(to);
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

    /// Sends what a node wants to send and puts its routes in force.
    fn settle(&mut self, host: u16) {
        let now = self.now;
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
        node.routes_applied(WALL + now);
        for id in machine.sessions.keys() {
            let routed = applier.table().routes.get(id);
            assert_eq!(routed, None, "{id:?} is live on {host} and routed away");
        }
        let mut transmits = Vec::new();
        while let Some(transmit) = node.poll_transmit() {
            assert!(transmit.bytes.len() <= crate::pop::DATAGRAM_LEN_MAX);
            transmits.push(transmit);
        }
        if node.has_left() {
            self.kill(host);
        }
        for transmit in transmits {
            let is_deaf = self.faults.deaf_domain == Some(domain(host));
            let to: Vec<u16> = self
                .machines
                .keys()
                .copied()
                .filter(|&other| match transmit.to {
                    Destination::Address(to) => to == address(other),
                    Destination::Multicast => {
                        other != host && domain(other) == domain(host) && !is_deaf
                    }
                })
                .collect();
            for to in to {
                self.send(host, to, &transmit.bytes);
            }
        }
    }

    fn send(&mut self, from: u16, to: u16, bytes: &[u8]) {
        let faults = self.faults;
        let mut copies = 1;
        if self.rng.random_range(0..100) < faults.repeat_percent {
            copies += 1;
        }
        for _ in 0..copies {
            if self.rng.random_range(0..100) < faults.loss_percent {
                continue;
            }
            self.flown += 1;
            let at = self.now + self.rng.random_range(20..=faults.delay_max.max(20));
            let flight = (at, self.flown, to, address(from), bytes.to_vec());
            self.flights.push(Reverse(flight));
        }
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
    fn seen(&self, at: u16, of: u16) -> Option<super::node::HostView> {
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

#[derive(Clone, Debug)]
enum Op {
    Open(u16, u64),
    Close(u16, u64),
    Move(u16, u16, u64),
    Burst(u16, u64),
    Run(u64),
    Restart(u16),
    Kill(u16),
    Start(u16),
    Reboot(u16, i64),
    Leave(u16, u64),
    Faults(Faults),
}

const HOSTS: u16 = 5;

fn faults() -> impl Strategy<Value = Faults> {
    let deaf = prop::option::weighted(0.2, 0..2u16);
    (0u32..40, 0u32..30, 0..30 * MS, deaf).prop_map(|(loss, repeat, delay_max, deaf_domain)| {
        Faults {
            loss_percent: loss,
            repeat_percent: repeat,
            delay_max,
            deaf_domain,
        }
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let host = || 1..=HOSTS;
    // Few ids, so that tuples are reused and hosts claim the same session.
    let id = || 0u64..12;
    prop_oneof![
        12 => (host(), id()).prop_map(|(h, i)| Op::Open(h, i)),
        8 => (host(), id()).prop_map(|(h, i)| Op::Close(h, i)),
        4 => (host(), host(), id()).prop_map(|(a, b, i)| Op::Move(a, b, i)),
        2 => (host(), 1u64..400).prop_map(|(h, n)| Op::Burst(h, n)),
        8 => (0..200 * MS).prop_map(Op::Run),
        4 => (0..4 * SECOND).prop_map(Op::Run),
        2 => host().prop_map(Op::Restart),
        1 => host().prop_map(Op::Kill),
        2 => host().prop_map(Op::Start),
        1 => (host(), -500i64..500).prop_map(|(h, s)| Op::Reboot(h, s)),
        1 => (host(), 0..2 * SECOND).prop_map(|(h, t)| Op::Leave(h, t)),
        2 => faults().prop_map(Op::Faults),
    ]
}

fn perform(pop: &mut Pop, op: &Op) {
    match *op {
        Op::Open(host, id) => pop.open(host, id, 0),
        Op::Close(host, id) => pop.close(host, id),
        Op::Move(from, to, id) => {
            if let Some(&generation) = pop.machines[&from].sessions.get(&SessionId(id))
                && from != to
            {
                pop.open(to, id, generation + 1);
                pop.close(from, id);
            }
        }
        Op::Burst(host, n) => {
            for id in 0..n {
                pop.open(host, 1_000 + id, 0);
            }
            for id in (0..n).step_by(3) {
                pop.close(host, 1_000 + id);
            }
        }
        Op::Run(time) => pop.run(time),
        Op::Restart(host) => {
            pop.kill(host);
            pop.start(host);
        }
        Op::Kill(host) => pop.kill(host),
        Op::Start(host) => pop.start(host),
        Op::Reboot(host, step) => pop.reboot(host, step),
        Op::Leave(host, hold_us) => pop.leave(host, Duration::from_micros(hold_us)),
        Op::Faults(faults) => pop.faults = faults,
    }
}

/// How many random histories are tried; more with `HOMING_CASES`.
fn cases() -> ProptestConfig {
    let cases = std::env::var("HOMING_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(48),
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn all_hosts_converge_to_one_owner_per_session(
        seed: u64,
        multicast: bool,
        first in faults(),
        ops in prop::collection::vec(ops(), 1..60),
    ) {
        let mut pop = Pop::new(seed, HOSTS, multicast);
        pop.start_all();
        pop.run(SECOND);
        pop.faults = first;
        for op in &ops {
            perform(&mut pop, op);
        }
        pop.faults = PERFECT;
        let flown = pop.flown;
        pop.run(QUIET);
        pop.assert_converged();
        let flown = pop.flown - flown;
        prop_assert!(flown < 10_000, "quiet, but {flown} datagrams flew");
    }
}

/// A POP in which nothing goes wrong, with its windows open.
fn settled(hosts: u16) -> Pop {
    let mut pop = Pop::new(1, hosts, true);
    pop.start_all();
    // Not on a full second, when heartbeats fly.
    pop.run(4 * SECOND + 321 * MS);
    pop
}

#[test]
fn announcement_arrives_at_once_and_costs_two_kinds_of_datagrams() {
    let mut pop = settled(4);
    let before = pop.flown;
    pop.open(1, 77, 0);
    pop.run(150);
    for host in 2..=4 {
        assert_eq!(pop.routes(host).get(&SessionId(77)), Some(&HostId(1)));
    }
    // One copy to the neighbour by multicast, one each to the two elsewhere.
    assert_eq!(pop.flown - before, 3);
    let (node, _) = pop.machines[&2].agent.as_ref().unwrap();
    assert_eq!(node.gossip().latency().samples(), 1);
    assert!(node.gossip().latency().max_us() <= 100);
}

#[test]
fn announcements_close_together_share_a_datagram() {
    let mut pop = settled(2);
    for id in 0..100 {
        pop.open(1, id, 0);
        pop.run(2);
    }
    let before = pop.counters(1).batches_sent;
    pop.run(MS);
    pop.assert_converged();
    assert!(before <= 2 && pop.counters(1).batches_sent <= 3, "{before}");
}

#[test]
fn lost_announcements_are_repaired_within_a_blink() {
    let mut pop = settled(4);
    // Lost in the middle: the next batch shows the gap.
    pop.faults.loss_percent = 100;
    pop.open(1, 1, 0);
    pop.run(MS);
    pop.faults.loss_percent = 0;
    pop.open(1, 2, 0);
    pop.run(10 * MS);
    pop.assert_converged();
    // Lost at the end: the heartbeat after the batch does.
    pop.faults.loss_percent = 100;
    pop.open(1, 3, 0);
    pop.run(MS);
    pop.faults.loss_percent = 0;
    pop.run(40 * MS);
    pop.assert_converged();
    assert_eq!(pop.counters(2).repairs_asked, 2);
    assert_eq!(pop.counters(2).syncs_done, 3, "only the first ones");
}

#[test]
fn gap_beyond_the_log_ends_in_a_full_sync() {
    let mut pop = settled(2);
    pop.faults.loss_percent = 100;
    for n in 0..super::log::LOG_RECORDS {
        pop.open(1, n % 1_000, 0);
        if n % 500 == 0 {
            pop.run(MS);
        }
    }
    pop.close(1, 5);
    pop.faults.loss_percent = 0;
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).syncs_done, 2);
}

#[test]
fn difference_that_no_gap_shows_is_found_by_the_digest() {
    let mut pop = settled(2);
    pop.open(1, 5, 0);
    pop.run(3 * SECOND);
    let (node, _) = pop.machines.get_mut(&2).unwrap().agent.as_mut().unwrap();
    node.corrupt_for_test(HostId(1), SessionId(5));
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).digest_mismatches, 1);
}

#[test]
fn joining_host_learns_everything_and_a_large_set_in_chunks() {
    let mut pop = settled(3);
    pop.kill(3);
    for id in 0..20_000 {
        pop.open(1, id, (id % 3) as u16);
        if id % 2_000 == 0 {
            pop.run(5 * MS);
        }
    }
    pop.faults.loss_percent = 5;
    pop.start(3);
    pop.run(5 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.routes(3).len(), 20_000);
}

#[test]
fn agent_that_restarts_keeps_all_routes_meanwhile_here_and_elsewhere() {
    let mut pop = settled(3);
    for id in 0..50 {
        pop.open(1, id, 0);
        pop.open(2, 100 + id, 0);
    }
    pop.run(SECOND);
    let hold = Duration::from_secs(2);
    pop.leave(1, hold);
    for step in 0..40 {
        pop.run(100 * MS);
        if step == 10 {
            assert!(pop.machines[&1].agent.is_none());
            pop.close(1, 7);
            pop.start(1);
        }
        let expected = if step <= 10 { 100 } else { 99 };
        let found = pop.routes(3).len();
        assert!(found == 100 || found == expected, "step {step}: {found}");
        assert_eq!(pop.routes(1).len(), 50);
    }
    pop.run(SECOND);
    pop.assert_converged();
}

#[test]
fn claims_of_a_leaver_are_void_once_its_hold_is_over() {
    for (hold, kept) in [(Duration::ZERO, false), (Duration::from_secs(2), true)] {
        let mut pop = settled(4);
        pop.open(1, 5, 0);
        pop.run(SECOND);
        pop.leave(1, hold);
        pop.run(SECOND);
        for host in 2..=4 {
            assert_eq!(pop.routes(host).contains_key(&SessionId(5)), kept);
        }
        pop.run(2 * SECOND);
        pop.assert_converged();
    }
}

#[test]
fn claims_of_a_vanished_agent_stand_until_void_after() {
    let mut pop = settled(4);
    pop.open(1, 5, 0);
    pop.run(SECOND);
    pop.kill(1);
    // Down after some two seconds, void three later.
    pop.run(4 * SECOND);
    assert!(pop.routes(2).contains_key(&SessionId(5)));
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).voided_claims, 1);
}

#[test]
fn new_incarnation_voids_at_once_and_an_old_one_is_raised() {
    for step in [10, -10] {
        let mut pop = settled(4);
        for id in 0..10 {
            pop.open(1, id, 0);
        }
        pop.run(SECOND);
        pop.reboot(1, step);
        pop.open(1, 3, 0);
        pop.run(SECOND);
        pop.assert_converged();
        assert!(pop.machines[&1].stream.incarnation > 1_000);
    }
}

#[test]
fn life_that_only_hearsay_knows_to_be_outdated_is_raised_without_a_storm() {
    let mut pop = settled(5);
    pop.kill(1);
    // Agents that restart one by one never hear host 1 themselves: they learn of
    // it from each other, and then that it is down.
    for host in 2..=5 {
        pop.kill(host);
        pop.start(host);
        pop.run(200 * MS);
    }
    pop.run(4 * SECOND);
    pop.reboot(1, -10);
    let flown = pop.flown;
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.machines[&1].stream.incarnation, 1_001);
    assert!(pop.flown - flown < 1_000);
}

#[test]
fn domain_without_working_multicast_falls_back_to_unicast() {
    let mut pop = Pop::new(3, 4, true);
    pop.faults.deaf_domain = Some(1);
    pop.start_all();
    pop.run(4 * SECOND);
    pop.open(1, 9, 0);
    pop.run(MS);
    pop.assert_converged();
    assert!(pop.counters(1).multicast_unheard > 0);
}

#[test]
fn table_that_was_full_heals_when_room_appears() {
    let mut pop = Pop::new(2, 3, true);
    pop.table_limit = 20;
    for host in 1..=3 {
        let table = pop.new_table();
        pop.machines.get_mut(&host).unwrap().table = Some(table);
    }
    pop.start_all();
    pop.run(2 * SECOND);
    for id in 0..40 {
        pop.open(1, id, 0);
    }
    pop.run(SECOND);
    assert_eq!(pop.routes(2).len(), 20);
    for id in 0..20 {
        pop.close(1, id);
    }
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.routes(2).len(), 20);
}

#[test]
fn claims_that_did_not_fit_are_fetched_when_there_is_room() {
    let mut pop = Pop::new(2, 2, true);
    pop.claims_max = 20;
    pop.start_all();
    pop.run(2 * SECOND);
    for id in 0..40 {
        pop.open(1, id, 0);
    }
    pop.run(5 * SECOND);
    assert_eq!(pop.routes(2).len(), 20);
    let syncs = pop.counters(2).syncs_done;
    for id in 0..25 {
        pop.close(1, id);
    }
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert!(pop.counters(2).syncs_done - syncs <= 2, "no storm of syncs");
}

#[test]
fn forty_hosts_join_and_agree() {
    let mut pop = Pop::new(4, 40, true);
    for host in 1..=40 {
        for n in 0..20 {
            pop.open(host, u64::from(host) * 100 + n, 0);
        }
    }
    pop.start_all();
    pop.run(6 * SECOND);
    pop.assert_converged();
}
