//! A host of a small POP, played on by two other members that say anything at all:
//! behind the seal and on carriers, as somebody does who has the POP's key and a fault.

use std::{collections::VecDeque, net::SocketAddr, sync::OnceLock, time::Duration};

use homing_agent::{
    gossip::{
        ask::Frame,
        bulk::Bulk,
        node::{Config, Destination, Node, Transmit},
    },
    pop::{
        Domain, Fingerprint, MS, Member, SECOND, Stream,
        keys::{Keys, key_id},
        membership::Seed,
        seal::{Channel, Identity, Received, Seal, To, VERSION},
    },
};
use homing_common::{ask::Question, echo::Echo, host::HostId, session::SessionId};

use super::KEY;

/// The domains of hosts 1, 2 and so on. A game has the first three of them.
pub const DOMAINS: [&str; 6] = ["a", "a", "b", "a", "b", "b"];
const PLAYERS: usize = 3;
/// Datagrams that one step may cause at most: far more than any does.
const TRANSMITS_MAX: usize = 10_000;
const CLAIMS_MAX: usize = 1_000;

/// Plays a game that `bytes` describe; see [`Step`].
pub fn play(bytes: &[u8]) {
    let mut world = World::new();
    let mut rest = bytes;
    while let Some(step) = Step::read(&mut rest) {
        world.step(&step);
    }
    assert!(world.node.gossip().claimed() <= CLAIMS_MAX);
}

/// A move in the game.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Member 2 or 3 says something on a channel.
    Say {
        /// Whether it is member 3.
        third: bool,
        /// Whether it says so to all.
        multicast: bool,
        /// On which channel.
        channel: u8,
        /// What.
        body: Vec<u8>,
    },
    /// Time passes.
    Wait(Duration),
    /// Bytes come from where member 2 or 3 is.
    Bytes(bool, Vec<u8>),
    /// A carrier brings something from member 2 or 3.
    Carried(bool, Vec<u8>),
    /// A session of host 1 opens, or closes.
    Session(bool, u8),
}

impl Step {
    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        let third = first & 8 != 0;
        Some(match first & 7 {
            0..=3 => Self::Say {
                third,
                multicast: first & 16 != 0,
                channel: 1 + (first & 3),
                body: take_bytes(bytes)?,
            },
            4 => Self::Wait(Duration::from_millis(take_u16(bytes)?.into())),
            5 => Self::Carried(third, take_bytes(bytes)?),
            6 => Self::Bytes(third, take_bytes(bytes)?),
            _ => {
                let (&id, rest) = bytes.split_first()?;
                *bytes = rest;
                Self::Session(third, id)
            }
        })
    }

    /// Writes it so that [`play`] reads it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let third = |third: bool| if third { 8 } else { 0 };
        let put_bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend((bytes.len() as u16).to_be_bytes());
            out.extend(bytes);
        };
        match self {
            Self::Say {
                third: from,
                multicast,
                channel,
                body,
            } => {
                let multicast = if *multicast { 16 } else { 0 };
                out.push((channel - 1) & 3 | third(*from) | multicast);
                put_bytes(out, body);
            }
            Self::Wait(time) => {
                out.push(4);
                out.extend((time.as_millis() as u16).to_be_bytes());
            }
            Self::Bytes(from, bytes) => {
                out.push(6 | third(*from));
                put_bytes(out, bytes);
            }
            Self::Carried(from, bytes) => {
                out.push(5 | third(*from));
                put_bytes(out, bytes);
            }
            Self::Session(opens, id) => {
                out.extend([7 | third(*opens), *id]);
            }
        }
    }
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u16::from_be_bytes(*number))
}

/// As many bytes as a length says, or what is left.
fn take_bytes(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let len = usize::from(take_u16(bytes)?).min(bytes.len());
    let (taken, rest) = bytes.split_at(len.min(homing_agent::pop::BODY_LEN_MAX));
    *bytes = rest;
    Some(taken.to_vec())
}

struct World {
    node: Node,
    /// The seals of members 2 and 3.
    seals: [Seal; 2],
    now: u64,
}

impl World {
    /// The members have met.
    fn new() -> Self {
        let seal = |host: u16| {
            let identity = Identity {
                host: HostId(host),
                stream: STREAM,
                address: address(host),
            };
            Seal::new(Keys::derive(&KEY), identity, [host as u8; 32])
        };
        let mut world = Self {
            node: node(1),
            seals: [seal(2), seal(3)],
            now: SECOND,
        };
        for step in meeting() {
            world.step(step);
        }
        world
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Say {
                third,
                multicast,
                channel,
                body,
            } => {
                let channel = match channel {
                    1 => Channel::Membership,
                    2 => Channel::Gossip,
                    3 => Channel::Ask,
                    _ => Channel::Liveness,
                };
                let to = match multicast {
                    true => To::Domain,
                    false => To::Host(HostId(1)),
                };
                let from = usize::from(*third);
                let datagram = self.seals[from].seal(channel, to, body);
                self.hear(from, &datagram);
            }
            Step::Wait(time) => {
                let until = self.now + time.as_micros() as u64;
                // A bounded number of times, as many as matter.
                for _ in 0..64 {
                    let next = self.node.next_time();
                    if next > until {
                        break;
                    }
                    self.now = self.now.max(next);
                    self.node.on_time(self.now);
                    self.drain();
                }
                self.now = until;
            }
            Step::Bytes(third, bytes) => self.hear(usize::from(*third), bytes),
            Step::Carried(third, bytes) => {
                let from = HostId(u16::from(*third) + 2);
                self.node.receive_bulk(self.now, from, STREAM, bytes);
            }
            Step::Session(true, id) => {
                self.node
                    .open(self.now, SessionId((*id).into()), 0, self.now);
            }
            Step::Session(false, id) => {
                self.node.close(self.now, SessionId((*id).into()), self.now);
            }
        }
        self.drain();
    }

    fn hear(&mut self, from: usize, datagram: &[u8]) {
        self.node
            .receive(self.now, address(from as u16 + 2), datagram);
    }

    /// Takes what the node says, and answers its challenges.
    fn drain(&mut self) {
        let mut count = 0;
        loop {
            while self.node.poll_route().is_some() {}
            self.node.routes_applied(self.now);
            while self.node.poll_note().is_some() {}
            while let Some(lookup) = self.node.poll_lookup() {
                self.node.looked_up(self.now, lookup);
            }
            while self.node.poll_release(self.now).is_some() {}
            count += 1;
            assert!(count < TRANSMITS_MAX, "it does not stop talking");
            if let Some(Bulk { number, to, .. }) = self.node.poll_bulk() {
                self.node.bulk_told(self.now, to, number, Some(STREAM));
                continue;
            }
            let Some(transmit) = self.node.poll_transmit() else {
                return;
            };
            for (index, seal) in self.seals.iter_mut().enumerate() {
                if transmit.to != Destination::Address(address(index as u16 + 2)) {
                    continue;
                }
                let heard = seal.open(self.now, address(1), &transmit.bytes);
                if let Ok(Received::Reply { bytes, .. }) = heard {
                    let from = address(index as u16 + 2);
                    self.node.receive(self.now, from, &bytes);
                }
            }
        }
    }
}

const STREAM: Stream = Stream {
    incarnation: 5,
    generation: 1,
};

fn address(host: u16) -> SocketAddr {
    ([10, 1, 1, 10 + host as u8], 7946).into()
}

fn node(host: u16) -> Node {
    let domain = Domain::try_from(DOMAINS[usize::from(host) - 1]).expect("a name");
    let config = Config {
        me: Member::starting(
            HostId(host),
            STREAM,
            address(host),
            domain,
            Fingerprint::default(),
        ),
        seeds: vec![Seed {
            host: HostId(1),
            address: address(1),
        }],
        keys: Keys::derive(&KEY),
        multicast: true,
        void_after: Duration::from_secs(60),
        kernel_dead_after: Duration::from_secs(3),
        claims_max: CLAIMS_MAX,
        random: [host as u8; 32],
    };
    Node::new(0, 0, config, std::iter::empty(), std::iter::empty())
}

/// What hosts 2 and 3 say to host 1 until all have met: recorded from real nodes,
/// once.
fn meeting() -> &'static [Step] {
    static MEETING: OnceLock<Vec<Step>> = OnceLock::new();
    MEETING.get_or_init(|| steps(&record(PLAYERS, 2 * SECOND, &[])))
}

/// Something on its way.
pub struct Said {
    at: u64,
    from: usize,
    to: usize,
    /// What it is.
    pub words: Words,
}

/// What a host says.
#[derive(Clone)]
pub enum Words {
    /// A datagram.
    Datagram(Transmit),
    /// A message on a carrier.
    Carried(Bulk),
}

/// What happens to a host while a POP is recorded.
#[derive(Clone)]
pub enum Event {
    /// A session opens.
    Opens(u64),
    /// A session closes.
    Closes(u64),
    /// A packet of an unknown session comes.
    Parks(Question),
    /// The host is no more.
    Dies,
}

/// Runs the first so many hosts for a while, and says what they say. `events` are
/// times, hosts and what happens, in order.
pub fn record(hosts: usize, time: u64, events: &[(u64, u16, Event)]) -> Vec<Said> {
    let mut nodes: Vec<Node> = (1..=hosts as u16).map(node).collect();
    let mut dead = vec![false; hosts];
    let mut said = Vec::new();
    let mut now = 0;
    let mut events = VecDeque::from(events.to_vec());
    while now < time {
        let next = nodes.iter().map(Node::next_time).min().unwrap_or(u64::MAX);
        now = now.max(next.min(now + 10 * MS));
        while let Some((_, host, event)) = events.pop_front_if(|event| event.0 <= now) {
            let node = &mut nodes[usize::from(host) - 1];
            match event {
                Event::Opens(id) => node.open(now, SessionId(id), 0, now),
                Event::Closes(id) => node.close(now, SessionId(id), now),
                Event::Parks(question) => {
                    let frame = Frame {
                        ifindex: 2,
                        tunnelled: false,
                        bytes: vec![0; 60],
                    };
                    node.parked(now, now, question, frame);
                }
                Event::Dies => dead[usize::from(host) - 1] = true,
            }
        }
        for node in &mut nodes {
            node.on_time(now);
        }
        while exchange(&mut nodes, &dead, now, &mut said) {}
    }
    said
}

/// Delivers what is waiting. Says whether there was anything.
fn exchange(nodes: &mut [Node], dead: &[bool], now: u64, said: &mut Vec<Said>) -> bool {
    let mut any = false;
    for from in 0..nodes.len() {
        while let Some(transmit) = nodes[from].poll_transmit() {
            any = true;
            if dead[from] {
                continue;
            }
            for to in (0..nodes.len()).filter(|to| *to != from && !dead[*to]) {
                let reaches = match transmit.to {
                    Destination::Address(there) => there == address(to as u16 + 1),
                    Destination::Multicast => DOMAINS[from] == DOMAINS[to],
                };
                if !reaches {
                    continue;
                }
                if let Some(answer) = echo(from, to, &transmit.bytes) {
                    nodes[from].receive(now, address(to as u16 + 1), &answer);
                } else {
                    nodes[to].receive(now, address(from as u16 + 1), &transmit.bytes);
                    said.push(Said {
                        at: now,
                        from,
                        to,
                        words: Words::Datagram(transmit.clone()),
                    });
                }
            }
        }
        while let Some(bulk) = nodes[from].poll_bulk() {
            any = true;
            let to = usize::from(bulk.to.0) - 1;
            let arrives = !dead[from] && !dead[to];
            if arrives {
                nodes[to].receive_bulk(now, HostId(from as u16 + 1), STREAM, &bulk.body);
            }
            let has = arrives.then_some(STREAM);
            nodes[from].bulk_told(now, bulk.to, bulk.number, has);
            if arrives {
                said.push(Said {
                    at: now,
                    from,
                    to,
                    words: Words::Carried(bulk),
                });
            }
        }
        let node = &mut nodes[from];
        while node.poll_route().is_some() {}
        node.routes_applied(now);
        while node.poll_note().is_some() {}
        while let Some(lookup) = node.poll_lookup() {
            node.looked_up(now, lookup);
        }
    }
    any
}

/// What a kernel answers to an echo, as the fast path does.
fn echo(asker: usize, host: usize, question: &[u8]) -> Option<[u8; Echo::LEN]> {
    let bytes: &[u8; Echo::LEN] = question.try_into().ok()?;
    if !bytes.starts_with(&Echo::MAGIC) {
        return None;
    }
    fn cut<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|n| bytes[at + n])
    }
    let mut echo = Echo {
        magic: Echo::MAGIC,
        from: cut(bytes, 4),
        to: (host as u16 + 1).to_be_bytes(),
        nonce: cut(bytes, 8),
        incarnation: STREAM.incarnation.to_be_bytes(),
        tag: [0; 8],
    };
    let asker = address(asker as u16 + 1).ip().into();
    echo.tag = echo.tag(&asker, &Keys::derive(&KEY).echo[0]);
    let mut answer = *bytes;
    answer[16..24].copy_from_slice(&echo.incarnation);
    answer[24..].copy_from_slice(&echo.tag);
    Some(answer)
}

/// A recording as a game: what hosts 2 and 3 say to host 1, and the time between.
pub fn steps(said: &[Said]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut told = 0;
    for said in said
        .iter()
        .filter(|said| said.to == 0 && said.from < PLAYERS)
    {
        let millis = (said.at - told) / MS;
        if millis > 0 {
            steps.push(Step::Wait(Duration::from_millis(millis)));
            told += millis * MS;
        }
        let third = said.from == 2;
        let transmit = match &said.words {
            Words::Datagram(transmit) => transmit,
            Words::Carried(bulk) => {
                steps.push(Step::Carried(third, bulk.body.to_vec()));
                continue;
            }
        };
        match open(&transmit.bytes) {
            // What the seals say for themselves they say anew in each game.
            Some((0, _)) => {}
            Some((channel, body)) => steps.push(Step::Say {
                third,
                multicast: transmit.to == Destination::Multicast,
                channel,
                body: body.to_vec(),
            }),
            None => steps.push(Step::Bytes(third, transmit.bytes.clone())),
        }
    }
    steps
}

/// Channel and body of a datagram, as `docs/protocol.md` has them.
pub fn open(datagram: &[u8]) -> Option<(u8, &[u8])> {
    if !datagram.starts_with(b"Hm") || datagram.starts_with(&Echo::MAGIC) {
        return None;
    }
    let padding = usize::from(*datagram.get(5)?);
    let end = datagram.len().checked_sub(16 + padding)?;
    Some((datagram[3], datagram.get(34..end)?))
}

/// Bytes made a datagram with the POP's key: magic, version, key id and tag put right.
/// None: they are too short for a header.
pub fn tag(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut datagram = bytes.to_vec();
    datagram
        .get_mut(..5)?
        .copy_from_slice(&[b'H', b'm', VERSION, bytes[3] & 7, key_id(&KEY)]);
    let key = blake3::derive_key("homing v1 2026 datagram authentication", &KEY);
    let tag = blake3::keyed_hash(&key, &datagram);
    datagram.extend(&tag.as_bytes()[..16]);
    Some(datagram)
}

#[cfg(test)]
mod tests {
    use homing_agent::pop::membership::State;

    use super::*;

    #[test]
    fn the_members_have_met() {
        let world = World::new();
        let alive = world.node.hosts();
        assert_eq!(alive.len(), 2);
        assert!(
            alive.iter().all(|host| host.state == Some(State::Alive)),
            "{alive:?}"
        );
        // As when it was recorded: its requests have the numbers that are answered.
        let counters = world.node.gossip().counters();
        assert_eq!(counters.syncs_done, 2, "{counters:?}");
    }

    #[test]
    fn steps_are_read_as_they_were_written() {
        let events = [
            (2 * SECOND, 2, Event::Opens(77)),
            (2 * SECOND, 3, Event::Opens(78)),
        ];
        let steps = steps(&record(PLAYERS, 3 * SECOND, &events));
        let mut bytes = Vec::new();
        let mut all = steps.clone();
        all.push(Step::Bytes(true, vec![1, 2, 3]));
        all.push(Step::Session(false, 9));
        for step in &all {
            step.write(&mut bytes);
        }
        let mut rest = &bytes[..];
        let read: Vec<Step> = std::iter::from_fn(|| Step::read(&mut rest)).collect();
        assert_eq!(read, all);
    }

    #[test]
    fn what_is_tagged_is_accepted() {
        let mut seal = World::new().seals.into_iter().next().unwrap();
        let datagram = seal.seal(Channel::Gossip, To::Host(HostId(1)), &[1; 40]);
        assert_eq!(tag(&datagram[..datagram.len() - 16]), Some(datagram));
    }
}
