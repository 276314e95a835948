//! Taking in what a look at this host has found.

use homing_common::session::Tuple;

use super::{Entry, LOOK_EVERY, LOOK_SHARE, LOOK_SOON, Plan, State};
use crate::migration::drain::{Found, Look, Why};

impl Plan {
    /// When this host is to be looked at next; the end of time while somebody looks.
    pub(super) fn look_at(&self) -> u64 {
        if self.looks.since.is_some() || self.end.is_some() {
            return u64::MAX;
        }
        let failed = self.looks.failed;
        let Some((at, took)) = self.looks.last else {
            return if failed > 0 { failed + LOOK_EVERY } else { 0 };
        };
        let at = at.max(failed);
        let idle = self.queue.is_empty() && self.moving == 0;
        let every = if idle { LOOK_SOON } else { LOOK_EVERY };
        at + every.max(took * LOOK_SHARE)
    }

    /// Whether this host is to be looked at now. Then somebody looks, and says what there
    /// is, or that it cannot be told.
    pub fn begin_look(&mut self, now: u64) -> bool {
        if self.look_at() > now {
            return false;
        }
        self.looks.begun += 1;
        self.looks.since = Some(now);
        self.looks.fresh = true;
        self.recent.clear();
        true
    }

    /// It could not be told what there is. It will be tried again.
    pub fn looked_in_vain(&mut self, now: u64) {
        self.looks.since = None;
        self.looks.fresh = false;
        self.looks.failed = now.max(1);
    }

    /// What there is, as of a time since the look began.
    pub fn looked(&mut self, now: u64, look: &Look) {
        let Some(since) = self.looks.since.take() else {
            return;
        };
        if self.end.is_some() {
            return;
        }
        self.looks.last = Some((now, now - since));
        self.looks.arriving = look.arriving;
        self.looks.time_wait = look.time_wait;
        let offer_again = std::mem::take(&mut self.offer_again);
        for found in &look.sessions {
            if self.recent.get(&found.tuple) != Some(&found.cookie) {
                self.take(now, found, offer_again);
            }
        }
        let seen = self.looks.begun;
        let ended = self.entries.iter().filter(|(_, entry)| entry.look != seen);
        let ended: Vec<_> = ended
            .filter(|(_, entry)| !matches!(entry.state, State::Moving(_)))
            .map(|(tuple, _)| *tuple)
            .collect();
        self.counts.ended += ended.len() as u64;
        for tuple in &ended {
            self.remove(tuple);
        }
    }

    fn take(&mut self, now: u64, found: &Found, offer_again: bool) {
        let look = self.looks.begun;
        let tuple = &found.tuple;
        if let Some(entry) = self.entries.get_mut(tuple) {
            if entry.cookie == found.cookie {
                entry.look = look;
                let state = entry.state;
                return self.retake(now, found, state, offer_again);
            }
            if matches!(entry.state, State::Moving(_)) {
                // The end of the former session's move will tell; then this one's turn
                // comes.
                entry.look = look;
                self.looks.fresh = false;
                return;
            }
            self.counts.ended += 1;
            self.remove(tuple);
        }
        self.counts.seen += 1;
        let why = Why::TimeUp;
        let entry = Entry {
            cookie: found.cookie,
            key: found.key,
            state: State::GivenUp(why),
            tries: 0,
            avoid: None,
            last: None,
            look,
        };
        self.entries.insert(*tuple, entry);
        *self.left.entry(why).or_default() += 1;
        self.place(now, tuple, found.hindrance);
    }

    /// A session that is known: its hindrance may have come or gone.
    fn retake(&mut self, now: u64, found: &Found, state: State, offer_again: bool) {
        let is_due = |at| now >= at || offer_again;
        match (state, found.hindrance) {
            (State::Moving(_), _) | (State::Queued(..), None) => {}
            // What has failed for good may at least come to its end.
            (State::GivenUp(_), Some(why)) if why.passes() => {
                self.place(now, &found.tuple, Some(why));
            }
            (State::GivenUp(_), _) => {}
            (State::Held(Why::Move(_) | Why::NoTarget, at), None) if !is_due(at) => {}
            (State::Held(before, _), Some(why)) if before == why => {}
            (State::Held(..) | State::Queued(..), hindrance) => {
                self.place(now, &found.tuple, hindrance);
            }
        }
    }

    fn place(&mut self, now: u64, tuple: &Tuple, hindrance: Option<Why>) {
        match hindrance {
            None => self.enqueue(tuple, now),
            Some(why) => self.set(tuple, State::Held(why, now)),
        }
    }
}
