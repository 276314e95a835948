//! Membership: who is in the POP, by SWIM (Das, Gupta, Motivala, 2002), with the
//! library foca behind a narrow sans-IO wrapper.
//!
//! What it promises: a host that stops answering is reported down within about
//! three seconds, everywhere; a host that leaves is reported left, with the time
//! for which its sessions are to be kept, to every member that hears of it at
//! all; a host that comes back in a later life replaces its earlier one, but another
//! machine with its id does not ([`Holder`]). A host that is alone, or that misses
//! seeds, goes on announcing itself.
//!
//! What it does not do: it says whether the *agent* of a host answers. Whether
//! the host's kernel still forwards is another question.

mod absent;
mod codec;
mod holders;
mod joining;
mod library;
mod recall;
mod remembered;
mod view;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, OwnedNotification};
use homing_common::{host::HostId, net::Service};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use self::{
    codec::{Wire, canonical, decode_outdated, encode_outdated, is_announcement},
    holders::Withheld,
    library::{Due, config},
    recall::Recall,
    remembered::Remembered,
};
pub use self::{
    holders::{Contest, Holder},
    view::{Change, Counters, Entry, Outgoing, Seed, State},
};
use super::{MS, Member, Stream};

/// A leaving host says so this many times, [`LEAVE_INTERVAL`] apart.
const LEAVE_ROUNDS: u32 = 3;
const LEAVE_INTERVAL: u64 = 20 * MS;
/// The most timers the library can have set: it sets a few per member.
const TIMERS_MAX: usize = 1 << 16;

/// Membership as one host sees it.
pub struct Membership {
    foca: Foca<Member, Wire, Xoshiro256PlusPlus, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    rng: Xoshiro256PlusPlus,
    me: Member,
    seeds: Vec<Seed>,
    timers: BinaryHeap<Reverse<Due>>,
    timers_set: u64,
    entries: BTreeMap<HostId, Entry>,
    changes: VecDeque<Change>,
    /// Messages that are not the library's.
    outgoing: Vec<Outgoing>,
    outdated: Option<(u64, HostId)>,
    holders: BTreeMap<HostId, Holder>,
    contest: Option<Contest>,
    withheld: BTreeMap<HostId, Withheld>,
    /// The last host that was told of as absent: the next answer goes on behind it.
    absent_told: HostId,
    remembered: Remembered,
    recall: Recall,
    announce_at: u64,
    rounds: u32,
    /// Hosts that are not known to be up and were heard, and when they were spoken
    /// to.
    spoken_to: BTreeMap<HostId, u64>,
    leave: Option<Leave>,
    /// What happened so far.
    pub counters: Counters,
}

struct Leave {
    rounds: u32,
    next_at: u64,
}

impl Membership {
    /// A host that is about to join. `random` seeds its choices.
    pub fn new(now: u64, me: Member, seeds: Vec<Seed>, random: [u8; 32]) -> Self {
        let me = canonical(me);
        let mut rng = Xoshiro256PlusPlus::from_seed(random);
        let library_rng = Xoshiro256PlusPlus::seed_from_u64(rng.random());
        Self {
            foca: Foca::new(me, config(), library_rng, Wire),
            runtime: AccumulatingRuntime::new(),
            rng,
            me,
            seeds: seeds.into_iter().filter(|s| s.host != me.host).collect(),
            timers: BinaryHeap::new(),
            timers_set: 0,
            entries: BTreeMap::new(),
            changes: VecDeque::new(),
            outgoing: Vec::new(),
            outdated: None,
            holders: BTreeMap::new(),
            contest: None,
            withheld: BTreeMap::new(),
            absent_told: HostId(0),
            remembered: Remembered::default(),
            recall: Recall::default(),
            announce_at: now,
            rounds: 0,
            spoken_to: BTreeMap::new(),
            leave: None,
            counters: Counters::default(),
        }
    }

    /// This host as it announces itself.
    pub fn me(&self) -> &Member {
        &self.me
    }

    fn is_of_this_pop(&self, member: &Member) -> bool {
        self.me.fingerprint.is_of_one_pop(&member.fingerprint)
    }

    /// Every other host ever heard of, with its state.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.values()
    }

    /// One host's entry.
    pub fn entry(&self, host: HostId) -> Option<&Entry> {
        self.entries.get(&host)
    }

    /// Whether no other member is up.
    pub fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    /// Hears a message that the seal let through.
    pub fn receive(&mut self, now: u64, origin: HostId, stream: Stream, body: &[u8]) {
        if self.leave.is_some() {
            // A host that leaves has said its last word: in answer to it others
            // call us down, which is right.
            return;
        }
        if let Some(incarnation) = decode_outdated(body) {
            // In answer to what this very life sent: the seal's windows are no
            // older than it is.
            self.counters.told_outdated += 1;
            self.outdated = self.outdated.max(Some((incarnation, origin)));
            return;
        }
        if absent::is_absent(body) {
            return self.hear_absent(now, origin, stream, body);
        }
        let src = Member::decode(&mut &body[..]).ok();
        let src = src.filter(|src| src.host == origin && src.stream == stream);
        if src.is_some_and(|src| self.is_contested(&src)) {
            return;
        }
        if let Some(src) = src
            && let Some(incarnation) = self.later_incarnation(&src)
        {
            // The library would call it down again and again, and it would come
            // back each time, but never above the life that is known here.
            self.counters.outdated_told += 1;
            self.outgoing.push(Outgoing {
                to: origin,
                address: src.address,
                body: encode_outdated(incarnation),
            });
            return;
        }
        let purged = self.without_contested(now, body);
        let body = purged.as_deref().unwrap_or(body);
        let heard = src.filter(|_| self.foca.handle_data(body, &mut self.runtime).is_ok());
        match &heard {
            Some(_) => self.counters.messages_heard += 1,
            None => self.counters.messages_refused += 1,
        }
        self.settle(now);
        if let Some(src) = heard.filter(|_| is_announcement(body)) {
            self.tell_absent(now, &src);
        }
    }

    /// The incarnation of a later life of a host than the one it speaks in, if
    /// one is known, be it from others.
    fn later_incarnation(&self, src: &Member) -> Option<u64> {
        let mut known = self.foca.iter_membership_state().map(foca::Member::id);
        let known = known.find(|known| known.host == src.host)?;
        (known.stream > src.stream).then_some(known.stream.incarnation)
    }

    /// A member knows a later life of this host: its incarnation, and who said so.
    pub fn take_outdated(&mut self) -> Option<(u64, HostId)> {
        let own = self.me.stream.incarnation;
        self.outdated.take().filter(|&(above, _)| above >= own)
    }

    /// When [`Membership::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        if let Some(leave) = &self.leave {
            return leave.next_at;
        }
        let timer = self.timers.peek().map_or(u64::MAX, |due| due.0.at);
        let own = self.remembered.due_at().min(self.recall.due_at());
        timer.min(self.announce_at).min(own)
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64) {
        if let Some(leave) = &mut self.leave {
            if leave.next_at <= now {
                leave.rounds += 1;
                leave.next_at = if leave.rounds < LEAVE_ROUNDS {
                    now + LEAVE_INTERVAL
                } else {
                    u64::MAX
                };
                let result = self.foca.gossip(&mut self.runtime);
                self.note(result);
                self.settle(now);
            }
            return;
        }
        while self.timers.peek().is_some_and(|due| due.0.at <= now) {
            if let Some(Reverse(due)) = self.timers.pop() {
                let result = self.foca.handle_timer(due.timer, &mut self.runtime);
                self.note(result);
                self.settle(now);
            }
        }
        if self.remembered.due_at() <= now {
            self.miss_remembered(now);
        }
        if self.recall.due_at() <= now {
            self.recall_some(now);
            self.settle(now);
        }
        if self.announce_at <= now {
            self.join(now);
            self.settle(now);
        }
    }

    /// Tells every member that this host leaves, and how long its sessions are
    /// to be kept. Call [`Membership::on_time`] until [`Membership::has_left`].
    pub fn leave(&mut self, now: u64, hold: Duration) {
        if self.leave.is_some() {
            return;
        }
        let members = NonZeroUsize::new(self.foca.num_members()).unwrap_or(NonZeroUsize::MIN);
        let result = self.foca.set_config(foca::Config {
            // The library gossips to this many: everyone shall know at once.
            num_indirect_probes: members,
            max_transmissions: NonZeroU8::MAX,
            ..config()
        });
        self.note(result);
        // The hold travels in the identity, so that whoever learns of the leave
        // from whomever learns the hold too.
        self.me = canonical(Member {
            renewal: self.me.renewal.saturating_add(1),
            leaving: Some(hold),
            ..self.me
        });
        let result = self.foca.change_identity(self.me, &mut self.runtime);
        self.note(result);
        let result = self.foca.leave_cluster(&mut self.runtime);
        self.note(result);
        self.leave = Some(Leave {
            rounds: 1,
            next_at: now + LEAVE_INTERVAL,
        });
        self.settle(now);
    }

    /// Whether all has been said that a leaving host says.
    pub fn has_left(&self) -> bool {
        self.leave
            .as_ref()
            .is_some_and(|leave| leave.next_at == u64::MAX)
    }

    /// Begins another life of this host.
    pub fn restart(&mut self, now: u64, stream: Stream) {
        self.me = Member {
            stream,
            renewal: 0,
            ..self.me
        };
        let result = self.foca.change_identity(self.me, &mut self.runtime);
        self.note(result);
        self.reconnect();
        self.announce_at = now;
        self.rounds = 0;
        self.settle(now);
    }

    /// Tells the members whether this host takes new sessions.
    pub fn set_draining(&mut self, now: u64, draining: bool) {
        let me = Member {
            draining,
            ..self.me
        };
        self.renew(now, me);
    }

    /// Tells the members that this host answers for other services, and judges all anew by
    /// that.
    pub fn set_services(&mut self, now: u64, services: &[Service]) {
        let me = Member {
            fingerprint: self.me.fingerprint.with_services(services),
            ..self.me
        };
        self.renew(now, me);
        let members = self.entries.values().filter(|entry| match entry.state {
            State::Alive => !self.is_of_this_pop(&entry.member),
            State::Mismatched => self.is_of_this_pop(&entry.member),
            State::Down | State::Left => false,
        });
        let members: Vec<Member> = members.map(|entry| entry.member).collect();
        for member in members {
            self.up(now, member);
        }
        self.settle(now);
    }

    /// Joins by other hosts from now on.
    pub fn set_seeds(&mut self, now: u64, seeds: Vec<Seed>) {
        let me = self.me.host;
        let seeds: Vec<_> = seeds.into_iter().filter(|seed| seed.host != me).collect();
        if self.seeds == seeds {
            return;
        }
        self.seeds = seeds;
        self.announce_at = self.announce_at.min(now);
        if self.is_alone() {
            self.rounds = 0;
        }
    }

    /// Tells the members of services that message sockets offer here: a filter of them. What
    /// was told once stays, so that services which come and go cost the POP nothing.
    pub fn add_offers(&mut self, now: u64, offers: u64) {
        let me = Member {
            offers: self.me.offers | offers,
            ..self.me
        };
        self.renew(now, me);
    }

    /// Takes an identity that says something else, if it does.
    fn renew(&mut self, now: u64, me: Member) {
        if self.leave.is_some() || self.me == me {
            return;
        }
        self.me = canonical(Member {
            renewal: self.me.renewal.saturating_add(1),
            ..me
        });
        let result = self.foca.change_identity(self.me, &mut self.runtime);
        self.note(result);
        self.reconnect();
        self.settle(now);
    }

    /// The next message to send.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        let Some((to, body)) = self.runtime.to_send() else {
            return self.outgoing.pop();
        };
        self.counters.messages_sent += 1;
        Some(Outgoing {
            to: to.host,
            address: to.address,
            body,
        })
    }

    /// The next change, in the order they happened.
    pub fn take_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// After a change of identity the library waits to be spoken to before it
    /// probes anyone. If all members wait, none ever finds out that another has
    /// gone: so it is made to look at its members at once.
    fn reconnect(&mut self) {
        let nobody = std::iter::empty();
        let result = self.foca.apply_many(nobody, false, &mut self.runtime);
        self.note(result);
    }

    fn note(&mut self, result: Result<(), foca::Error>) {
        if result.is_err() {
            self.counters.internal_errors += 1;
        }
    }

    /// Takes in what the library asked for and told.
    fn settle(&mut self, now: u64) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if self.timers.len() >= TIMERS_MAX {
                self.counters.internal_errors += 1;
                continue;
            }
            self.timers_set += 1;
            self.timers.push(Reverse(Due {
                at: now + after.as_micros() as u64,
                number: self.timers_set,
                timer,
            }));
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => self.up(now, member),
                OwnedNotification::MemberDown(member) => self.down(now, member),
                OwnedNotification::Rename(_, member) => self.renamed(now, member),
                OwnedNotification::Rejoin(member) => {
                    self.me = member;
                    self.counters.rejoins += 1;
                    self.reconnect();
                    self.recall(now, true);
                }
                OwnedNotification::Idle => {
                    self.rounds = 0;
                    self.announce_at = now;
                }
                OwnedNotification::Active | OwnedNotification::Defunct => {}
            }
        }
    }

    fn up(&mut self, now: u64, member: Member) {
        self.ask_around(now);
        self.spoken_to.remove(&member.host);
        self.hold(&member);
        if !self.is_of_this_pop(&member) {
            self.counters.mismatches += 1;
            self.set(now, member, State::Mismatched);
            self.changes.push_back(Change::Mismatched(member));
        } else {
            self.counters.ups += 1;
            self.set(now, member, State::Alive);
            self.changes.push_back(Change::Up(member));
            self.recall(now, false);
        }
    }

    fn down(&mut self, now: u64, member: Member) {
        let (state, change) = match member.leaving {
            Some(hold) => {
                self.counters.lefts += 1;
                (State::Left, Change::Left(member, hold))
            }
            None => {
                self.counters.downs += 1;
                (State::Down, Change::Down(member))
            }
        };
        self.set(now, member, state);
        self.changes.push_back(change);
        self.hold_kernel(now, member.host);
    }

    /// A later account of a known host has replaced the earlier one, with no
    /// word on whether that changes its state: if it does, that follows.
    fn renamed(&mut self, now: u64, member: Member) {
        let Some(entry) = self.entries.get_mut(&member.host) else {
            return;
        };
        if entry.member.address != member.address {
            self.counters.address_changes += 1;
        }
        let state = entry.state;
        entry.member = member;
        match (state, member.leaving) {
            (State::Alive | State::Mismatched, None) => self.up(now, member),
            (State::Down, Some(_)) => self.down(now, member),
            _ => {}
        }
    }

    fn set(&mut self, now: u64, member: Member, state: State) {
        let entry = self.entries.entry(member.host).or_insert(Entry {
            member,
            state,
            since: now,
        });
        if entry.state != state || entry.member.stream != member.stream {
            entry.since = now;
        }
        entry.member = member;
        entry.state = state;
    }
}

#[cfg(test)]
mod tests;
