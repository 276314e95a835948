//! The origin's side: this host's own sessions, the log of their announcements,
//! and snapshots of the live set.

use std::sync::Arc;

use homing_common::session::SessionId;

use super::{
    claims::IdMap,
    tally::Tally,
    wire::{
        self, BATCH_RECORDS_MAX, GENERATION_MAX, Heartbeat, RECORD_LEN, Record, Records,
        bulk::{PART_RECORDS_MAX, encode_claims},
    },
};

/// Records that are kept for repair: older ones need a full sync.
pub const LOG_RECORDS: u64 = 1 << 16;

/// Snapshots are made at most this often.
const SNAPSHOT_INTERVAL: u64 = 100 * crate::pop::MS;
/// Small ones: making one costs less than sending it.
const SMALL_SNAPSHOT_INTERVAL: u64 = 10 * crate::pop::MS;
/// One of at most so many records is small.
const SMALL_SNAPSHOT: usize = 4096;
/// A snapshot that nobody asked for in this time is dropped.
const SNAPSHOT_LIFE: u64 = 5 * crate::pop::SECOND;

/// A record in the ring: 16 bytes.
#[derive(Clone, Copy, Default)]
struct Slot {
    id: u64,
    /// Bits 0 to 15: the record's kind and generation; above: when the event
    /// happened, in microseconds after the log's own epoch.
    rest: u64,
}

/// This host's sessions and the log of what became of them.
pub(super) struct Log {
    ring: Box<[Slot]>,
    /// The sequence number of the next record; the first is 1.
    next: u64,
    /// The first record that was not sent yet.
    unsent: u64,
    /// The log's own epoch: `CLOCK_REALTIME`, microseconds.
    epoch_us: u64,
    live: IdMap<u16>,
    tally: Tally,
    /// The snapshot that was made last, and when it was last asked for.
    snapshot: Option<(Arc<Snapshot>, u64)>,
    snapshot_made_at: Option<u64>,
}

/// What the live set was.
pub(super) struct Snapshot {
    /// It holds the effect of every record below this number.
    pub at: u64,
    /// Claims, as they stand in messages.
    claims: Vec<u8>,
}

impl Snapshot {
    /// How many parts it has: at least one.
    pub fn parts(&self) -> u32 {
        let records = self.claims.len() / RECORD_LEN;
        records.div_ceil(PART_RECORDS_MAX).max(1) as u32
    }

    /// One of its parts.
    pub fn part(&self, index: u32) -> Records<'_> {
        const PART_LEN: usize = PART_RECORDS_MAX * RECORD_LEN;
        let from = self.claims.len().min(index as usize * PART_LEN);
        let to = self.claims.len().min(from + PART_LEN);
        Records::from_bytes(&self.claims[from..to])
    }
}

impl Log {
    /// A log that begins with these sessions, at a time of `CLOCK_REALTIME`.
    pub fn new(wall_us: u64, sessions: impl Iterator<Item = (SessionId, u16)>) -> Self {
        let mut log = Self {
            ring: vec![Slot::default(); LOG_RECORDS as usize].into_boxed_slice(),
            next: 1,
            unsent: 1,
            epoch_us: wall_us,
            live: IdMap::default(),
            tally: Tally::default(),
            snapshot: None,
            snapshot_made_at: None,
        };
        for (id, generation) in sessions {
            log.add(id, generation.min(GENERATION_MAX));
        }
        log
    }

    /// Whether a session is live on this host.
    pub fn is_live(&self, id: SessionId) -> bool {
        self.live.contains_key(&id)
    }

    /// A live session's generation.
    pub fn generation(&self, id: SessionId) -> Option<u16> {
        self.live.get(&id).copied()
    }

    /// What the live set amounts to.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The sequence number that the next record will get.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Records that were not sent yet.
    pub fn unsent(&self) -> u64 {
        self.next - self.unsent
    }

    /// A session was opened here at a time of `CLOCK_REALTIME`.
    pub fn open(&mut self, id: SessionId, generation: u16, at_us: u64) {
        let generation = generation.min(GENERATION_MAX);
        self.add(id, generation);
        self.append(
            Record {
                id,
                generation,
                closed: false,
            },
            at_us,
        );
    }

    /// A session of this host was closed. Says whether it was live.
    pub fn close(&mut self, id: SessionId, at_us: u64) -> bool {
        let Some(generation) = self.live.remove(&id) else {
            return false;
        };
        self.tally.remove(id, generation);
        self.append(
            Record {
                id,
                generation,
                closed: true,
            },
            at_us,
        );
        true
    }

    /// The next batch that was not sent yet.
    pub fn take_batch(&mut self) -> Option<Vec<u8>> {
        self.unsent = self.unsent.max(self.oldest());
        if self.unsent == self.next {
            return None;
        }
        let from = self.unsent;
        self.unsent = self.next.min(from + BATCH_RECORDS_MAX as u64);
        Some(self.batch(from, self.unsent, false))
    }

    /// Nobody is there to hear what was not sent.
    pub fn skip_unsent(&mut self) {
        self.unsent = self.next;
    }

    /// Batches of records `from..to` again, at most so many; none if the first is
    /// no longer kept.
    pub fn repair(&self, from: u64, to: u64, limit: usize) -> Option<Vec<Vec<u8>>> {
        // What was not sent yet is about to be.
        let to = to.min(self.unsent);
        if from < self.oldest() {
            return None;
        }
        let starts = (from..to).step_by(BATCH_RECORDS_MAX).take(limit);
        Some(
            starts
                .map(|first| self.batch(first, to.min(first + BATCH_RECORDS_MAX as u64), true))
                .collect(),
        )
    }

    /// Where the log stands.
    pub fn heartbeat(&self, hears: bool, calls: bool) -> Heartbeat {
        Heartbeat {
            hears,
            calls,
            next: self.next,
            oldest: self.oldest(),
            count: self.tally.count,
            digest: self.tally.digest,
        }
    }

    /// The records whose effect a snapshot must hold for one who asks for it now, as
    /// [`wire::bulk::Pull::have`] says.
    pub fn needed(&self, have: u64) -> u64 {
        // Who holds routes that its agent's life before has left may know of sessions
        // that opened since a snapshot that is kept. What a snapshot does not hold it
        // takes for closed, so it must get one of this very moment.
        match have {
            0 => self.next,
            have => have.min(self.next),
        }
    }

    /// A snapshot that holds the effect of every record below `need`, made if need be.
    ///
    /// # Errors
    ///
    /// When one may be made: the last one has only just been.
    pub fn snapshot(&mut self, now: u64, need: u64) -> Result<Arc<Snapshot>, u64> {
        // The log must go on from it for some time.
        let oldest_useful = self.next.saturating_sub(LOG_RECORDS / 2);
        if let Some((kept, asked_at)) = &mut self.snapshot
            && kept.at >= need.max(oldest_useful)
        {
            *asked_at = now;
            return Ok(kept.clone());
        }
        let interval = match self.live.len() {
            0..=SMALL_SNAPSHOT => SMALL_SNAPSHOT_INTERVAL,
            _ => SNAPSHOT_INTERVAL,
        };
        let free_at = self.snapshot_made_at.map_or(0, |made| made + interval);
        if now < free_at {
            return Err(free_at);
        }
        let claim = |(&id, &generation): (&SessionId, &u16)| Record {
            id,
            generation,
            closed: false,
        };
        let snapshot = Arc::new(Snapshot {
            at: self.next,
            claims: encode_claims(self.live.iter().map(claim)),
        });
        self.snapshot = Some((snapshot.clone(), now));
        self.snapshot_made_at = Some(now);
        Ok(snapshot)
    }

    /// Drops a snapshot that nobody asks for any more.
    pub fn forget_snapshot(&mut self, now: u64) {
        self.snapshot
            .take_if(|(_, asked_at)| now >= *asked_at + SNAPSHOT_LIFE);
    }

    fn add(&mut self, id: SessionId, generation: u16) {
        if let Some(previous) = self.live.insert(id, generation) {
            self.tally.remove(id, previous);
        }
        self.tally.add(id, generation);
    }

    fn append(&mut self, record: Record, at_us: u64) {
        let offset = at_us.saturating_sub(self.epoch_us) & (u64::MAX >> 16);
        self.ring[(self.next % LOG_RECORDS) as usize] = Slot {
            id: record.id.0,
            rest: offset << 16 | u64::from(record.meta()),
        };
        self.next += 1;
    }

    fn oldest(&self) -> u64 {
        self.next.saturating_sub(LOG_RECORDS).max(1)
    }

    fn batch(&self, from: u64, to: u64, repair: bool) -> Vec<u8> {
        let slot = |sequence: u64| self.ring[(sequence % LOG_RECORDS) as usize];
        let oldest = (from..to).map(|n| slot(n).rest >> 16).min().unwrap_or(0);
        let records = (0..(to - from) as usize).map(|n| {
            let slot = slot(from + n as u64);
            Record::from_parts(slot.id, slot.rest as u16)
        });
        wire::encode_batch(from, self.epoch_us + oldest, repair, records)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wire::Message, *};

    fn records(body: &[u8]) -> (u64, u64, Vec<Record>) {
        match wire::decode(body) {
            Some(Message::Batch {
                first,
                opened_us,
                records,
                ..
            }) => (first, opened_us, records.iter().collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_hold_every_record_once_in_order_and_the_oldest_time() {
        let mut log = Log::new(1_000_000, std::iter::empty());
        for n in 0..300 {
            log.open(SessionId(n), 0, 1_000_000 + 500 - n);
        }
        let (mut expected, mut sizes) = (1, Vec::new());
        while let Some(body) = log.take_batch() {
            let (first, opened_us, records) = records(&body);
            assert_eq!(first, expected);
            expected += records.len() as u64;
            assert_eq!(opened_us, 1_000_500 - (expected - 2));
            sizes.push(records.len());
        }
        assert_eq!(expected, 301);
        assert_eq!(
            sizes,
            [
                BATCH_RECORDS_MAX,
                BATCH_RECORDS_MAX,
                300 - 2 * BATCH_RECORDS_MAX
            ]
        );
    }

    #[test]
    fn what_left_the_ring_cannot_be_repaired() {
        let mut log = Log::new(0, std::iter::empty());
        for n in 0..LOG_RECORDS + 10 {
            log.open(SessionId(n), 0, 0);
        }
        log.skip_unsent();
        assert_eq!(log.heartbeat(false, false).oldest, 11);
        assert!(log.repair(10, 20, 1).is_none());
        let batches = log.repair(11, 20, 1).unwrap();
        let (first, _, records) = records(&batches[0]);
        assert_eq!(
            (first, records[0].id, records.len()),
            (11, SessionId(10), 9)
        );
    }

    #[test]
    fn unsent_records_that_left_the_ring_are_skipped() {
        let mut log = Log::new(0, std::iter::empty());
        for n in 0..LOG_RECORDS + 10 {
            log.open(SessionId(n), 0, 0);
        }
        assert_eq!(records(&log.take_batch().unwrap()).0, 11);
    }

    #[test]
    fn snapshot_holds_the_live_set_in_parts() {
        const SESSIONS: u64 = 2 * PART_RECORDS_MAX as u64 + 10;
        let mut log = Log::new(0, (0..SESSIONS).map(|n| (SessionId(n), 3)));
        log.close(SessionId(7), 0);
        let snapshot = log.snapshot(0, log.needed(0)).unwrap();
        assert_eq!((snapshot.at, snapshot.parts()), (2, 3));
        let parts = (0..3).map(|index| snapshot.part(index));
        let mut ids: Vec<_> = parts.flat_map(|part| part.iter().map(|r| r.id.0)).collect();
        ids.sort_unstable();
        assert!((0..SESSIONS).filter(|&n| n != 7).eq(ids));
        assert!(snapshot.part(3).is_empty());

        log.forget_snapshot(SNAPSHOT_LIFE);
        let weak = Arc::downgrade(&snapshot);
        drop(snapshot);
        assert!(weak.upgrade().is_none(), "nobody asks for it any more");
        let empty = Log::new(0, std::iter::empty()).snapshot(0, 0).unwrap();
        assert_eq!((empty.parts(), empty.part(0).len()), (1, 0));
    }

    #[test]
    fn who_holds_routes_of_before_gets_a_snapshot_of_this_very_moment() {
        let ms = crate::pop::MS;
        let mut log = Log::new(0, std::iter::empty());
        let at = |log: &mut Log, now, need| log.snapshot(now, need).map(|snapshot| snapshot.at);
        assert_eq!(at(&mut log, 0, 1), Ok(1));
        log.open(SessionId(1), 0, 0);
        // Not the one of before, in which the session is missing; and soon.
        let need = log.needed(0);
        assert_eq!((need, at(&mut log, ms, need)), (2, Err(10 * ms)));
        assert_eq!(at(&mut log, 11 * ms, need), Ok(2));
        // Of the moment of asking, however the log moves on.
        log.open(SessionId(2), 0, 0);
        assert_eq!(at(&mut log, 30 * ms, need), Ok(2));
        // Who follows the log already, or knows nothing, shares one with others.
        assert_eq!((log.needed(1), log.needed(2)), (1, 2));
        assert_eq!(log.needed(99), 3, "no more than there is");
    }

    #[test]
    fn a_large_snapshot_is_made_less_often_and_one_the_log_has_left_behind_not_given() {
        let ms = crate::pop::MS;
        let many = SMALL_SNAPSHOT as u64 + 1;
        let mut log = Log::new(0, (0..many).map(|n| (SessionId(n), 0)));
        assert!(log.snapshot(0, 1).is_ok());
        log.open(SessionId(many), 0, 0);
        assert_eq!(log.snapshot(20 * ms, 2).err(), Some(100 * ms));
        assert_eq!(log.snapshot(100 * ms, 2).map(|made| made.at), Ok(2));
        for _ in 0..=LOG_RECORDS / 2 {
            log.open(SessionId(0), 0, 0);
        }
        let made = log.snapshot(200 * ms, 1).map(|made| made.at);
        assert_eq!(made, Ok(LOG_RECORDS / 2 + 3));
    }

    #[test]
    fn tally_follows_the_live_set_in_any_order() {
        let mut a = Log::new(0, [(SessionId(1), 0), (SessionId(2), 4)].into_iter());
        let mut b = Log::new(0, std::iter::empty());
        b.open(SessionId(2), 0, 0);
        b.open(SessionId(3), 0, 0);
        b.open(SessionId(2), 4, 0);
        assert_ne!(a.tally(), b.tally());
        assert!(b.close(SessionId(3), 0));
        assert!(!b.close(SessionId(3), 0));
        b.open(SessionId(1), 0, 0);
        assert_eq!(a.tally(), b.tally());
        a.close(SessionId(1), 0);
        a.close(SessionId(2), 0);
        assert_eq!(a.tally(), Tally::default());
    }
}
