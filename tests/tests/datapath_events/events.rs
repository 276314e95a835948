//! Sessions as they are told: as they happen, after a start, after a loss of events,
//! and under a new key.

use std::{sync::atomic::Ordering, thread, time::Duration};

use aya::maps::HashMap;
use homing_agent::datapath::Datapath;
use homing_common::{limit::Room, outcome::Hook, session::SessionKey};
use homing_tests::{
    program::monotonic_ns,
    sandbox::{self, eventually},
};

use crate::common::{KEY, SERVICES, Server, View, ids, recorded, with_reader};

#[test]
fn sessions_are_recorded_and_told_as_they_open_and_close() {
    sandbox::run(|sandbox| {
        let mut server = Server::new();
        let mut datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        datapath.services.sync(&SERVICES).unwrap();
        let sessions = datapath.sessions.clone();
        let stats = datapath.stats.clone();
        with_reader(datapath, async |mut from, _| {
            let mut view = View::default();
            let first = from.recv().await.unwrap();
            assert!(first.is_empty(), "at once, and nothing");
            for _ in 0..3 {
                let tuple = server.connect();
                view.until(&mut from, &ids(&server.tuples())).await;
                let session = sessions.get(&tuple).unwrap().expect("is recorded");
                assert_eq!(session.id, tuple.id(&KEY));
                assert_ne!(session.cookie, 0);
            }
            assert_eq!(recorded(&sessions), server.tuples());
            let tuple = server.reset();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert!(sessions.get(&tuple).unwrap().is_none());
            let counts = stats.read().unwrap();
            assert_eq!(counts.hook(Hook::Opened), 3);
            assert_eq!(counts.hook(Hook::Closed), 1);
            assert_eq!(stats.hook(Hook::EventsLost).unwrap(), 0);
        });
    });
}

#[test]
fn sessions_that_are_forgotten_too_early_are_counted() {
    const ROOM: u32 = 64;
    const CLOSED: u64 = 100;
    sandbox::run(|sandbox| {
        // Within one minute of the counter, however busy the machine is.
        for attempt in 1.. {
            let mut server = Server::new();
            let mut options = sandbox.options(&[]);
            options.pin_dir = sandbox.bpf.join(format!("homing/attempt{attempt}"));
            options.settings.closed_entries = ROOM;
            let mut datapath = Datapath::load(&options).unwrap();
            datapath.services.sync(&SERVICES).unwrap();
            let hook = |hook| datapath.stats.hook(hook).unwrap();
            let minute = || monotonic_ns().unwrap() / Room::Closed.life_ns();
            let before = minute();
            for _ in 0..CLOSED {
                server.connect();
                server.reset();
            }
            eventually("all are closed", || hook(Hook::Closed) == CLOSED);
            if minute() != before {
                continue;
            }
            let counted = hook(Hook::ClosedEvicted);
            assert_eq!(counted, CLOSED - u64::from(ROOM));
            let closed = HashMap::<_, u64, u64>::try_from(datapath.closed).unwrap();
            let kept = closed.keys().count() as u64;
            assert!(counted <= CLOSED - kept, "{kept} are left");
            break;
        }
    });
}

#[test]
fn a_session_that_closes_is_remembered_by_the_kernel_side_for_a_while() {
    sandbox::run(|sandbox| {
        let mut server = Server::new();
        let mut datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        datapath.services.sync(&SERVICES).unwrap();
        let closed = HashMap::<_, u64, u64>::try_from(datapath.closed).unwrap();
        let before = monotonic_ns().unwrap();
        let id = server.connect().id(&KEY).0;
        assert!(closed.get(&id, 0).is_err(), "it is open");
        server.reset();
        eventually("the socket closes", || closed.get(&id, 0).is_ok());
        let at_ns = closed.get(&id, 0).unwrap();
        assert!((before..=monotonic_ns().unwrap()).contains(&at_ns));
    });
}

#[test]
fn what_happened_while_no_agent_ran_is_found_at_the_start() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        let mut first = Datapath::load(&options).unwrap();
        first.services.sync(&SERVICES).unwrap();
        server.connect();
        drop(first);
        server.connect();
        server.connect();
        server.reset();
        with_reader(Datapath::load(&options).unwrap(), async |mut from, _| {
            let mut view = View::default();
            view.until(&mut from, &ids(&server.tuples())).await;
            assert_eq!(view.0.len(), 2);
        });
    });
}

#[test]
fn lost_events_are_noticed_and_made_up_for() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        let mut datapath = Datapath::load(&options).unwrap();
        datapath.services.sync(&SERVICES).unwrap();
        let stats = datapath.stats.clone();
        with_reader(datapath, async |mut from, counters| {
            let mut view = View::default();
            view.take(from.recv().await.unwrap().events);
            // The runtime has one thread, so nobody reads while this one works. With
            // the first session kept, the ring, which holds an even number of
            // events, ends in the beginning of a session whose end is lost.
            let first = server.connect();
            for _ in 0..6000 {
                server.connect();
                server.reset();
            }
            // So that the scan is due as soon as the loss is noticed.
            thread::sleep(Duration::from_secs(1));
            let kept = [first, server.connect()];
            assert!(
                stats.hook(Hook::EventsLost).unwrap() > 0,
                "the ring never filled"
            );
            view.until(&mut from, &ids(&kept.into())).await;
            assert_eq!(counters.scans.load(Ordering::Relaxed), 2);
            assert_eq!(counters.unknown.load(Ordering::Relaxed), 0);

            // And from there on as before.
            server.reset();
            view.until(&mut from, &ids(&server.tuples())).await;
        });
    });
}

#[test]
fn under_another_key_sessions_get_new_ids() {
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        let mut server = Server::new();
        let mut first = Datapath::load(&options).unwrap();
        first.services.sync(&SERVICES).unwrap();
        let tuple = server.connect();
        drop(first);
        options.settings.session_key = SessionKey([3, 4]);
        let second = Datapath::load(&options).unwrap();
        let session = second.sessions.get(&tuple).unwrap().unwrap();
        assert_eq!(session.id, tuple.id(&SessionKey([3, 4])));
        server.reset();
        let closed = || second.sessions.get(&tuple).unwrap().is_none();
        eventually("the hook closes what was rekeyed", closed);
    });
}

#[test]
fn a_full_record_is_counted_and_other_sockets_are_left_alone() {
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.sessions_entries = 2;
        let mut server = Server::new();
        let mut datapath = Datapath::load(&options).unwrap();
        let other = server.connect();
        datapath.services.sync(&SERVICES).unwrap();
        for _ in 0..4 {
            server.connect();
        }
        let counts = datapath.stats.read().unwrap();
        assert_eq!(
            counts.hook(Hook::SessionsFull) + counts.hook(Hook::Opened),
            4
        );
        assert!(counts.hook(Hook::SessionsFull) >= 2);
        assert!(datapath.sessions.get(&other).unwrap().is_none());
    });
}
