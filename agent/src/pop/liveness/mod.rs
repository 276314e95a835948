//! Liveness of kernels, apart from that of agents.
//!
//! A host's kernel goes on forwarding and serving while its agent is down, so
//! membership cannot say when a host's claims are void. This can: hosts ask each
//! other's kernels by echo, and XDP answers ([`homing_common::echo`]).
//!
//! What it promises:
//!
//! - A kernel that has ended is judged dead, and all hosts void its claims,
//!   within `dead_after`: its watchers miss three answers in a row, ask others to
//!   confirm the silence, and spread the judgement.
//! - Nobody is judged by one host alone where there are others to ask: at least
//!   two others must hear nothing too (all there are in a smaller POP), one voice
//!   must come from another domain than the host's where there is one, and one of
//!   the voices must have heard the kernel before. Whoever hears the kernel, and
//!   its agent where that is up, ends the matter by saying so.
//! - A host that reaches under half of the POP judges nobody, and confirms
//!   nothing. Half is enough, so that the last host of a POP of two can go on; two
//!   halves that lose each other both void the other's claims, and get them back
//!   when they meet.
//! - A host that hears a kernel vetoes judgements on it: they are taken back
//!   everywhere. So is the judgement on a kernel that answers again, in the same
//!   life; if that happens again and again, its claims wait a little longer each
//!   time, up to ten times `dead_after`. Until then its sessions are found by
//!   asking.
//!
//! - Whoever moves sessions can learn how this host stands with at least half of the
//!   POP, and whether more than half holds another one dead; the two exclude each other.
//!
//! What it costs: each host watches a few others, whatever the size of the POP,
//! asks one other in turn, and counts whom it reaches by a sample of at most
//! [`CENSUS_MAX`] where it has to. Every table is bounded.
//!
//! Sans-IO: datagrams and the time go in; questions, messages and events come out.

mod census;
mod duty;
mod echoes;
mod judge;
mod peers;
mod poll;
mod suspect;
mod view;
mod wire;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use homing_common::host::HostId;
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

#[cfg(test)]
pub(crate) use self::echoes::answer_for_test;
pub use self::{
    census::CENSUS_MAX,
    view::{Counters, Event, Kernel, Minded, Outgoing, OwnStanding, Question, Reached, Settings},
};
use self::{
    census::{Census, Reach},
    peers::{Peer, Peers},
    poll::Polls,
    suspect::{Check, Suspicion},
    view::Timing,
    wire::{Message, Standing},
};
use super::Member;

/// Questions in a row without an answer that make a kernel suspect.
const MISSES_MAX: u32 = 3;
/// Kernels that are watched at once: those of duty, and some that a census did
/// not hear.
const WATCHED_MAX: usize = 64;
/// How long those are watched, in intervals.
const WATCH_AFTER_CENSUS: u64 = 6;

/// Whether bytes are a message of this protocol, sealed or an echo.
pub fn is_message(bytes: &[u8]) -> bool {
    wire::decode(bytes).is_some() || echoes::read(bytes).is_some()
}

/// Liveness as one host sees it.
pub struct Liveness {
    settings: Settings,
    timing: Timing,
    rng: Xoshiro256PlusPlus,
    peers: Peers,
    incarnation: u64,
    /// Kernels that are watched, and when each is asked next.
    watched: BTreeMap<HostId, u64>,
    /// Whom to watch must be worked out anew.
    duty_is_stale: bool,
    /// The host that was asked last in turn, and when the next one is.
    turn: HostId,
    turn_at: u64,
    census: Option<Census>,
    reach: Option<Reach>,
    suspicions: BTreeMap<HostId, Suspicion>,
    rounds: u32,
    checks: BTreeMap<HostId, Check>,
    /// What the POP holds of this very host.
    own: Standing,
    /// Hosts that judgements stand on, or stood.
    judged: BTreeSet<HostId>,
    /// Judgements that are being spread, and for how many more rounds.
    spreading: BTreeMap<HostId, u32>,
    spread_at: u64,
    exchange_at: u64,
    exchange_from: HostId,
    polls: Polls,
    next_at: u64,
    questions: VecDeque<Question>,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<Event>,
    /// What happened so far.
    pub counters: Counters,
}

impl Liveness {
    /// A host that knows no other yet. `random` seeds its choices and nonces.
    pub fn new(now: u64, incarnation: u64, settings: Settings, random: [u8; 32]) -> Self {
        let timing = Timing::of(settings.dead_after);
        Self {
            rng: Xoshiro256PlusPlus::from_seed(random),
            peers: Peers::new(),
            incarnation,
            watched: BTreeMap::new(),
            duty_is_stale: false,
            turn: settings.host,
            turn_at: now,
            census: None,
            reach: None,
            suspicions: BTreeMap::new(),
            rounds: 0,
            checks: BTreeMap::new(),
            own: Standing::default(),
            judged: BTreeSet::new(),
            spreading: BTreeMap::new(),
            spread_at: now,
            exchange_at: now,
            exchange_from: settings.host,
            polls: Polls::new(now),
            next_at: u64::MAX,
            questions: VecDeque::new(),
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            settings,
            timing,
        }
    }

    /// Begins another incarnation of this host.
    pub fn restart(&mut self, now: u64, incarnation: u64) {
        self.incarnation = incarnation;
        self.own = Standing::default();
        self.polls.begin_anew(now);
        self.spreading.remove(&self.settings.host);
    }

    /// From now on questions are signed with the first key, and answers accepted
    /// that are signed with either.
    pub fn set_keys(&mut self, keys: [homing_common::session::SessionKey; 2]) {
        self.settings.keys = keys;
    }

    /// A member's agent is up, perhaps in a later life.
    pub fn peer_up(&mut self, now: u64, member: &Member) {
        self.learn(member);
        if let Some(peer) = self.peers.get_mut(member.host) {
            peer.agent_up = true;
        }
        self.polls.has_forgotten(now, member.host);
        if self.watched.contains_key(&member.host) {
            self.tell_all(member.host);
        }
        self.duty_is_stale = true;
        self.next_at = now;
    }

    /// A member's agent stopped answering, or left for a while: its kernel is
    /// asked at once.
    pub fn peer_down(&mut self, now: u64, member: &Member) {
        self.learn(member);
        let host = member.host;
        if let Some(peer) = self.peers.get_mut(host) {
            peer.agent_up = false;
        }
        if let Some(next) = self.watched.get_mut(&host) {
            *next = now;
        }
        self.duty_is_stale = true;
        self.next_at = now;
    }

    /// A host has no claims that its kernel could stand for: it left for good, or
    /// is no member for us.
    pub fn peer_gone(&mut self, now: u64, host: HostId) {
        self.peers.remove(host);
        self.watched.remove(&host);
        self.suspicions.remove(&host);
        self.checks.remove(&host);
        self.judged.remove(&host);
        self.spreading.remove(&host);
        self.duty_is_stale = true;
        self.next_at = now;
    }

    fn learn(&mut self, member: &Member) {
        let host = member.host;
        let is_same_life = |peer: &&mut Peer| peer.incarnation == member.stream.incarnation;
        if let Some(peer) = self.peers.get_mut(host).filter(is_same_life) {
            peer.address = member.address;
            peer.domain = member.domain;
            return;
        }
        let peer = Peer::new(member.address, member.domain, member.stream.incarnation);
        self.suspicions.remove(&host);
        self.checks.remove(&host);
        self.judged.remove(&host);
        self.spreading.remove(&host);
        self.peers.insert(host, peer);
    }

    /// A message of a host's agent, whatever it says, came in: the agent is up.
    pub fn agent_heard(&mut self, now: u64, host: HostId, incarnation: u64) {
        let Some(peer) = self.peers.get_mut(host) else {
            return;
        };
        if peer.incarnation == incarnation {
            peer.agent_heard_at = Some(now);
            let is_dead = peer.is_dead();
            if is_dead || !self.suspicions.is_empty() || !self.checks.is_empty() {
                self.is_alive(now, host);
            }
        }
    }

    /// Hears a message that the seal let through.
    pub fn receive(&mut self, now: u64, origin: HostId, body: &[u8]) {
        let is_member = self.peers.get(origin).is_some();
        let Some(message) = wire::decode(body).filter(|_| is_member) else {
            self.counters.liveness_refused += 1;
            return;
        };
        self.counters.liveness_heard += 1;
        match message {
            Message::Ask(asked) => self.asked(now, origin, asked),
            Message::Say(asked, voice) => self.said(now, origin, asked, voice),
            Message::Judgements(judgements) => self.told(now, origin, &judgements),
            Message::Poll(number, told) => self.polled(now, origin, number, told),
            Message::Polled(number, held, age) => {
                self.poll_answered(now, origin, number, held, age);
            }
        }
    }

    /// When [`Liveness::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        self.next_at
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        if self.peers.len() == 0 {
            self.watched.clear();
            self.tend_polls(now);
            self.next_at = self.polls.due_at(self.timing.settle);
            return;
        }
        if self.duty_is_stale {
            self.work_out_duty(now);
        }
        self.take_turn(now);
        self.watch(now);
        self.tend_census(now);
        self.tend_checks(now);
        self.tend_suspicions(now);
        self.spread(now);
        self.exchange(now);
        self.tend_polls(now);
        self.next_at = self.due_at(now);
    }

    fn due_at(&self, now: u64) -> u64 {
        if self.duty_is_stale {
            return now;
        }
        let watched = self.watched.values().copied();
        let census = self.census.iter().map(Census::due_at);
        let checks = self.checks.values().map(Check::due_at);
        let suspicions = self.suspicions.values().map(Suspicion::due_at);
        let spread = (!self.spreading.is_empty()).then_some(self.spread_at);
        let exchange = (!self.judged.is_empty()).then_some(self.exchange_at);
        watched
            .chain(census)
            .chain(checks)
            .chain(suspicions)
            .chain(spread)
            .chain(exchange)
            .chain([self.polls.due_at(self.timing.settle)])
            .fold(self.turn_at, u64::min)
    }

    /// Works out whom to watch.
    fn work_out_duty(&mut self, now: u64) {
        self.duty_is_stale = false;
        let me = self.settings.host;
        let targets = duty::targets(&self.peers, me, self.settings.domain);
        let kept = |host: &HostId| {
            let peer = self.peers.get(*host);
            peer.is_some_and(|peer| peer.watched_until > now)
        };
        let others: Vec<_> = self.watched.keys().copied().filter(kept).collect();
        let before = std::mem::take(&mut self.watched);
        for &host in targets.iter().chain(&others).take(WATCHED_MAX) {
            let next = match before.get(&host) {
                Some(&next) => next,
                None => self.begin_to_watch(now, host),
            };
            self.watched.insert(host, next);
        }
        for host in before
            .keys()
            .filter(|host| !self.watched.contains_key(host))
        {
            // What is no longer watched is not known to be silent.
            if let Some(peer) = self.peers.get_mut(*host) {
                peer.unanswered = false;
                peer.missed = 0;
                peer.silent_since = None;
            }
        }
        for host in targets {
            if !before.contains_key(&host) {
                self.tell_all(host);
            }
        }
    }

    fn begin_to_watch(&mut self, now: u64, host: HostId) -> u64 {
        let agent_up = self.peers.get(host).is_some_and(|peer| peer.agent_up);
        if agent_up {
            // Not everybody at one moment.
            now + self.rng.random_range(0..self.timing.interval.max(1))
        } else {
            now
        }
    }

    /// Asks one other host in turn, so that everybody is heard now and then.
    fn take_turn(&mut self, now: u64) {
        if self.turn_at > now {
            return;
        }
        self.turn_at = now + self.timing.interval;
        if let Some(host) = self.peers.after(self.turn) {
            self.turn = host;
            self.ask(host);
        }
    }

    fn watch(&mut self, now: u64) {
        let due: Vec<_> = self.watched.iter().filter(|(_, at)| **at <= now).collect();
        let due: Vec<_> = due.into_iter().map(|(host, _)| *host).collect();
        for host in due {
            let interval = self.timing.interval;
            let Some(peer) = self.peers.get_mut(host) else {
                self.watched.remove(&host);
                continue;
            };
            if peer.unanswered {
                peer.missed += 1;
            }
            peer.unanswered = true;
            let is_dead = peer.is_dead();
            let was_heard = peer.heard_at.is_some();
            let is_suspect = peer.missed >= MISSES_MAX && !is_dead && (was_heard || !peer.agent_up);
            if is_suspect && peer.silent_since.is_none() {
                peer.silent_since = Some(now);
                self.duty_is_stale = true;
                self.counters.kernels_silent += 1;
                if was_heard {
                    self.event(Event::Silent { host });
                }
            }
            let pace = if is_dead { 2 * interval } else { interval };
            self.watched.insert(host, now + pace);
            self.ask(host);
            if is_suspect {
                self.suspect(now, host);
            }
        }
    }

    fn send(&mut self, to: HostId, body: bytes::Bytes) {
        self.counters.liveness_sent += 1;
        self.outgoing.push_back(Outgoing { to, body });
    }

    fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// The next question to send.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// The next message to send.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is known of a host's kernel; none for hosts that nothing is known of.
    pub fn kernel(&self, host: HostId) -> Option<Kernel> {
        let peer = self.peers.get(host)?;
        Some(match (peer.silent_since, peer.heard_at) {
            (_, heard_at) if peer.is_dead() => Kernel::Dead {
                since: peer.judged_at,
                heard_at,
            },
            (Some(_), heard_at) => Kernel::Silent { heard_at },
            (None, Some(heard_at)) => Kernel::Alive { heard_at },
            (None, None) => Kernel::Unheard,
        })
    }

    /// Whether a host's kernel has answered in its present life: then silence
    /// means something.
    pub fn can_be_asked(&self, host: HostId) -> bool {
        self.peers
            .get(host)
            .is_some_and(|peer| peer.heard_at.is_some())
    }

    /// How many of the POP this host reaches, out of how many, where that was
    /// under half when it was last counted, a moment ago.
    pub fn minority(&self, now: u64) -> Option<(u32, u32)> {
        let reach = self.reach.as_ref()?;
        let is_recent = now < reach.began_at + 2 * self.timing.exchange;
        (is_recent && !reach.is_half()).then_some((reach.reached, reach.of))
    }
}
