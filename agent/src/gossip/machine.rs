//! The gossip protocol of one host, sans-IO: what this host opens and closes,
//! what it hears from others and the time go in; messages to send and sessions
//! whose route changed come out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use homing_common::{host::HostId, session::SessionId};

use super::{
    agenda::Agenda,
    bulk::Bulks,
    claims::{Claim, Claims},
    core::{Core, HEARTBEAT, Peer},
    doubles::Doubles,
    latency::Latency,
    log::Log,
    out::Out,
    provisional::Provisionals,
    pulls::Pulls,
    relay::Relay,
    replica::Phase,
    serving::Servings,
    tally::Tally,
    targets::Targets,
};
pub use super::{
    core::{Outgoing, Settings},
    view::{Counters, Note, Origin, Owner, Progress},
};
use crate::pop::{MS, Member, SECOND, Stream};

/// What takes longer than this from its opening to its entry here tells of clocks that
/// differ, not of gossip.
pub(super) const CLOCKS_MAX: u64 = 600 * SECOND;

/// Gossip as one host does it.
pub struct Gossip {
    pub(super) core: Core,
    pub(super) peers: BTreeMap<HostId, Peer>,
    pub(super) relay: Relay,
    /// Whom batches go to; none while it must be made anew.
    pub(super) targets: Option<Targets>,
    doubles: Doubles,
    pub(super) flushed_at: Option<u64>,
    /// The next heartbeat after a batch, and the time from that to the next.
    pub(super) quick: Option<(u64, u64)>,
    /// When the whole POP gets a heartbeat next.
    pub(super) heartbeat_at: u64,
    /// Heartbeats to other domains so far: relays take turns with them.
    pub(super) beats: usize,
    pub(super) agenda: Agenda,
    /// A host that is down here and seems to be up elsewhere.
    pub(super) spoke: Option<HostId>,
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
                provisional: Provisionals::default(),
                dirty: VecDeque::new(),
                taken: 0,
                voids: BTreeSet::new(),
                sweeps: VecDeque::new(),
                pulls: Pulls::default(),
                servings: Servings::default(),
                out: Out::default(),
                bulks: Bulks::new(settings.first_bulk),
                near_interval: HEARTBEAT,
                relay_delay: 0,
                flush_at: None,
                notes: VecDeque::new(),
                fresh: Vec::new(),
                conflicts: VecDeque::new(),
                latency: Latency::default(),
                counters: Counters::default(),
                settings,
            },
            peers: BTreeMap::new(),
            relay: Relay::default(),
            targets: None,
            doubles: Doubles::default(),
            flushed_at: None,
            quick: None,
            heartbeat_at: now,
            beats: 0,
            agenda: Agenda::default(),
            spoke: None,
        };
        for (id, host) in adopted {
            gossip.adopt(now, id, host);
        }
        gossip
    }

    /// Keeps the claims of hosts that go down from now on for so long.
    pub fn set_void_after(&mut self, void_after: Duration) {
        self.core.settings.void_after = void_after;
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
                peer.replica.adopted = true;
                peer.replica.tally.add(id, 0);
                self.agenda.plan(host, peer, now);
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
            peer.met = false;
            peer.calls = 0;
            peer.hears_us = false;
            peer.multicast_heard_at = None;
            if !matches!(peer.replica.phase, Phase::Applying(_)) {
                peer.replica.wait(now);
                self.core.pulls.leave(member.host);
            }
        }
        peer.domain = Some(member.domain);
        peer.up = true;
        peer.void_at = None;
        // Says hello at once: that opens windows at the seal.
        peer.heartbeat_at = now;
        self.agenda.plan(member.host, peer, now);
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
            self.core.pulls.leave(host);
            self.agenda.plan(host, peer, now);
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
            if matches!(peer.replica.phase, Phase::Pulling(_) | Phase::Queued) {
                peer.replica.wait(now);
                self.core.pulls.leave(host);
            }
            self.agenda.plan(host, peer, now);
            self.targets = None;
        }
    }

    /// A session was opened on this host, at a time of `CLOCK_REALTIME`.
    pub fn open(&mut self, now: u64, id: SessionId, generation: u16, at_us: u64) {
        self.core.log.open(id, generation, at_us);
        self.core.counters.opened_here += 1;
        if self.core.claims.owner(id).is_some() || self.core.provisional.remove(id, None) {
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

    /// When [`Gossip::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        let flush_at = self.core.flush_at.unwrap_or(u64::MAX);
        let quick_at = self.quick.map_or(u64::MAX, |(at, _)| at);
        let pull_at = if self.core.pulls.is_due() {
            0
        } else {
            u64::MAX
        };
        flush_at
            .min(quick_at)
            .min(pull_at)
            .min(self.heartbeat_at)
            .min(self.relay.next_time())
            .min(self.agenda.next_time())
            .min(self.core.provisional.next_time())
            .min(self.core.servings.next_time())
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        while let Some(id) = self.core.provisional.due(now) {
            self.core.dirty.push_back(id);
        }
        if self.core.flush_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
        if let Some((at, step)) = self.quick
            && at <= now
        {
            self.quick = (2 * step < HEARTBEAT).then_some((now + 2 * step, 2 * step));
            self.beat(now);
        }
        if self.heartbeat_at <= now {
            // Announcements that are still to be sent go first.
            self.heartbeat_at = match self.beat(now) {
                true => now + HEARTBEAT,
                false => self.core.flush_at.unwrap_or(now + MS),
            };
            self.core.log.forget_snapshot(now);
            self.doubles.look(now, &mut self.core);
        }
        if self.relay.next_time() <= now {
            self.pass_on(now);
        }
        for host in self.agenda.take(now, &mut self.peers) {
            self.tend(now, host);
        }
        while let Some(host) = self.core.pulls.next() {
            self.begin_pull(now, host);
        }
        self.core.serve(now);
    }

    /// Does what is due for a peer.
    fn tend(&mut self, now: u64, host: HostId) {
        if let Some(peer) = self.peers.get_mut(&host) {
            let next = self.core.tend(now, host, peer);
            self.agenda.plan(host, peer, next);
        }
    }

    /// A host's turn to be pulled from has come.
    fn begin_pull(&mut self, now: u64, host: HostId) {
        match self.peers.get_mut(&host).map(|peer| &mut peer.replica) {
            Some(replica) if matches!(replica.phase, Phase::Queued) => {
                replica.wait(now);
                self.tend(now, host);
            }
            // It went, or began another life, while it stood in the queue.
            _ => self.core.pulls.leave(host),
        }
    }

    /// The next message to send.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.core.out.pop()
    }

    /// Whether there is a message to send.
    pub fn has_outgoing(&self) -> bool {
        !self.core.out.is_empty()
    }

    /// Messages had to wait, because a host may send only so many a second.
    pub fn note_waiting(&mut self) {
        self.core.counters.send_waits += 1;
    }

    /// The next host whose claims were voided: all routes to it are over. To be asked
    /// before routes are taken, since the host may come back with new ones.
    pub fn poll_void(&mut self) -> Option<HostId> {
        self.core.voids.pop_first()
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
            None => {
                let claimed = self.core.claims.owner(id);
                claimed
                    .or_else(|| self.core.provisional.get(id))
                    .map(Owner::Other)
            }
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
            match wall_us.checked_sub(opened_us) {
                Some(latency) if latency <= CLOCKS_MAX => self.core.latency.record(latency),
                _ => self.core.counters.clock_differs += 1,
            }
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
                Phase::Waiting { .. } | Phase::Queued => Progress::Waiting,
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
