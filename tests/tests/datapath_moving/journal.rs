//! `MOVING` as the agent writes it.

use homing_agent::datapath::{
    Datapath,
    moving::{Error, Move},
};
use homing_common::{
    moving::{MOVING_ENTRIES, Phase},
    net::{Address, Port, TCP},
    session::Tuple,
};
use homing_tests::{program::monotonic_ns, sandbox};

use crate::common::MOVE;

fn session(number: u16) -> Tuple {
    let any = Address::v4([10, 0, 0, 1]);
    Tuple::new(any, Port::new(number), any, Port::new(443), TCP)
}

#[test]
fn a_move_goes_forward_one_phase_at_a_time_and_no_other_comes_between() {
    sandbox::run(|sandbox| {
        let datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        let (moving, it) = (&datapath.moving, session(1));
        let number = MOVE.number;
        for (first, last) in [
            (Phase::Awaiting, Phase::Prepared),
            (Phase::Frozen, Phase::Released),
        ] {
            let before = monotonic_ns().unwrap();
            moving.begin(it, MOVE, first).unwrap();
            let found = moving.get(&it).unwrap().unwrap();
            assert_eq!((found.number, found.phase()), (number, Some(first)));
            assert_eq!((found.peer(), found.generation), (MOVE.peer, 3));
            assert!((before..=monotonic_ns().unwrap()).contains(&found.since_ns));

            let busy = moving.begin(it, MOVE, first).unwrap_err();
            assert!(matches!(busy, Error::Busy { .. }), "{busy}");
            let wrong = if last == Phase::Prepared {
                Phase::Released
            } else {
                Phase::Prepared
            };
            for (number, phase) in [(number, wrong), (number, first), (number + 1, last)] {
                let refused = moving.advance(it, number, phase).unwrap_err();
                assert!(matches!(refused, Error::Other { .. }), "{refused}");
            }
            assert!(!moving.end(&it, number + 1).unwrap());
            assert_eq!(moving.get(&it).unwrap(), Some(found));

            moving.advance(it, number, last).unwrap();
            let found = moving.get(&it).unwrap().unwrap();
            assert_eq!((found.number, found.phase()), (number, Some(last)));
            assert_eq!((found.peer(), found.generation), (MOVE.peer, 3));
            assert!(moving.advance(it, number, last).is_err());
            assert_eq!(moving.list().unwrap(), [(it, found)]);
            assert_eq!(moving.len(), 1);
            assert!(moving.end(&it, number).unwrap());
            assert!(!moving.end(&it, number).unwrap());
            assert!(moving.advance(it, number, last).is_err());
            assert!(moving.is_empty() && moving.list().unwrap().is_empty());
        }
    });
}

#[test]
fn a_session_that_was_released_can_come_back() {
    sandbox::run(|sandbox| {
        let datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        let (moving, it) = (&datapath.moving, session(1));
        moving.begin(it, MOVE, Phase::Frozen).unwrap();
        moving.advance(it, MOVE.number, Phase::Released).unwrap();
        let back = Move { number: 5, ..MOVE };
        moving.begin(it, back, Phase::Awaiting).unwrap();
        // The end of the former one changes nothing any more.
        assert!(!moving.end(&it, MOVE.number).unwrap());
        assert_eq!((moving.len(), moving.list().unwrap().len()), (1, 1));
        assert!(moving.end(&it, 5).unwrap());
        assert!(!datapath.control.is_moving());
    });
}

#[test]
fn the_programs_look_exactly_while_something_moves_and_the_next_agent_finds_it() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let datapath = Datapath::load(&options).unwrap();
        assert!(!datapath.control.is_moving());
        for number in [1, 2] {
            let it = session(number);
            datapath.moving.begin(it, MOVE, Phase::Awaiting).unwrap();
            assert!(datapath.control.is_moving());
        }
        assert!(datapath.moving.end(&session(1), MOVE.number).unwrap());
        assert!(datapath.control.is_moving());
        let it = session(2);
        datapath
            .moving
            .advance(it, MOVE.number, Phase::Prepared)
            .unwrap();
        let before = datapath.moving.list().unwrap();
        drop(datapath);

        let datapath = Datapath::load(&options).unwrap();
        assert!(datapath.control.is_moving());
        assert_eq!(datapath.moving.len(), 1);
        assert_eq!(datapath.moving.list().unwrap(), before);
        assert!(datapath.moving.end(&it, MOVE.number).unwrap());
        assert!(!datapath.control.is_moving());
    });
}

#[test]
fn beyond_its_entries_nothing_more_moves_and_that_is_said() {
    sandbox::run(|sandbox| {
        let datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        let moving = &datapath.moving;
        for number in 0..MOVING_ENTRIES as u16 {
            let it = session(number);
            moving.begin(it, MOVE, Phase::Frozen).unwrap();
        }
        let one_more = session(MOVING_ENTRIES as u16);
        let full = moving.begin(one_more, MOVE, Phase::Frozen).unwrap_err();
        assert!(matches!(full, Error::Full), "{full}");
        assert!(full.to_string().contains("4096"));
        assert_eq!(moving.get(&one_more).unwrap(), None);
        // Those that are in it go on.
        let it = session(7);
        moving.advance(it, MOVE.number, Phase::Released).unwrap();
        assert!(moving.end(&it, MOVE.number).unwrap());
        moving.begin(one_more, MOVE, Phase::Frozen).unwrap();
        assert_eq!(moving.len(), MOVING_ENTRIES);
    });
}
