//! The table of owners in the kernel's memory: programs read it while the agent writes
//! at full speed, and while a larger one takes its place.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use homing_agent::datapath::owners::Owners;
use homing_common::{
    bench::session_id,
    host::{Encapsulation, HostId, Template},
    outcome::Outcome,
};
use homing_tests::{
    packet::{CLIENT_V4, SERVICE_V4, flags, segment},
    program::{Program, host_1, in_namespace, tunnel_v4},
};

/// Runs of the program in one call into the kernel.
const RUNS: u32 = 10_000;
/// The smallest table has so many slots.
const SLOTS: u64 = 1 << 20;

/// A program whose one known session belongs to a host that there is no way to, so that
/// its packets stay as they are; and what writes its table.
fn program(entries: u32) -> (Program, Owners) {
    let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
    program.set_owner(CLIENT_V4, SERVICE_V4, 9).unwrap();
    program.add_host(9, Template::NONE).unwrap();
    let owners = program.owners(entries).unwrap();
    assert_eq!(owners.len(), 1);
    (program, owners)
}

/// Has the program decide on packets of the known session while `write` runs; gives how
/// many it knew the owner, and of how many it was not sure.
fn watch(program: &mut Program, write: impl FnOnce() + Send) -> (u64, u64) {
    let frame = segment(true, flags::ACK).frame();
    let over = AtomicBool::new(false);
    let (mut known, mut unsure) = (0, 0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            write();
            over.store(true, Relaxed);
        });
        while !over.load(Relaxed) && !writer.is_finished() {
            for (outcome, count) in program.run_many(&frame, RUNS).unwrap() {
                match outcome {
                    Outcome::NoWay => known += count,
                    Outcome::OwnerUnsure => unsure += count,
                    other => panic!("{count} times {other:?}"),
                }
            }
        }
        writer.join().unwrap();
    });
    println!("{known} known, {unsure} unsure");
    (known, unsure)
}

#[test]
fn programs_find_a_session_while_entries_are_pushed_around() {
    in_namespace(|| {
        // The table does not grow beyond the smallest.
        let (mut program, mut owners) = program(SLOTS as u32 * 95 / 100);
        let most = u64::from(owners.capacity());
        let (known, _) = watch(&mut program, || {
            let set = |owners: &mut Owners, n| owners.set(session_id(n), HostId(3)).unwrap();
            for number in 1..most {
                set(&mut owners, number);
            }
            // All but full, others come and go.
            for number in most..most + 400_000 {
                owners.clear(session_id(number - most + 1));
                set(&mut owners, number);
            }
        });
        assert!(known > 100_000, "{known}");
        assert_eq!(u64::from(owners.len()), most);
    });
}

#[test]
fn programs_find_all_sessions_while_the_table_grows() {
    in_namespace(|| {
        let (mut program, mut owners) = program(4 << 20);
        let small = owners.bytes();
        let (known, _) = watch(&mut program, || {
            for number in 1..3 * SLOTS {
                owners.set(session_id(number), HostId(3)).unwrap();
                // Some go meanwhile.
                if number % 16 == 0 {
                    owners.clear(session_id(number / 2));
                }
            }
        });
        assert!(known > 100_000, "{known}");
        assert!(owners.bytes() > 3 * small, "{}", owners.bytes());
        let mut left = 1;
        for number in 1..3 * SLOTS {
            let gone = number % 8 == 0 && number < 3 * SLOTS / 2;
            let owner = (!gone).then_some(HostId(3));
            assert_eq!(owners.get(session_id(number)), owner, "{number}");
            left += u32::from(!gone);
        }
        assert_eq!(owners.len(), left);
        // What the next writer finds is the same.
        let owners = program.owners(4 << 20).unwrap();
        assert_eq!(owners.len(), left);
        let void = (2 * SLOTS..2 * SLOTS + 10).map(session_id);
        let mut owners = owners;
        for id in void.clone() {
            owners.set(id, HostId(7)).unwrap();
        }
        assert_eq!(owners.void(HostId(7)), 10);
        assert!(void.clone().all(|id| owners.get(id).is_none()));
        assert_eq!(owners.len(), left - 10);
    });
}

#[test]
fn a_writer_that_ends_while_the_table_grows_leaves_it_whole() {
    in_namespace(|| {
        let (mut program, mut owners) = program(4 << 20);
        let small = owners.bytes();
        let set = |owners: &mut Owners, n| owners.set(session_id(n), HostId(3)).unwrap();
        let mut number = 1;
        while owners.bytes() == small {
            set(&mut owners, number);
            number += 1;
        }
        // Some way into the larger one, which is not in force yet.
        for _ in 0..1_000 {
            set(&mut owners, number);
            number += 1;
        }
        assert!(owners.bytes() > 2 * small, "{}", owners.bytes());
        drop(owners);
        let mut owners = program.owners(4 << 20).unwrap();
        assert_eq!(owners.bytes(), small);
        assert_eq!(u64::from(owners.len()), number);
        let found = |owners: &Owners, n| owners.get(session_id(n)) == Some(HostId(3));
        assert!((1..number).all(|number| found(&owners, number)));
        // It grows with the next one's changes.
        let (known, _) = watch(&mut program, || {
            for number in number..SLOTS + SLOTS / 4 {
                set(&mut owners, number);
            }
        });
        assert!(known > 0);
        assert_eq!(owners.bytes(), small * 3 / 2);
        assert!((1..SLOTS + SLOTS / 4).all(|number| found(&owners, number)));
    });
}
