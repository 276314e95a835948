//! The writer of the table: one at a time.

use core::ops::Range;

use super::{
    AWAY, AWAY_SHIFT, AWAY_SLOT, CHOICE, HOST_SHIFT, Memory, Place, REST, SLOTS, Shape, active,
    header, host_in, moves_of, owner_in,
};
use crate::{
    host::{HostId, MAX_HOSTS},
    session::SessionId,
};

/// Buckets that are looked at for a way to a free slot.
const SEARCH_MAX: usize = 512;

/// Memory that a table can be written to.
pub trait Writable: Memory {
    /// Writes a word of a line: who reads it sees all that was written before.
    fn store(line: Self::Line<'_>, word: usize, value: u64);
}

/// There is no room for another session: too many of its buckets, and of those that
/// their entries could go to, are full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A table and its only writer.
pub struct Table<M> {
    memory: M,
    number: u32,
    shape: Shape,
    len: u32,
}

/// A bucket on the way to a free slot: reached from `parent`, by the entry in `slot`
/// there.
#[derive(Clone, Copy, Default)]
struct Step {
    bucket: u32,
    parent: u16,
    slot: u8,
}

impl<M: Writable> Table<M> {
    /// Makes a table, by its number, of so many buckets in memory that is all zero. It
    /// is not in force yet. None if these are too few, or the memory too small.
    pub fn create(memory: M, number: u32, buckets: u32) -> Option<Self> {
        let shape = Shape::new(buckets)?;
        memory.bucket(number, buckets - 1)?;
        memory.header()?;
        Some(Self {
            memory,
            number,
            shape,
            len: 0,
        })
    }

    /// Goes on with the table in force, which another writer made, whenever that one
    /// ended. None if there is no table.
    pub fn open(memory: M) -> Option<Self> {
        let (number, shape) = active::<M>(memory.header()?)?;
        memory.bucket(number, shape.buckets() - 1)?;
        let mut table = Self {
            memory,
            number,
            shape,
            len: 0,
        };
        table.repair();
        let mut len = 0;
        table.each(|_, _| len += 1);
        table.len = len;
        Some(table)
    }

    /// Puts the table in force. Its memory must be where readers look for it by its
    /// number.
    pub fn activate(&mut self) {
        let (header, number) = (self.header(), self.number as usize);
        M::store(
            header,
            header::BUCKETS + number,
            self.shape.buckets().into(),
        );
        M::store(header, header::ACTIVE, number as u64);
    }

    /// An entry that was changing places when the writer ended may stand in both.
    fn repair(&mut self) {
        let Some(moving) = M::load(self.header(), header::MOVING).checked_sub(SLOTS as u64) else {
            return;
        };
        let (bucket, slot) = ((moving / SLOTS as u64) as u32, moving as usize % SLOTS);
        if bucket < self.shape.buckets() {
            let entry = self.entry_in(self.bucket(bucket), slot);
            let other = self.bucket(self.shape.other(bucket, entry));
            let copy = entry ^ CHOICE;
            if entry != 0 && (0..SLOTS).any(|slot| self.entry_in(other, slot) == copy) {
                self.leave(bucket, slot, entry);
            }
        }
        M::store(self.header(), header::MOVING, 0);
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The table's shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The memory it stands in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// How many sessions have an entry.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The owner of a session, if it has an entry.
    pub fn get(&self, id: SessionId) -> Option<HostId> {
        let place = self.shape.place(id);
        let found = self.find(&place);
        found.map(|(_, _, entry)| HostId(host_in(entry)))
    }

    /// Makes a host the owner of a session; says whether it had none.
    ///
    /// # Errors
    ///
    /// There is no room, and nothing has changed.
    ///
    /// # Panics
    ///
    /// The host's id is none: zero, or beyond all.
    pub fn set(&mut self, id: SessionId, host: HostId) -> Result<bool, Full> {
        self.set_and_tell(id, host, |_, _| ())
    }

    /// The same; `moved` hears of each entry that changes places.
    pub fn set_and_tell(
        &mut self,
        id: SessionId,
        host: HostId,
        moved: impl FnMut(SessionId, HostId),
    ) -> Result<bool, Full> {
        assert!(host.0 != 0 && u32::from(host.0) < MAX_HOSTS, "{}", host.0);
        let place = self.shape.place(id);
        if self.replace(&place, host.0) {
            return Ok(false);
        }
        let (bucket, slot, second) = self.room(&place, moved).ok_or(Full)?;
        if second {
            self.count_away(place.first, true);
        }
        self.write(self.bucket(bucket), slot, place.entry(host.0, second));
        self.len += 1;
        Ok(true)
    }

    /// Removes a session's entry; says whether there was one.
    pub fn clear(&mut self, id: SessionId) -> bool {
        let place = self.shape.place(id);
        let there = self.replace(&place, 0);
        self.len -= u32::from(there);
        there
    }

    /// A session's entry, and the bucket and slot it stands in.
    fn find(&self, place: &Place) -> Option<(u32, usize, u64)> {
        for (bucket, second) in [(place.first, false), (place.second, true)] {
            let line = self.bucket(bucket);
            for slot in 0..SLOTS {
                let entry = self.entry_in(line, slot);
                if owner_in(entry, place.entry(0, second)).is_some() {
                    return Some((bucket, slot, entry));
                }
            }
            if M::load(line, AWAY_SLOT) & AWAY == 0 {
                break;
            }
        }
        None
    }

    /// What stands in a slot, without the bucket's count. Zero: it is free.
    fn entry_in(&self, line: M::Line<'_>, slot: usize) -> u64 {
        M::load(line, slot) & !AWAY
    }

    /// Writes an entry, or with 0 frees the slot. The bucket's count stays.
    fn write(&self, line: M::Line<'_>, slot: usize, entry: u64) {
        M::store(line, slot, M::load(line, slot) & AWAY | entry);
    }

    /// Counts, at its first bucket, an entry that is about to stand in its second one, or
    /// one that stands there no more.
    fn count_away(&self, first: u32, goes: bool) {
        let line = self.bucket(first);
        let word = M::load(line, AWAY_SLOT);
        let count = word >> AWAY_SHIFT;
        let count = match goes {
            // Who has lost count cannot count down.
            _ if count == AWAY >> AWAY_SHIFT => return,
            true => count + 1,
            false => count.saturating_sub(1),
        };
        M::store(line, AWAY_SLOT, word & !AWAY | count << AWAY_SHIFT);
    }

    /// Frees the slot of an entry.
    fn remove(&self, bucket: u32, slot: usize, entry: u64) {
        self.write(self.bucket(bucket), slot, 0);
        if entry & CHOICE != 0 {
            self.count_away(self.shape.other(bucket, entry), false);
        }
    }

    /// Writes another owner into a session's entry, or with 0 frees it. Says whether
    /// there is one.
    fn replace(&mut self, place: &Place, host: u16) -> bool {
        let found = self.find(place);
        if let Some((bucket, slot, entry)) = found {
            match host {
                0 => self.remove(bucket, slot, entry),
                host => {
                    let entry = entry & REST | u64::from(host) << HOST_SHIFT;
                    self.write(self.bucket(bucket), slot, entry);
                }
            }
        }
        found.is_some()
    }

    /// Calls `each` with every entry.
    pub fn each(&self, each: impl FnMut(SessionId, HostId)) {
        self.each_of(0..self.shape.buckets(), each);
    }

    /// Calls `each` with every entry of some buckets, by their numbers.
    pub fn each_of(&self, buckets: Range<u32>, each: impl FnMut(SessionId, HostId)) {
        super::each_of(&self.memory, (self.number, self.shape), buckets, each);
    }

    fn entry(&self, bucket: u32, slot: u64) -> Option<(SessionId, HostId)> {
        let id = self.shape.id_of(bucket, slot)?;
        Some((id, HostId(host_in(slot))))
    }

    /// Removes all entries of a host; says how many there were.
    pub fn void(&mut self, host: HostId) -> u32 {
        let mut gone = 0;
        for bucket in 0..self.shape.buckets() {
            let line = self.bucket(bucket);
            for slot in 0..SLOTS {
                let entry = self.entry_in(line, slot);
                if host_in(entry) == host.0 && host.0 != 0 {
                    self.remove(bucket, slot, entry);
                    gone += 1;
                }
            }
        }
        self.len -= gone;
        gone
    }

    /// A free slot in one of a session's buckets, and whether that is the second one:
    /// the first, where there is one, so that readers mostly look no further.
    fn room(
        &mut self,
        place: &Place,
        moved: impl FnMut(SessionId, HostId),
    ) -> Option<(u32, usize, bool)> {
        if let Some(slot) = self.free(place.first) {
            return Some((place.first, slot, false));
        }
        if let Some(slot) = self.free(place.second) {
            return Some((place.second, slot, true));
        }
        self.make_room(place, moved)
    }

    /// A free slot of a bucket.
    fn free(&self, bucket: u32) -> Option<usize> {
        let line = self.bucket(bucket);
        (0..SLOTS).find(|slot| self.entry_in(line, *slot) == 0)
    }

    /// Looks for the shortest way on which entries can change places so that a slot in
    /// one of a session's buckets becomes free, and goes it from its end. The shortest
    /// one comes to no bucket twice.
    fn make_room(
        &mut self,
        place: &Place,
        moved: impl FnMut(SessionId, HostId),
    ) -> Option<(u32, usize, bool)> {
        let mut steps = [Step::default(); SEARCH_MAX];
        steps[0].bucket = place.first;
        steps[1].bucket = place.second;
        let roots = if place.first == place.second { 1 } else { 2 };
        let (mut len, mut at) = (roots, 0);
        while at < len {
            let here = steps[at].bucket;
            for slot in 0..SLOTS {
                let entry = M::load(self.bucket(here), slot);
                let bucket = self.shape.other(here, entry);
                if let Some(free) = self.free(bucket) {
                    return Some(self.go(&steps, (at, slot), (bucket, free), roots, moved));
                }
                if len < SEARCH_MAX {
                    let (parent, slot) = (at as u16, slot as u8);
                    steps[len] = Step {
                        bucket,
                        parent,
                        slot,
                    };
                    len += 1;
                }
            }
            at += 1;
        }
        None
    }

    /// Moves the entry in `from`, a slot of a step's bucket, to `to`, the one that leads
    /// to that step into the slot that has become free, and so on.
    fn go(
        &mut self,
        steps: &[Step],
        from: (usize, usize),
        to: (u32, usize),
        roots: usize,
        mut moved: impl FnMut(SessionId, HostId),
    ) -> (u32, usize, bool) {
        let ((mut at, mut slot), mut to) = (from, to);
        loop {
            let step = steps[at];
            self.shift((step.bucket, slot), to);
            let entry = M::load(self.bucket(to.0), to.1);
            if let Some((id, host)) = self.entry(to.0, entry) {
                moved(id, host);
            }
            if at < roots {
                return (step.bucket, slot, at == 1);
            }
            to = (step.bucket, slot);
            (at, slot) = (step.parent.into(), step.slot.into());
        }
    }

    /// Moves an entry to its other bucket. See the module's account of the order.
    pub fn shift(&mut self, (bucket, slot): (u32, usize), (to, free): (u32, usize)) {
        let entry = self.entry_in(self.bucket(bucket), slot);
        let place = (u64::from(bucket) + 1) * SLOTS as u64 + slot as u64;
        M::store(self.header(), header::MOVING, place);
        if entry & CHOICE == 0 {
            self.count_away(bucket, true);
        }
        self.write(self.bucket(to), free, entry ^ CHOICE);
        self.leave(bucket, slot, entry);
        M::store(self.header(), header::MOVING, 0);
    }

    /// Frees the slot of an entry of which a copy stands in its other bucket.
    fn leave(&mut self, bucket: u32, slot: usize, entry: u64) {
        let moves = moves_of(entry);
        let count = M::load(self.header(), moves);
        M::store(self.header(), moves, count.wrapping_add(1));
        self.remove(bucket, slot, entry);
    }

    fn header(&self) -> M::Line<'_> {
        let header = self.memory.header();
        header.expect("it was there when the table was made")
    }

    /// A bucket that is known to be there.
    fn bucket(&self, number: u32) -> M::Line<'_> {
        let bucket = self.memory.bucket(self.number, number);
        bucket.expect("the memory was found to be large enough")
    }
}
