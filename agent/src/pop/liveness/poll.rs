//! What the members hold of a kernel, asked of their agents.
//!
//! Judgements spread by rumour, and that says nothing about who has heard one by
//! when. Two questions need more, both of whoever moves sessions ([`crate::migration`]):
//!
//! - *Can the POP have taken this host for dead?* While somebody minds
//!   ([`Liveness::mind`]), this host asks all agents what they hold of its own kernel,
//!   again and again. It stands well from the beginning of the first poll of an unbroken
//!   chain in which each was answered by at least half of the POP, itself included.
//! - *Does more than half of the POP hold this kernel dead?* A judgement on a host that
//!   is minded is told to all agents, again to those who do not confirm it. When more
//!   than half have, and none has taken it back for [`Timing::settle`], the kernel is void.
//!
//! [`Timing::settle`]: super::view::Timing
//!
//! The two exclude each other. Of more than half and at least half some agent is in both;
//! it has confirmed the judgement, and says so in every later answer. How long a poll
//! counts is shorter than the time for which a judgement settles: so no host stands well,
//! by a poll from before the confirmation, when another takes it for void.
//!
//! All members count, the dead too, or two parts of a POP could each become more than
//! half of what they know. An agent forgets judgements when it ends, so an answer
//! counts only from one that has run since before the first of the sessions was frozen
//! that this host is to stand for: a judgement that matters to those came later.
//!
//! While it is minded, each poll costs a datagram and an answer for every member, four
//! times a second with the usual `dead_after`; else nothing.

use std::collections::{BTreeMap, BTreeSet};

use homing_common::host::HostId;

use super::{
    Event, Liveness,
    view::{Minded, OwnStanding, Reached},
    wire::{self, Judgement},
};

/// Judgements that are told to all at once. Those on further hosts wait.
const INQUIRIES_MAX: usize = 64;

/// What is minded, and how far the polls are.
pub(super) struct Polls {
    born_at: u64,
    reach: bool,
    /// Answers count from agents that have run since then.
    frozen_at: Option<i64>,
    kernels: BTreeSet<HostId>,
    own: Option<Own>,
    next_at: u64,
    /// When the first poll of the chain began, and the last one that was answered.
    chain: Option<(u64, u64)>,
    inquiries: BTreeMap<HostId, Inquiry>,
}

/// A poll about this very host.
struct Own {
    number: u32,
    began_at: u64,
    ends_at: u64,
    retry_at: u64,
    answered: BTreeSet<HostId>,
}

/// A judgement on another host that all are told.
struct Inquiry {
    number: u32,
    /// The judgement's own number.
    judgement: u16,
    confirmed: BTreeSet<HostId>,
    retry_at: u64,
    pause: u64,
    /// Since when more than half have confirmed it.
    majority_at: Option<u64>,
    is_void: bool,
}

impl Polls {
    pub fn new(now: u64) -> Self {
        Self {
            born_at: now,
            reach: false,
            frozen_at: None,
            kernels: BTreeSet::new(),
            own: None,
            next_at: 0,
            chain: None,
            inquiries: BTreeMap::new(),
        }
    }

    /// What was said of this host is not true any more, from now on.
    pub fn begin_anew(&mut self, now: u64) {
        self.own = None;
        self.chain = None;
        self.next_at = now;
    }

    /// A host's agent may have begun anew, and know nothing.
    pub fn has_forgotten(&mut self, now: u64, host: HostId) {
        for inquiry in self.inquiries.values_mut() {
            inquiry.confirmed.remove(&host);
            inquiry.retry_at = now;
        }
    }

    pub fn due_at(&self, settle: u64) -> u64 {
        let own = match &self.own {
            Some(own) => own.retry_at.min(own.ends_at),
            None if self.reach => self.next_at,
            None => u64::MAX,
        };
        let inquiries = self.inquiries.values().map(|inquiry| {
            let settled = inquiry.majority_at.filter(|_| !inquiry.is_void);
            settled
                .map_or(u64::MAX, |at| at + settle)
                .min(inquiry.retry_at)
        });
        inquiries.fold(own, u64::min)
    }
}

impl Liveness {
    /// Says what is needed from now on.
    pub fn mind(&mut self, now: u64, minded: Minded) {
        if minded.reach != self.polls.reach {
            self.polls.reach = minded.reach;
            self.polls.begin_anew(now);
        }
        self.polls.frozen_at = minded.frozen_at;
        // Answers were counted of agents that may have begun since.
        let is_older =
            |(since, _): &mut (u64, u64)| minded.frozen_at.is_some_and(|at| at < *since as i64);
        if self.polls.chain.take_if(is_older).is_some() {
            self.polls.begin_anew(now);
        }
        self.polls.kernels = minded.kernels;
        self.next_at = now;
    }

    /// How this host stands in the POP.
    pub fn own_standing(&self) -> OwnStanding {
        OwnStanding {
            reached: self.polls.chain.map(|(since, last)| Reached {
                since,
                until: last + self.timing.stale,
            }),
            judged: self.own.number,
        }
    }

    /// Whether a host that is minded is dead, and more than half of the POP knows.
    pub fn is_void(&self, host: HostId) -> bool {
        let inquiry = self.polls.inquiries.get(&host);
        inquiry.is_some_and(|inquiry| inquiry.is_void && self.holds(host, inquiry.judgement))
    }

    fn holds(&self, host: HostId, judgement: u16) -> bool {
        let peer = self.peers.get(host);
        peer.is_some_and(|peer| peer.is_dead() && peer.standing.number == judgement)
    }

    pub(super) fn tend_polls(&mut self, now: u64) {
        if self.polls.reach {
            self.tend_own(now);
        }
        self.tend_inquiries(now);
    }

    fn tend_own(&mut self, now: u64) {
        let timing = self.timing;
        let stale = |&mut (_, last): &mut (u64, u64)| now > last + timing.stale;
        self.polls.chain.take_if(stale);
        if let Some(own) = self.polls.own.take_if(|own| own.ends_at <= now) {
            self.counters.polls_failed += 1;
            // The next one begins at once.
            self.polls.begin_anew(now.max(own.ends_at));
        }
        let due = match &mut self.polls.own {
            Some(own) if own.retry_at <= now => {
                own.retry_at = now + timing.retry;
                true
            }
            Some(_) => false,
            None if self.polls.next_at <= now => {
                self.rounds = self.rounds.wrapping_add(1);
                self.counters.polls += 1;
                self.polls.own = Some(Own {
                    number: self.rounds,
                    began_at: now,
                    ends_at: now + timing.window,
                    retry_at: now + timing.retry,
                    answered: BTreeSet::new(),
                });
                true
            }
            None => false,
        };
        if due && let Some(own) = &self.polls.own {
            let (me, number) = (self.settings.host, own.number);
            let missing = self.up_except(&own.answered);
            self.poll(me, number, missing);
        }
        self.look_at_own();
    }

    /// Ends a poll about this host that enough have answered.
    fn look_at_own(&mut self) {
        let all = self.peers.len() + 1;
        let is_half = |own: &mut Own| 2 * (own.answered.len() + 1) >= all;
        let Some(own) = self.polls.own.take_if(is_half) else {
            return;
        };
        let stale = self.timing.stale;
        let unbroken = self
            .polls
            .chain
            .filter(|(_, last)| own.began_at <= last + stale);
        let since = unbroken.map_or(own.began_at, |(since, _)| since);
        self.polls.chain = Some((since, own.began_at));
        self.polls.next_at = own.began_at + self.timing.interval;
    }

    fn tend_inquiries(&mut self, now: u64) {
        let mut inquiries = std::mem::take(&mut self.polls.inquiries);
        inquiries.retain(|host, inquiry| {
            self.polls.kernels.contains(host) && self.holds(*host, inquiry.judgement)
        });
        for &host in &self.polls.kernels {
            let Some(peer) = self.peers.get(host).filter(|peer| peer.is_dead()) else {
                continue;
            };
            if inquiries.len() >= INQUIRIES_MAX {
                break;
            }
            inquiries.entry(host).or_insert_with(|| {
                self.rounds = self.rounds.wrapping_add(1);
                Inquiry {
                    number: self.rounds,
                    judgement: peer.standing.number,
                    confirmed: BTreeSet::new(),
                    retry_at: now,
                    pause: self.timing.retry,
                    majority_at: None,
                    is_void: false,
                }
            });
        }
        for (&host, inquiry) in &mut inquiries {
            let is_majority = 2 * (inquiry.confirmed.len() + 1) > self.peers.len() + 1;
            inquiry.majority_at = is_majority.then(|| inquiry.majority_at.unwrap_or(now));
            let settled = inquiry
                .majority_at
                .is_some_and(|at| now >= at + self.timing.settle);
            if settled && !inquiry.is_void {
                inquiry.is_void = true;
                self.counters.kernels_void += 1;
                self.event(Event::Void { host });
            }
            if inquiry.retry_at <= now {
                let missing = self.up_except(&inquiry.confirmed);
                inquiry.retry_at = match missing.is_empty() {
                    true => u64::MAX,
                    false => now + inquiry.pause,
                };
                inquiry.pause = (2 * inquiry.pause).min(self.timing.exchange);
                self.poll(host, inquiry.number, missing);
            }
        }
        self.polls.inquiries = inquiries;
    }

    fn up_except(&self, these: &BTreeSet<HostId>) -> Vec<HostId> {
        let up = self.peers.iter().filter(|(_, peer)| peer.agent_up);
        let up = up.map(|(host, _)| host);
        up.filter(|host| !these.contains(host)).collect()
    }

    fn poll(&mut self, about: HostId, number: u32, to: Vec<HostId>) {
        let Some(judgement) = self.judgement(about) else {
            return;
        };
        let body = wire::encode_poll(number, &judgement);
        for to in to {
            self.send(to, body.clone());
        }
    }

    /// Another host asks what this one holds of a kernel, and says what it holds itself.
    pub(super) fn polled(&mut self, now: u64, by: HostId, number: u32, told: Judgement) {
        self.told(now, by, &[told]);
        let held = self.judgement(told.host);
        if let Some(held) = held.filter(|held| held.incarnation == told.incarnation) {
            let age = now.saturating_sub(self.polls.born_at);
            self.send(by, wire::encode_polled(number, &held, age));
        }
    }

    /// Another host answers.
    pub(super) fn poll_answered(
        &mut self,
        now: u64,
        by: HostId,
        number: u32,
        held: Judgement,
        age: u64,
    ) {
        // What is news in it comes first: it may end the very poll that it answers.
        self.told(now, by, &[held]);
        if held.host == self.settings.host {
            // Its clock may run a little faster than this host's.
            let began_at = (now as i64).saturating_sub_unsigned(age - age / 1024);
            if self.polls.frozen_at.is_some_and(|at| began_at > at) {
                self.counters.polls_answered_young += 1;
                return;
            }
            let own = self.polls.own.as_mut();
            let is_life = held.incarnation == self.incarnation;
            if let Some(own) = own.filter(|own| own.number == number && is_life) {
                own.answered.insert(by);
                self.look_at_own();
            }
        } else if let Some(inquiry) = self.polls.inquiries.get_mut(&held.host)
            && inquiry.number == number
            && held.standing.number >= inquiry.judgement
        {
            inquiry.confirmed.insert(by);
        }
        self.next_at = now;
    }
}
