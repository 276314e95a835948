//! What gossip knows and what it does for one peer at a time: heartbeats, pulls,
//! repairs, and the end of claims.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use homing_common::{host::HostId, session::SessionId};

use super::{
    bulk::Bulks,
    claims::Claims,
    latency::Latency,
    log::Log,
    out::Out,
    provisional::Provisionals,
    pulls::Pulls,
    relay::Source,
    replica::{GapStep, Phase, PullStep, Replica},
    serving::Servings,
    view::{Counters, Note},
    wire::{self, PassOn},
};
use crate::pop::{Domain, MS, SECOND, Stream, seal::To};

/// The POP gets a heartbeat this often.
pub(super) const HEARTBEAT: u64 = SECOND;
/// Hosts of this domain get one of their own this much apart, one after the other.
pub(super) const HEARTBEAT_SPACING: u64 = 20 * MS;
/// A host that was not heard yet gets its next heartbeat after this time, then after
/// twice that and so on, up to [`HEARTBEAT`].
const CALL_AGAIN: u64 = 30 * MS;
/// A host whose multicast was not heard for this long is told so.
const MULTICAST_SILENCE: u64 = 3 * SECOND + SECOND / 2;
/// How often it is looked whether the sweep that a pull waits for is over.
const SWEEP_LOOK: u64 = 10 * MS;
/// Notes that wait to be taken; more are counted and dropped.
const NOTES_MAX: usize = 256;

/// How one host gossips.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// Its domain.
    pub domain: Domain,
    /// The present life of its agent.
    pub stream: Stream,
    /// Whether its domain has a multicast group.
    pub multicast: bool,
    /// How long the claims of a host that is down are kept.
    pub void_after: Duration,
    /// Sessions of other hosts that are remembered at most.
    pub claims_max: usize,
    /// The number of the first bulk message: another one in each life, so that no answer
    /// to an earlier one is taken for one to this.
    pub first_bulk: u64,
}

/// A message to be sealed and sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// To whom.
    pub to: To,
    /// Its body.
    pub body: Bytes,
}

/// All but the peers, so that a peer and this can be changed together.
pub(super) struct Core {
    pub settings: Settings,
    pub log: Log,
    pub claims: Claims,
    pub provisional: Provisionals,
    /// Sessions whose route may have changed.
    pub dirty: VecDeque<SessionId>,
    /// How many were taken from it so far.
    pub taken: u64,
    /// Hosts whose claims were voided since routes were last taken.
    pub voids: BTreeSet<HostId>,
    /// Sweeps of voided claims whose routes are still being taken, each by the
    /// number at which it is over.
    pub sweeps: VecDeque<u64>,
    pub pulls: Pulls,
    pub servings: Servings,
    pub out: Out,
    pub bulks: Bulks,
    /// When announcements go out next.
    pub flush_at: Option<u64>,
    /// How often a host of this domain gets a heartbeat of its own.
    pub near_interval: u64,
    /// How long what comes by relays may be late.
    pub relay_delay: u64,
    pub notes: VecDeque<Note>,
    /// When the batches that were just applied were opened.
    pub fresh: Vec<u64>,
    /// Some sessions of this host that other hosts claim, or did.
    pub conflicts: VecDeque<SessionId>,
    pub latency: Latency,
    pub counters: Counters,
}

pub(super) struct Peer {
    pub domain: Option<Domain>,
    /// Its present life, by membership.
    pub stream: Stream,
    pub up: bool,
    pub void_at: Option<u64>,
    /// Its claims were voided, and it has not come up since.
    pub voided: bool,
    /// Its kernel is dead: nothing is asked of it.
    pub dead: bool,
    /// When the sweep of its voided claims is over, as [`Core::taken`] counts.
    pub sweep_end: u64,
    /// It has sent something to this host alone: it knows it, and lets its carriers in.
    pub met: bool,
    /// How often it was called without that.
    pub calls: u32,
    pub hears_us: bool,
    pub multicast_heard_at: Option<u64>,
    pub heartbeat_at: u64,
    /// When it needs tending next.
    pub tend_at: u64,
    pub replica: Replica,
}

impl Peer {
    pub fn new(now: u64) -> Self {
        Self {
            domain: None,
            stream: Stream::default(),
            up: false,
            void_at: None,
            voided: false,
            dead: false,
            sweep_end: 0,
            met: false,
            calls: 0,
            hears_us: false,
            multicast_heard_at: None,
            heartbeat_at: now,
            tend_at: u64::MAX,
            replica: Replica::new(now),
        }
    }

    /// The host in its present life.
    pub fn source(&self, host: HostId) -> Source {
        Source {
            host,
            tag: wire::life_tag(self.stream),
        }
    }
}

impl Core {
    /// Does what is due for one peer, and says when the next thing is.
    pub fn tend(&mut self, now: u64, host: HostId, peer: &mut Peer) -> u64 {
        if peer.void_at.is_some_and(|at| at <= now) {
            self.void(now, host, peer);
        }
        let mut next = peer.void_at.unwrap_or(u64::MAX);
        if peer.up {
            if peer.heartbeat_at <= now {
                let hears = peer
                    .multicast_heard_at
                    .is_some_and(|at| now < at + MULTICAST_SILENCE);
                let sent = self.heartbeat(&[To::Host(host)], hears, !peer.met, PassOn::No);
                peer.heartbeat_at = match sent {
                    false => self.flush_at.unwrap_or(now + MS),
                    true if !peer.met => {
                        let wait = CALL_AGAIN << peer.calls.min(8);
                        peer.calls += 1;
                        now + wait.min(HEARTBEAT)
                    }
                    true if peer.domain == Some(self.settings.domain) => now + self.near_interval,
                    // From then on it hears of this host by the relays there.
                    true => u64::MAX,
                };
            }
            next = next.min(peer.heartbeat_at);
        }
        next.min(self.tend_replica(now, host, peer))
    }

    fn tend_replica(&mut self, now: u64, host: HostId, peer: &mut Peer) -> u64 {
        let replica = &mut peer.replica;
        if let Phase::Waiting { from } = replica.phase {
            let later = if !peer.up || peer.dead || !peer.met {
                Some(u64::MAX)
            } else if now < from {
                Some(from)
            } else if self.taken < peer.sweep_end {
                // Claims of a later life wait until routes to the earlier one are
                // gone.
                Some(now + SWEEP_LOOK)
            } else {
                None
            };
            if let Some(later) = later {
                self.pulls.leave(host);
                return later;
            }
            if !self.pulls.enter(host) {
                replica.phase = Phase::Queued;
                return u64::MAX;
            }
            if replica.stream != peer.stream {
                replica.stream = peer.stream;
                replica.next = 1;
            }
            self.pull(now, host, replica);
        }
        match &mut replica.phase {
            Phase::Waiting { .. } | Phase::Queued => u64::MAX,
            Phase::Pulling(pull) => match pull.step(now) {
                PullStep::Wait(until) => until,
                PullStep::Stalled(until) => {
                    self.pulls.leave(host);
                    until
                }
                PullStep::GiveUp => self.pull_failed(now, host, replica),
            },
            Phase::Applying(_) => {
                self.apply_slice(now, host, peer);
                now
            }
            Phase::Following => {
                let first = replica.pending.first();
                let Some(gap) = &mut replica.gap else {
                    return u64::MAX;
                };
                match gap.step(now, first) {
                    GapStep::Wait(until) => until,
                    GapStep::Ask(to) => {
                        self.counters.repairs_asked += 1;
                        let body = wire::encode_repair(replica.stream, replica.next, to);
                        self.send(&[To::Host(host)], body);
                        match gap.step(now, first) {
                            GapStep::Wait(until) => until,
                            _ => now,
                        }
                    }
                    GapStep::GiveUp => {
                        replica.wait(now);
                        now
                    }
                }
            }
        }
    }

    /// Sends heartbeats, unless some announcements are still to be sent: what a
    /// heartbeat says must not be ahead of what was sent.
    pub fn heartbeat(&mut self, to: &[To], hears: bool, calls: bool, pass_on: PassOn) -> bool {
        if self.log.unsent() > 0 {
            return false;
        }
        self.counters.heartbeats_sent += to.len() as u64;
        let mut body = self.log.heartbeat(hears, calls).encode();
        pass_on.put(&mut body);
        self.send(to, body);
        true
    }

    /// Removes all claims of a host, and what is known of its log.
    pub fn void(&mut self, now: u64, host: HostId, peer: &mut Peer) {
        let claims = peer.replica.tally.count;
        let before = self.dirty.len();
        self.claims.sweep(host, None, |id| self.dirty.push_back(id));
        self.provisional.sweep(host, |id| self.dirty.push_back(id));
        peer.replica = Replica::new(now);
        self.pulls.leave(host);
        peer.void_at = None;
        if self.dirty.len() > before {
            self.voids.insert(host);
            peer.sweep_end = self.taken + self.dirty.len() as u64;
            self.sweeps.push_back(peer.sweep_end);
        }
        if claims > 0 {
            self.counters.voided_hosts += 1;
            self.counters.voided_claims += claims;
        }
        if claims > 0 || !peer.voided {
            self.note(Note::Voided { host, claims });
        }
        peer.voided = true;
    }

    pub fn send(&mut self, to: &[To], body: Vec<u8>) {
        let body = Bytes::from(body);
        for &to in to {
            let body = body.clone();
            self.out.push(Outgoing { to, body });
        }
    }

    /// Sends the answer to a request, after all else. Says whether there was room.
    pub fn answer(&mut self, to: HostId, body: Vec<u8>) -> bool {
        let (to, body) = (To::Host(to), Bytes::from(body));
        let sent = self.out.push_answer(Outgoing { to, body });
        self.counters.answers_refused += u64::from(!sent);
        sent
    }

    pub fn note(&mut self, note: Note) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push_back(note);
        } else {
            self.counters.notes_dropped += 1;
        }
    }
}
