//! Judgements: what the POP holds of each kernel, and how that spreads.
//!
//! Of two judgements on one life of a kernel the greater one holds
//! ([`Standing`]), so whoever has heard the same ones agrees, in whatever order
//! they came. News spreads by rumour, to a few hosts picked at random each round;
//! what rumour missed is found by exchanges with one host picked at random, for
//! as long as there are judgements.

use homing_common::host::HostId;
use rand::seq::SliceRandom as _;

use super::{
    Event, Liveness,
    wire::{self, JUDGEMENTS_MAX, Judgement, Standing},
};

/// Hosts that are told in each round.
const FANOUT: usize = 4;
/// Rounds for which news is told: of a thousand hosts about one in a million
/// misses it, three times as many rounds as it takes to reach them.
const ROUNDS: u32 = 16;
/// Messages by which one host is told all judgements: more go by exchange.
const TELL_MAX: usize = 4;

impl Liveness {
    /// Lets a judgement hold from now on, and spreads it.
    pub(super) fn hold(&mut self, now: u64, host: HostId, standing: Standing, by: HostId) {
        let timing = self.timing;
        let Some(peer) = self.peers.get_mut(host) else {
            return;
        };
        let was_dead = peer.is_dead();
        peer.standing = standing;
        peer.judged_by = by;
        if standing.heard {
            peer.vouched_by = Some(by).filter(|by| *by != self.settings.host);
        }
        match (was_dead, peer.is_dead()) {
            (false, true) => {
                if now > peer.judged_at + timing.forget_flaps {
                    peer.flaps = 0;
                }
                peer.judged_at = now;
                peer.flaps += 1;
                self.suspicions.remove(&host);
                self.event(Event::Dead { host, by });
            }
            (true, false) => {
                let (flaps, hold) = (peer.flaps, timing.hold_after(peer.flaps));
                peer.judged_at = now;
                peer.missed = 0;
                peer.unanswered = false;
                peer.silent_since = None;
                self.counters.kernels_back += 1;
                self.counters.flaps_held += u64::from(hold > 0);
                self.event(Event::Back {
                    host,
                    by,
                    from: now + hold,
                    flaps,
                });
            }
            _ => {}
        }
        self.duty_is_stale = true;
        self.judged.insert(host);
        self.spread_soon(now, host);
    }

    fn spread_soon(&mut self, now: u64, host: HostId) {
        self.spreading.insert(host, ROUNDS);
        self.spread_at = now;
        self.next_at = now;
    }

    /// Another host tells judgements.
    pub(super) fn told(&mut self, now: u64, origin: HostId, judgements: &[Judgement]) {
        let mut newer = Vec::new();
        for judgement in judgements {
            if judgement.host == self.settings.host {
                self.told_of_own(now, judgement);
                continue;
            }
            let (host, told) = (judgement.host, judgement.standing);
            let Some(peer) = self.peers.get(host) else {
                continue;
            };
            if peer.incarnation != judgement.incarnation || told == peer.standing {
                continue;
            }
            if told < peer.standing {
                newer.extend(self.judgement(host));
            } else if told.is_dead() {
                self.told_dead(now, judgement);
            } else {
                self.hold(now, host, told, judgement.by);
            }
        }
        if !newer.is_empty() {
            self.send(origin, wire::encode_judgements(&newer));
        }
    }

    fn told_dead(&mut self, now: u64, judgement: &Judgement) {
        let (host, by, me) = (judgement.host, judgement.by, self.settings.host);
        let lately = now.saturating_sub(2 * self.timing.interval);
        let hears = self
            .peers
            .get(host)
            .is_some_and(|peer| peer.heard_since(lately));
        if hears {
            self.counters.judgements_vetoed += 1;
            self.event(Event::Vetoed { host, by });
            let taken_back = Standing {
                heard: true,
                ..judgement.standing
            };
            self.hold(now, host, taken_back, me);
        } else if self.minority(now).is_none() {
            self.counters.kernels_told_dead += 1;
            self.hold(now, host, judgement.standing, by);
        }
    }

    /// This host's own kernel is judged: its agent lives, so it is not dead.
    fn told_of_own(&mut self, now: u64, judgement: &Judgement) {
        if judgement.incarnation != self.incarnation || judgement.standing <= self.own {
            return;
        }
        if judgement.standing.number > self.own.number {
            self.polls.begin_anew(now);
            self.next_at = now;
        }
        self.own = Standing {
            heard: true,
            ..judgement.standing
        };
        if judgement.standing.is_dead() {
            self.counters.judgements_on_this_host += 1;
            self.event(Event::Unheard { by: judgement.by });
            self.spread_soon(now, self.settings.host);
        }
    }

    pub(super) fn judgement(&self, host: HostId) -> Option<Judgement> {
        let me = self.settings.host;
        if host == me {
            return Some(Judgement {
                host,
                by: me,
                incarnation: self.incarnation,
                standing: self.own,
            });
        }
        self.peers.get(host).map(|peer| Judgement {
            host,
            by: match peer.standing.number {
                0 => me,
                _ => peer.judged_by,
            },
            incarnation: peer.incarnation,
            standing: peer.standing,
        })
    }

    /// Tells a few hosts the news.
    pub(super) fn spread(&mut self, now: u64) {
        if self.spreading.is_empty() || self.spread_at > now {
            return;
        }
        self.spread_at = now + self.timing.spread;
        let mut news: Vec<_> = self
            .spreading
            .iter()
            .map(|(&host, &left)| (left, host))
            .collect();
        news.sort_unstable_by(|a, b| b.cmp(a));
        news.truncate(JUDGEMENTS_MAX);
        let judgements = news.iter().filter_map(|(_, host)| self.judgement(*host));
        let body = wire::encode_judgements(&judgements.collect::<Vec<_>>());
        for (left, host) in news {
            if left > 1 {
                self.spreading.insert(host, left - 1);
            } else {
                self.spreading.remove(&host);
            }
        }
        for to in self.some_up(FANOUT) {
            self.send(to, body.clone());
        }
    }

    /// Tells one host, picked at random, some of the judgements.
    pub(super) fn exchange(&mut self, now: u64) {
        if self.judged.is_empty() || self.exchange_at > now {
            return;
        }
        self.exchange_at = now + self.timing.exchange;
        let from = self.exchange_from;
        let later = self.judged.range(HostId(from.0 + 1)..);
        let round = later.chain(self.judged.range(..=from)).take(JUDGEMENTS_MAX);
        let hosts: Vec<_> = round.copied().collect();
        self.exchange_from = hosts.last().copied().unwrap_or(from);
        let judgements = hosts.into_iter().filter_map(|host| self.judgement(host));
        let body = wire::encode_judgements(&judgements.collect::<Vec<_>>());
        for to in self.some_up(1) {
            self.send(to, body.clone());
        }
    }

    /// Tells all judgements, also that on itself, to a host that this one has begun to
    /// watch, or whose agent has begun: it may know none.
    pub(super) fn tell_all(&mut self, to: HostId) {
        if !self.peers.get(to).is_some_and(|peer| peer.agent_up) {
            return;
        }
        let judged = self.judged.iter();
        let judgements: Vec<_> = judged.filter_map(|host| self.judgement(*host)).collect();
        for some in judgements.chunks(JUDGEMENTS_MAX).take(TELL_MAX) {
            self.send(to, wire::encode_judgements(some));
        }
    }

    fn some_up(&mut self, n: usize) -> Vec<HostId> {
        let up = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.agent_up && !peer.is_dead());
        let mut up: Vec<_> = up.map(|(host, _)| host).collect();
        up.partial_shuffle(&mut self.rng, n).0.to_vec()
    }
}
