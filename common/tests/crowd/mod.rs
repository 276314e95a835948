//! Memory in which few buckets are there to be written, ids that crowd them, and a
//! writer that may die.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use homing_common::{
    owners::{BUCKETS_MIN, Memory, SLOTS, Shape, table::Table, table::Writable},
    session::SessionId,
};

pub type Words = [AtomicU64; SLOTS];

thread_local! {
    /// How many stores of this thread take effect still: then its writer is dead.
    pub static STORES: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Writes a word, unless the writer is dead.
pub fn store(line: &Words, word: usize, value: u64) {
    if let Some(left) = STORES.get().checked_sub(1) {
        STORES.set(left);
        line[word].store(value, Release);
    }
}

pub fn load(line: &Words, word: usize) -> u64 {
    line[word].load(Acquire)
}

pub fn copy(words: &Words) -> Words {
    words.each_ref().map(|word| word.load(Relaxed).into())
}

/// An id of those that stand in ten buckets, three of which are the first ones of all.
pub fn crowded_id(first: u64, second: u64, rest: u64) -> SessionId {
    SessionId(first << 47 | second << 32 | rest)
}

/// The buckets of a table of which only those of crowded ids are there to be written, so
/// that they are soon copied.
pub struct Buckets {
    pub lines: Vec<Words>,
    /// Where in `lines` each one is; 0 where it is not.
    at: Arc<[u8]>,
}

impl Buckets {
    pub fn new(buckets: u32) -> Self {
        let shape = Shape::new(buckets).unwrap();
        let ids = (0..9u64).map(|n| crowded_id(n / 3, n % 3, 0));
        let places = ids.map(|id| shape.place(id));
        let (mut at, mut count) = (vec![0; buckets as usize], 1);
        for number in places.flat_map(|place| [place.first, place.second]) {
            let at = &mut at[number as usize];
            if *at == 0 {
                *at = count;
                count += 1;
            }
        }
        Self {
            lines: (0..count).map(|_| Words::default()).collect(),
            at: at.into(),
        }
    }

    pub fn get(&self, number: u32) -> Option<&Words> {
        let at = *self.at.get(number as usize)?;
        self.lines.get(usize::from(at))
    }
}

impl Clone for Buckets {
    fn clone(&self) -> Self {
        Self {
            lines: self.lines.iter().map(copy).collect(),
            at: self.at.clone(),
        }
    }
}

/// Memory of one table, of the smallest shape.
pub struct Few {
    header: Words,
    pub buckets: Buckets,
}

impl Few {
    pub fn new() -> Self {
        Self {
            header: Words::default(),
            buckets: Buckets::new(BUCKETS_MIN),
        }
    }

    /// A table in force.
    pub fn table(&self) -> Table<&Self> {
        let mut table = Table::create(self, 0, BUCKETS_MIN).unwrap();
        table.activate();
        table
    }
}

impl Clone for Few {
    fn clone(&self) -> Self {
        Self {
            header: copy(&self.header),
            buckets: self.buckets.clone(),
        }
    }
}

impl Memory for &Few {
    type Line<'a>
        = &'a Words
    where
        Self: 'a;

    fn header(&self) -> Option<&Words> {
        Some(&self.header)
    }

    fn bucket(&self, table: u32, number: u32) -> Option<&Words> {
        self.buckets.get(number).filter(|_| table == 0)
    }

    fn load(line: &Words, word: usize) -> u64 {
        load(line, word)
    }
}

impl Writable for &Few {
    fn store(line: &Words, word: usize, value: u64) {
        store(line, word, value);
    }
}
