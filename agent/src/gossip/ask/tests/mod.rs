//! Several hosts' asks in one thread, deterministic by seed, over a network that
//! loses, repeats and delays; kernels are sets of sessions.
//!
//! This file is the POP; `cases` tries chosen histories, `random` random ones.

mod cases;
mod random;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use homing_common::{
    ask::{Found, Question},
    host::HostId,
    net::{Address, Port, TCP},
    session::{SessionId, SessionKey, Tuple},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::{
    datapath::local::SessionKeys,
    gossip::claims::Claim,
    pop::{Domain, rendezvous},
};

const KEY: SessionKey = SessionKey([3, 4]);

/// What may go wrong with datagrams.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss_percent: u32,
    repeat_percent: u32,
    delay_max: u64,
}

const PERFECT: Faults = Faults {
    loss_percent: 0,
    repeat_percent: 0,
    delay_max: 100,
};

struct Host {
    asks: Asks,
    domain: Domain,
    kernel: BTreeMap<SessionId, Found>,
    routes: BTreeMap<SessionId, HostId>,
    /// Claims that it has heard, of hosts that are down.
    heard: BTreeMap<SessionId, HostId>,
    /// Its agent does not answer, though the others take it to be up.
    dead: bool,
    /// Its agent is down and the others know it; its claims stand.
    down: bool,
    /// Its kernel's table has no room.
    full: bool,
    returned: Vec<(u64, SessionId, Way)>,
    sent: u64,
}

type Flight = Reverse<(u64, u64, HostId, HostId, Vec<u8>)>;

struct Pop {
    now: u64,
    rng: Xoshiro256PlusPlus,
    faults: Faults,
    multicast: bool,
    hosts: BTreeMap<HostId, Host>,
    flights: BinaryHeap<Flight>,
    flown: u64,
}

fn question(n: u32) -> Question {
    let tuple = Tuple::new(
        Address::v4(n.to_be_bytes()),
        Port::new(1000),
        Address::v4([203, 0, 113, 10]),
        Port::new(443),
        TCP,
    );
    Question {
        tuple,
        id: tuple.id(&KEY).0,
        seq: [0; 4],
        ack: [0; 4],
        flags: 0x10,
        found: 0,
        zero: [0; 6],
    }
}

fn id(n: u32) -> SessionId {
    SessionId(question(n).id)
}

/// A frame that names its session.
fn frame(n: u32) -> Frame {
    let mut bytes = vec![0; 60];
    bytes[..8].copy_from_slice(&id(n).0.to_be_bytes());
    Frame {
        ifindex: 1,
        tunnelled: false,
        bytes,
    }
}

fn session_of(frame: &Frame) -> SessionId {
    SessionId(u64::from_be_bytes(*frame.bytes.first_chunk().unwrap()))
}

impl Pop {
    /// So many hosts in each of some domains: host 1 is in the first.
    fn new(seed: u64, domains: &[u16]) -> Self {
        let mut hosts = BTreeMap::new();
        let mut next = 1;
        for (n, &count) in domains.iter().enumerate() {
            for _ in 0..count {
                let settings = Settings {
                    host: HostId(next),
                    keys: SessionKeys {
                        key: KEY,
                        other: None,
                    },
                    key_ids: [1; 2],
                    first: (u64::MAX - 5).wrapping_add(seed),
                };
                let host = Host {
                    asks: Asks::new(settings),
                    domain: Domain::try_from(format!("d{n}").as_str()).unwrap(),
                    kernel: BTreeMap::new(),
                    routes: BTreeMap::new(),
                    heard: BTreeMap::new(),
                    dead: false,
                    down: false,
                    full: false,
                    returned: Vec::new(),
                    sent: 0,
                };
                hosts.insert(HostId(next), host);
                next += 1;
            }
        }
        let mut pop = Self {
            now: 1_000_000,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            faults: PERFECT,
            multicast: true,
            hosts,
            flights: BinaryHeap::new(),
            flown: 0,
        };
        pop.look_around();
        pop
    }

    /// Tells every host of the others.
    fn look_around(&mut self) {
        let all: Vec<_> = self
            .hosts
            .iter()
            .map(|(&id, h)| (id, h.domain, h.down))
            .collect();
        for (&me, host) in &mut self.hosts {
            let mut audience = Audience {
                multicast: self.multicast,
                ..Audience::default()
            };
            let others = all.iter().filter(|other| other.0 != me);
            for &(other, domain, _) in others.clone().filter(|other| !other.2) {
                audience.domains.insert(other, domain);
                if domain == host.domain {
                    // Some do not hear each other's multicast.
                    let hears = (me.0 + other.0) % 5 != 0;
                    audience.near.push(Near { host: other, hears });
                } else {
                    audience.far.entry(domain).or_default().push(other);
                }
            }
            for relays in audience.far.values_mut() {
                *relays = rendezvous::choose(me.0.into(), relays.iter().copied(), 2);
            }
            for &(other, domain, _) in others.filter(|other| other.2) {
                audience.unaskable.insert(other, domain);
                audience.near_blind |= domain == host.domain;
                audience.far_blind |= domain != host.domain && !audience.far.contains_key(&domain);
            }
            host.asks.set_audience(audience);
        }
    }

    fn host(&mut self, host: u16) -> &mut Host {
        self.hosts.get_mut(&HostId(host)).unwrap()
    }

    fn own(&mut self, host: u16, session: u32, found: Found) {
        self.host(host).kernel.insert(id(session), found);
    }

    /// A packet of a session is parked at a host. One that its kernel knows, or has
    /// a route for, is not parked.
    fn packet(&mut self, at: u16, session: u32) {
        let now = self.now;
        let host = self.host(at);
        let known = host.routes.contains_key(&id(session));
        let is_local = matches!(
            host.kernel.get(&id(session)),
            Some(Found::Socket | Found::Cookie | Found::Closing | Found::Closed)
        );
        if is_local || known && !host.full {
            return;
        }
        let mut question = question(session);
        question.id = host.asks.id_of(&question.tuple).0;
        host.asks.parked(now, now, question, frame(session), known);
        self.settle(HostId(at));
    }

    fn settle(&mut self, at: HostId) {
        let now = self.now;
        let host = self.hosts.get_mut(&at).unwrap();
        let mut sent = Vec::new();
        loop {
            while let Some(mut lookup) = host.asks.poll_lookup() {
                for asked in &mut lookup.questions {
                    let found = host.kernel.get(&asked.tuple.id(&KEY));
                    asked.found = found.map_or(0, |&found| found as u8);
                }
                let heard = &host.heard;
                let known = |id| match heard.get(&id) {
                    Some(&host) => Known::Unaskable(Claim {
                        host,
                        generation: 3,
                    }),
                    None => Known::Here(3),
                };
                host.asks.looked_up(now, lookup, known);
            }
            while let Some(claim) = host.asks.poll_claim() {
                let presumed = host.asks.audience.unaskable.contains_key(&claim.host);
                assert!(claim.generation == 3 || presumed);
                host.routes.insert(claim.id, claim.host);
            }
            while let Some(release) = host.asks.poll_release(now) {
                let session = session_of(&release.frame);
                host.returned.push((now, session, release.way));
            }
            while let Some(out) = host.asks.poll_outgoing() {
                sent.push(out);
            }
            if host.asks.next_time() > now {
                break;
            }
            host.asks.on_time(now);
        }
        host.sent += sent.len() as u64;
        let (domain, dead) = (host.domain, host.dead || host.down);
        for out in sent {
            let to: Vec<HostId> = match out.to {
                To::Host(host) => vec![host],
                To::Domain => {
                    let near = self.hosts.iter().filter(|(_, h)| h.domain == domain);
                    near.map(|(&host, _)| host)
                        .filter(|&host| host != at)
                        .collect()
                }
            };
            for to in to.into_iter().filter(|_| !dead) {
                if out.to == To::Domain && (at.0 + to.0).is_multiple_of(5) {
                    continue;
                }
                self.fly(at, to, &out.body);
            }
        }
    }

    fn fly(&mut self, from: HostId, to: HostId, body: &[u8]) {
        let faults = self.faults;
        let mut copies = 1 + u32::from(self.rng.random_range(0..100) < faults.repeat_percent);
        if self.rng.random_range(0..100) < faults.loss_percent {
            copies -= 1;
        }
        for _ in 0..copies {
            let at = self.now + self.rng.random_range(1..=faults.delay_max);
            self.flown += 1;
            self.flights
                .push(Reverse((at, self.flown, from, to, body.to_vec())));
        }
    }

    /// Lets time pass.
    fn run(&mut self, until: u64) {
        loop {
            let flight = self.flights.peek().map_or(u64::MAX, |flight| flight.0.0);
            let timers = self
                .hosts
                .values()
                .map(|host| host.asks.next_time().max(self.now));
            let next = timers.min().unwrap_or(u64::MAX).min(flight);
            if next > until {
                break;
            }
            self.now = next;
            while self.flights.peek().is_some_and(|f| f.0.0 <= next) {
                let Reverse((_, _, from, to, body)) = self.flights.pop().unwrap();
                let host = self.hosts.get_mut(&to).unwrap();
                if !host.dead && !host.down {
                    host.asks.receive(next, from, &body);
                    self.settle(to);
                }
            }
            let due = self
                .hosts
                .iter()
                .filter(|(_, h)| h.asks.next_time() <= next);
            for host in due.map(|(&host, _)| host).collect::<Vec<_>>() {
                self.settle(host);
            }
        }
        self.now = until;
    }

    fn wait(&mut self, ms: u64) {
        self.run(self.now + ms * MS);
    }

    /// The hosts whose agents are down.
    fn down(&self) -> impl Iterator<Item = HostId> + '_ {
        let down = self.hosts.iter().filter(|(_, host)| host.down);
        down.map(|(&id, _)| id)
    }

    /// Who has a session, as far as host 1 can hear of it: by its owner, or by another
    /// host of one that is down.
    fn owner(&self, session: SessionId) -> Option<(HostId, Found)> {
        let mut up = self.hosts.iter().filter(|(_, host)| !host.down);
        let own = up.clone().find_map(|(&id, host)| {
            let found = host.kernel.get(&session)?;
            Some((id, *found))
        });
        let told = up.find_map(|(&id, host)| {
            let owner = host.heard.get(&session).filter(|_| id != HostId(1))?;
            Some((*owner, Found::Socket))
        });
        own.or(told)
    }

    /// What was done with packets of a session at a host.
    fn ways(&mut self, at: u16, session: u32) -> Vec<Way> {
        let returned = &self.host(at).returned;
        let of_session = returned.iter().filter(|(_, s, _)| *s == id(session));
        of_session.map(|(_, _, way)| *way).collect()
    }
}
