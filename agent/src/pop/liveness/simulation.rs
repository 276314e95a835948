//! Many hosts in one thread, deterministic by seed: kernels that answer echoes,
//! agents that may be down, a network that loses, delays and is cut in one or both
//! directions, and a membership that learns of agents some seconds late.

mod cases;
mod standing;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    time::Duration,
};

use homing_common::{host::HostId, session::SessionKey};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{Event, Kernel, Liveness, Minded, Settings, echoes::answer_for_test};
use crate::pop::{Domain, Fingerprint, MS, Member, SECOND, Stream};

const NOBODY: [u16; 0] = [];
const KEY: SessionKey = SessionKey([3, 4]);
const DEAD_AFTER: u64 = 3 * SECOND;
/// What membership needs to learn that an agent is down, and up again.
const DOWN_AFTER: u64 = 2_200 * MS;
const UP_AFTER: u64 = SECOND;
const LOOK: u64 = 50 * MS;

struct Machine {
    incarnation: u64,
    kernel: bool,
    /// Its agent, and whether that runs.
    agent: Liveness,
    running: bool,
    /// When a session was frozen there that nothing has come of yet.
    frozen_at: Option<u64>,
    /// What its membership says of others, and since when the truth differs.
    up: BTreeMap<u16, bool>,
    differs: BTreeMap<u16, u64>,
    events: Vec<(u64, Event)>,
}

enum Load {
    Echo(Vec<u8>),
    Sealed(Vec<u8>),
}

type Flight = (u64, u64);

struct Pop {
    now: u64,
    rng: Xoshiro256PlusPlus,
    machines: BTreeMap<u16, Machine>,
    domains: u16,
    loss_percent: u32,
    /// What one host cannot send to another.
    cut: BTreeSet<(u16, u16)>,
    flights: BinaryHeap<Reverse<Flight>>,
    loads: BTreeMap<u64, (u16, u16, Load)>,
    flown: u64,
    look_at: u64,
}

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (host >> 8) as u8, host as u8], 7946))
}

impl Pop {
    fn new(seed: u64, hosts: u16, domains: u16) -> Self {
        let mut pop = Self {
            now: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            machines: BTreeMap::new(),
            domains,
            loss_percent: 0,
            cut: BTreeSet::new(),
            flights: BinaryHeap::new(),
            loads: BTreeMap::new(),
            flown: 0,
            look_at: 0,
        };
        for host in 1..=hosts {
            let machine = pop.machine(host, 100);
            pop.machines.insert(host, machine);
        }
        for host in 1..=hosts {
            pop.join(host);
        }
        pop
    }

    fn machine(&mut self, host: u16, incarnation: u64) -> Machine {
        let settings = Settings {
            host: HostId(host),
            address: address(host),
            domain: self.domain(host),
            keys: [KEY, SessionKey([0, 0])],
            dead_after: Duration::from_micros(DEAD_AFTER),
        };
        let random = std::array::from_fn(|_| self.rng.random());
        Machine {
            incarnation,
            kernel: true,
            agent: Liveness::new(self.now, incarnation, settings, random),
            running: true,
            frozen_at: None,
            up: BTreeMap::new(),
            differs: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn domain(&self, host: u16) -> Domain {
        Domain::try_from(format!("rack-{}", host % self.domains).as_str()).unwrap()
    }

    fn member(&self, host: u16) -> Member {
        Member {
            host: HostId(host),
            stream: Stream {
                incarnation: self.machines[&host].incarnation,
                generation: 1,
            },
            renewal: 0,
            address: address(host),
            domain: self.domain(host),
            fingerprint: Fingerprint::default(),
            leaving: None,
            draining: false,
            offers: 0,
        }
    }

    /// A host learns of all others.
    fn join(&mut self, host: u16) {
        let others: Vec<_> = self
            .machines
            .keys()
            .copied()
            .filter(|other| *other != host)
            .collect();
        for other in others {
            self.tell(host, other, true);
        }
    }

    fn tell(&mut self, host: u16, of: u16, up: bool) {
        let (now, member) = (self.now, self.member(of));
        let machine = self.machines.get_mut(&host).unwrap();
        machine.up.insert(of, up);
        machine.differs.remove(&of);
        if up {
            machine.agent.peer_up(now, &member);
        } else {
            machine.agent.peer_down(now, &member);
        }
        self.settle(host);
    }

    /// The machine stops: kernel and agent.
    fn stop(&mut self, host: u16) {
        let machine = self.machines.get_mut(&host).unwrap();
        machine.kernel = false;
        machine.running = false;
    }

    fn kill_agent(&mut self, host: u16) {
        self.machines.get_mut(&host).unwrap().running = false;
    }

    /// Cuts everything between a set of hosts and all others.
    fn part(&mut self, some: &[u16]) {
        for &one in some {
            for other in self.machines.keys().filter(|other| !some.contains(other)) {
                self.cut.insert((one, *other));
                self.cut.insert((*other, one));
            }
        }
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            let timers = self.machines.iter().filter(|(_, machine)| machine.running);
            let timers = timers.map(|(&host, machine)| (machine.agent.next_time(), host));
            let (timer, host) = timers.min().unwrap_or((u64::MAX, 0));
            let flight = self.flights.peek().map_or(u64::MAX, |flight| flight.0.0);
            let next = timer.min(flight).min(self.look_at);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if self.look_at <= self.now {
                self.look_at += LOOK;
                self.look();
            } else if flight <= timer {
                self.land();
            } else {
                let now = self.now;
                self.machines.get_mut(&host).unwrap().agent.on_time(now);
                self.settle(host);
            }
        }
        self.now = end;
    }

    /// Membership: what each agent sees of each other, late.
    fn look(&mut self) {
        let hosts: Vec<_> = self.machines.keys().copied().collect();
        let mut news = Vec::new();
        for &host in &hosts {
            for &of in hosts.iter().filter(|of| **of != host) {
                let reaches = |a: u16, b: u16| !self.cut.contains(&(a, b));
                let up = self.machines[&of].running && reaches(host, of) && reaches(of, host);
                let (now, machine) = (self.now, self.machines.get_mut(&host).unwrap());
                if !machine.running || machine.up.get(&of) == Some(&up) {
                    machine.differs.remove(&of);
                    continue;
                }
                let since = *machine.differs.entry(of).or_insert(now);
                if now >= since + if up { UP_AFTER } else { DOWN_AFTER } {
                    news.push((host, of, up));
                }
            }
        }
        for (host, of, up) in news {
            self.tell(host, of, up);
        }
    }

    fn land(&mut self) {
        let Some(Reverse((_, number))) = self.flights.pop() else {
            return;
        };
        let (from, to, load) = self.loads.remove(&number).unwrap();
        let (now, machine) = (self.now, self.machines.get_mut(&to).unwrap());
        match load {
            Load::Echo(bytes) => {
                let me = HostId(to);
                let answer = machine
                    .kernel
                    .then(|| answer_for_test(me, machine.incarnation, &KEY, address(from), &bytes))
                    .flatten();
                if let Some(answer) = answer {
                    self.fly(to, from, Load::Echo(answer));
                } else if machine.running && machine.kernel {
                    machine.agent.echo(now, address(from), &bytes);
                }
            }
            Load::Sealed(bytes) if machine.running => {
                let incarnation = self.machines[&from].incarnation;
                let machine = self.machines.get_mut(&to).unwrap();
                machine.agent.agent_heard(now, HostId(from), incarnation);
                machine.agent.receive(now, HostId(from), &bytes);
            }
            Load::Sealed(_) => {}
        }
        self.settle(to);
    }

    fn fly(&mut self, from: u16, to: u16, load: Load) {
        let is_lost = self.rng.random_range(0..100) < self.loss_percent;
        if is_lost || self.cut.contains(&(from, to)) {
            return;
        }
        self.flown += 1;
        let at = self.now + self.rng.random_range(50..2_000);
        self.loads.insert(self.flown, (from, to, load));
        self.flights.push(Reverse((at, self.flown)));
    }

    fn settle(&mut self, host: u16) {
        let now = self.now;
        let machine = self.machines.get_mut(&host).unwrap();
        let mut out = Vec::new();
        while let Some(question) = machine.agent.poll_question() {
            let SocketAddr::V4(to) = question.to else {
                panic!("not an address of the simulation")
            };
            let [.., high, low] = to.ip().octets();
            out.push((
                u16::from_be_bytes([high, low]),
                Load::Echo(question.bytes.to_vec()),
            ));
        }
        while let Some(message) = machine.agent.poll_outgoing() {
            assert!(message.body.len() <= crate::pop::BODY_LEN_MAX);
            out.push((message.to.0, Load::Sealed(message.body.to_vec())));
        }
        while let Some(event) = machine.agent.poll_event() {
            machine.events.push((now, event));
        }
        if machine.running {
            for (to, load) in out {
                self.fly(host, to, load);
            }
        }
    }

    /// Which kernels a host holds dead.
    fn dead(&self, at: u16) -> Vec<u16> {
        let agent = &self.machines[&at].agent;
        let is_dead = |of: &u16| matches!(agent.kernel(HostId(*of)), Some(Kernel::Dead { .. }));
        self.machines.keys().copied().filter(is_dead).collect()
    }

    fn running(&self) -> Vec<u16> {
        let running = self.machines.iter().filter(|(_, machine)| machine.running);
        running.map(|(&host, _)| host).collect()
    }

    /// All judgements ever carried out, by anyone: when, where, on whom.
    fn judged(&self) -> Vec<(u64, u16, u16)> {
        let all = self.machines.iter().flat_map(|(&at, machine)| {
            machine
                .events
                .iter()
                .filter_map(move |(when, event)| match event {
                    Event::Dead { host, .. } => Some((*when, at, host.0)),
                    _ => None,
                })
        });
        all.collect()
    }

    fn counters(&self, host: u16) -> super::Counters {
        self.machines[&host].agent.counters
    }
}

/// Long enough for every host to have heard every other's kernel.
fn warmed_up(seed: u64, hosts: u16, domains: u16) -> Pop {
    let mut pop = Pop::new(seed, hosts, domains);
    pop.run((u64::from(hosts) + 4) * DEAD_AFTER / 12);
    pop
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever share of a POP ends at once, as long as it is no more than half:
    /// all others void it in time, and nobody else.
    #[test]
    fn kernels_that_end_are_dead_everywhere_in_time(
        seed: u64, hosts in 2u16..30, domains in 1u16..4, share in 0.0f64..0.5, loss in 0u32..2
    ) {
        let mut pop = warmed_up(seed, hosts, domains);
        pop.loss_percent = loss;
        let mut ended: Vec<_> = (1..=hosts).filter(|_| pop.rng.random_bool(share)).collect();
        ended.truncate(usize::from(hosts / 2));
        for &host in &ended {
            pop.stop(host);
        }
        pop.run(DEAD_AFTER);
        for at in pop.running() {
            prop_assert_eq!(pop.dead(at), ended.clone(), "at {}: {:?}", at, pop.counters(at));
        }
    }

    /// Agents that are down are no reason to void anything, be it for minutes.
    #[test]
    fn agents_that_are_down_void_nothing(
        seed: u64, hosts in 2u16..20, domains in 1u16..4, share in 0.0f64..1.0
    ) {
        let mut pop = warmed_up(seed, hosts, domains);
        let down: Vec<_> = (1..=hosts).filter(|_| pop.rng.random_bool(share)).collect();
        for &host in &down {
            pop.kill_agent(host);
        }
        pop.run(120 * SECOND);
        prop_assert_eq!(pop.judged(), vec![]);
    }

    /// A part that is under half of the POP voids nothing; the rest voids it; and
    /// once they meet again, all is back.
    #[test]
    fn a_minority_voids_nothing_and_all_is_back_after_the_cut(
        seed: u64, hosts in 3u16..24, domains in 1u16..4, share in 0.05f64..0.5, loss in 0u32..2
    ) {
        let mut pop = warmed_up(seed, hosts, domains);
        let few = ((f64::from(hosts) * share) as u16).clamp(1, (hosts - 1) / 2);
        let first = pop.rng.random_range(1..=hosts - few + 1);
        let some: Vec<_> = (first..first + few).collect();
        pop.loss_percent = loss;
        pop.part(&some);
        pop.run(20 * SECOND);
        for (_, at, of) in pop.judged() {
            prop_assert!(!some.contains(&at), "{} voided {}", at, of);
            prop_assert!(some.contains(&of), "{} was voided at {}", of, at);
        }
        for at in pop.running().into_iter().filter(|at| !some.contains(at)) {
            prop_assert_eq!(pop.dead(at), some.clone(), "at {}", at);
        }
        prop_assert!(some.iter().all(|at| pop.machines[at].agent.minority(pop.now).is_some()));
        pop.cut.clear();
        pop.run(2 * SECOND);
        for at in pop.running() {
            prop_assert_eq!(pop.dead(at), NOBODY, "at {}: {:?}", at, pop.machines[&at].events);
        }
    }

    /// A kernel that some do not hear, in one direction or both, stays as long as
    /// somebody whom the others reach hears it.
    #[test]
    fn who_is_heard_by_anyone_is_not_dead_for_long(
        seed: u64, hosts in 4u16..16, domains in 1u16..4, both: bool
    ) {
        let mut pop = warmed_up(seed, hosts, domains);
        let hearer = 2;
        for other in 2..=hosts {
            if other != hearer {
                pop.cut.insert((1, other));
                if both {
                    pop.cut.insert((other, 1));
                }
            }
        }
        pop.run(10 * SECOND);
        let judged = pop.judged().len();
        pop.run(50 * SECOND);
        prop_assert_eq!(pop.judged().len(), judged, "{:?}", pop.judged());
        for at in pop.running() {
            prop_assert_eq!(pop.dead(at), NOBODY, "at {}", at);
        }
    }

    /// Heavy loss delays, and at worst voids for a moment what is heard again at
    /// once; it never leaves the living dead.
    #[test]
    fn loss_alone_leaves_nobody_dead(seed: u64, hosts in 2u16..16, domains in 1u16..4) {
        let mut pop = warmed_up(seed, hosts, domains);
        pop.loss_percent = 30;
        pop.run(60 * SECOND);
        let judged: BTreeSet<_> = pop.judged().iter().map(|(_, _, of)| *of).collect();
        // Of two hosts each is alone in judging the other.
        prop_assert!(hosts == 2 || judged.len() <= 1, "{:?}", pop.judged());
        pop.loss_percent = 0;
        pop.run(2 * SECOND);
        for at in pop.running() {
            prop_assert_eq!(pop.dead(at), NOBODY, "at {}", at);
        }
        // And the dead are found all the same.
        pop.loss_percent = 30;
        pop.stop(1);
        pop.run(3 * DEAD_AFTER);
        for at in pop.running() {
            prop_assert!(pop.dead(at).contains(&1), "at {}: {:?}", at, pop.counters(at));
        }
    }
}
