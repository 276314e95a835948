//! Any history of sending, reading slowly, closing, carriers that break and hosts that
//! leave: every message has one fate, the fate is true, and nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};

use homing_client::message::record::{REPEATABLE, TELL};
use proptest::prelude::*;

use super::*;

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A message socket's application sends a message of this length.
    Send {
        which: usize,
        len: usize,
        repeatable: bool,
    },
    /// It reads so many datagrams.
    Read { which: usize, count: usize },
    /// Its descriptor is looked at.
    Poll(usize),
    /// It is closed.
    Close(usize),
    /// Carriers pull, and messages arrive: so many, out of order if that says so.
    Travel { count: usize, last_first: bool },
    /// The carrier of the next message breaks: before or after it has arrived.
    Break { arrived: bool },
    /// What a host says of itself is lost.
    Lose,
    /// Time passes, in milliseconds.
    Wait(u64),
    /// A host's life ends.
    Leave(u16),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let len = prop_oneof![8 => 8..200_usize, 2 => 1000..20_000_usize, 1 => 90_000..200_000_usize];
    let event = prop_oneof![
        8 => (0..6_usize, len, any::<bool>())
            .prop_map(|(which, len, repeatable)| Event::Send { which, len, repeatable }),
        4 => (0..6_usize, 1..20_usize).prop_map(|(which, count)| Event::Read { which, count }),
        8 => (0..6_usize).prop_map(Event::Poll),
        1 => (0..6_usize).prop_map(Event::Close),
        8 => (1..10_usize, any::<bool>())
            .prop_map(|(count, last_first)| Event::Travel { count, last_first }),
        2 => any::<bool>().prop_map(|arrived| Event::Break { arrived }),
        1 => Just(Event::Lose),
        2 => (1..800_u64).prop_map(Event::Wait),
    ];
    let some = prop::collection::vec(event, 1..150);
    let leave = prop::option::weighted(0.3, (0..150_usize, 1..4_u16));
    (some, leave).prop_map(|(mut events, leave)| {
        if let Some((at, host)) = leave {
            events.insert(at.min(events.len()), Event::Leave(host));
        }
        events
    })
}

/// A message socket of the history.
struct One {
    host: u16,
    id: SocketId,
    pipe: Pipe,
    /// Who can be sent to: nobody in particular for one that is connected.
    is_service: bool,
    /// How many messages it has sent.
    sent: u64,
}

#[derive(Default)]
struct Message {
    received: usize,
    fates: Vec<Fate>,
}

struct History {
    pop: Pop,
    all: Vec<One>,
    /// By the sender and the number.
    messages: BTreeMap<(usize, u64), Message>,
    closed: BTreeSet<usize>,
    left: BTreeSet<u16>,
}

impl History {
    fn new() -> Self {
        let limits = Limits {
            unread_per_socket: 3000,
            unread_total: 20_000,
            held_per_peer: 5000,
            held_per_socket: 20_000,
            held_total: 3 << 20,
            ..Limits::default()
        };
        let mut pop = Pop::new(3, limits);
        let mut all = Vec::new();
        let mut add = |host, (id, pipe), is_service| {
            all.push(One {
                host,
                id,
                pipe,
                is_service,
                sent: 0,
            });
        };
        add(2, pop.offer(2, "one", false), true);
        add(3, pop.offer(3, "two", true), true);
        add(1, pop.connect(1, "one"), false);
        add(1, pop.connect(1, "two"), false);
        add(3, pop.connect(3, "one"), false);
        add(2, pop.connect(2, "one"), false);
        Self {
            pop,
            all,
            messages: BTreeMap::new(),
            closed: BTreeSet::new(),
            left: BTreeSet::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Send {
                which,
                len,
                repeatable,
            } => self.send(which, len, repeatable),
            Event::Read { which, count } => self.read(which, count),
            Event::Poll(which) => self.poll(which),
            Event::Close(which) => {
                self.closed.insert(which);
                self.all[which].pipe.close();
                self.poll(which);
            }
            Event::Travel { count, last_first } => {
                for _ in 0..count {
                    self.collect();
                    self.pop.pull();
                    let flying = match last_first {
                        true => self.pop.flying.pop_back(),
                        false => self.pop.flying.pop_front(),
                    };
                    if let Some(flying) = flying {
                        self.pop.arrive(flying);
                    }
                }
            }
            Event::Break { arrived } => {
                self.collect();
                self.pop.pull();
                let Some(flying) = self.pop.flying.pop_front() else {
                    return;
                };
                if arrived && flying.body.len() <= SHORT_MAX {
                    let core = self.pop.hosts.get_mut(&flying.to).unwrap();
                    core.receive(flying.from, &flying.body, self.pop.now);
                }
                let unknown = carriers::Fate::Unknown("its carrier broke".into());
                self.pop.told(&flying, Outcome::Fate(unknown, None));
                if flying.insists {
                    self.pop.flying.push_back(flying);
                }
            }
            Event::Lose => {
                self.collect();
                let said = |flying: &Flying| flying.source.is_none() && !flying.insists;
                let first = self.pop.flying.iter().position(said);
                first.map(|at| self.pop.flying.remove(at));
            }
            Event::Wait(ms) => {
                self.pop.now += ms * 1000;
                let now = self.pop.now;
                self.pop.hosts.values_mut().for_each(|core| core.tick(now));
            }
            Event::Leave(host) => self.leave(host),
        }
    }

    /// A host's life ends: carriers to and from it break.
    fn leave(&mut self, host: u16) {
        let id = HostId(host);
        self.left.insert(host);
        self.collect();
        let flying: Vec<_> = self.pop.flying.drain(..).collect();
        for flying in flying {
            if flying.to == id {
                let unknown = carriers::Fate::Unknown("it has left".into());
                self.pop.told(&flying, Outcome::Fate(unknown, None));
            } else if flying.from != id {
                self.pop.flying.push_back(flying);
            }
        }
        self.pop
            .ready
            .retain(|(from, to, ..)| ![*from, *to].contains(&id));
        self.pop.hosts.remove(&id);
        self.pop.introduce();
        self.pop.hosts.values_mut().for_each(|core| core.left(id));
    }

    fn collect(&mut self) {
        let hosts: Vec<_> = self.pop.hosts.keys().copied().collect();
        for host in hosts {
            self.pop.collect(host);
        }
        let hosts = &self.pop.hosts;
        // What is for a host that has left meets the fate that carriers tell.
        self.pop.ready.retain(|(_, to, ..)| hosts.contains_key(to));
        self.pop
            .flying
            .retain(|flying| hosts.contains_key(&flying.to));
    }

    fn send(&mut self, which: usize, len: usize, repeatable: bool) {
        let is_there = |one: &One| !one.pipe.is_gone() && !self.left.contains(&one.host);
        if self.closed.contains(&which) || !is_there(&self.all[which]) {
            return;
        }
        // A service answers one of those that are connected to it.
        let peer = match self.all[which].is_service {
            false => 0,
            true => {
                let to = &self.all[[2, 3][which]];
                Core::<End>::address(HostId(to.host), to.id)
            }
        };
        let one = &mut self.all[which];
        one.sent += 1;
        let mut body = vec![0; len];
        body[..8].copy_from_slice(&((which as u64) << 32 | one.sent).to_be_bytes());
        let header = Header {
            peer,
            name: one.sent,
            flags: TELL | if repeatable { REPEATABLE } else { 0 },
            ..Header::message(0)
        };
        one.pipe.send(record(header, &body));
        self.messages.insert((which, one.sent), Message::default());
    }

    fn poll(&mut self, which: usize) {
        let one = &self.all[which];
        self.pop.poll(HostId(one.host), one.id);
    }

    fn read(&mut self, which: usize, count: usize) {
        for _ in 0..count {
            let Some(datagram) = self.all[which].pipe.receive() else {
                return;
            };
            for (header, body) in records(&datagram) {
                if header.kind == Kind::Fate {
                    let message = self.messages.get_mut(&(which, header.number)).unwrap();
                    message.fates.push(Fate::from_code(header.code).unwrap());
                    continue;
                }
                let mut word = [0; 8];
                word.copy_from_slice(&body[..8]);
                let word = u64::from_be_bytes(word);
                let of = ((word >> 32) as usize, word & 0xffff_ffff);
                assert!(body[8..].iter().all(|byte| *byte == 0));
                self.messages.get_mut(&of).unwrap().received += 1;
            }
        }
    }

    /// Everybody reads, and nothing breaks any more.
    fn end(&mut self) {
        for _ in 0..400 {
            for which in 0..self.all.len() {
                if !self.closed.contains(&which) {
                    self.read(which, usize::MAX);
                }
                self.poll(which);
            }
            for _ in 0..20 {
                self.happen(Event::Travel {
                    count: 1,
                    last_first: false,
                });
            }
            self.happen(Event::Wait(200));
        }
        for (&(which, number), message) in &self.messages {
            let said = format!("message {number} of {which}");
            let Message { received, fates } = message;
            assert!(*received <= 1, "{said} was received {received} times");
            assert!(fates.len() <= 1, "{said} has fates {fates:?}");
            if let [Fate::NotSent(why)] = fates[..] {
                assert_eq!(*received, 0, "{said} was not sent: {why}");
            }
            let one = &self.all[which];
            let is_there = !self.closed.contains(&which) && !self.left.contains(&one.host);
            if is_there && !one.pipe.is_gone() {
                assert_eq!(fates.len(), 1, "{said} has no fate");
            }
            // With a reader that stays, delivered is received.
            if fates[..] == [Fate::Delivered] && self.closed.is_empty() && self.left.is_empty() {
                assert_eq!(*received, 1, "{said} was delivered");
            }
        }
        for (host, core) in &self.pop.hosts {
            let status = core.status();
            assert_eq!((core.held, core.unread), (0, 0), "{host:?}: {status:?}");
            let ending = status.sockets.iter().filter(|socket| socket.ending);
            assert_eq!(ending.count(), 0, "{host:?}: {status:?}");
        }
    }
}

fn cases() -> u32 {
    let more = std::env::var("PROPTEST_CASES").ok();
    more.and_then(|more| more.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_message_has_one_true_fate(events in events()) {
        let mut history = History::new();
        for event in events {
            history.happen(event);
        }
        history.end();
    }
}
