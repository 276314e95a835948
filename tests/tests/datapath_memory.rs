//! What the table of owners does where there is no memory for a larger one. A test
//! program of its own: its memory is limited as a whole.

use std::{
    thread,
    time::{Duration, Instant},
};

use homing_agent::datapath::owners::{AGAIN_AFTER, Owners};
use homing_common::{
    bench::session_id,
    host::{Encapsulation, HostId, Template},
    outcome::Outcome,
};
use homing_tests::{
    memory::Limit,
    packet::{CLIENT_V4, SERVICE_V4, flags, segment},
    program::{host_1, in_namespace, tunnel_v4},
};

/// The smallest table has so many slots, and a larger one is due when so many are taken.
const SLOTS: u64 = 1 << 20;
const DUE: u64 = SLOTS * 92 / 100;
/// Of a table that cannot grow so many are taken at most.
const MOST: u64 = SLOTS * 95 / 100;
/// A table of 12 MiB does not fit into that, and all else that the test needs does.
const ROOM_BYTES: u64 = 6 << 20;
/// Room that is kept for sessions whose packets come.
const KEPT: u64 = 1000;

fn set(owners: &mut Owners, number: u64) -> bool {
    owners.set(session_id(number), HostId(3)).is_ok()
}

#[test]
fn a_table_that_there_is_no_memory_to_grow_goes_on_and_grows_later() {
    in_namespace(|| {
        // What maps take is charged to the cgroup in which they are made.
        let limit = Limit::enter().unwrap();
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        program.set_owner(CLIENT_V4, SERVICE_V4, 9).unwrap();
        program.add_host(9, Template::NONE).unwrap();
        let mut owners = program.owners(4 << 20).unwrap();
        owners.keep(KEPT as u32);
        let small = owners.bytes();
        limit.leave_room(ROOM_BYTES).unwrap();

        // Up to where it is to grow all find room; from there on it has what it has.
        assert!((1..=DUE).all(|number| set(&mut owners, number)));
        let growth = owners.growth();
        assert_eq!(growth.failures, 1, "{growth:?}");
        let shortage = growth.shortage.unwrap();
        assert_eq!(shortage.bytes, small * 3 / 2);
        assert!(shortage.why.contains("memory"), "{shortage:?}");
        let mut number = DUE + 1;
        while set(&mut owners, number) {
            number += 1;
        }
        assert_eq!(u64::from(owners.len()), MOST - KEPT);
        assert_eq!(u64::from(owners.capacity()), MOST - KEPT);
        assert_eq!(owners.bytes(), small);
        // Asked for in vain no more often than at intervals.
        let tries = owners.growth().failures;
        assert!((0..1000).all(|other| !set(&mut owners, number + other)));
        assert!(owners.growth().failures <= tries + 1);

        // Full, it does what full tables do: there is room for those whose packets come.
        for other in 0..2 * KEPT {
            let made_way = owners.set_asked(session_id(number + other), HostId(3));
            assert_eq!(made_way.unwrap(), other >= KEPT);
        }
        assert_eq!(u64::from(owners.len()), MOST);
        let frame = segment(true, flags::ACK).frame();
        let outcomes = program.run_many(&frame, 1000).unwrap();
        assert_eq!(outcomes, [(Outcome::NoWay, 1000)]);
        assert!((1..number).all(|number| owners.get(session_id(number)) == Some(HostId(3))));

        // Once there is memory, it grows with the next one that finds no room.
        limit.lift().unwrap();
        let deadline = Instant::now() + 2 * AGAIN_AFTER;
        while !set(&mut owners, number + 2 * KEPT) {
            assert!(Instant::now() < deadline, "it was not tried again");
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(owners.growth().shortage, None);
        for number in number + 2 * KEPT..2 * SLOTS {
            assert!(set(&mut owners, number), "{number}");
        }
        assert!(owners.bytes() > small * 2, "{}", owners.bytes());
        assert!((1..number).all(|number| owners.get(session_id(number)) == Some(HostId(3))));
        let outcomes = program.run_many(&frame, 1000).unwrap();
        assert_eq!(outcomes, [(Outcome::NoWay, 1000)]);
    });
}
