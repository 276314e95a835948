//! What a drain does next, as far as it can be decided without doing anything.

mod taking;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use homing_common::{host::HostId, session::Tuple};

use super::{
    Options, Why,
    pace::Pace,
    progress::{Counts, Meter, Progress},
    targets::{Choice, Targets},
};
use crate::{
    migration::{Ended, Outcome, Reason},
    pop::{MS, SECOND},
};

/// How often a session's move is begun that fails for a reason of its own, until it is
/// left here. Refusals that are the target's matter do not count.
pub const TRIES: u8 = 6;
/// The pause after the first of them; doubles each time.
const PAUSE: u64 = 250 * MS;
/// The pause after the session was found to be in a move already, or this host to have no
/// room for another one.
const BUSY: u64 = 500 * MS;
/// The longest time that one move may take before its release.
const MOVE_WITHIN: u64 = 30 * SECOND;
/// How often sessions are looked for that are new, or ended, while some move; and while
/// only such are left that are waited for.
const LOOK_EVERY: u64 = SECOND;
const LOOK_SOON: u64 = 100 * MS;
/// Looking takes at most one part in so many of the time.
const LOOK_SHARE: u64 = 10;
/// So many sessions in a row that no target has room for: then the rest need not be asked
/// about.
const FULL_IN_A_ROW: usize = 64;
/// After this long a session is offered again that all targets have refused.
const OFFER_AGAIN: u64 = 10 * SECOND;

/// A move is to be begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    /// The session.
    pub tuple: Tuple,
    /// Where to.
    pub target: HostId,
    /// If it is not released within so long, it is to be given up.
    pub within: Duration,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// No session is left here.
    Drained,
    /// Some are left, for the reasons told.
    Left,
    /// It was stopped.
    Stopped,
}

/// A session of this host.
struct Entry {
    cookie: u64,
    key: u64,
    state: State,
    /// Moves that failed for a reason that counts.
    tries: u8,
    /// Better another target than this one.
    avoid: Option<HostId>,
    /// Why its last move failed.
    last: Option<Why>,
    /// The last look that saw it.
    look: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be begun at this time, in this order.
    Queued(u64, u64),
    Moving(HostId),
    /// Cannot move now; may be queued again at this time.
    Held(Why, u64),
    /// Stays here.
    GivenUp(Why),
}

/// See the [module](super). Times are microseconds since the beginning.
pub struct Plan {
    options: Options,
    deadline: u64,
    at_once: usize,
    /// Until when applications and hosts that are missing may yet come.
    settled_at: u64,
    entries: HashMap<Tuple, Entry>,
    queue: BTreeSet<(u64, u64, Tuple)>,
    order: u64,
    moving: usize,
    /// How many are held or given up, by why.
    left: BTreeMap<Why, u64>,
    targets: Targets,
    /// Hosts or options have changed: what is held for want of a target is offered again.
    offer_again: bool,
    pace: Pace,
    /// Before this nothing is begun: no target has room.
    full_until: u64,
    looks: Looks,
    /// What went away since the last look began, by its cookie: that look may show it.
    recent: HashMap<Tuple, u64>,
    counts: Counts,
    meter: Meter,
    stopped: bool,
    end: Option<End>,
}

/// Looks at this host, one after another.
#[derive(Default)]
struct Looks {
    begun: u64,
    /// When the present one began.
    since: Option<u64>,
    /// When the last one was over that could tell, and how long it took.
    last: Option<(u64, u64)>,
    /// When the last one was over that could not.
    failed: u64,
    /// No move has ended since the last one began.
    fresh: bool,
    arriving: usize,
    time_wait: usize,
}

impl Plan {
    /// Begins. At most `at_once` moves are under way at a time; before `settled_at`
    /// nothing is taken for hopeless because an application or a host is missing.
    pub fn new(now: u64, options: Options, at_once: usize, settled_at: u64) -> Self {
        let mut plan = Self {
            deadline: u64::MAX,
            at_once: at_once.max(1),
            settled_at,
            entries: HashMap::new(),
            queue: BTreeSet::new(),
            order: 0,
            moving: 0,
            left: BTreeMap::new(),
            targets: Targets::default(),
            offer_again: false,
            pace: Pace::new(None),
            full_until: 0,
            looks: Looks::default(),
            recent: HashMap::new(),
            counts: Counts::default(),
            meter: Meter::default(),
            stopped: false,
            end: None,
            options: Options::default(),
        };
        plan.replace(now, options, true);
        plan
    }

    /// So many moves may be under way at a time from now on. Those that are go on.
    pub fn set_at_once(&mut self, at_once: usize) {
        self.at_once = at_once.max(1);
    }

    /// Goes on with other options. A deadline that is new counts from now on.
    pub fn replace(&mut self, now: u64, options: Options, is_new: bool) {
        let within = options.deadline.map(|within| within.as_micros() as u64);
        if is_new {
            self.deadline = within.map_or(u64::MAX, |within| now.saturating_add(within));
        }
        if options.rate != self.options.rate {
            self.pace = Pace::new(options.rate);
        }
        self.options = options;
        self.offer_again = true;
        self.looks.fresh = false;
    }

    /// What is in force.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Which other hosts are up and take sessions.
    pub fn hosts(&mut self, hosts: BTreeSet<HostId>) {
        if self.targets.set(hosts) {
            self.offer_again = true;
            self.looks.fresh = false;
        }
    }

    /// The next move to begin. To be asked until there is none.
    pub fn poll(&mut self, now: u64) -> Option<Begin> {
        let mut full = 0;
        while self.may_begin(now)
            && let Some(&(at, order, tuple)) = self.queue.first()
            && at <= now
        {
            self.queue.remove(&(at, order, tuple));
            let Some(entry) = self.entries.get(&tuple) else {
                continue;
            };
            let of = (entry.key, &tuple.service());
            match self.targets.choose(now, of, &self.options.to, entry.avoid) {
                Choice::To(target) => {
                    self.set(&tuple, State::Moving(target));
                    self.pace.begin(now);
                    let within = (self.deadline - now).min(MOVE_WITHIN);
                    return Some(Begin {
                        tuple,
                        target,
                        within: Duration::from_micros(within),
                    });
                }
                Choice::Later(at) => {
                    self.enqueue(&tuple, at);
                    full += 1;
                    if full >= FULL_IN_A_ROW {
                        self.full_until = at;
                    }
                }
                Choice::None(why) => self.set(&tuple, State::Held(why, now + OFFER_AGAIN)),
            }
        }
        None
    }

    fn may_begin(&self, now: u64) -> bool {
        !self.is_over(now) && self.moving < self.at_once && self.next_begin() <= now
    }

    fn next_begin(&self) -> u64 {
        self.pace.next_time().max(self.full_until)
    }

    /// Whether nothing is begun any more.
    fn is_over(&self, now: u64) -> bool {
        self.stopped || self.end.is_some() || now >= self.deadline
    }

    /// A move that was begun is over.
    pub fn ended(&mut self, now: u64, ended: &Ended) {
        let Some(entry) = self.entries.get_mut(&ended.tuple) else {
            return;
        };
        let State::Moving(target) = entry.state else {
            return;
        };
        self.looks.fresh = false;
        match ended.outcome {
            Outcome::Moved => {
                self.counts.moved += 1;
                self.counts.frozen.record(ended.frozen_us);
                self.meter.count(now);
                self.targets.took(target);
            }
            Outcome::Gone(_, reason) => self.counts.gone(Why::Move(reason)),
            Outcome::Lost(reason) => self.counts.lost(Why::Move(reason)),
            Outcome::Refused(Reason::Gone) => self.counts.ended += 1,
            Outcome::Refused(reason) | Outcome::Aborted(_, reason) => {
                entry.last = Some(Why::Move(reason));
                self.counts.failed(Why::Move(reason));
                return self.failed(now, ended, target, reason);
            }
        }
        let cookie = entry.cookie;
        self.recent.insert(ended.tuple, cookie);
        self.remove(&ended.tuple);
    }

    /// A move has failed, and the session goes on here.
    fn failed(&mut self, now: u64, ended: &Ended, target: HostId, reason: Reason) {
        let tuple = &ended.tuple;
        let by_this_host = ended.number.is_none();
        match reason {
            Reason::TooLarge | Reason::NotCarried => {
                return self.set(tuple, State::GivenUp(Why::Move(reason)));
            }
            // Its application has gone just now.
            Reason::NoApplication if by_this_host => {
                return self.set(tuple, State::Held(Why::NoApplication, now + BUSY));
            }
            Reason::Moving => return self.enqueue(tuple, now + BUSY),
            Reason::Full if by_this_host => return self.enqueue(tuple, now + BUSY),
            _ => {}
        }
        if self.targets.refused(now, target, &tuple.service(), reason) {
            return self.enqueue(tuple, now);
        }
        let Some(entry) = self.entries.get_mut(tuple) else {
            return;
        };
        entry.tries += 1;
        entry.avoid = Some(target);
        let tries = entry.tries;
        if tries >= TRIES {
            self.set(tuple, State::GivenUp(Why::Move(reason)));
        } else {
            self.enqueue(tuple, now + (PAUSE << (tries - 1)));
        }
    }

    /// Ends it as soon as what is under way is over. Returns the sessions whose moves are
    /// to be called off.
    pub fn stop(&mut self) -> Vec<Tuple> {
        self.stopped = true;
        let moving = |entry: &Entry| matches!(entry.state, State::Moving(_));
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| moving(entry))
            .map(|(tuple, _)| *tuple)
            .collect()
    }

    /// Whether it has ended, and how. To be asked when [`Plan::poll`] has nothing more.
    pub fn end(&mut self, now: u64) -> Option<End> {
        if self.end.is_none()
            && let Some(end) = self.judge(now)
        {
            let last = match end {
                End::Stopped => Why::Stopped,
                _ => Why::TimeUp,
            };
            for (_, _, tuple) in std::mem::take(&mut self.queue) {
                let why = self.entries.get(&tuple).and_then(|entry| entry.last);
                self.set(&tuple, State::GivenUp(why.unwrap_or(last)));
            }
            self.end = Some(end);
        }
        self.end
    }

    fn judge(&self, now: u64) -> Option<End> {
        if self.moving > 0 {
            return None;
        }
        if self.stopped {
            return Some(End::Stopped);
        }
        let is_up = now >= self.deadline;
        if !is_up && (!self.looks.fresh || self.looks.last.is_none() || self.looks.since.is_some())
        {
            return None;
        }
        let Looks {
            arriving,
            time_wait,
            ..
        } = self.looks;
        let unknown = self.looks.last.is_none();
        let is_empty = self.entries.is_empty() && arriving == 0 && !unknown;
        match is_empty {
            true if is_up || time_wait == 0 => Some(End::Drained),
            true => None,
            false if is_up => Some(End::Left),
            false => (!self.options.wait && !self.hopes(now)).then_some(End::Left),
        }
    }

    /// Whether something that is left may yet move or end by itself soon.
    fn hopes(&self, now: u64) -> bool {
        let settling = now < self.settled_at;
        let may_pass = |why: &Why| {
            why.passes() || settling && matches!(why, Why::NoApplication | Why::NoTarget)
        };
        !self.queue.is_empty()
            || self.looks.arriving > 0
            || self.looks.time_wait > 0
            || self.left.keys().any(may_pass)
    }

    /// When there may be something to do that nothing else announces; the end of time if
    /// nothing waits.
    pub fn next_time(&self, now: u64) -> u64 {
        let mut at = self.look_at();
        if !self.is_over(now) {
            at = at.min(self.deadline);
            if self.moving < self.at_once
                && let Some(&(first, ..)) = self.queue.first()
            {
                at = at.min(first.max(self.next_begin()));
            }
        }
        at.max(now + 1)
    }

    /// How it is going.
    pub fn progress(&self, now: u64) -> Progress {
        let queued = self.queue.len() as u64;
        let per_s = self.meter.per_s(now);
        let to_go = queued + self.moving as u64;
        let rest_s = (per_s > 0.0).then(|| to_go as f64 / per_s);
        Progress {
            end: self.end,
            options: self.options.clone(),
            counts: self.counts.clone(),
            queued,
            moving: self.moving as u64,
            left: self.left.clone(),
            arriving: self.looks.arriving as u64,
            time_wait: self.looks.time_wait as u64,
            per_s,
            rest: rest_s.map(Duration::from_secs_f64),
            elapsed: Duration::from_micros(now),
            remaining: (self.deadline < u64::MAX)
                .then(|| Duration::from_micros(self.deadline.saturating_sub(now))),
        }
    }

    fn enqueue(&mut self, tuple: &Tuple, at: u64) {
        self.order += 1;
        self.set(tuple, State::Queued(at, self.order));
    }

    /// The one place where a session's state changes.
    fn set(&mut self, tuple: &Tuple, state: State) {
        let Some(entry) = self.entries.get_mut(tuple) else {
            return;
        };
        let before = std::mem::replace(&mut entry.state, state);
        self.count_off(tuple, before);
        match state {
            State::Queued(at, order) => {
                self.queue.insert((at, order, *tuple));
            }
            State::Moving(_) => self.moving += 1,
            State::Held(why, _) | State::GivenUp(why) => {
                *self.left.entry(why).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, tuple: &Tuple) {
        if let Some(entry) = self.entries.remove(tuple) {
            self.count_off(tuple, entry.state);
        }
    }

    fn count_off(&mut self, tuple: &Tuple, state: State) {
        match state {
            State::Queued(at, order) => {
                self.queue.remove(&(at, order, *tuple));
            }
            State::Moving(_) => self.moving -= 1,
            State::Held(why, _) | State::GivenUp(why) => {
                if let Some(count) = self.left.get_mut(&why) {
                    *count -= 1;
                    if *count == 0 {
                        self.left.remove(&why);
                    }
                }
            }
        }
    }
}
