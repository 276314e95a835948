//! The gossip protocol of one host, sans-IO: what this host opens and closes,
//! what it hears from others and the time go in; messages to send and sessions
//! whose route changed come out.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use homing_common::{host::HostId, session::SessionId};

use super::{
    claims::{Claim, Claims},
    core::{Core, HEARTBEAT, Peer},
    doubles::Doubles,
    latency::Latency,
    log::Log,
    replica::Phase,
    tally::Tally,
};
pub use super::{
    core::{Outgoing, Settings},
    view::{Counters, Note, Origin, Owner, Progress},
};
use crate::pop::{MS, Member, Stream, seal::To};

/// After a batch the next one waits this long, for more to come together.
const FLUSH_INTERVAL: u64 = 200;
/// Each host that batches are sent to adds this much to that, so that the rate
/// of datagrams stays bounded however many there are.
const FLUSH_INTERVAL_PER_TARGET: u64 = 10;
/// The most batches that go out at once: some 500 announcements.
const FLUSH_BATCHES: usize = 4;
/// After the last batch a heartbeat follows this soon, then again after twice the
/// time, and so on: it shows receivers what they missed of the end.
const QUICK_HEARTBEAT: u64 = 20 * MS;

/// Gossip as one host does it.
pub struct Gossip {
    pub(super) core: Core,
    pub(super) peers: BTreeMap<HostId, Peer>,
    /// Whom batches go to; none while it must be made anew.
    pub(super) targets: Option<Vec<To>>,
    doubles: Doubles,
    flush_at: Option<u64>,
    flushed_at: Option<u64>,
    /// The next heartbeat after a batch, and the time from that to the next.
    quick: Option<(u64, u64)>,
    multicast_heartbeat_at: u64,
    /// When a peer needs tending next, at the earliest.
    pub(super) tend_at: u64,
}

impl Gossip {
    /// Gossip that begins with the sessions of this host, and with what its
    /// kernel was last told of other hosts' sessions (from the agent's life
    /// before): these count as claims until their host is heard, or voided.
    pub fn new(
        now: u64,
        wall_us: u64,
        settings: Settings,
        sessions: impl Iterator<Item = (SessionId, u16)>,
        adopted: impl Iterator<Item = (SessionId, HostId)>,
    ) -> Self {
        let mut gossip = Self {
            core: Core {
                log: Log::new(wall_us, sessions),
                claims: Claims::new(settings.claims_max),
                dirty: VecDeque::new(),
                taken: 0,
                sweeps: VecDeque::new(),
                out: VecDeque::new(),
                notes: VecDeque::new(),
                fresh: Vec::new(),
                conflicts: VecDeque::new(),
                latency: Latency::default(),
                counters: Counters::default(),
                settings,
            },
            peers: BTreeMap::new(),
            targets: None,
            doubles: Doubles::default(),
            flush_at: None,
            flushed_at: None,
            quick: None,
            multicast_heartbeat_at: now,
            tend_at: now,
        };
        for (id, host) in adopted {
            gossip.adopt(now, id, host);
        }
        gossip
    }

    fn adopt(&mut self, now: u64, id: SessionId, host: HostId) {
        let void_after = self.core.settings.void_after.as_micros() as u64;
        let is_foreign = host != self.core.settings.host && HostId::try_from(host.0).is_ok();
        if is_foreign && !self.core.log.is_live(id) {
            let peer = self.peers.entry(host).or_insert_with(|| Peer {
                void_at: Some(now + void_after),
                ..Peer::new(now)
            });
            let inserted = self.core.claims.insert(id, host, 0, peer.replica.epoch);
            if inserted.is_ok_and(|inserted| inserted.previous.is_none()) {
                peer.replica.tally.add(id, 0);
                return;
            }
        }
        // What cannot be a claim must go from the kernel's table too.
        self.core.dirty.push_back(id);
    }

    /// Begins another life of this host. The log goes on.
    pub fn restart(&mut self, stream: Stream) {
        self.core.settings.stream = stream;
    }

    /// A member is up, perhaps in a later life than before.
    pub fn member_up(&mut self, now: u64, member: &Member) {
        let peer = self
            .peers
            .entry(member.host)
            .or_insert_with(|| Peer::new(now));
        let known = peer.stream.incarnation.max(peer.replica.stream.incarnation);
        if known != 0 && known != member.stream.incarnation {
            // Its kernel began anew: the sessions of before are gone.
            self.core.void(now, member.host, peer);
            peer.dead = false;
        }
        peer.voided = peer.dead;
        if peer.stream != member.stream {
            peer.stream = member.stream;
            peer.hears_us = false;
            peer.multicast_heard_at = None;
            if !matches!(peer.replica.phase, Phase::Applying(_)) {
                peer.replica.wait(now);
            }
        }
        peer.domain = Some(member.domain);
        peer.up = true;
        peer.void_at = None;
        // Says hello at once: that opens windows at the seal.
        peer.heartbeat_at = now;
        self.tend_at = now;
        self.targets = None;
    }

    /// A member's agent stopped answering. Its claims stand until its kernel is
    /// found dead, or for `void_after` where the kernel cannot be asked.
    pub fn member_down(&mut self, now: u64, host: HostId, can_be_asked: bool) {
        let keep = self.core.settings.void_after;
        self.member_gone(now, host, (!can_be_asked).then_some(keep));
    }

    /// The kernel of a member whose agent is down can be asked after all.
    pub fn kernel_answers(&mut self, host: HostId) {
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.void_at = None;
        }
    }

    /// A host's kernel is dead: its claims are void.
    pub fn kernel_dead(&mut self, now: u64, host: HostId) {
        if let Some(peer) = self.peers.get_mut(&host) {
            self.core.void(now, host, peer);
            peer.dead = true;
        }
    }

    /// A host's kernel was taken for dead and is not: its claims may be asked for
    /// from this time on.
    pub fn kernel_back(&mut self, now: u64, host: HostId, from: u64) {
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.dead = false;
            peer.voided = false;
            peer.replica.wait(from);
            self.tend_at = now;
        }
    }

    /// A member left, and wants its claims kept for so long.
    pub fn member_left(&mut self, now: u64, host: HostId, hold: Duration) {
        let keep = hold.min(self.core.settings.void_after);
        self.member_gone(now, host, Some(keep));
    }

    fn member_gone(&mut self, now: u64, host: HostId, keep: Option<Duration>) {
        if let Some(peer) = self.peers.get_mut(&host) {
            peer.up = false;
            let keep = keep.filter(|_| !peer.voided);
            peer.void_at = keep.map(|keep| now.saturating_add(keep.as_micros() as u64));
            if matches!(peer.replica.phase, Phase::Pulling(_)) {
                peer.replica.wait(now);
            }
            self.tend_at = now;
            self.targets = None;
        }
    }

    /// A session was opened on this host, at a time of `CLOCK_REALTIME`.
    pub fn open(&mut self, now: u64, id: SessionId, generation: u16, at_us: u64) {
        self.core.log.open(id, generation, at_us);
        self.core.counters.opened_here += 1;
        if self.core.claims.owner(id).is_some() {
            self.core.dirty.push_back(id);
            self.core.follow_conflict(id);
        }
        self.plan_flush(now);
    }

    /// A session of this host was closed, at a time of `CLOCK_REALTIME`.
    pub fn close(&mut self, now: u64, id: SessionId, at_us: u64) {
        if !self.core.log.close(id, at_us) {
            self.core.counters.unknown_closed_here += 1;
            return;
        }
        self.core.counters.closed_here += 1;
        if self.core.claims.owner(id).is_some() {
            self.core.dirty.push_back(id);
        }
        self.plan_flush(now);
    }

    fn plan_flush(&mut self, now: u64) {
        if self.flush_at.is_none() {
            let free_at = self.flushed_at.map_or(0, |at| at + self.flush_interval());
            self.flush_at = Some(now.max(free_at));
        }
    }

    fn flush_interval(&mut self) -> u64 {
        let targets = self.targets().len() as u64;
        FLUSH_INTERVAL.max(FLUSH_INTERVAL_PER_TARGET * targets)
    }

    /// When [`Gossip::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        let flush_at = self.flush_at.unwrap_or(u64::MAX);
        let quick_at = self.quick.map_or(u64::MAX, |(at, _)| at);
        let multicast_at = if self.core.settings.multicast {
            self.multicast_heartbeat_at
        } else {
            u64::MAX
        };
        flush_at.min(quick_at).min(multicast_at).min(self.tend_at)
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
        if let Some((at, step)) = self.quick
            && at <= now
        {
            self.quick = (2 * step < HEARTBEAT).then_some((now + 2 * step, 2 * step));
            let targets = self.targets().to_vec();
            self.core.heartbeat(&targets, false);
        }
        if self.core.settings.multicast && self.multicast_heartbeat_at <= now {
            self.multicast_heartbeat_at = now + HEARTBEAT;
            if self.targets().first() == Some(&To::Domain) {
                self.core.heartbeat(&[To::Domain], false);
            }
            self.core.log.forget_snapshot(now);
        }
        if self.tend_at <= now {
            self.doubles.look(now, &mut self.core);
            let mut syncing = self
                .peers
                .values()
                .filter(|p| p.replica.is_syncing())
                .count();
            self.tend_at = now + HEARTBEAT;
            for (&host, peer) in &mut self.peers {
                let next = self.core.tend(now, host, peer, &mut syncing);
                self.tend_at = self.tend_at.min(next);
            }
        }
    }

    /// Sends what was not sent yet, up to a limit.
    fn flush(&mut self, now: u64) {
        self.flush_at = None;
        self.flushed_at = Some(now);
        let targets = self.targets().to_vec();
        if targets.is_empty() {
            // Whoever joins later pulls a snapshot.
            self.core.log.skip_unsent();
            return;
        }
        let extra = targets.len().saturating_sub(1) as u64;
        for _ in 0..FLUSH_BATCHES {
            let Some(batch) = self.core.log.take_batch() else {
                break;
            };
            self.core.counters.batches_sent += 1;
            if targets[0] == To::Domain {
                self.core.counters.multicast_unheard += extra - self.foreign_targets(&targets);
            }
            self.core.send(&targets, batch);
        }
        if self.core.log.unsent() > 0 {
            self.flush_at = Some(now + self.flush_interval());
        }
        self.quick = Some((now + QUICK_HEARTBEAT, QUICK_HEARTBEAT));
    }

    fn foreign_targets(&self, targets: &[To]) -> u64 {
        let domain = Some(self.core.settings.domain);
        let is_foreign = |to: &&To| match to {
            To::Host(host) => self.peers.get(host).is_some_and(|p| p.domain != domain),
            To::Domain => false,
        };
        targets.iter().filter(is_foreign).count() as u64
    }

    /// Whom batches go to: the multicast group first, if anyone is in it, then
    /// everyone who does not hear it.
    fn targets(&mut self) -> &[To] {
        let settings = &self.core.settings;
        self.targets.get_or_insert_with(|| {
            let mut targets = Vec::new();
            for (&host, peer) in self.peers.iter().filter(|(_, peer)| peer.up) {
                let is_near = settings.multicast && peer.domain == Some(settings.domain);
                if is_near && targets.first() != Some(&To::Domain) {
                    targets.insert(0, To::Domain);
                }
                if !(is_near && peer.hears_us) {
                    targets.push(To::Host(host));
                }
            }
            targets
        })
    }

    /// The next message to send.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.core.out.pop_front()
    }

    /// The next session whose route may have changed, and the host to send its
    /// packets to: none for a session of this host and for one that nobody owns.
    pub fn poll_route(&mut self) -> Option<(SessionId, Option<HostId>)> {
        let id = self.core.dirty.pop_front()?;
        self.core.taken += 1;
        Some((id, self.route(id)))
    }

    /// Whether the sweep of some host's voided claims has ended since this was
    /// last asked.
    pub fn take_swept(&mut self) -> bool {
        let before = self.core.sweeps.len();
        while self
            .core
            .sweeps
            .front()
            .is_some_and(|&end| end <= self.core.taken)
        {
            self.core.sweeps.pop_front();
        }
        self.core.sweeps.len() < before
    }

    /// How many sessions' routes may have changed.
    pub fn routes_waiting(&self) -> usize {
        self.core.dirty.len()
    }

    /// Where a session's packets are to be sent, if to another host.
    pub fn route(&self, id: SessionId) -> Option<HostId> {
        match self.owner(id) {
            Some(Owner::Other(claim)) => Some(claim.host),
            Some(Owner::Here(_)) | None => None,
        }
    }

    /// Who owns a session.
    pub fn owner(&self, id: SessionId) -> Option<Owner> {
        match self.core.log.generation(id) {
            Some(generation) => Some(Owner::Here(generation)),
            None => self.core.claims.owner(id).map(Owner::Other),
        }
    }

    /// All claims of other hosts to a session, the strongest first.
    pub fn claims(&self, id: SessionId) -> Vec<Claim> {
        self.core.claims.of(id)
    }

    /// A session that two hosts have claimed for long, if there is one.
    pub fn doubled(&self, now: u64) -> Option<SessionId> {
        self.doubles.lasting(now)
    }

    /// Sessions that other hosts claim.
    pub fn claimed(&self) -> usize {
        self.core.claims.len()
    }

    /// What the sessions of this host amount to.
    pub fn tally(&self) -> Tally {
        self.core.log.tally()
    }

    /// The last announcement of this host.
    pub fn announced(&self) -> u64 {
        self.core.log.next() - 1
    }

    /// All routes that follow from what was just heard are in force, at a time
    /// of `CLOCK_REALTIME`.
    pub fn routes_applied(&mut self, wall_us: u64) {
        for opened_us in self.core.fresh.drain(..) {
            if opened_us > wall_us {
                self.core.counters.clock_differs += 1;
            }
            self.core.latency.record(wall_us.saturating_sub(opened_us));
        }
    }

    /// The next note.
    pub fn poll_note(&mut self) -> Option<Note> {
        self.core.notes.pop_front()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// From a session's opening at its owner to its route's being in force here.
    pub fn latency(&self) -> &Latency {
        &self.core.latency
    }

    /// Other hosts with claims, or whose claims are followed.
    pub fn origins(&self) -> impl Iterator<Item = Origin> {
        self.peers.iter().map(|(&host, peer)| Origin {
            host,
            stream: peer.replica.stream,
            progress: match peer.replica.phase {
                Phase::Waiting { .. } => Progress::Waiting,
                Phase::Pulling(_) | Phase::Applying(_) => Progress::Syncing,
                Phase::Following => match peer.replica.missing() {
                    0 => Progress::Following,
                    missing => Progress::Gap { missing },
                },
            },
            applied: peer.replica.next - 1,
            tally: peer.replica.tally,
            incomplete: peer.replica.incomplete,
            hears_us: peer.hears_us,
            void_at: peer.void_at,
            voided: peer.voided,
            sweeping: self.core.taken < peer.sweep_end,
        })
    }
}

#[cfg(test)]
impl Gossip {
    pub(super) fn corrupt_for_test(&mut self, host: HostId, id: SessionId) {
        if let Some(removed) = self.core.claims.remove(id, host)
            && let Some(peer) = self.peers.get_mut(&host)
        {
            peer.replica.tally.remove(id, removed.generation);
            self.core.dirty.push_back(id);
        }
    }
}
