//! From silence to a judgement: others are asked, and this host is asked by them.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::{
    Event, Liveness,
    duty::confirmers,
    wire::{self, Asked, Standing, Voice},
};

/// Hosts that are asked to confirm a silence, in each round.
const CONFIRMERS: usize = 4;
/// Voices of others that a judgement needs, where there are as many others.
const VOICES: usize = 2;
/// Rounds of asking, each among other hosts, before a suspicion rests.
const ROUNDS_MAX: u32 = 3;
/// Suspicions at once. Others wait until they miss more answers.
const SUSPICIONS_MAX: usize = 64;
/// Hosts that this one listens to for others at once; asked for more, it cannot
/// tell.
const CHECKS_MAX: usize = 64;
/// Hosts that wait for one check; others ask again.
const ASKERS_MAX: usize = 16;

/// A kernel that is suspected.
pub(super) struct Suspicion {
    began_at: u64,
    asked: Asked,
    round: u32,
    voices: BTreeMap<HostId, Option<Voice>>,
    /// Voices that are needed, and whether one must be of another domain.
    needed: usize,
    needs_foreign: bool,
    retry_at: u64,
    ends_at: u64,
}

impl Suspicion {
    pub fn due_at(&self) -> u64 {
        self.retry_at.min(self.ends_at)
    }
}

/// What this host listens for because others ask it.
pub(super) struct Check {
    began_at: u64,
    ends_at: u64,
    retry_at: u64,
    /// What it came to; until then those who asked wait.
    voice: Option<Voice>,
    askers: Vec<(HostId, Asked)>,
}

impl Check {
    pub fn due_at(&self) -> u64 {
        self.retry_at.min(self.ends_at)
    }
}

impl Liveness {
    /// Begins to suspect a kernel.
    pub(super) fn suspect(&mut self, now: u64, host: HostId) {
        let is_full = self.suspicions.len() >= SUSPICIONS_MAX;
        let Some(peer) = self.peers.get(host) else {
            return;
        };
        if is_full || self.suspicions.contains_key(&host) {
            return;
        }
        self.counters.kernels_suspected += 1;
        let asked = Asked {
            host,
            incarnation: peer.incarnation,
            number: 0,
        };
        let suspicion = Suspicion {
            began_at: now,
            asked,
            round: 0,
            voices: BTreeMap::new(),
            needed: 0,
            needs_foreign: false,
            retry_at: now,
            ends_at: now,
        };
        let suspicion = self.begin_round(now, suspicion);
        self.suspicions.insert(host, suspicion);
        self.count(now);
    }

    /// Picks whom to ask; the first try is due at once.
    fn begin_round(&mut self, now: u64, mut suspicion: Suspicion) -> Suspicion {
        let host = suspicion.asked.host;
        self.rounds = self.rounds.wrapping_add(1);
        suspicion.round += 1;
        suspicion.asked.number = self.rounds;
        suspicion.retry_at = now;
        suspicion.ends_at = now + self.timing.round;
        suspicion.voices.clear();
        let Some(peer) = self.peers.get(host) else {
            return suspicion;
        };
        let able = || {
            let others = self.peers.iter();
            others.filter(move |(other, peer)| *other != host && peer.is_able())
        };
        let key = u64::from(host.0) << 32 | u64::from(suspicion.round);
        let choice = able().map(|(other, peer)| (other, peer.domain));
        let chosen = confirmers(key, peer.domain, choice, CONFIRMERS);
        // Who heard it when others did not is asked again.
        let vouched = peer.vouched_by.filter(|by| {
            let by = self.peers.get(*by);
            by.is_some_and(|by| by.is_able())
        });
        let is_foreign = |domain| domain != peer.domain;
        suspicion.needed = able().take(VOICES).count();
        suspicion.needs_foreign =
            is_foreign(self.settings.domain) || able().any(|(_, other)| is_foreign(other.domain));
        suspicion.voices = chosen
            .into_iter()
            .chain(vouched)
            .map(|by| (by, None))
            .collect();
        suspicion
    }

    pub(super) fn tend_suspicions(&mut self, now: u64) {
        let due = self.suspicions.iter().filter(|(_, s)| s.due_at() <= now);
        let due: Vec<_> = due.map(|(host, _)| *host).collect();
        for host in due {
            self.tend_suspicion(now, host);
        }
    }

    fn tend_suspicion(&mut self, now: u64, host: HostId) {
        let Some(suspicion) = self.suspicions.get_mut(&host) else {
            return;
        };
        if suspicion.ends_at <= now {
            self.conclude(now, host, true);
        } else if suspicion.retry_at <= now {
            suspicion.retry_at = now + self.timing.retry;
            let unheard = suspicion.voices.iter().filter(|(_, voice)| voice.is_none());
            let to: Vec<_> = unheard.map(|(by, _)| *by).collect();
            let body = wire::encode_ask(&suspicion.asked);
            // The host itself too: its agent may be up.
            for by in to.into_iter().chain([host]) {
                self.send(by, body.clone());
            }
            self.ask(host);
        }
    }

    /// Another host says what it hears.
    pub(super) fn said(&mut self, now: u64, by: HostId, asked: Asked, voice: Voice) {
        let Some(suspicion) = self.suspicions.get_mut(&asked.host) else {
            return;
        };
        let is_own_word = by == asked.host && voice == Voice::Myself;
        if suspicion.asked != asked || !(is_own_word || suspicion.voices.contains_key(&by)) {
            return;
        }
        if is_own_word || voice == Voice::Hears {
            if let Some(peer) = self.peers.get_mut(asked.host) {
                peer.vouched_by = (!is_own_word).then_some(by);
            }
            self.counters.suspicions_refuted += 1;
            self.event(Event::Refuted {
                host: asked.host,
                by,
            });
            self.drop_suspicion(asked.host);
            return;
        }
        suspicion.voices.insert(by, Some(voice));
        if suspicion.voices.values().all(Option::is_some) {
            self.conclude(now, asked.host, false);
        }
    }

    /// All voices are here, or the time of the round is over.
    fn conclude(&mut self, now: u64, host: HostId, is_over: bool) {
        let (Some(suspicion), Some(peer)) = (self.suspicions.get(&host), self.peers.get(host))
        else {
            return;
        };
        let fresh = suspicion.began_at.saturating_sub(2 * self.timing.window);
        let listened = now >= suspicion.began_at + self.timing.window;
        let Some(reach) = self.counted_since(fresh).filter(|_| listened) else {
            // It ends within a window.
            let later = now + self.timing.retry;
            if let Some(suspicion) = self.suspicions.get_mut(&host).filter(|_| is_over) {
                suspicion.ends_at = later;
            }
            self.count(now);
            return;
        };
        if !reach.is_half() {
            self.counters.suspicions_in_minority += 1;
            self.drop_suspicion(host);
            return;
        }
        let is_silent = |voice: &Option<Voice>| matches!(voice, Some(Voice::Silent | Voice::Lost));
        let silent = suspicion
            .voices
            .iter()
            .filter(|(_, voice)| is_silent(voice));
        let silent: Vec<_> = silent.collect();
        let is_foreign = |domain| domain != peer.domain;
        let has_foreign = is_foreign(self.settings.domain)
            || silent.iter().any(|(by, _)| {
                let by = self.peers.get(**by);
                by.is_some_and(|by| is_foreign(by.domain))
            });
        let was_heard =
            peer.heard_at.is_some() || silent.iter().any(|(_, voice)| **voice == Some(Voice::Lost));
        let enough = silent.len() >= suspicion.needed
            && (has_foreign || !suspicion.needs_foreign)
            && was_heard;
        if enough {
            let standing = Standing {
                number: peer.standing.number.saturating_add(1),
                heard: false,
            };
            self.counters.kernels_judged_dead += 1;
            self.hold(now, host, standing, self.settings.host);
        } else if suspicion.round < ROUNDS_MAX {
            if let Some(suspicion) = self.suspicions.remove(&host) {
                let next = self.begin_round(now, suspicion);
                self.suspicions.insert(host, next);
                self.next_at = now;
            }
        } else {
            self.counters.suspicions_unconfirmed += 1;
            self.drop_suspicion(host);
        }
    }

    /// Ends a suspicion: the kernel must miss as many answers again before the
    /// next.
    fn drop_suspicion(&mut self, host: HostId) {
        self.suspicions.remove(&host);
        if let Some(peer) = self.peers.get_mut(host) {
            peer.missed = 0;
            peer.unanswered = false;
        }
    }

    /// A kernel, or the agent on it, was heard just now.
    pub(super) fn is_alive(&mut self, now: u64, host: HostId) {
        if self.suspicions.contains_key(&host) {
            self.counters.suspicions_refuted += 1;
            self.drop_suspicion(host);
        }
        self.finish_check(host, Voice::Hears);
        let me = self.settings.host;
        if let Some(peer) = self.peers.get(host).filter(|peer| peer.is_dead()) {
            let standing = Standing {
                heard: true,
                ..peer.standing
            };
            self.hold(now, host, standing, me);
        }
    }

    /// Another host asks what this one hears.
    pub(super) fn asked(&mut self, now: u64, by: HostId, asked: Asked) {
        let say = |voice| wire::encode_say(&asked, voice);
        if asked.host == self.settings.host {
            self.event(Event::Unheard { by });
            self.send(by, say(Voice::Myself));
            return;
        }
        let lately = now.saturating_sub(2 * self.timing.interval);
        let peer = self.peers.get(asked.host);
        let Some(peer) = peer.filter(|peer| peer.incarnation == asked.incarnation) else {
            self.send(by, say(Voice::CannotTell));
            return;
        };
        if peer.heard_since(lately) {
            self.send(by, say(Voice::Hears));
            return;
        }
        if let Some(check) = self.checks.get_mut(&asked.host) {
            if let Some(voice) = check.voice {
                self.send(by, say(voice));
                return;
            }
            check.askers.retain(|(asker, _)| *asker != by);
            if check.askers.len() < ASKERS_MAX {
                check.askers.push((by, asked));
            }
            return;
        }
        if self.checks.len() >= CHECKS_MAX {
            self.send(by, say(Voice::CannotTell));
            return;
        }
        let check = Check {
            began_at: now,
            ends_at: now + self.timing.window,
            retry_at: now + self.timing.retry,
            voice: None,
            askers: vec![(by, asked)],
        };
        self.checks.insert(asked.host, check);
        self.ask(asked.host);
        self.count(now);
        self.next_at = now;
    }

    pub(super) fn tend_checks(&mut self, now: u64) {
        let due = self
            .checks
            .iter()
            .filter(|(_, check)| check.due_at() <= now);
        let due: Vec<_> = due.map(|(host, _)| *host).collect();
        for host in due {
            self.tend_check(now, host);
        }
    }

    fn tend_check(&mut self, now: u64, host: HostId) {
        let Some(check) = self.checks.get_mut(&host) else {
            return;
        };
        if check.voice.is_some() {
            // What it came to has grown old.
            self.checks.remove(&host);
            return;
        }
        check.retry_at = now + self.timing.retry;
        if now < check.ends_at {
            self.ask(host);
            return;
        }
        let fresh = check.began_at.saturating_sub(2 * self.timing.window);
        let Some(is_half) = self.counted_since(fresh).map(|reach| reach.is_half()) else {
            // It ends within a window.
            if let Some(check) = self.checks.get_mut(&host) {
                check.ends_at = now + self.timing.retry;
            }
            self.count(now);
            return;
        };
        let heard_at = self.peers.get(host).and_then(|peer| peer.heard_at);
        let voice = match heard_at {
            _ if !is_half => Voice::CannotTell,
            Some(_) => Voice::Lost,
            None => Voice::Silent,
        };
        if let Some(check) = self.checks.get_mut(&host) {
            // Kept for those who ask again because they missed it.
            check.ends_at = now + self.timing.round;
            check.retry_at = check.ends_at;
        }
        self.finish_check(host, voice);
    }

    /// Tells those who wait.
    fn finish_check(&mut self, host: HostId, voice: Voice) {
        let Some(check) = self.checks.get_mut(&host) else {
            return;
        };
        let askers = std::mem::take(&mut check.askers);
        check.voice = Some(voice);
        if voice == Voice::Hears {
            // Whoever asks next is told from what was heard, as long as that is
            // fresh.
            self.checks.remove(&host);
        }
        for (by, asked) in askers {
            self.counters.voices_given += u64::from(voice != Voice::Hears);
            self.send(by, wire::encode_say(&asked, voice));
        }
    }
}
