//! The order of loads and stores by which readers never miss an entry that changes
//! places, in all interleavings and all orders that acquire and release allow (loom,
//! which Miri does not run).
#![cfg(not(miri))]

use homing_common::{
    bench::session_id,
    owners::{
        BUCKETS_MIN, Found, Memory, Place, Shape, header, look_up,
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

/// The words that change: the one slot that is taken in each of a session's buckets, and
/// the counter of moves. All others are constant.
struct Words {
    place: Place,
    first: AtomicU64,
    second: AtomicU64,
    moves: AtomicU64,
}

#[derive(Clone)]
struct Model(Arc<Words>);

#[derive(Clone, Copy)]
enum Line<'a> {
    Header(&'a Words),
    Slot(&'a AtomicU64),
    Empty,
}

impl Memory for Model {
    type Line<'a> = Line<'a>;

    fn header(&self) -> Option<Line<'_>> {
        Some(Line::Header(&self.0))
    }

    fn bucket(&self, _: u32, number: u32) -> Option<Line<'_>> {
        let Words { place, .. } = &*self.0;
        Some(match number {
            number if number == place.first => Line::Slot(&self.0.first),
            number if number == place.second => Line::Slot(&self.0.second),
            _ => Line::Empty,
        })
    }

    fn load(line: Line<'_>, word: usize) -> u64 {
        match line {
            Line::Header(_) if word == header::BUCKETS => BUCKETS_MIN.into(),
            Line::Header(words) if word >= header::MOVES => words.moves.load(Acquire),
            Line::Slot(slot) if word == 0 => slot.load(Acquire),
            _ => 0,
        }
    }
}

impl Writable for Model {
    fn store(line: Line<'_>, word: usize, value: u64) {
        match line {
            Line::Header(words) if word >= header::MOVES => words.moves.store(value, Release),
            Line::Header(_) => {}
            Line::Slot(slot) if word == 0 => slot.store(value, Release),
            Line::Slot(_) | Line::Empty => panic!("an entry went elsewhere"),
        }
    }
}

/// An entry goes from one of its buckets to the other one, and back, while a reader
/// looks for it.
fn look_while_it_moves(from_first: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        let id = session_id(1);
        let place = Shape::new(BUCKETS_MIN).unwrap().place(id);
        let entry = id.0 & (CHOICE - 1) | u64::from(HOST) << 48;
        let (first, second) = match from_first {
            true => (entry, 0),
            false => (0, entry | CHOICE),
        };
        let memory = Model(Arc::new(Words {
            place,
            first: AtomicU64::new(first),
            second: AtomicU64::new(second),
            moves: AtomicU64::new(0),
        }));
        let writer = thread::spawn({
            let memory = memory.clone();
            move || {
                let mut table = Table::create(memory, 0, BUCKETS_MIN).unwrap();
                let (mut from, mut to) = ((place.first, 0), (place.second, 0));
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
    look_while_it_moves(true);
}

#[test]
fn an_entry_that_leaves_its_second_bucket_is_never_missing() {
    look_while_it_moves(false);
}
