//! The receiver's side of one origin: how far its log was applied, what came too
//! early, what is missing, and a snapshot on its way.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    tally::Tally,
    wire::{Records, bulk::Part},
};
use crate::pop::{MS, SECOND, Stream};

/// Batches of one origin that may wait for an earlier one.
pub(super) const PENDING_BATCHES_MAX: usize = 64;
/// How long a missing batch may be late before it is asked for, if a later one
/// shows that it is missing.
pub(super) const REORDER_DELAY: u64 = 2 * MS;
/// Until a repair is asked for again; doubles each time.
const REPAIR_TIMEOUT: u64 = 20 * MS;
const REPAIR_TIMEOUT_MAX: u64 = 500 * MS;
/// Repairs asked for without any progress before the whole set is pulled.
const REPAIR_TRIES: u32 = 8;
/// A pull of which nothing has come for so long takes up no room: others go on
/// meanwhile.
const PULL_STALLED: u64 = 250 * MS;
/// A pull of which nothing has come for so long has failed, on either side.
pub(super) const PULL_PATIENCE: u64 = 3 * SECOND;
/// How long a pull that has failed rests; doubles each time.
const PULL_REST: u64 = 50 * MS;
const PULL_REST_MAX: u64 = SECOND;
/// The most parts in a snapshot: over thirteen million sessions.
const PARTS_MAX: u32 = 512;
/// How far ahead of what was applied a batch is kept.
const AHEAD_MAX: u64 = 1 << 20;

/// How far one origin's log was applied here.
pub(super) struct Replica {
    /// The life whose log this is.
    pub stream: Stream,
    /// The mark of the origin's present claims in the table.
    pub epoch: bool,
    /// What the origin's claims in the table amount to.
    pub tally: Tally,
    /// Its claims were found in the kernel's table, left by the agent's life before,
    /// and nothing of its log is known yet.
    pub adopted: bool,
    /// Claims did not fit into the table: digests cannot agree.
    pub incomplete: bool,
    /// The next record to apply.
    pub next: u64,
    pub pending: Pending,
    pub gap: Option<Gap>,
    pub phase: Phase,
    /// Pulls that have failed one after the other.
    failures: u32,
}

/// What a replica is doing.
pub(super) enum Phase {
    /// It needs a snapshot, and may ask for one from this time on.
    Waiting { from: u64 },
    /// It stands in the queue of those that need one.
    Queued,
    /// A snapshot is on its way.
    Pulling(Pull),
    /// A complete snapshot is being put into the table.
    Applying(Apply),
    /// The log is applied as it comes.
    Following,
}

/// A snapshot being put into the table, a slice at a time.
pub(super) struct Apply {
    pub at: u64,
    /// Claims, as they stand in messages, and how many of those bytes are done.
    pub claims: Vec<u8>,
    pub done: usize,
    /// What was put in so far.
    pub tally: Tally,
    /// Claims of before that the snapshot has confirmed so far.
    pub confirmed: u64,
    pub started_at: u64,
}

impl Replica {
    /// Nothing is known of the origin's claims.
    pub fn new(now: u64) -> Self {
        Self {
            stream: Stream::default(),
            epoch: false,
            tally: Tally::default(),
            adopted: false,
            incomplete: false,
            next: 1,
            pending: Pending::default(),
            gap: None,
            phase: Phase::Waiting { from: now },
            failures: 0,
        }
    }

    /// What a snapshot must hold at least: the effect of every record below this;
    /// zero stands for all that there are.
    pub fn have(&self) -> u64 {
        if self.adopted { 0 } else { self.next }
    }

    /// How many records are known to exist that were not applied.
    pub fn missing(&self) -> u64 {
        let to = self.gap.as_ref().map_or(0, |gap| gap.to);
        to.saturating_sub(self.next)
    }

    /// A full sync is needed.
    pub fn wait(&mut self, from: u64) {
        self.phase = Phase::Waiting { from };
        self.gap = None;
        self.pending.clear();
    }

    /// A pull has failed. Says when the next one may begin.
    pub fn pull_failed(&mut self, now: u64) -> u64 {
        let rest = (PULL_REST << self.failures.min(8)).min(PULL_REST_MAX);
        self.failures += 1;
        self.wait(now + rest);
        now + rest
    }

    /// A snapshot was put into the table: the log goes on from there.
    pub fn follow(&mut self, at: u64) {
        self.next = at;
        self.failures = 0;
        self.phase = Phase::Following;
    }

    /// Records below `to` exist: notes what is missing. What does not come by
    /// itself within `delay` is to be asked for.
    pub fn expect(&mut self, now: u64, to: u64, delay: u64) {
        if to <= self.next {
            return;
        }
        match &mut self.gap {
            Some(gap) => {
                gap.to = gap.to.max(to);
                if gap.tries == 0 && delay < gap.delay {
                    gap.delay = delay;
                    gap.deadline = gap.deadline.min(now + delay);
                }
            }
            None => {
                self.gap = Some(Gap {
                    to,
                    seen: self.next,
                    delay,
                    deadline: now + delay,
                    tries: 0,
                });
            }
        }
    }

    /// Records were applied: forgets a gap that has closed by that; of one that
    /// has not, the rest is as good as new.
    pub fn settle_gap(&mut self, now: u64) {
        let next = self.next;
        self.gap.take_if(|gap| gap.to <= next);
        if let Some(gap) = &mut self.gap
            && next > gap.seen
        {
            gap.seen = next;
            gap.tries = 0;
            gap.deadline = now + gap.delay;
        }
    }
}

/// Records that exist and were not applied.
pub(super) struct Gap {
    /// One more than the last of them known.
    to: u64,
    /// Where the log stood when it last moved on.
    seen: u64,
    /// How long it may close by itself.
    delay: u64,
    deadline: u64,
    tries: u32,
}

/// What to do about a gap.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum GapStep {
    /// Nothing before this time.
    Wait(u64),
    /// Ask for records from the next on up to this one.
    Ask(u64),
    /// Repair does not help.
    GiveUp,
}

impl Gap {
    pub fn step(&mut self, now: u64, first_pending: Option<u64>) -> GapStep {
        if now < self.deadline {
            return GapStep::Wait(self.deadline);
        }
        if self.tries >= REPAIR_TRIES {
            return GapStep::GiveUp;
        }
        self.deadline = now + (REPAIR_TIMEOUT << self.tries).min(REPAIR_TIMEOUT_MAX);
        self.tries += 1;
        GapStep::Ask(first_pending.unwrap_or(self.to).min(self.to))
    }
}

/// Batches that came before an earlier one.
#[derive(Default)]
pub(super) struct Pending(BTreeMap<u64, (u64, Box<[u8]>)>);

impl Pending {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Keeps a batch, unless there are too many or it lies too far ahead.
    pub fn keep(&mut self, next: u64, first: u64, opened_us: u64, records: Records<'_>) -> bool {
        let is_new = !self.0.contains_key(&first);
        if first > next + AHEAD_MAX || is_new && self.0.len() >= PENDING_BATCHES_MAX {
            return false;
        }
        self.0.insert(first, (opened_us, records.bytes().into()));
        true
    }

    /// The next batch that can be applied: it begins at `next` or before.
    pub fn take(&mut self, next: u64) -> Option<(u64, u64, Box<[u8]>)> {
        let entry = self.0.first_entry().filter(|entry| *entry.key() <= next)?;
        let (first, (opened_us, bytes)) = entry.remove_entry();
        Some((first, opened_us, bytes))
    }

    /// Where the earliest of them begins.
    pub fn first(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    /// One more than the last record kept.
    pub fn end(&self) -> Option<u64> {
        let (first, (_, bytes)) = self.0.last_key_value()?;
        Some(first + Records::from_bytes(bytes).len() as u64)
    }
}

/// A snapshot on its way: it was asked for, and comes in parts.
pub(super) struct Pull {
    /// The number of the request: parts that name another are none of this.
    pub number: u64,
    /// The life whose live set it is.
    pub stream: Stream,
    /// It must hold the effect of every record below this.
    have: u64,
    /// Which one it is and the parts that are missing, once one has come.
    known: Option<(u64, BTreeSet<u32>)>,
    claims: Vec<u8>,
    /// When a part last came.
    heard_at: u64,
    pub started_at: u64,
}

/// How a snapshot on its way does.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum PullStep {
    /// Well, as far as can be said before this time.
    Wait(u64),
    /// Nothing has come for a while; there is hope until this time.
    Stalled(u64),
    /// It has failed.
    GiveUp,
}

impl Pull {
    /// A snapshot that is asked for now.
    pub fn new(now: u64, number: u64, stream: Stream, have: u64) -> Self {
        Self {
            number,
            stream,
            have,
            known: None,
            claims: Vec::new(),
            heard_at: now,
            started_at: now,
        }
    }

    pub fn step(&self, now: u64) -> PullStep {
        let [stalled, over] = [PULL_STALLED, PULL_PATIENCE].map(|time| self.heard_at + time);
        match now {
            _ if now < stalled => PullStep::Wait(stalled),
            _ if now < over => PullStep::Stalled(over),
            _ => PullStep::GiveUp,
        }
    }

    /// Takes a part in that names this request. Gives the whole set once it is complete.
    pub fn take(&mut self, now: u64, part: &Part<'_>) -> Option<(u64, Vec<u8>)> {
        if part.snapshot < self.have || part.total > PARTS_MAX {
            return None;
        }
        let all = || (part.snapshot, (0..part.total).collect());
        let (at, missing) = self.known.get_or_insert_with(all);
        if *at != part.snapshot || !missing.remove(&part.index) {
            return None;
        }
        self.claims.extend_from_slice(part.records.bytes());
        self.heard_at = now;
        let done = missing.is_empty();
        done.then(|| (*at, std::mem::take(&mut self.claims)))
    }
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;
    use proptest::prelude::*;

    use super::{
        super::wire::{Record, bulk::encode_claims},
        *,
    };

    /// Takes a part with one claim, to the session with the part's number.
    fn feed(pull: &mut Pull, now: u64, at: u64, index: u32, total: u32) -> Option<(u64, Vec<u8>)> {
        let claim = Record {
            id: SessionId(index.into()),
            generation: 0,
            closed: false,
        };
        let bytes = encode_claims(std::iter::once(claim));
        let part = Part {
            number: 1,
            snapshot: at,
            index,
            total,
            records: Records::from_bytes(&bytes),
        };
        pull.take(now, &part)
    }

    proptest! {
        /// In whatever order parts come, some of them twice, and however many of other
        /// snapshots among them: what comes out is one whole snapshot, once.
        #[test]
        fn snapshot_comes_out_whole(
            order in Just((0..20u32).chain(0..20).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut pull = Pull::new(0, 1, Stream::default(), 0);
            let mut left: BTreeSet<u32> = (0..20).collect();
            for index in order {
                let new = left.remove(&index);
                let done = feed(&mut pull, 0, 5, index, 20);
                prop_assert_eq!(done.is_some(), new && left.is_empty());
                if let Some((at, claims)) = done {
                    let records = Records::from_bytes(&claims);
                    let ids: BTreeSet<_> = records.iter().map(|r| r.id.0).collect();
                    prop_assert_eq!((at, records.len()), (5, 20));
                    prop_assert!(ids.into_iter().eq(0..20));
                }
                prop_assert!(feed(&mut pull, 0, 6, index, 20).is_none());
            }
        }
    }

    #[test]
    fn snapshot_that_is_older_than_needed_or_too_large_is_refused() {
        let mut pull = Pull::new(0, 1, Stream::default(), 10);
        assert!(feed(&mut pull, 0, 9, 0, 1).is_none());
        assert!(feed(&mut pull, 0, 10, 0, PARTS_MAX + 1).is_none());
        assert!(feed(&mut pull, 0, 10, 0, 1).is_some());
    }

    #[test]
    fn pull_that_nothing_comes_of_stalls_then_fails_and_rests_longer_each_time() {
        let mut pull = Pull::new(0, 1, Stream::default(), 0);
        assert_eq!(pull.step(0), PullStep::Wait(PULL_STALLED));
        assert_eq!(pull.step(PULL_STALLED), PullStep::Stalled(PULL_PATIENCE));
        let heard = PULL_PATIENCE - 1;
        feed(&mut pull, heard, 5, 0, 2);
        assert_eq!(pull.step(heard), PullStep::Wait(heard + PULL_STALLED));
        // A part that has come already is no sign of life.
        feed(&mut pull, heard + 1, 5, 0, 2);
        assert_eq!(pull.step(heard + PULL_PATIENCE), PullStep::GiveUp);

        let mut replica = Replica::new(0);
        let rests: Vec<_> = (0..6).map(|_| replica.pull_failed(0) / MS).collect();
        assert_eq!(rests, [50, 100, 200, 400, 800, 1_000]);
        replica.follow(1);
        assert_eq!(replica.pull_failed(0) / MS, 50);
    }

    #[test]
    fn gap_is_asked_for_after_a_moment_then_less_and_less_often_then_given_up() {
        let mut replica = Replica::new(0);
        replica.expect(0, 10, REORDER_DELAY);
        let gap = replica.gap.as_mut().unwrap();
        assert_eq!(gap.step(0, Some(4)), GapStep::Wait(REORDER_DELAY));
        let mut now = REORDER_DELAY;
        let mut waits = Vec::new();
        for _ in 0..REPAIR_TRIES {
            assert_eq!(gap.step(now, Some(4)), GapStep::Ask(4));
            let GapStep::Wait(until) = gap.step(now, Some(4)) else {
                panic!("asked twice")
            };
            waits.push((until - now) / MS);
            now = until;
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 500, 500, 500]);
        assert_eq!(gap.step(now, Some(4)), GapStep::GiveUp);
        // Progress begins the count anew.
        replica.next = 2;
        replica.settle_gap(now);
        let gap = replica.gap.as_mut().unwrap();
        assert_eq!(gap.step(now + REORDER_DELAY, None), GapStep::Ask(10));
        replica.next = 10;
        replica.settle_gap(now);
        assert!(replica.gap.is_none());
    }
}
