//! The table of owners in the kernel's memory, of which a writer is killed at every call
//! into the kernel and, where it puts a larger table in force, between instructions.

use std::sync::{Mutex, PoisonError};

use homing_agent::datapath::owners::Owners;
use homing_common::{
    bench::session_id,
    host::{Encapsulation, HostId, Template},
    outcome::Outcome,
    owners::Header,
    session::SessionId,
};
use homing_tests::{
    owners::{Tables, header},
    packet::{CLIENT_V4, SERVICE_V4, flags, segment},
    program::{Program, host_1, in_namespace, tunnel_v4},
    traced::{Stop, Traced},
};

/// The smallest table has so many slots, and a larger one is due when so many are taken.
const SLOTS: u64 = 1 << 20;
const DUE: u64 = (SLOTS * 92).div_ceil(100);
/// What the smallest table is to hold, and what larger ones are.
const SMALL: u32 = (SLOTS * 95 / 100) as u32;
const LARGE: u32 = 4 << 20;
/// How many bytes the smallest one takes, and the next.
const SMALL_BYTES: u64 = SLOTS * 8;
const GROWN_BYTES: u64 = SMALL_BYTES * 3 / 2;
/// Commands of `bpf(2)`: `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
const UPDATE: u64 = 2;
const DELETE: u64 = 3;
/// Instructions at which a writer is killed, beside those that change something.
const SAMPLE: usize = 12;

/// One test at a time: where the process is copied, no other thread may hold a lock.
static ONE: Mutex<()> = Mutex::new(());

/// A program, and all that its table holds.
struct Pop {
    program: Program,
    frame: Vec<u8>,
    /// How many entries there are, and the sum of their ids and owners.
    whole: (u32, u64),
}

impl Pop {
    /// One known session belongs to a host that there is no way to, so that its packets
    /// stay as they are; with others, there are so many entries in the smallest table.
    fn new(entries: u64) -> Self {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        program.set_owner(CLIENT_V4, SERVICE_V4, 9).unwrap();
        program.add_host(9, Template::NONE).unwrap();
        let mut owners = program.owners(SMALL).unwrap();
        for number in 1..entries {
            owners.set(session_id(number), HostId(3)).unwrap();
        }
        Self {
            program,
            frame: segment(true, flags::ACK).frame(),
            whole: whole(&owners),
        }
    }

    fn open(&self) -> Owners {
        self.program.owners(LARGE).unwrap()
    }

    fn header(&mut self) -> Header {
        header(&mut self.program).unwrap()
    }

    fn keep(&mut self) -> Tables {
        Tables::of(&mut self.program).unwrap()
    }

    fn bring_back(&mut self, tables: &Tables) {
        tables.bring_back(&mut self.program).unwrap();
    }

    /// The program knows the session's owner.
    fn assert_known(&mut self) {
        let outcomes = self.program.run_many(&self.frame, 2).unwrap();
        assert_eq!(outcomes, [(Outcome::NoWay, 2)]);
    }

    /// The next writer finds one table, with all entries.
    fn assert_repaired(&mut self) -> Owners {
        self.assert_known();
        let owners = self.open();
        assert_eq!(owners.len(), self.whole.0);
        assert_eq!(whole(&owners), self.whole);
        assert_eq!(self.keep().count(), 1);
        owners
    }

    /// And goes on to where the table has grown; gives how many changes that took.
    fn assert_goes_on(&mut self) -> u64 {
        let mut owners = self.assert_repaired();
        let mut changes = 0;
        while owners.bytes() != GROWN_BYTES {
            change(&mut owners);
            changes += 1;
            assert!(changes < SLOTS, "it does not come to an end");
        }
        assert_eq!(whole(&owners), self.whole);
        for number in DUE..DUE + 100 {
            owners.set(session_id(number), HostId(4)).unwrap();
            owners.clear(session_id(number));
        }
        assert_eq!(self.keep().count(), 1);
        self.assert_known();
        changes
    }
}

/// How many entries there are, and a sum that no other ones have.
fn whole(owners: &Owners) -> (u32, u64) {
    let (mut count, mut sum) = (0, 0u64);
    owners.scan(|id, host| {
        count += 1;
        sum = sum.wrapping_add(id.0.wrapping_mul(host.0.into()));
    });
    (count, sum)
}

/// A change that leaves the table as it is, with which growth goes a step on.
fn change(owners: &mut Owners) {
    owners.set(session_id(1), HostId(3)).unwrap();
}

/// Runs `run` in a process of its own over and over, each time killed one stop later,
/// until it comes to its end, which counts as one. `check` sees what each one leaves, and
/// then all is as it was.
fn kill_at_every_call(
    pop: &mut Pop,
    mut run: impl FnMut(&Pop),
    mut check: impl FnMut(&mut Pop, Option<Stop>),
) -> u32 {
    let as_it_was = pop.keep();
    for nth in 0.. {
        let mut writer = Traced::fork(|| run(pop)).unwrap();
        let mut at = writer.to_call().unwrap();
        for _ in 0..nth {
            at = at.and_then(|_| writer.to_call().unwrap());
        }
        match at {
            Some(_) => writer.kill().unwrap(),
            None => drop(writer),
        }
        check(pop, at);
        pop.bring_back(&as_it_was);
        if at.is_none() {
            return nth;
        }
    }
    unreachable!("it has ended")
}

/// A writer that stands behind the call that puts the larger table beside the other.
fn beside(run: impl FnOnce()) -> Traced {
    let mut writer = Traced::fork(run).unwrap();
    while let Some(stop) = writer.to_call().unwrap() {
        if is_command(stop, UPDATE) && stop.is_over {
            return writer;
        }
    }
    panic!("no table was put beside the other");
}

fn is_command(stop: Stop, command: u64) -> bool {
    stop.call == libc::SYS_bpf && stop.first == command
}

#[test]
fn a_writer_killed_anywhere_in_growth_leaves_what_the_next_start_repairs() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_namespace(|| {
        let mut pop = Pop::new(DUE);
        let mut owners = pop.open();

        // Where the larger table is made, and the first buckets are copied.
        let mut changes = 0;
        let begin = |_: &Pop| (0..2).for_each(|_| change(&mut owners));
        let stops = kill_at_every_call(&mut pop, begin, |pop, _| changes = pop.assert_goes_on());
        println!("{stops} stops while a larger table is made");
        assert!(stops >= 8, "{stops}");

        // All but the last ones are copied: it is put beside the other, then in force.
        for _ in 1..changes {
            change(&mut owners);
        }
        assert_eq!(owners.bytes(), SMALL_BYTES + GROWN_BYTES);
        let (mut put, mut removed) = (0, 0);
        let end = |_: &Pop| change(&mut owners);
        let stops = kill_at_every_call(&mut pop, end, |pop, stop| {
            put += u32::from(stop.is_some_and(|stop| is_command(stop, UPDATE)));
            removed += u32::from(stop.is_some_and(|stop| is_command(stop, DELETE)));
            pop.assert_goes_on();
        });
        println!("{stops} stops while it comes into force");
        assert_eq!((put, removed), (2, 2));
        kill_between(&mut pop, || change(&mut owners));
    });
}

/// Kills where a larger table is put in force: between two calls into the kernel.
fn kill_between(pop: &mut Pop, mut run: impl FnMut()) {
    let as_it_was = pop.keep();
    // What a process changes in the maps is there whether it is killed or stands still.
    let mut writer = beside(&mut run);
    let mut headers = vec![pop.header()];
    while writer.step().unwrap() {
        headers.push(pop.header());
    }
    let removes = writer.to_call().unwrap().unwrap();
    assert!(is_command(removes, DELETE), "{removes:?}");
    writer.kill().unwrap();
    pop.bring_back(&as_it_was);
    let words = |header: &Header| (header.active, header.buckets);
    let stores: Vec<_> = (1..headers.len())
        .filter(|n| words(&headers[*n]) != words(&headers[n - 1]))
        .collect();
    println!("{} instructions, of which store {stores:?}", headers.len());
    assert_eq!(stores.len(), 2, "its size, and which one is in force");

    let sample = (0..headers.len()).step_by((headers.len() / SAMPLE).max(1));
    let beside_stores = stores.iter().flat_map(|n| [n - 1, *n]);
    for instructions in sample.chain(beside_stores) {
        let mut writer = beside(&mut run);
        for _ in 0..instructions {
            assert!(writer.step().unwrap());
        }
        writer.kill().unwrap();
        match stores.contains(&instructions) {
            true => drop(pop.assert_goes_on()),
            false => drop(pop.assert_repaired()),
        }
        pop.bring_back(&as_it_was);
    }
}

#[test]
fn a_start_killed_at_any_call_leaves_what_the_next_one_repairs() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_namespace(|| {
        let mut pop = Pop::new(1_000);
        let start = |pop: &Pop| drop(pop.open());

        // One that leaves a larger table that is not in force, then one that leaves the
        // former one.
        let ([first, _], [second, _]) = (pop.keep().tables, Pop::new(1_000).keep().tables);
        let mut header = pop.header();
        header.buckets = [header.buckets[0]; 2];
        let tables = [first, second];
        let mut both = Tables { tables, header };
        assert_eq!(both.count(), 2);
        for active in [0, 1] {
            both.header.active = active;
            pop.bring_back(&both);
            let stops = kill_at_every_call(&mut pop, start, |pop, _| {
                pop.assert_repaired();
                assert_eq!(pop.header().active, active);
            });
            println!("{stops} stops where table {active} is in force");
            assert!(stops >= 20, "{stops}");
        }

        // The first of all.
        pop.bring_back(&Tables::NONE);
        let known = SessionId(pop.program.id(CLIENT_V4, SERVICE_V4).unwrap());
        let stops = kill_at_every_call(&mut pop, start, |pop, _| {
            let mut owners = pop.open();
            assert!(owners.is_empty());
            assert_eq!(pop.keep().count(), 1);
            owners.set(known, HostId(9)).unwrap();
            pop.assert_known();
        });
        println!("{stops} stops at the first start");
        assert!(stops >= 20, "{stops}");
    });
}
