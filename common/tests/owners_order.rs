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
            Ordering::{Acquire, Relaxed, Release},
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
struct Model {
    words: Arc<Words>,
    /// Whose memory it is.
    who: Who,
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Reader,
    Writer,
}

#[derive(Clone, Copy)]
struct Line<'a> {
    of: Part<'a>,
    who: Who,
}

#[derive(Clone, Copy)]
enum Part<'a> {
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
        Some(Line {
            of: Part::Header(&self.words),
            who: self.who,
        })
    }

    fn bucket(&self, _: u32, number: u32) -> Option<Line<'_>> {
        let words = &*self.words;
        let of = match number {
            number if number == words.place.first => Part::First(words),
            number if number == words.place.second => Part::Second(&words.second),
            _ => Part::Empty,
        };
        let who = self.who;
        Some(Line { of, who })
    }

    fn load(line: Line<'_>, word: usize) -> u64 {
        let load = |word: &AtomicU64| match line.who {
            Who::Reader => word.load(Acquire),
            // What the only writer reads is its own. And loom looks for what comes into
            // conflict with a store no further back than to the last access of the word:
            // were that the writer's own, it would go through one interleaving alone.
            // SAFETY: nobody else writes.
            Who::Writer => unsafe { word.unsync_load() },
        };
        match line.of {
            Part::Header(_) if word == header::BUCKETS => BUCKETS_MIN.into(),
            Part::Header(words) if word >= header::MOVES => load(&words.moves),
            Part::First(words) => in_first(words, word).map_or(0, load),
            Part::Second(slot) if word == 0 => load(slot),
            _ => 0,
        }
    }
}

impl Writable for Model {
    fn store(line: Line<'_>, word: usize, value: u64) {
        match line.of {
            Part::Header(words) if word >= header::MOVES => words.moves.store(value, Release),
            Part::Header(_) => {}
            Part::First(words) => {
                let word = in_first(words, word).expect("an entry went elsewhere");
                word.store(value, Release);
            }
            Part::Second(slot) if word == 0 => slot.store(value, Release),
            Part::Second(_) | Part::Empty => panic!("an entry went elsewhere"),
        }
    }
}

/// An entry goes from one of its buckets to the other one, and back, while a reader
/// looks for it. `slot` is its place in the first one.
fn look_while_it_moves(from_first: bool, slot: usize) {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = runs.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        counted.fetch_add(1, Relaxed);
        let id = session_id(1);
        let place = Shape::new(BUCKETS_MIN).unwrap().place(id);
        let entry = id.0 & (CHOICE - 1) | u64::from(HOST) << 48;
        let (first, second, away) = match from_first {
            true => (entry, 0, 0),
            false => (0, entry | CHOICE, AWAY),
        };
        let words = Arc::new(Words {
            place,
            slot,
            first: AtomicU64::new(if slot == LAST { first | away } else { first }),
            last: AtomicU64::new(away),
            second: AtomicU64::new(second),
            moves: AtomicU64::new(0),
        });
        let memory = |who| Model {
            words: words.clone(),
            who,
        };
        let (ours, memory) = (memory(Who::Writer), memory(Who::Reader));
        let writer = thread::spawn(move || {
            let mut table = Table::create(ours, 0, BUCKETS_MIN).unwrap();
            let (mut from, mut to) = ((place.first, slot), (place.second, 0));
            if !from_first {
                (from, to) = (to, from);
            }
            table.shift(from, to);
            table.shift(to, from);
        });
        let found = look_up(&memory, id);
        assert!(
            matches!(found, Found::Owner(HOST) | Found::Unsure),
            "{found:?}"
        );
        writer.join().unwrap();
        assert_eq!(look_up(&memory, id), Found::Owner(HOST));
    });
    let runs = runs.load(Relaxed);
    assert!(runs > 100, "only {runs} interleavings");
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
