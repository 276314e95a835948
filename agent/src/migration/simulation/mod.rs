//! A POP whose kernels, applications and network are in memory and whose agents are
//! the real machines: deterministic by seed. Agents, applications and kernels die and
//! come back, links are cut, messages are lost, repeated, late and overtake each other.
//!
//! After every event it is checked that at most one host answers for each session, and
//! that who answers has not slept through a part of it: each moment in which a session
//! is served moves it on, and a copy from before that is stale.
//!
//! This file is the POP; `host` one host of it; `watch` whom it hears, and what must hold; `sweeps` kills and cuts at every single
//! event of a move; `random` tries random histories; `cases` chosen ones,
//! `disputes` those in which both hosts could think that the session is theirs.

mod cases;
mod disputes;
mod host;
mod random;
mod sweeps;
mod watch;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use homing_common::{
    host::HostId,
    net::{Address, Port, TCP},
    session::Tuple,
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use self::host::{Host, View};
use super::{
    Answer, Command, Counters, Ended, Limits, MoveId, Moves, Order, Outcome, Output, Reason,
    local::Application,
};
use crate::pop::{MS, SECOND};

/// How long a kernel is silent before it is found dead.
const DEAD_AFTER: u64 = 3 * SECOND;
/// How often the POP looks whom it hears.
const LOOK: u64 = 250 * MS;
/// Longer than any bound of any step.
const QUIET: u64 = 70 * SECOND;

/// What may go wrong with messages.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss_percent: u32,
    repeat_percent: u32,
    delay_max: u64,
}

const PERFECT: Faults = Faults {
    loss_percent: 0,
    repeat_percent: 0,
    delay_max: 0,
};

/// Something that happens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// A message arrives.
    Message { from: u16, to: u16, bytes: Vec<u8> },
    /// An order of an agent's life is carried out.
    Order { host: u16, life: u64, at: usize },
    /// Its answer arrives.
    Answer { host: u16, life: u64, at: usize },
    /// The POP looks whom it hears.
    Look,
}

/// What the POP makes of a kernel.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// When more than half of the POP last heard it.
    last: u64,
    /// It is held for dead.
    void: bool,
    /// It was, in this life of the kernel, and its present agent has not heard that.
    untold: bool,
    /// It was, in this life of the kernel.
    ever: bool,
    /// Since when it has reached half of the POP itself.
    reached: Option<u64>,
}

struct Pop {
    now: u64,
    rng: Xoshiro256PlusPlus,
    limits: Limits,
    faults: Faults,
    hosts: BTreeMap<u16, Host>,
    heard: BTreeMap<u16, Heard>,
    cut: BTreeSet<(u16, u16)>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    orders: Vec<(MoveId, Tuple, u64, Order, Answer)>,
    /// How far each session has come.
    progress: BTreeMap<Tuple, u64>,
    /// Sessions that ended because their application or kernel died.
    over: BTreeSet<Tuple>,
    ended: Vec<(u16, Ended)>,
    /// Events that were worked on.
    worked: usize,
    /// Messages that were sent.
    sent: usize,
    /// Timers that were due.
    wakes: usize,
}

fn tuple(n: u16) -> Tuple {
    let client = Address::v4([192, 0, 2, 1]);
    let service = Address::v4([198, 51, 100, 1]);
    Tuple::new(client, Port::new(1_000 + n), service, Port::new(80), TCP)
}

fn application() -> Application {
    Application {
        name: "echo".to_owned(),
        version: 1,
    }
}

impl Pop {
    fn new(seed: u64, hosts: u16) -> Self {
        let mut pop = Self {
            now: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            limits: Limits::default(),
            faults: PERFECT,
            hosts: BTreeMap::new(),
            heard: (1..=hosts).map(|h| (h, Heard::default())).collect(),
            cut: BTreeSet::new(),
            events: BinaryHeap::new(),
            count: 0,
            orders: Vec::new(),
            progress: BTreeMap::new(),
            over: BTreeSet::new(),
            ended: Vec::new(),
            worked: 0,
            sent: 0,
            wakes: 0,
        };
        pop.hosts = (1..=hosts).map(|h| (h, Host::new(u64::from(h)))).collect();
        pop.push(0, Event::Look);
        for host in 1..=hosts {
            pop.start_agent(host);
        }
        pop.run(SECOND);
        pop
    }

    /// An agent starts anew, with other limits.
    fn limits_of(&mut self, host: u16, change: impl FnOnce(&mut Limits)) {
        let before = self.limits;
        change(&mut self.limits);
        self.kill_agent(host);
        self.start_agent(host);
        self.limits = before;
    }

    fn host(&mut self, host: u16) -> &mut Host {
        self.hosts.get_mut(&host).unwrap()
    }

    fn open(&mut self, host: u16, n: u16) {
        self.progress.insert(tuple(n), 0);
        self.host(host).open(tuple(n), 0);
        self.check();
    }

    fn command(&mut self, from: u16, to: u16, n: u16) {
        let command = Command {
            tuple: tuple(n),
            target: HostId(to),
            deadline: u64::MAX,
            application: application(),
            bytes: 100,
        };
        self.with_agent(from, |agent, now, view| agent.command(now, view, command));
    }

    // What goes wrong.

    fn kill_agent(&mut self, host: u16) {
        let over = self.host(host).kill_agent();
        self.over.extend(over);
    }

    fn start_agent(&mut self, host: u16) {
        let random = self.rng.random();
        let limits = self.limits;
        let now = self.now;
        let machine = self.host(host);
        if machine.agent.is_some() || !machine.kernel_up {
            return;
        }
        machine.life += 1;
        machine.reconcile();
        // It has reached nobody yet.
        let heard = self.heard.get_mut(&host).unwrap();
        heard.reached = None;
        heard.untold = heard.ever;
        let view = self.view(host);
        let machine = self.host(host);
        let journal: Vec<_> = machine.journal.values().copied().collect();
        let id = HostId(host);
        let agent = Moves::new(
            now,
            id,
            machine.incarnation,
            random,
            limits,
            &journal,
            &view,
        );
        machine.agent = Some(agent);
        self.drain(host);
    }

    fn kill_application(&mut self, host: u16) {
        let over = self.host(host).kill_application();
        self.over.extend(over);
    }

    fn kill_kernel(&mut self, host: u16) {
        let over = self.host(host).kill_kernel();
        self.over.extend(over);
    }

    /// All that died comes back, and all links are whole.
    fn heal(&mut self) {
        self.cut.clear();
        let hosts: Vec<_> = self.hosts.keys().copied().collect();
        for &host in &hosts {
            if !self.hosts[&host].kernel_up {
                self.host(host).boot();
                let last = self.now;
                self.heard.insert(
                    host,
                    Heard {
                        last,
                        ..Heard::default()
                    },
                );
                // A new life is known to be one.
                for &other in &hosts {
                    self.voided(other, host);
                }
            }
            self.host(host).application_up = true;
            self.start_agent(host);
        }
    }

    fn cut(&mut self, a: u16, b: u16) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    fn isolate(&mut self, host: u16) {
        let others: Vec<_> = self.hosts.keys().copied().collect();
        for other in others.into_iter().filter(|&other| other != host) {
            self.cut(host, other);
        }
    }

    // How time passes.

    fn push(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((at, self.count, event)));
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Works on so many events, the POP's looks not counted, or until nothing happens
    /// for long.
    fn run_events(&mut self, events: usize) {
        let (end, until) = (self.now + 10 * SECOND, self.worked + events);
        while self.worked < until && self.step(end) {}
    }

    /// Works on events until something is so.
    fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let end = self.now + 10 * SECOND;
        while !is_so(self) {
            assert!(self.step(end), "it never was");
        }
    }

    /// Works on the next event, if it comes before a time.
    fn step(&mut self, end: u64) -> bool {
        let timer = self.hosts.iter().filter_map(|(&host, machine)| {
            let at = machine.agent.as_ref()?.next_time();
            Some((at.max(self.now), host))
        });
        let timer = timer.min().filter(|(at, _)| *at <= end);
        let event = self.events.peek().map(|Reverse((at, ..))| *at);
        let event = event.filter(|at| *at <= end);
        match (timer, event) {
            (None, None) => return false,
            (Some((at, host)), event) if event.is_none_or(|event| at < event) => {
                self.now = at;
                self.wakes += 1;
                self.with_agent(host, |agent, now, view| agent.on_time(now, view));
            }
            _ => {
                let Some(Reverse((at, _, event))) = self.events.pop() else {
                    return false;
                };
                self.now = self.now.max(at);
                self.worked += usize::from(event != Event::Look);
                self.work(event);
            }
        }
        self.check();
        true
    }

    fn work(&mut self, event: Event) {
        match event {
            Event::Message { from, to, bytes } => {
                if !self.cut.contains(&(from.min(to), from.max(to))) {
                    let from = HostId(from);
                    self.with_agent(to, |agent, now, view| {
                        agent.message(now, view, from, &bytes);
                    });
                }
            }
            Event::Order { host, life, at } => {
                if self.hosts[&host].life == life && self.hosts[&host].agent.is_some() {
                    let (id, tuple, _, order, _) = self.orders[at].clone();
                    let now = self.now;
                    let (answer, over) = self.host(host).carry_out(id, tuple, &order, now);
                    self.over.extend(over.then_some(tuple));
                    if let Some(answer) = answer {
                        self.orders[at].4 = answer;
                        let delay = self.delay(200);
                        self.push(self.now + delay, Event::Answer { host, life, at });
                    }
                }
            }
            Event::Answer { host, life, at } => {
                if self.hosts[&host].life == life {
                    let (id, _, ticket, _, answer) = self.orders[at].clone();
                    self.with_agent(host, |agent, now, view| {
                        agent.answer(now, view, id, ticket, answer);
                    });
                }
            }
            Event::Look => {
                self.look();
                self.push(self.now + LOOK, Event::Look);
            }
        }
    }

    fn delay(&mut self, base: u64) -> u64 {
        base + match self.faults.delay_max {
            0 => 0,
            max => self.rng.random_range(0..max),
        }
    }

    /// Does something with an agent, if it is up, and takes what comes out.
    fn with_agent(&mut self, host: u16, work: impl FnOnce(&mut Moves, u64, &View)) {
        let (now, view) = (self.now, self.view(host));
        if let Some(agent) = &mut self.host(host).agent {
            work(agent, now, &view);
            self.drain(host);
        }
    }

    fn view(&self, host: u16) -> View {
        let others = self.hosts.keys().filter(|&&other| other != host);
        View {
            sessions: self.hosts[&host].sessions.clone(),
            drains: self.hosts[&host].drains,
            application: self.hosts[&host].application_up.then(application),
            members: others.map(|&other| HostId(other)).collect(),
            reached: self.heard[&host].reached,
        }
    }

    fn drain(&mut self, host: u16) {
        while let Some(output) = self
            .host(host)
            .agent
            .as_mut()
            .and_then(|agent| agent.poll())
        {
            match output {
                Output::Send { to, bytes } => self.send(host, to.0, bytes.to_vec()),
                Output::Order {
                    id,
                    tuple,
                    ticket,
                    order,
                } => {
                    let at = self.orders.len();
                    self.orders.push((id, tuple, ticket, order, Answer::Done));
                    let life = self.hosts[&host].life;
                    // Orders of one session are carried out in the order they come.
                    let due = self.now + self.delay(200);
                    let queue = self.host(host).busy_until.entry(tuple).or_default();
                    *queue = due.max(*queue + 1);
                    let due = *queue;
                    self.push(due, Event::Order { host, life, at });
                }
                Output::Ended(ended) => self.ended.push((host, ended)),
            }
        }
    }

    fn send(&mut self, from: u16, to: u16, bytes: Vec<u8>) {
        self.sent += 1;
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.faults.repeat_percent);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.faults.loss_percent {
                let at = self.now + self.delay(300);
                let bytes = bytes.clone();
                self.push(at, Event::Message { from, to, bytes });
            }
        }
    }
}
