//! The order of loads and stores by which readers never miss an entry that changes
//! places, in all interleavings and all orders that acquire and release allow (loom,
//! which Miri does not run).
#![cfg(not(miri))]

use homing_common::{
    bench::session_id,
    owners::{
        BUCKETS_MIN, Found, Memory, Place, SLOTS, Shape, header, look_up,
        table::{Table, Writable},
    },
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    thread,
};

const HOST: u16 = 5;
const CHOICE: u64 = 1 << 47;
/// One entry stands in its second bucket.
const AWAY: u64 = 1 << 60;
const LAST: usize = SLOTS - 1;

/// The words that change: the one slot that is taken in each of a session's buckets, the
/// first one's last slot, with the count, and the counter of moves. All others are
/// constant.
struct Words {
    place: Place,
    /// Which slot of the first bucket is taken: its last one, or one before.
    slot: usize,
    first: AtomicU64,
    last: AtomicU64,
    second: AtomicU64,
    moves: AtomicU64,
}

#[derive(Clone)]
struct Model(Arc<Words>);

#[derive(Clone, Copy)]
enum Line<'a> {
    Header(&'a Words),
    First(&'a Words),
    Second(&'a AtomicU64),
    Empty,
}

/// A word of the first bucket.
fn in_first(words: &Words, word: usize) -> Option<&AtomicU64> {
    match word {
        word if word == words.slot => Some(&words.first),
        LAST => Some(&words.last),
        _ => None,
    }
}

impl Memory for Model {
    type Line<'a> = Line<'a>;

    fn header(&self) -> Option<Line<'_>> {
        Some(Line::Header(&self.0))
    }

    fn bucket(&self, _: u32, number: u32) -> Option<Line<'_>> {
        let Words { place, .. } = &*self.0;
        Some(match number {
            number if number == place.first => Line::First(&self.0),
            number if number == place.second => Line::Second(&self.0.second),
            _ => Line::Empty,
        })
    }

    fn load(line: Line<'_>, word: usize) -> u64 {
        match line {
            Line::Header(_) if word == header::BUCKETS => BUCKETS_MIN.into(),
            Line::Header(words) if word >= header::MOVES => words.moves.load(Acquire),
            Line::First(words) => in_first(words, word).map_or(0, |word| word.load(Acquire)),
            Line::Second(slot) if word == 0 => slot.load(Acquire),
            _ => 0,
        }
    }
}

impl Writable for Model {
    fn store(line: Line<'_>, word: usize, value: u64) {
        match line {
            Line::Header(words) if word >= header::MOVES => words.moves.store(value, Release),
            Line::Header(_) => {}
            Line::First(words) => {
                let word = in_first(words, word).expect("an entry went elsewhere");
                word.store(value, Release);
            }
            Line::Second(slot) if word == 0 => slot.store(value, Release),
            Line::Second(_) | Line::Empty => panic!("an entry went elsewhere"),
        }
    }
}

/// An entry goes from one of its buckets to the other one, and back, while a reader
/// looks for it. `slot` is its place in the first one.
fn look_while_it_moves(from_first: bool, slot: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        let id = session_id(1);
        let place = Shape::new(BUCKETS_MIN).unwrap().place(id);
        let entry = id.0 & (CHOICE - 1) | u64::from(HOST) << 48;
        let (first, second, away) = match from_first {
            true => (entry, 0, 0),
            false => (0, entry | CHOICE, AWAY),
        };
        let memory = Model(Arc::new(Words {
            place,
            slot,
            first: AtomicU64::new(if slot == LAST { first | away } else { first }),
            last: AtomicU64::new(away),
            second: AtomicU64::new(second),
            moves: AtomicU64::new(0),
        }));
        let writer = thread::spawn({
            let memory = memory.clone();
            move || {
                let mut table = Table::create(memory, 0, BUCKETS_MIN).unwrap();
                let (mut from, mut to) = ((place.first, slot), (place.second, 0));
                if !from_first {
                    (from, to) = (to, from);
                }
                table.shift(from, to);
                table.shift(to, from);
            }
        });
        let found = look_up(&memory, id);
        assert!(
            matches!(found, Found::Owner(HOST) | Found::Unsure),
            "{found:?}"
        );
        writer.join().unwrap();
        assert_eq!(look_up(&memory, id), Found::Owner(HOST));
    });
}

#[test]
fn an_entry_that_leaves_its_first_bucket_is_never_missing() {
    look_while_it_moves(true, 0);
}

#[test]
fn an_entry_that_leaves_its_second_bucket_is_never_missing() {
    look_while_it_moves(false, 0);
}

#[test]
fn an_entry_that_leaves_the_slot_with_the_count_is_never_missing() {
    look_while_it_moves(true, LAST);
}

#[test]
fn an_entry_that_comes_to_the_slot_with_the_count_is_never_missing() {
    look_while_it_moves(false, LAST);
}
