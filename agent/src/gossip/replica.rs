//! The receiver's side of one origin: how far its log was applied, what came too
//! early, what is missing, and a snapshot on its way.

use std::collections::BTreeMap;

use super::{
    tally::Tally,
    wire::{Pull, Record, Records},
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
/// Until chunks are asked for again; doubles each time.
const PULL_TIMEOUT: u64 = 30 * MS;
const PULL_TIMEOUT_MAX: u64 = 500 * MS;
/// Requests without any progress before a pull is given up for a while.
const PULL_TRIES: u32 = 20;
/// After so many without progress it takes up no room: others go on meanwhile.
const PULL_TRIES_WITH_ROOM: u32 = 3;
/// How long a pull that was given up rests.
pub(super) const PULL_REST: u64 = SECOND;
/// Chunks asked for at once.
const WINDOW_CHUNKS: u32 = 32;
/// The most chunks in a snapshot: over eight million sessions.
const CHUNKS_MAX: u32 = 1 << 16;
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
}

/// What a replica is doing.
pub(super) enum Phase {
    /// It needs a snapshot, and may ask for one from this time on.
    Waiting { from: u64 },
    /// It stands in the queue of those that need one.
    Queued,
    /// A snapshot is on its way.
    Pulling(Snapshot),
    /// A complete snapshot is being put into the table.
    Applying(Apply),
    /// The log is applied as it comes.
    Following,
}

/// A snapshot being put into the table, a slice at a time.
pub(super) struct Apply {
    pub at: u64,
    pub records: Vec<Record>,
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

/// A snapshot on its way: chunks are asked for a window at a time.
pub(super) struct Snapshot {
    /// The life whose live set it is.
    stream: Stream,
    /// It must hold the effect of every record below this.
    have: u64,
    /// Which one it is and how many chunks it has, once known.
    known: Option<(u64, u32)>,
    records: Vec<Record>,
    /// The first chunk of the window, and the chunks of it that are missing.
    from: u32,
    missing: u32,
    deadline: u64,
    tries: u32,
    pub started_at: u64,
}

/// What to do about a snapshot on its way.
pub(super) enum PullStep {
    Wait(u64),
    Ask(Pull),
    GiveUp,
}

impl Snapshot {
    /// A snapshot to be asked for now.
    pub fn new(now: u64, stream: Stream, have: u64) -> Self {
        Self {
            stream,
            have,
            known: None,
            records: Vec::new(),
            from: 0,
            missing: u32::MAX,
            deadline: now,
            tries: 0,
            started_at: now,
        }
    }

    pub fn step(&mut self, now: u64) -> PullStep {
        if now < self.deadline {
            return PullStep::Wait(self.deadline);
        }
        if self.tries >= PULL_TRIES {
            return PullStep::GiveUp;
        }
        self.deadline = now + (PULL_TIMEOUT << self.tries.min(8)).min(PULL_TIMEOUT_MAX);
        self.tries += 1;
        PullStep::Ask(Pull {
            stream: self.stream,
            snapshot: self.known.map_or(0, |(at, _)| at),
            have: self.have,
            from: self.from,
            wanted: self.missing,
        })
    }

    /// Whether nothing has come for a while.
    pub fn is_stalled(&self) -> bool {
        self.tries > PULL_TRIES_WITH_ROOM
    }

    /// Takes a chunk in. Gives the whole set once it is complete.
    pub fn take(
        &mut self,
        now: u64,
        at: u64,
        index: u32,
        total: u32,
        records: Records<'_>,
    ) -> Option<(u64, Vec<Record>)> {
        if at < self.have || total > CHUNKS_MAX {
            return None;
        }
        match self.known {
            Some((known, _)) if at < known => return None,
            Some(known) if known == (at, total) => {}
            _ => {
                // The first chunk, or the origin has dropped the snapshot that
                // we were taking and begun another.
                self.known = Some((at, total));
                self.records.clear();
                self.open_window(0, total);
            }
        }
        let bit = index.checked_sub(self.from).filter(|&n| n < WINDOW_CHUNKS);
        let bit = 1u32 << bit?;
        if self.missing & bit == 0 {
            return None;
        }
        self.missing &= !bit;
        self.records.extend(records.iter());
        self.tries = 0;
        if self.missing == 0 {
            let next = self.from + WINDOW_CHUNKS;
            if next >= total {
                return Some((at, std::mem::take(&mut self.records)));
            }
            self.open_window(next, total);
            self.deadline = now;
        }
        None
    }

    fn open_window(&mut self, from: u32, total: u32) {
        self.from = from;
        let chunks = (total - from).min(WINDOW_CHUNKS);
        self.missing = u32::MAX >> (WINDOW_CHUNKS - chunks);
    }
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;
    use proptest::prelude::*;

    use super::{
        super::wire::{self, Message},
        *,
    };

    fn chunk(at: u64, index: u32, total: u32) -> Vec<u8> {
        let record = Record {
            id: SessionId(u64::from(index) + at * 1000),
            generation: 0,
            closed: false,
        };
        wire::encode_chunk(at, index, total, std::iter::once(record))
    }

    fn feed(snapshot: &mut Snapshot, now: u64, body: &[u8]) -> Option<(u64, Vec<Record>)> {
        match wire::decode(body) {
            Some(Message::Chunk {
                snapshot: at,
                index,
                total,
                records,
            }) => snapshot.take(now, at, index, total, records),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// Whatever share of chunks is lost and whenever the origin begins a new
        /// snapshot: what comes out is one whole snapshot.
        #[test]
        fn snapshot_comes_out_whole(total in 1u32..200, losses: [u8; 16], renew_at in 0usize..30) {
            let mut snapshot = Snapshot::new(0, Stream::default(), 0);
            let (mut now, mut at, mut lost) = (0, 5, losses.iter().cycle());
            for round in 0.. {
                prop_assert!(round < 1_000);
                if round == renew_at { at = 9; }
                let pull = match snapshot.step(now) {
                    PullStep::Wait(until) => { now = until; continue }
                    PullStep::Ask(pull) => pull,
                    PullStep::GiveUp => { snapshot.tries = 0; continue }
                };
                let mut done = None;
                for n in (0..32).filter(|n| pull.wanted & 1 << n != 0) {
                    let index = pull.from + n;
                    if index < total && *lost.next().unwrap() < 180 {
                        done = done.or(feed(&mut snapshot, now, &chunk(at, index, total)));
                    }
                }
                if let Some((got_at, records)) = done {
                    prop_assert_eq!(got_at, at);
                    let mut ids: Vec<_> = records.iter().map(|r| r.id.0 - at * 1000).collect();
                    ids.sort_unstable();
                    prop_assert_eq!(ids, (0..u64::from(total)).collect::<Vec<_>>());
                    break;
                }
            }
        }
    }

    #[test]
    fn snapshot_older_than_needed_is_refused() {
        let mut snapshot = Snapshot::new(0, Stream::default(), 10);
        assert!(feed(&mut snapshot, 0, &chunk(9, 0, 1)).is_none());
        assert!(feed(&mut snapshot, 0, &chunk(10, 0, 1)).is_some());
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
