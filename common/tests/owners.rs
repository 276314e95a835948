//! The table of owners against a plain map, and with readers that look while it is
//! written.

mod crowd;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
};

use homing_common::{
    bench::session_id,
    host::HostId,
    owners::{
        BUCKETS_MIN, Found, Memory, SLOTS, Shape, header, look_up,
        table::{Full, Table, Writable},
    },
    session::SessionId,
};
use proptest::prelude::*;

use crowd::{Few, Words, crowded_id};

/// Memory of its own, of one table: the header, then the buckets.
#[derive(Clone)]
struct Heap(Arc<Vec<Words>>);

impl Heap {
    fn new(buckets: u32) -> Self {
        let lines = (0..1 + buckets).map(|_| Words::default());
        Self(Arc::new(lines.collect()))
    }

    /// A table in force.
    fn table(&self) -> Table<Self> {
        let mut table = Table::create(self.clone(), 0, BUCKETS_MIN).unwrap();
        table.activate();
        table
    }
}

impl Memory for Heap {
    type Line<'a> = &'a Words;

    fn header(&self) -> Option<&Words> {
        self.0.first()
    }

    fn bucket(&self, table: u32, number: u32) -> Option<&Words> {
        self.0.get(1 + number as usize).filter(|_| table == 0)
    }

    fn load(line: &Words, word: usize) -> u64 {
        line[word].load(Acquire)
    }
}

impl Writable for Heap {
    fn store(line: &Words, word: usize, value: u64) {
        line[word].store(value, Release);
    }
}

/// Ids that stand in ten buckets of a table of the smallest shape, three of which are
/// the first ones of all.
fn crowded() -> impl Strategy<Value = SessionId> {
    let bits = (0u64..3, 0u64..3, 0u64..20);
    bits.prop_map(|(first, second, rest)| crowded_id(first, second, rest))
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Set(SessionId, u16),
    Clear(SessionId),
    Void(u16),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (crowded(), 1u16..5).prop_map(|(id, host)| Op::Set(id, host)),
        3 => crowded().prop_map(Op::Clear),
        // Which goes through the whole table.
        so_many(1, 0) => (1u16..5).prop_map(Op::Void),
    ];
    prop::collection::vec(op, 1..so_many(300, 50) as usize)
}

fn take<M: Writable>(table: &mut Table<M>, model: &mut HashMap<SessionId, u16>, op: Op) {
    match op {
        Op::Set(id, host) => match table.set(id, HostId(host)) {
            Ok(new) => assert_eq!(new, model.insert(id, host).is_none()),
            Err(Full) => assert!(!model.contains_key(&id)),
        },
        Op::Clear(id) => assert_eq!(table.clear(id), model.remove(&id).is_some()),
        Op::Void(host) => {
            let before = model.len();
            model.retain(|_, owner| *owner != host);
            assert_eq!(table.void(HostId(host)) as usize, before - model.len());
        }
    }
}

fn entries<M: Writable>(table: &Table<M>) -> Vec<(SessionId, u16)> {
    let mut all = Vec::new();
    table.each(|id, host| all.push((id, host.0)));
    all.sort();
    all
}

/// Each bucket counts the entries whose first one it is and that stand in their second
/// one. At fifteen it has lost count.
fn assert_counts<M: Writable>(table: &Table<M>) {
    const CHOICE: u64 = 1 << 47;
    let (shape, memory) = (table.shape(), table.memory());
    let mut away = vec![0; shape.buckets() as usize];
    let words = |number| {
        let line = memory.bucket(table.number(), number).unwrap();
        [0, 1, 2, 3, 4, 5, 6, 7].map(|slot| M::load(line, slot))
    };
    for number in 0..shape.buckets() {
        for word in words(number).into_iter().filter(|word| word & CHOICE != 0) {
            let id = shape
                .id_of(number, word)
                .expect("what is free has no choice");
            away[shape.place(id).first as usize] += 1;
        }
    }
    for (number, away) in (0..).zip(away) {
        let count = words(number)[SLOTS - 1] >> 60;
        assert!(
            count == 15 || count == away,
            "{number}: {count}, not {away}"
        );
        assert!(
            words(number)[..SLOTS - 1]
                .iter()
                .all(|word| word >> 60 == 0)
        );
    }
}

fn sorted(model: &HashMap<SessionId, u16>) -> Vec<(SessionId, u16)> {
    let mut all: Vec<_> = model.iter().map(|(id, host)| (*id, *host)).collect();
    all.sort();
    all
}

/// So many; under Miri, which is some hundred times as slow, fewer.
const fn so_many(natively: u32, in_miri: u32) -> u32 {
    if cfg!(miri) { in_miri } else { natively }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(so_many(64, 2)))]

    #[test]
    fn ids_come_back_from_slots(ids in prop::collection::vec(any::<u64>(), 50), buckets in BUCKETS_MIN..1 << 22) {
        let shape = Shape::new(buckets).unwrap();
        for id in ids {
            let place = shape.place(SessionId(id));
            for (bucket, choice) in [(place.first, 0), (place.second, 1 << 47)] {
                let slot = 7 << 48 | choice | id & ((1 << 47) - 1);
                prop_assert!(bucket < buckets);
                prop_assert_eq!(shape.id_of(bucket, slot), Some(SessionId(id)));
            }
        }
    }

    #[test]
    fn it_does_what_a_plain_map_does(ops in ops()) {
        let memory = Few::new();
        let mut table = memory.table();
        let mut model = HashMap::new();
        for op in ops {
            take(&mut table, &mut model, op);
            prop_assert_eq!(table.len() as usize, model.len());
        }
        for (id, host) in &model {
            prop_assert_eq!(table.get(*id), Some(HostId(*host)));
            prop_assert_eq!(look_up(&&memory, *id), Found::Owner(*host));
        }
        if !cfg!(miri) {
            prop_assert_eq!(entries(&table), sorted(&model));
            assert_counts(&table);
        }
    }
}

/// Fills a table until it refuses; gives how many fitted.
fn fill(table: &mut Table<Heap>) -> u64 {
    let mut fitted = 0;
    while table
        .set(session_id(fitted), HostId(1 + (fitted % 7) as u16))
        .is_ok()
    {
        fitted += 1;
    }
    fitted
}

#[test]
#[cfg_attr(miri, ignore = "fills a whole table")]
fn it_is_all_but_full_before_it_refuses() {
    let mut table = Heap::new(BUCKETS_MIN).table();
    let fitted = fill(&mut table);
    let load = fitted as f64 / (f64::from(BUCKETS_MIN) * SLOTS as f64);
    println!("full at {load}");
    assert!(load > 0.97, "{load}");
    for number in 0..fitted {
        let host = HostId(1 + (number % 7) as u16);
        assert_eq!(table.get(session_id(number)), Some(host));
    }
    assert_counts(&table);
    let of_three = (0..fitted).filter(|number| number % 7 == 2).count();
    assert_eq!(table.void(HostId(3)) as usize, of_three);
    assert_eq!(u64::from(table.len()), fitted - of_three as u64);
    assert_counts(&table);
    assert_eq!(table.get(session_id(2)), None);
    assert_eq!(table.set(session_id(2), HostId(9)), Ok(true));
}

#[test]
fn no_table_is_none() {
    let few = Few::new();
    let memory = &few;
    assert!(Table::open(memory).is_none());
    assert_eq!(look_up(&memory, session_id(1)), Found::Unsure);
    assert!(Table::create(memory, 0, BUCKETS_MIN - 1).is_none());
    assert!(Table::create(memory, 0, BUCKETS_MIN + 1).is_none());
    let mut table = Table::create(memory, 0, BUCKETS_MIN).unwrap();
    assert_eq!(look_up(&memory, session_id(1)), Found::Unsure);
    table.activate();
    assert_eq!(look_up(&memory, session_id(1)), Found::Nothing);
}

/// The one entry that readers look for goes to and fro between its places.
#[test]
fn what_changes_places_all_the_time_is_never_missing() {
    const SHIFTS: u32 = so_many(3_000_000, 300);
    let memory = Few::new();
    let mut table = memory.table();
    let wanted = crowded_id(1, 2, 3);
    let place = table.shape().place(wanted);
    table.set(wanted, HostId(5)).unwrap();
    let stop = AtomicBool::new(false);
    let (found, unsure) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut found, mut unsure) = (0u64, 0u64);
            while !stop.load(Relaxed) {
                match look_up(&&memory, wanted) {
                    Found::Owner(5) => found += 1,
                    Found::Unsure => unsure += 1,
                    other => panic!("{other:?} after {found} and {unsure}"),
                }
            }
            (found, unsure)
        });
        let mut ways = [((place.first, 0), (place.second, 0)); 2];
        ways[1] = (ways[0].1, ways[0].0);
        for n in 0..SHIFTS {
            let (from, to) = ways[n as usize % 2];
            table.shift(from, to);
            if n % 64 == 0 {
                std::hint::spin_loop();
            }
        }
        stop.store(true, Relaxed);
        reader.join().unwrap()
    });
    println!("found {found} times, {unsure} times unsure");
    assert!(found > 0);
}

/// Readers never miss what is there all the time, while other entries come and go in a
/// table that is so full that each pushes others around.
#[test]
#[cfg_attr(miri, ignore = "fills a whole table; see the next one")]
fn what_is_there_is_found_while_others_push_it_around() {
    const STAY: u64 = 900_000;
    let memory = Heap::new(BUCKETS_MIN);
    let mut table = memory.table();
    for number in 0..STAY {
        table.set(session_id(number), HostId(5)).unwrap();
    }
    let stop = AtomicBool::new(false);
    let (looked, unsure) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..2 {
            let (memory, stop, looked, unsure) = (memory.clone(), &stop, &looked, &unsure);
            scope.spawn(move || {
                let mut number = reader * STAY / 2;
                while !stop.load(Relaxed) {
                    for _ in 0..1000 {
                        number = (number + 7919) % STAY;
                        match look_up(&memory, session_id(number)) {
                            Found::Owner(5) => {}
                            Found::Unsure => drop(unsure.fetch_add(1, Relaxed)),
                            found => panic!("{number}: {found:?}"),
                        }
                    }
                    looked.fetch_add(1000, Relaxed);
                }
            });
        }
        let moves = |table: &Table<Heap>| {
            let counted = header::MOVES..header::MOVES + header::STRIPES;
            let words = table.memory().header().unwrap();
            counted.map(|word| Heap::load(words, word)).sum::<u64>()
        };
        let before = moves(&table);
        for round in 0..6 {
            let mut come = Vec::new();
            for number in (STAY..).map(|n| n + round * 1_000_000) {
                if table.set(session_id(number), HostId(6)).is_err() {
                    break;
                }
                come.push(number);
            }
            for number in come {
                assert!(table.clear(session_id(number)));
            }
        }
        stop.store(true, Relaxed);
        let moved = moves(&table) - before;
        println!("{moved} entries changed places");
        assert!(moved > 100_000, "{moved}");
    });
    println!("{looked:?} looked up, {unsure:?} unsure");
    assert!(looked.load(Relaxed) > 0);
}

/// The same in ten buckets, where almost every insertion pushes others around.
#[test]
fn what_is_there_is_found_in_a_crowd() {
    const ROUNDS: u32 = so_many(300, 3);
    let memory = Few::new();
    let mut table = memory.table();
    let id = |n: u64| crowded_id(n % 3, n / 3 % 3, n / 9);
    // Where there is no room all ways are tried, which in Miri takes seconds.
    let (stay, come) = (0..48, 48..u64::from(so_many(180, 60)));
    for number in stay.clone() {
        table.set(id(number), HostId(5)).unwrap();
    }
    let stop = AtomicBool::new(false);
    let (found, unsure) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut found, mut unsure) = (0u64, 0u64);
            while !stop.load(Relaxed) {
                for number in stay.clone() {
                    match look_up(&&memory, id(number)) {
                        Found::Owner(5) => found += 1,
                        Found::Unsure => unsure += 1,
                        other => panic!("{number}: {other:?}"),
                    }
                }
            }
            (found, unsure)
        });
        let mut moved = 0;
        for round in 0..ROUNDS {
            // Other ones first in each round.
            let others = come.end - come.start;
            let order = (0..others).map(|n| come.start + (n + u64::from(round) * 7) % others);
            let mut here = Vec::new();
            for number in order {
                if table
                    .set_and_tell(id(number), HostId(6), |_, _| moved += 1)
                    .is_err()
                {
                    break;
                }
                here.push(number);
            }
            for number in here {
                assert!(table.clear(id(number)));
            }
        }
        stop.store(true, Relaxed);
        assert!(moved > 0);
        reader.join().unwrap()
    });
    println!("found {found} times, {unsure} times unsure");
    assert!(found > 0);
}
