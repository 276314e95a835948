//! One host's seal, membership and gossip in one sans-IO machine: datagrams,
//! local sessions and the time go in; datagrams, routes and notes come out.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use homing_common::{echo::Echo, host::HostId, session::SessionId};

pub use super::note::{Destination, Note, Transmit};
use super::{
    alerts::{Alert, Alerts},
    ask::{self, Asks},
    asking,
    bulk::Bulk,
    core::Outgoing,
    handle::Tunables,
    machine::{self, Gossip},
    pacer::Pacer,
};
use crate::pop::{
    Domain, Member, Stream,
    keys::Keys,
    liveness::{self, Liveness, Minded},
    membership::{self, Contest, Membership, Seed},
    seal::{self, Channel, Received, Seal, To},
};

/// Everything a node begins with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This host as it announces itself.
    pub me: Member,
    /// Whom to join.
    pub seeds: Vec<Seed>,
    /// The POP's keys.
    pub keys: Keys,
    /// Whether the domain has a multicast group.
    pub multicast: bool,
    /// How long the claims of a host are kept whose agent is down and whose kernel
    /// cannot be asked.
    pub void_after: Duration,
    /// Within this time of a kernel's end its claims are void.
    pub kernel_dead_after: Duration,
    /// Sessions of other hosts that are remembered at most.
    pub claims_max: usize,
    /// Random bytes, new for each process.
    pub random: [u8; 32],
}

/// One host.
pub struct Node {
    pub(super) seal: Seal,
    pub(super) membership: Membership,
    pub(super) liveness: Liveness,
    pub(super) gossip: Gossip,
    pub(super) asks: Asks,
    /// Sessions whose owner is known but whose packets were parked. Each is taken
    /// out when its route is put in force, which comes next.
    pub(super) wanted: BTreeSet<SessionId>,
    /// When asks hear next how gossip sees the POP.
    pub(super) audience_at: u64,
    /// Before this time a host that knows nobody may not have been heard yet.
    pub(super) joining_until: u64,
    pacer: Pacer,
    transmits: VecDeque<Transmit>,
    pub(super) notes: VecDeque<Note>,
    pub(super) alerts: Alerts,
    /// Grows whenever the views of hosts may have changed.
    pub(super) hosts_version: u64,
}

impl Node {
    /// A host that is about to join, with the sessions it has, and the routes that
    /// its kernel holds from the agent's life before.
    pub fn new(
        now: u64,
        wall_us: u64,
        config: Config,
        sessions: impl Iterator<Item = (SessionId, u16)>,
        routes: impl Iterator<Item = (SessionId, HostId)>,
    ) -> Self {
        let me = config.me;
        let secret = blake3::derive_key("homing v1 2026 nonces", &config.random);
        let identity = seal::Identity {
            host: me.host,
            stream: me.stream,
            address: me.address,
        };
        let settings = machine::Settings {
            host: me.host,
            domain: me.domain,
            stream: me.stream,
            multicast: config.multicast,
            void_after: config.void_after,
            claims_max: config.claims_max,
            first_bulk: u64::from_be_bytes(std::array::from_fn(|n| config.random[8 + n])),
        };
        let listener = liveness::Settings {
            host: me.host,
            address: me.address,
            domain: me.domain,
            keys: config.keys.echo,
            dead_after: config.kernel_dead_after,
        };
        let random = blake3::derive_key("homing v1 2026 liveness", &config.random);
        let asks = ask::Settings {
            host: me.host,
            keys: config.keys.session,
            key_ids: config.keys.session_ids,
            first: u64::from_be_bytes(std::array::from_fn(|n| config.random[n])),
        };
        let joining = if config.seeds.is_empty() {
            0
        } else {
            asking::JOINING
        };
        Self {
            seal: Seal::new(config.keys, identity, secret),
            liveness: Liveness::new(now, me.stream.incarnation, listener, random),
            membership: Membership::new(now, me, config.seeds, config.random),
            gossip: Gossip::new(now, wall_us, settings, sessions, routes),
            asks: Asks::new(asks),
            wanted: BTreeSet::new(),
            audience_at: now,
            joining_until: now + joining,
            pacer: Pacer::new(now),
            transmits: VecDeque::new(),
            notes: VecDeque::new(),
            alerts: Alerts::default(),
            hosts_version: 0,
        }
    }

    /// Hears a datagram that came from an address.
    pub fn receive(&mut self, now: u64, from: SocketAddr, datagram: &[u8]) {
        if datagram.starts_with(&Echo::MAGIC) {
            self.liveness.echo(now, from, datagram);
            return self.settle(now);
        }
        let strangers = self.strangers();
        match self.seal.open(now, from, datagram) {
            Err(seal::Dropped) => {
                if self.strangers() > strangers {
                    self.alerts.raise(now, Alert::Stranger { from });
                    self.notes.push_back(Note::Stranger { from });
                }
                return;
            }
            Ok(Received::Message {
                origin,
                stream,
                channel,
                multicast,
                body,
            }) => {
                self.liveness.agent_heard(now, origin, stream.incarnation);
                if channel != Channel::Membership {
                    self.membership.meet(now, origin, stream, from);
                }
                match channel {
                    Channel::Membership => self.membership.receive(now, origin, stream, body),
                    Channel::Gossip => {
                        self.gossip.receive(now, origin, stream, multicast, body);
                        if let Some(host) = self.gossip.take_spoke() {
                            self.membership.call(now, host);
                        }
                    }
                    Channel::Ask => self.asks.receive(now, origin, body),
                    Channel::Liveness => self.liveness.receive(now, origin, body),
                    // The seal keeps its own messages to itself.
                    Channel::Control => {}
                }
            }
            Ok(Received::Reply {
                peer,
                answer,
                bytes,
            }) => {
                self.transmit(from, bytes);
                if answer {
                    self.membership.reachable(now, peer);
                }
            }
            Ok(Received::Opened(peer)) => self.membership.reachable(now, peer),
            Ok(Received::Outdated { above, by }) => {
                self.notes.push_back(Note::Outdated { above, by });
            }
            Ok(Received::InUse { by }) => {
                self.alerts.raise(now, Alert::Refused { by });
                self.notes.push_back(Note::InUse { by });
            }
            Ok(Received::Contested {
                host,
                holder,
                bytes,
            }) => {
                self.transmit(from, bytes);
                let other = from;
                self.contested(
                    now,
                    Contest {
                        host,
                        holder,
                        other,
                    },
                );
            }
            Ok(Received::OwnIdElsewhere) => {
                let me = self.membership.me();
                let (host, one) = (me.host, me.address);
                let other = from;
                self.alerts
                    .raise(now, Alert::TwoMachines { host, one, other });
                self.notes.push_back(Note::OwnIdElsewhere { at: from });
            }
        }
        self.settle(now);
    }

    /// Hears a bulk message of a host in some life, for which whoever carried it vouches.
    pub fn receive_bulk(&mut self, now: u64, from: HostId, stream: Stream, body: &[u8]) {
        self.gossip.receive_bulk(now, from, stream, body);
        self.settle(now);
    }

    /// The fate of a bulk message: the life of its receiver that has it, if that is sure.
    pub fn bulk_told(&mut self, now: u64, to: HostId, number: u64, has: Option<Stream>) {
        self.gossip.bulk_told(now, to, number, has);
        self.settle(now);
    }

    /// The next bulk message to be carried.
    pub fn poll_bulk(&mut self) -> Option<Bulk> {
        self.gossip.poll_bulk()
    }

    fn transmit(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.pacer.charge();
        self.transmits.push_back(Transmit {
            to: Destination::Address(to),
            bytes,
        });
    }

    /// A session was opened on this host, at a time of `CLOCK_REALTIME`. What
    /// follows from it is due at once: call [`Node::on_time`] after a batch of
    /// these.
    pub fn open(&mut self, now: u64, id: SessionId, generation: u16, at_us: u64) {
        self.gossip.open(now, id, generation, at_us);
        self.asks.known(id);
    }

    /// A session of this host was closed.
    pub fn close(&mut self, now: u64, id: SessionId, at_us: u64) {
        self.gossip.close(now, id, at_us);
    }

    /// When [`Node::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        let asks = self.asks.next_time().min(self.audience_at);
        let next = self.gossip.next_time().min(self.liveness.next_time());
        let next = self.membership.next_time().min(next).min(asks);
        if self.gossip.has_outgoing() {
            next.min(self.pacer.next_time())
        } else {
            next
        }
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        if self.membership.next_time() <= now {
            self.membership.on_time(now);
        }
        if self.liveness.next_time() <= now {
            self.liveness.on_time(now);
        }
        if self.gossip.next_time() <= now {
            self.gossip.on_time(now);
        }
        if self.audience_at <= now {
            self.look_around(now);
        }
        self.settle(now);
    }

    /// Tells the POP that this host leaves. Go on as before until
    /// [`Node::has_left`].
    pub fn leave(&mut self, now: u64, hold: Duration) {
        // What is still to be said comes first.
        self.gossip.on_time(now);
        self.settle(now);
        self.membership.leave(now, hold);
        self.settle(now);
    }

    /// Whether all has been said that a leaving host says.
    pub fn has_left(&self) -> bool {
        self.membership.has_left()
    }

    /// Tells the POP whether this host takes new sessions.
    pub fn set_draining(&mut self, now: u64, draining: bool) {
        self.membership.set_draining(now, draining);
        self.settle(now);
    }

    /// Tells the POP of services that message sockets offer here, see
    /// [`Membership::add_offers`].
    pub fn add_offers(&mut self, now: u64, offers: u64) {
        self.membership.add_offers(now, offers);
        self.settle(now);
    }

    /// Goes on with other settings.
    pub fn set(&mut self, now: u64, tunables: Tunables) {
        self.gossip.set_void_after(tunables.void_after);
        self.membership.set_seeds(now, tunables.seeds);
        self.membership.set_services(now, &tunables.services);
        self.settle(now);
    }

    /// Goes on with other keys.
    pub fn rekey(&mut self, keys: Keys) {
        self.liveness.set_keys(keys.echo);
        self.seal.rekey(keys);
    }

    /// Says what of liveness is needed from now on; see [`Liveness::mind`].
    pub fn mind(&mut self, now: u64, minded: Minded) {
        self.liveness.mind(now, minded);
    }

    /// Begins another life of this host.
    pub fn restart(&mut self, now: u64, stream: Stream) {
        self.seal.restart(stream);
        self.membership.restart(now, stream);
        self.liveness.restart(now, stream.incarnation);
        self.gossip.restart(stream);
        self.settle(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next note.
    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    /// The next host that no route leads to any more; see [`Gossip::poll_void`].
    pub fn poll_void(&mut self) -> Option<HostId> {
        self.gossip.poll_void()
    }

    /// The next route to put in force; see [`Gossip::poll_route`].
    pub fn poll_route(&mut self) -> Option<(SessionId, Option<HostId>)> {
        let route = self.gossip.poll_route();
        if self.gossip.take_swept() {
            self.hosts_version += 1;
        }
        let (id, owner) = route?;
        if owner.is_some() && !self.asks.is_idle() {
            self.asks.known(id);
        }
        Some((id, owner))
    }

    /// All routes were put in force, at a time of `CLOCK_REALTIME`.
    pub fn routes_applied(&mut self, wall_us: u64) {
        self.gossip.routes_applied(wall_us);
    }

    /// Gossip.
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    /// Asks.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Membership.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Liveness of kernels.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The seal.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// What happened at the seal.
    pub fn seal_counters(&self) -> &seal::Counters {
        &self.seal.counters
    }

    /// What happened to membership.
    pub fn membership_counters(&self) -> &membership::Counters {
        &self.membership.counters
    }

    /// This host's domain.
    pub fn domain(&self) -> Domain {
        self.membership.me().domain
    }

    /// Changes whenever [`Node::hosts`] may have a new answer for states, lives
    /// and addresses.
    pub fn hosts_version(&self) -> u64 {
        self.hosts_version
    }

    /// Carries changes from membership to gossip, and messages of both through
    /// the seal.
    fn settle(&mut self, now: u64) {
        if let Some((above, by)) = self.membership.take_outdated() {
            self.notes.push_back(Note::Outdated { above, by });
        }
        // What is told of one may lead to the next.
        while let Some(change) = self.membership.take_change() {
            self.changed(now, change);
        }
        if let Some(contest) = self.membership.take_contest() {
            self.contested(now, contest);
        }
        while let Some(event) = self.liveness.poll_event() {
            self.heard(now, event);
        }
        if self.gossip.next_time() <= now {
            self.gossip.on_time(now);
        }
        if self.asks.next_time() <= now {
            self.asks.on_time(now);
        }
        while let Some(claim) = self.asks.poll_claim() {
            self.gossip.provide(now, claim);
        }
        while let Some(out) = self.membership.poll_outgoing() {
            let to = To::Host(out.to);
            let bytes = self.seal.seal(Channel::Membership, to, &out.body);
            self.transmit(out.address, bytes);
        }
        while self.gossip.has_outgoing() {
            if !self.pacer.may_send(now) {
                self.gossip.note_waiting();
                break;
            }
            let Some(out) = self.gossip.poll_outgoing() else {
                break;
            };
            if self.send(Channel::Gossip, &out) {
                self.pacer.charge();
            }
        }
        // Asks bound themselves, and cannot wait.
        while let Some(out) = self.asks.poll_outgoing() {
            self.send(Channel::Ask, &out);
        }
        while let Some(question) = self.liveness.poll_question() {
            self.transmit(question.to, question.bytes.to_vec());
        }
        while let Some(out) = self.liveness.poll_outgoing() {
            let to = To::Host(out.to);
            if self.send(Channel::Liveness, &Outgoing { to, body: out.body }) {
                self.pacer.charge();
            }
        }
        while let Some(note) = self.gossip.poll_note() {
            if let machine::Note::Voided { host, .. } = note {
                self.hosts_version += 1;
                self.voided(now, host);
            }
            self.notes.push_back(Note::Gossip(note));
        }
    }
}

impl Node {
    /// Seals a message. Says whether its receiver is known.
    fn send(&mut self, channel: Channel, out: &Outgoing) -> bool {
        let to = match out.to {
            To::Domain => Destination::Multicast,
            To::Host(host) => match self.membership.entry(host) {
                Some(entry) => Destination::Address(entry.member.address),
                None => return false,
            },
        };
        let bytes = self.seal.seal(channel, out.to, &out.body);
        self.transmits.push_back(Transmit { to, bytes });
        true
    }
}

#[cfg(test)]
impl Node {
    /// Loses a claim without a trace, as a fault in memory would.
    pub(super) fn corrupt_for_test(&mut self, host: HostId, id: SessionId) {
        self.gossip.corrupt_for_test(host, id);
    }
}
