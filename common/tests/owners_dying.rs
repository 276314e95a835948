//! A writer of the table of owners that dies at any of its stores: what readers find
//! then, and the next writer, which may die as well.

mod crowd;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use homing_common::{
    host::HostId,
    owners::{
        BUCKETS_MIN, Found, Memory, TABLES, header, look_up,
        table::{Table, Writable},
    },
    session::SessionId,
};
use proptest::prelude::*;

use crowd::{Buckets, Few, STORES, Words, copy, crowded_id};

/// More stores than anything here makes.
const MANY: u64 = 1_000_000;

/// How many buckets the tables have, by their numbers.
const SIZES: [u32; TABLES as usize] = [BUCKETS_MIN, BUCKETS_MIN * 3 / 2];
/// All buckets where crowded ids can stand are in one of so many from the first on, or
/// behind the last but so many.
const NEAR: u32 = 16;

/// Runs a writer that dies after so many stores.
fn dying<T>(stores: u64, write: impl FnOnce() -> T) {
    STORES.set(stores);
    write();
    STORES.set(u64::MAX);
}

/// How many stores a writer makes.
fn stores(write: impl FnOnce()) -> u64 {
    STORES.set(MANY);
    write();
    MANY - STORES.replace(u64::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Wherever in an insertion its writer dies, the next one finds all entries, each
    /// once, and that one or not.
    #[test]
    #[cfg_attr(miri, ignore = "goes through whole tables, over and over")]
    fn a_writer_may_die_anywhere(
        bits in prop::collection::vec((0u64..3, 0u64..3, 0u64..20), 90..120)
    ) {
        let memory = Few::new();
        let mut table = memory.table();
        let mut before: Vec<SessionId> = Vec::new();
        for (first, second, rest) in bits {
            let id = crowded_id(first, second, rest);
            let old = memory.clone();
            let mut is_new = Ok(false);
            let stores = stores(|| is_new = table.set(id, HostId(1)));
            // Those that move nothing are one store.
            for stores in (0..stores).filter(|_| stores > 1) {
                let memory = old.clone();
                let mut table = Table::open(&memory).unwrap();
                // What a dead writer returns says nothing.
                dying(stores, || table.set(id, HostId(1)));
                let table = Table::open(&memory).unwrap();
                let there = |id: &SessionId| table.get(*id) == Some(HostId(1));
                prop_assert!(before.iter().all(there));
                let found = before.len() + usize::from(!before.contains(&id) && there(&id));
                prop_assert_eq!(table.len() as usize, found);
            }
            if is_new == Ok(true) {
                before.push(id);
            }
        }
        prop_assert!(memory.buckets.lines[0].iter().all(|word| word.load(Relaxed) == 0));
    }
}

/// Memory of two tables.
#[derive(Clone)]
struct Two {
    header: Line,
    /// Which tables readers find: their first words are not zero.
    outer: [Line; TABLES as usize],
    tables: [Buckets; TABLES as usize],
}

struct Line(Words);

impl Clone for Line {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

impl Two {
    fn new() -> Self {
        let line = || Line(Words::default());
        Self {
            header: line(),
            outer: [line(), line()],
            tables: SIZES.map(Buckets::new),
        }
    }

    fn is_there(&self, number: u32) -> bool {
        crowd::load(&self.outer[number as usize].0, 0) != 0
    }

    fn put(&self, number: u32) {
        crowd::store(&self.outer[number as usize].0, 0, 1);
    }

    fn remove(&self, number: u32) {
        crowd::store(&self.outer[number as usize].0, 0, 0);
    }

    /// A new table, all of whose slots are free.
    fn create(&self, number: u32) -> Table<Own<'_>> {
        let lines = &self.tables[number as usize].lines;
        let words = lines.iter().flatten();
        words.for_each(|word: &AtomicU64| word.store(0, Relaxed));
        Table::create(Own(self, number), number, SIZES[number as usize]).unwrap()
    }

    /// What an agent does when it starts.
    fn start(&self) -> Table<Own<'_>> {
        for number in (0..TABLES).filter(|number| self.is_there(*number)) {
            if let Some(table) = Table::open(Own(self, number)) {
                self.remove(1 - number);
                return table;
            }
        }
        let mut table = self.create(0);
        self.put(0);
        table.activate();
        table
    }

    /// What an agent does while its table grows: a change, of both tables, before each
    /// step; `done` hears of each.
    fn grow<'a>(
        &'a self,
        table: &mut Table<Own<'a>>,
        mut changes: impl Iterator<Item = Change>,
        mut done: impl FnMut(Change),
    ) {
        let number = 1 - table.number();
        let mut next = self.create(number);
        let end = table.shape().buckets();
        for copied in (0..NEAR).chain(end - NEAR..end) {
            if let Some(change) = changes.next() {
                change.make(table, &mut next);
                done(change);
            }
            table.each_of(copied..copied + 1, |id, host| {
                // A dead one's table stays empty, and does not fill.
                next.set(id, host).ok();
            });
        }
        self.put(number);
        next.activate();
        let former = std::mem::replace(table, next);
        self.remove(former.number());
    }
}

/// A table as its writer has it: its own memory, whether readers find it or not.
struct Own<'t>(&'t Two, u32);

impl Memory for Own<'_> {
    type Line<'a>
        = &'a Words
    where
        Self: 'a;

    fn header(&self) -> Option<&Words> {
        Some(&self.0.header.0)
    }

    fn bucket(&self, table: u32, number: u32) -> Option<&Words> {
        let buckets = &self.0.tables[self.1 as usize];
        buckets.get(number).filter(|_| table == self.1)
    }

    fn load(line: &Words, word: usize) -> u64 {
        crowd::load(line, word)
    }
}

impl Writable for Own<'_> {
    fn store(line: &Words, word: usize, value: u64) {
        crowd::store(line, word, value);
    }
}

/// Both tables as a program has them: those that it finds.
struct Reader<'t>(&'t Two);

impl Memory for Reader<'_> {
    type Line<'a>
        = &'a Words
    where
        Self: 'a;

    fn header(&self) -> Option<&Words> {
        Some(&self.0.header.0)
    }

    fn bucket(&self, table: u32, number: u32) -> Option<&Words> {
        let is_there = self.0.is_there(table);
        let buckets = is_there.then(|| &self.0.tables[table as usize]);
        buckets.and_then(|buckets| buckets.get(number))
    }

    fn load(line: &Words, word: usize) -> u64 {
        crowd::load(line, word)
    }
}

/// A change that an agent makes: an owner, or none.
#[derive(Clone, Copy, PartialEq)]
struct Change(SessionId, Option<HostId>);

impl Change {
    fn make(self, table: &mut Table<Own<'_>>, next: &mut Table<Own<'_>>) {
        match self.1 {
            Some(host) => {
                let moved = |id, host| {
                    next.set(id, host).ok();
                };
                table.set_and_tell(self.0, host, moved).ok();
                next.set(self.0, host).ok();
            }
            None => {
                next.clear(self.0);
                table.clear(self.0);
            }
        }
    }
}

type Model = HashMap<SessionId, u16>;

/// Readers find all entries, and of the one that was being changed what it was before or
/// what it is then.
fn assert_seen(memory: &Two, all: &Model, unsure: Option<Change>) {
    for (id, host) in all {
        let found = look_up(&Reader(memory), *id);
        let is_right = match unsure {
            Some(Change(changed, to)) if changed == *id => match to {
                Some(to) => [Found::Owner(*host), Found::Owner(to.0)].contains(&found),
                None => [Found::Owner(*host), Found::Nothing].contains(&found),
            },
            _ => found == Found::Owner(*host),
        };
        assert!(is_right, "{id:?} of {host}: {found:?}");
    }
}

/// So does the next writer.
fn assert_found(memory: &Two, all: &Model, unsure: Option<Change>) {
    assert_seen(memory, all, unsure);
    let changing = |id: &SessionId| unsure.is_some_and(|Change(changed, _)| changed == *id);
    let sure = all.iter().filter(|(id, _)| !changing(id));
    // That one may die as well, at any of its stores.
    let starts = stores(|| {
        memory.clone().start();
    });
    for stores in 0..=starts {
        let memory = memory.clone();
        dying(stores, || memory.start());
        assert_seen(&memory, all, unsure);
        let table = memory.start();
        assert!(
            sure.clone()
                .all(|(id, host)| table.get(*id) == Some(HostId(*host)))
        );
        let changed = unsure.is_some_and(|Change(id, _)| table.get(id).is_some());
        assert_eq!(
            table.len() as usize,
            sure.clone().count() + usize::from(changed)
        );
        let moving = crowd::load(&memory.header.0, header::MOVING);
        assert_eq!((memory.is_there(1 - table.number()), moving), (false, 0));
    }
}

/// So many ids, spread evenly over the crowded buckets.
fn id(number: u64) -> SessionId {
    crowded_id(number % 3, number / 3 % 3, number / 9)
}

/// Wherever in the growth of the table its writer dies, all is found, and it grows.
#[test]
#[cfg_attr(miri, ignore = "goes through whole tables, over and over")]
fn a_writer_may_die_anywhere_while_the_table_grows() {
    let memory = Two::new();
    let mut table = memory.start();
    let mut model = Model::new();
    for number in 0..54 {
        table.set(id(number), HostId(1)).unwrap();
        model.insert(id(number), 1);
    }
    // Some come, some go, some change hands.
    let changes = (54..63).flat_map(|number| {
        let [goes, changes] = [id(number - 54), id(number - 27)];
        [
            Change(id(number), Some(HostId(2))),
            Change(goes, None),
            Change(changes, Some(HostId(3))),
        ]
    });
    // After how many stores each is made.
    let alive = memory.clone();
    let mut made = Vec::new();
    let stores = stores(|| {
        let mut table = alive.start();
        alive.grow(&mut table, changes.clone(), |change| {
            made.push((change, MANY - STORES.get()));
        });
    });
    println!("{stores} stores");
    assert!(made.len() == 27 && stores > 100, "{stores} {}", made.len());
    let moves = |memory: &Two| {
        let counted = header::MOVES..header::MOVES + header::STRIPES;
        let moves = counted.map(|word| crowd::load(&memory.header.0, word));
        moves.sum::<u64>()
    };
    assert!(moves(&alive) > moves(&memory), "none changed places");
    for stores in 0..=stores {
        let memory = memory.clone();
        dying(stores, || {
            let mut table = memory.start();
            memory.grow(&mut table, changes.clone(), |_| ());
        });
        let mut model = model.clone();
        let made = made.iter().filter(|(_, at)| *at <= stores);
        let next = changes.clone().nth(made.clone().count());
        for (Change(id, host), _) in made {
            match host {
                Some(host) => drop(model.insert(*id, host.0)),
                None => drop(model.remove(id)),
            }
        }
        assert_found(&memory, &model, next);
        // And all are there when it has grown.
        let mut table = memory.start();
        let (number, there) = (table.number(), table.len());
        memory.grow(&mut table, [].into_iter(), |_| ());
        assert_eq!((table.number(), table.len()), (1 - number, there));
        assert_seen(&memory, &model, next);
    }
}

/// Wherever the first start of all ends, the next one goes on.
#[test]
#[cfg_attr(miri, ignore = "goes through whole tables, over and over")]
fn the_first_start_may_die_anywhere() {
    let stores = stores(|| {
        Two::new().start();
    });
    assert_eq!(stores, 3);
    for stores in 0..=stores {
        let memory = Two::new();
        dying(stores, || memory.start());
        let found = look_up(&Reader(&memory), id(1));
        let in_force = stores >= 2;
        assert_eq!(found == Found::Nothing, in_force, "{stores}: {found:?}");
        assert!(matches!(found, Found::Nothing | Found::Unsure));
        assert_found(&memory, &Model::new(), None);
        memory.start().set(id(1), HostId(5)).unwrap();
        assert_eq!(look_up(&Reader(&memory), id(1)), Found::Owner(5));
    }
}
