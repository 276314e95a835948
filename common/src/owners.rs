//! The table of foreign sessions' owners: which host each belongs to.
//!
//! The agent writes it and the kernel side reads it through the same memory, an array
//! map of cache lines, without a system call or a lock. This module is what both sides
//! compile: where a session may stand, and how it is looked up. [`table`] is the
//! writer.
//!
//! # What stands where
//!
//! Each line is a bucket of eight slots, and a session stands in one of two buckets. A
//! line apart, the [`header`], says which of two tables is in force, and how large they
//! are. A slot holds the owner, and
//! of the session's id what does not follow from the bucket: so the id comes back from
//! a slot ([`Shape::id_of`]), and an entry that is found is always the session's own.
//! Two sessions are taken for one only where their 64-bit ids are the same.
//!
//! With `id = hi (17 bits) ‖ lo (47 bits)` and `n` buckets (at least 2^17):
//!
//! ```text
//! first  = (⌊hi · n / 2^17⌋ + m1(lo)) mod n      m1(lo) = ⌊(lo mod 2^32) · n / 2^32⌋
//! second = (m2(lo) − first) mod n                m2(lo) = ⌊⌊lo / 2^15⌋ · n / 2^32⌋
//! slot   = away (4 bits) ‖ host (12) ‖ choice (1) ‖ lo (47)
//! ```
//!
//! `choice` says whether the bucket is the first or the second one. Either follows from
//! the other and `lo`, and `hi` from the first: `n` is at least 2^17, so no two values
//! of `hi` give the same `⌊hi · n / 2^17⌋`.
//!
//! An entry stands in its second bucket only where the first one was full, which is
//! rare. So a bucket counts, in the `away` of its last slot, the entries whose first
//! bucket it is and that stand in their second one: where there are none, who does not
//! find a session in its first bucket need not read another line. Sessions that have
//! no entry, above all this host's own, mostly cost one line that way. The count may be
//! too high, never too low: at its greatest it stays for good, and so does what a writer
//! that was killed has counted too much. A larger table begins to count anew.
//!
//! Ids are a keyed hash (SipHash-1-3) of the session's tuple: who does not have the key
//! can neither choose nor guess a bucket, whatever ports and addresses he takes. So the
//! way from id to bucket needs no key of its own.
//!
//! # How a larger table takes its place
//!
//! The larger one is filled while the other goes on, put beside it, its size written
//! into the header, and then `active` is flipped. A reader that began before goes on with
//! the former table, which stays as it is until no such reader is left (an RCU grace
//! period): then it goes, and its place is free for the next one.
//! `tests/owners_dying.rs` has the writer die at every store of that.
//!
//! # How it is read while it is written
//!
//! A slot is one word, so an entry is there or not. Only where an insertion finds both
//! of its buckets full do entries change places: such an entry is written to its other
//! bucket, then a counter in the header moves on, then the old place is cleared. A
//! reader that looks at the first bucket before the entry is there and at the second
//! one after it has gone finds the counter changed, and looks again; if that happens
//! [`TRIES`] times, it says that it is not sure. What it never says is that an entry is
//! missing which was there all the time.
//!
//! Why that holds: say that a reader finds neither copy of an entry that moves from the
//! second bucket to the first. Then it read the second one's slot after it was cleared.
//! The writer's stores become visible in the order in which they were made, and the
//! reader's loads are made in order (stores release, loads acquire; on x86 all loads and
//! stores do). So its last look at the counter comes after the counter moved on. It read
//! the first bucket's slot before the copy was written, and its first look at the counter
//! came before that, hence before the counter moved on. The two looks differ. An entry
//! that moves from the first bucket to the second one is found in one of them: who saw
//! it cleared in the first sees the copy in the second.
//!
//! Nor may it be missed for the count. The writer counts an entry before it stands in
//! its second bucket, and takes it from the count after it has gone from there. The
//! reader takes the count from the bucket's last slot, which it loads last. Say that the
//! count is zero, and the entry was not found in the first bucket. When the count was
//! loaded the entry stood in the first bucket, hence not in the last slot (which is the
//! same load), and its slot was loaded before it was written: so it came there from
//! the second bucket meanwhile, and since the count was zero again the counter of moves
//! had moved on before. The two looks at that differ. `tests/owners_order.rs` goes
//! through all interleavings.
//!
//! The kernel side has no acquire loads that all kernels take (they came with the fourth
//! version of the instruction set), and uses volatile ones: enough on x86-64, which
//! keeps loads in order. It is not on arm64, which Homing is not made for.

#[cfg(not(target_arch = "bpf"))]
use core::ops::Range;

#[cfg(not(target_arch = "bpf"))]
use crate::host::HostId;
use crate::session::SessionId;

#[cfg(not(target_arch = "bpf"))]
pub mod table;

/// Slots of a bucket: it is one cache line.
pub const SLOTS: usize = 8;
/// Buckets at least: with fewer, ids do not come back from slots.
pub const BUCKETS_MIN: u32 = 1 << HI_BITS;
/// How often a reader looks again when entries change places meanwhile.
pub const TRIES: u32 = 4;

const HI_BITS: u32 = 17;
const LO_BITS: u32 = 64 - HI_BITS;
const LO: u64 = (1 << LO_BITS) - 1;
/// Set in an entry that stands in its session's second bucket.
const CHOICE: u64 = 1 << LO_BITS;
const HOST_SHIFT: u32 = LO_BITS + 1;
const HOST_BITS: u32 = 12;
/// The slot whose highest bits are the bucket's count.
const AWAY_SLOT: usize = SLOTS - 1;
const AWAY_SHIFT: u32 = HOST_SHIFT + HOST_BITS;
/// A bucket's count of the entries that stand in their second bucket, not here.
const AWAY: u64 = !0 << AWAY_SHIFT;
/// What names the session in an entry.
const REST: u64 = (1 << HOST_SHIFT) - 1;

const _: () = assert!(crate::host::MAX_HOSTS == 1 << HOST_BITS);

/// What stands in the words of the header.
pub mod header {
    /// Which table is in force: 0 or 1.
    pub const ACTIVE: usize = 0;
    /// From here on: how many buckets each table has. Zero: there is none.
    pub const BUCKETS: usize = 1;
    /// While an entry changes places: one more than the bucket it leaves, times eight,
    /// and the slot. Zero: none does.
    pub const MOVING: usize = 3;
    /// From here on: how often entries have changed places, by a part of their ids.
    pub const MOVES: usize = 4;
    /// How many of these there are.
    pub const STRIPES: usize = 4;
}

/// A slot as a debugger shows it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Slot {
    /// The low 32 bits of the session's id.
    pub low: u32,
    /// Bits 32 to 46 of the id; the highest bit is set in the session's second bucket.
    pub high: u16,
    /// The owner, in the lower twelve bits. Zero: the slot is free. The upper four bits
    /// of a bucket's last slot count entries that stand in their second bucket because
    /// this one was full.
    pub host: u16,
}

/// A bucket as a debugger shows it: the value of the array maps that `OWNERS` holds.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Bucket {
    /// Its slots.
    pub slots: [Slot; SLOTS],
}

/// The header as a debugger shows it: the value of the map `OWNERS_HEADER`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Header {
    /// Which table is in force.
    pub active: u64,
    /// How many buckets each has.
    pub buckets: [u64; TABLES as usize],
    /// The entry that is changing places.
    pub moving: u64,
    /// How often entries have changed places.
    pub moves: [u64; header::STRIPES],
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Header>() == 64);

/// Tables at most: the one in force, and the one that is to take its place.
pub const TABLES: u32 = 2;

/// The memory that tables stand in.
pub trait Memory {
    /// The header or a bucket.
    type Line<'a>: Copy
    where
        Self: 'a;

    /// The header; none while there are no tables.
    fn header(&self) -> Option<Self::Line<'_>>;

    /// A bucket of a table; none beyond the last.
    fn bucket(&self, table: u32, number: u32) -> Option<Self::Line<'_>>;

    /// Reads a word of a line: loads are made in order, and what is read is followed by
    /// whatever was written before it.
    fn load(line: Self::Line<'_>, word: usize) -> u64;
}

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// The session's owner, by host id.
    Owner(u16),
    /// The session has no entry.
    Nothing,
    /// Entries kept changing places, or the table is none: there may be an entry.
    Unsure,
}

/// Where a session may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its first bucket.
    pub first: u32,
    /// Its second bucket.
    pub second: u32,
    /// Its entry in the first bucket, without the owner.
    entry: u64,
}

impl Place {
    /// Its entry in the first or in the second bucket.
    #[inline(always)]
    const fn entry(&self, host: u16, second: bool) -> u64 {
        self.entry | if second { CHOICE } else { 0 } | (host as u64) << HOST_SHIFT
    }

    /// The word of the header that counts when this session's entry changes places.
    #[inline(always)]
    const fn moves(&self) -> usize {
        moves_of(self.entry)
    }
}

#[inline(always)]
const fn moves_of(entry: u64) -> usize {
    header::MOVES + (entry as usize & (header::STRIPES - 1))
}

/// The owner in a slot. Zero: it is free.
#[inline(always)]
const fn host_in(slot: u64) -> u16 {
    ((slot & !AWAY) >> HOST_SHIFT) as u16
}

/// The owner in a slot, if it holds this entry.
#[inline(always)]
const fn owner_in(slot: u64, entry: u64) -> Option<u16> {
    // The rest is zero in a free slot, and in one entry of 2^47.
    if slot & REST == entry && host_in(slot) != 0 {
        Some(host_in(slot))
    } else {
        None
    }
}

/// How many buckets a table has, and what follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    buckets: u32,
}

impl Shape {
    /// The shape with so many buckets; none if they are too few.
    #[inline(always)]
    pub const fn new(buckets: u32) -> Option<Self> {
        if buckets < BUCKETS_MIN {
            return None;
        }
        Some(Self { buckets })
    }

    /// How many buckets there are.
    pub const fn buckets(&self) -> u32 {
        self.buckets
    }

    /// Where a session may stand.
    #[inline(always)]
    pub const fn place(&self, id: SessionId) -> Place {
        let lo = id.0 & LO;
        let first = self.add(self.share(id.0 >> LO_BITS, HI_BITS), self.near(lo));
        Place {
            first,
            second: self.subtract(self.far(lo), first),
            entry: lo,
        }
    }

    /// The session whose entry stands in a bucket; none if the slot is free.
    pub const fn id_of(&self, bucket: u32, slot: u64) -> Option<SessionId> {
        if host_in(slot) == 0 {
            return None;
        }
        let lo = slot & LO;
        let first = match slot & CHOICE {
            0 => bucket,
            _ => self.subtract(self.far(lo), bucket),
        };
        let share = self.subtract(first, self.near(lo)) as u64;
        let hi = (share << HI_BITS).div_ceil(self.buckets as u64);
        Some(SessionId(hi << LO_BITS | lo))
    }

    /// The other bucket in which an entry may stand.
    const fn other(&self, bucket: u32, slot: u64) -> u32 {
        self.subtract(self.far(slot & LO), bucket)
    }

    #[inline(always)]
    const fn near(&self, lo: u64) -> u32 {
        self.share(lo & u32::MAX as u64, 32)
    }

    #[inline(always)]
    const fn far(&self, lo: u64) -> u32 {
        self.share(lo >> (LO_BITS - 32), 32)
    }

    /// A number of so many bits, spread over the buckets.
    #[inline(always)]
    const fn share(&self, number: u64, bits: u32) -> u32 {
        ((number * self.buckets as u64) >> bits) as u32
    }

    #[inline(always)]
    const fn add(&self, a: u32, b: u32) -> u32 {
        let sum = a as u64 + b as u64;
        if sum >= self.buckets as u64 {
            (sum - self.buckets as u64) as u32
        } else {
            sum as u32
        }
    }

    #[inline(always)]
    const fn subtract(&self, a: u32, b: u32) -> u32 {
        if a >= b {
            a - b
        } else {
            a + (self.buckets - b)
        }
    }
}

/// The table in force, and its shape; none if there is none.
#[inline(always)]
pub fn active<M: Memory>(header: M::Line<'_>) -> Option<(u32, Shape)> {
    let table = M::load(header, header::ACTIVE) as u32 % TABLES;
    let buckets = M::load(header, header::BUCKETS + table as usize);
    Some((table, Shape::new(buckets as u32)?))
}

/// Calls `each` with every entry: the session and its owner. Entries that change places
/// meanwhile may be seen twice or not at all.
#[cfg(not(target_arch = "bpf"))]
pub fn each<M: Memory>(memory: &M, each: impl FnMut(SessionId, HostId)) {
    let found = memory.header().and_then(active::<M>);
    if let Some((table, shape)) = found {
        each_of(memory, (table, shape), 0..shape.buckets(), each);
    }
}

/// The same of some buckets of a table.
#[cfg(not(target_arch = "bpf"))]
fn each_of<M: Memory>(
    memory: &M,
    (table, shape): (u32, Shape),
    buckets: Range<u32>,
    mut each: impl FnMut(SessionId, HostId),
) {
    for number in buckets {
        let Some(bucket) = memory.bucket(table, number) else {
            return;
        };
        for slot in 0..SLOTS {
            let slot = M::load(bucket, slot);
            if let Some(id) = shape.id_of(number, slot) {
                each(id, HostId(host_in(slot)));
            }
        }
    }
}

/// Looks a session up.
#[inline(always)]
pub fn look_up<M: Memory>(memory: &M, id: SessionId) -> Found {
    let Some(header) = memory.header() else {
        return Found::Unsure;
    };
    let Some((table, shape)) = active::<M>(header) else {
        return Found::Unsure;
    };
    let place = shape.place(id);
    let mut moves = M::load(header, place.moves());
    for _ in 0..TRIES {
        for (bucket, second) in [(place.first, false), (place.second, true)] {
            let Some(bucket) = memory.bucket(table, bucket) else {
                return Found::Unsure;
            };
            let entry = place.entry(0, second);
            let mut last = 0;
            for slot in 0..SLOTS {
                last = M::load(bucket, slot);
                if let Some(host) = owner_in(last, entry) {
                    return Found::Owner(host);
                }
            }
            if last & AWAY == 0 {
                break;
            }
        }
        let before = moves;
        moves = M::load(header, place.moves());
        if moves == before {
            return Found::Nothing;
        }
    }
    Found::Unsure
}
