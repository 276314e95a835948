//! What is recorded of sessions that are moving: nothing, by the hooks on sockets or by
//! the comparison with the kernel's sockets, until the move is over.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use aya::maps::HashMap;
use homing_agent::datapath::{Datapath, answer::found, sockets::Watcher};
use homing_common::{
    ask::{Found, Question},
    moving::Phase,
    net::{Port, Service, TCP},
    outcome::Hook,
    session::{Session, SessionKey, Tuple},
};
use homing_tests::{
    packet::flags,
    sandbox::{self, eventually},
};
use tokio::{runtime, sync::watch, time::sleep};

use crate::common::{MOVE, connect, cookie, destroy, hook, load, reset, restore, session};

const KEY: SessionKey = SessionKey([1, 2]);
const SERVICES: [&str; 2] = ["127.0.0.1:8080", "[::1]:8080"];

fn of(session: Tuple, cookie: u64) -> Session {
    Session {
        id: session.id(&KEY),
        cookie,
        opened_ns: 1,
        seen_ns: 0,
        generation: MOVE.generation + 1,
        flags: 0,
    }
}

/// The comparison of what is recorded with a service's sockets.
fn watch(datapath: &Datapath, service: SocketAddr) -> Watcher {
    let service = Service::new(service.ip().into(), Port::new(service.port()), TCP);
    let (sessions, stats) = (datapath.sessions.clone(), datapath.stats.clone());
    let (moving, finder) = (datapath.moving.clone(), datapath.events.finder());
    let services = watch::Sender::new(Arc::new([service].into())).subscribe();
    Watcher::open(sessions, moving, stats, KEY, services, finder).unwrap()
}

#[test]
fn at_the_source_the_destroyed_socket_closes_no_session() {
    for service in SERVICES {
        sandbox::run(|sandbox| {
            let service: SocketAddr = service.parse().unwrap();
            let datapath = load(sandbox, service);
            let listener = TcpListener::bind(service).unwrap();
            let (client, server) = connect(&listener, service);
            let it = session(&client);
            let recorded = datapath.sessions.get(&it).unwrap();
            assert!(recorded.is_some());
            assert_eq!(hook(&datapath, Hook::Opened), 1);
            datapath.moving.begin(it, MOVE, Phase::Frozen).unwrap();
            datapath
                .moving
                .advance(it, MOVE.number, Phase::Released)
                .unwrap();
            destroy(&server);
            eventually("the end of the socket is muted", || {
                hook(&datapath, Hook::MovingMuted) == 1
            });
            assert!(datapath.sessions.get(&it).unwrap() == recorded);
            assert_eq!(hook(&datapath, Hook::Closed), 0);
            let closed = HashMap::<_, u64, u64>::try_from(datapath.closed).unwrap();
            assert_eq!(closed.keys().count(), 0);
        });
    }
}

#[test]
fn at_the_target_the_restored_socket_opens_none_and_its_end_is_told_once_it_is_served() {
    for service in SERVICES {
        sandbox::run(|sandbox| {
            let service: SocketAddr = service.parse().unwrap();
            let client = SocketAddr::new(service.ip(), 50_000);
            let datapath = load(sandbox, service);
            let it = Tuple::between(client, service, TCP);
            // Outside of a move it opens one.
            drop(restore(service, client));
            eventually("it opens a session and closes it", || {
                hook(&datapath, Hook::Closed) == 1
            });
            datapath.moving.begin(it, MOVE, Phase::Awaiting).unwrap();
            let given_up = restore(service, client);
            eventually("its opening is muted", || {
                hook(&datapath, Hook::MovingMuted) == 1
            });
            destroy(&given_up);
            eventually("its end is muted", || {
                hook(&datapath, Hook::MovingMuted) == 2
            });
            let restored = restore(service, client);
            eventually("its opening is muted", || {
                hook(&datapath, Hook::MovingMuted) == 3
            });
            assert!(datapath.sessions.get(&it).unwrap().is_none());
            assert_eq!(hook(&datapath, Hook::Opened), 1);

            let mine = of(it, cookie(&restored));
            datapath.sessions.record(&it, mine).unwrap();
            datapath.moving.end(&it, MOVE.number).unwrap();
            destroy(&restored);
            eventually("its end is told", || hook(&datapath, Hook::Closed) == 2);
            assert!(datapath.sessions.get(&it).unwrap().is_none());
            assert_eq!(hook(&datapath, Hook::MovingMuted), 3);
        });
    }
}

#[test]
fn the_comparison_with_sockets_leaves_alone_what_moves() {
    sandbox::run(|sandbox| {
        let service: SocketAddr = SERVICES[0].parse().unwrap();
        let datapath = load(sandbox, service);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let mut watcher = watch(&datapath, service);
            let counters = watcher.counters();
            let counts = || {
                [&counters.adopted, &counters.forgotten].map(|count| count.load(Ordering::Relaxed))
            };
            let listener = TcpListener::bind(service).unwrap();
            // Left from here: recorded, and without a socket.
            let (client, server) = connect(&listener, service);
            let left = session(&client);
            datapath.moving.begin(left, MOVE, Phase::Frozen).unwrap();
            destroy(&server);
            // On its way here: a socket, and not recorded.
            let there = SocketAddr::new(service.ip(), 50_000);
            let coming = Tuple::between(there, service, TCP);
            datapath
                .moving
                .begin(coming, MOVE, Phase::Awaiting)
                .unwrap();
            let restored = restore(service, there);
            watcher.audit().await.unwrap();
            assert_eq!(counts(), [0, 0]);
            assert!(datapath.sessions.get(&left).unwrap().is_some());
            assert!(datapath.sessions.get(&coming).unwrap().is_none());
            // Once both are over, they are as any other.
            for session in [left, coming] {
                datapath.moving.end(&session, MOVE.number).unwrap();
            }
            watcher.audit().await.unwrap();
            assert_eq!(counts(), [1, 1]);
            destroy(&restored);
            reset(client);
        });
    });
}

#[test]
fn the_notice_of_a_destroyed_socket_ends_no_session_that_moves() {
    sandbox::run(|sandbox| {
        let service: SocketAddr = SERVICES[0].parse().unwrap();
        let listener = TcpListener::bind(service).unwrap();
        // Older than the hooks, which tell nothing of their end.
        let (client, server) = connect(&listener, service);
        let (other_client, other_server) = connect(&listener, service);
        let (moves, ends) = (session(&client), session(&other_client));
        let datapath = load(sandbox, service);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let mut watcher = watch(&datapath, service);
            watcher.audit().await.unwrap();
            let recorded = |session| datapath.sessions.get(session).unwrap().is_some();
            assert!(recorded(&moves) && recorded(&ends));
            let watcher = tokio::spawn(watcher.run());
            datapath.moving.begin(moves, MOVE, Phase::Frozen).unwrap();
            // The kernel gives notice once nobody holds it.
            destroy(&server);
            drop(server);
            reset(other_client);
            drop(other_server);
            // Notices come in the order of the ends.
            let deadline = Instant::now() + Duration::from_secs(10);
            while recorded(&ends) {
                assert!(Instant::now() < deadline, "no notice was heard");
                sleep(Duration::from_millis(5)).await;
            }
            assert!(recorded(&moves));
            watcher.abort();
        });
        drop(client);
    });
}

#[test]
fn the_source_answers_for_a_session_until_the_target_serves_it() {
    sandbox::run(|sandbox| {
        let service: SocketAddr = SERVICES[0].parse().unwrap();
        let datapath = load(sandbox, service);
        let listener = TcpListener::bind(service).unwrap();
        let (client, server) = connect(&listener, service);
        let it = session(&client);
        let answer = || {
            let mut questions = [Question {
                tuple: it,
                id: it.id(&KEY).0,
                seq: [0; 4],
                ack: [0; 4],
                flags: flags::ACK,
                found: 0,
                zero: [0; 6],
            }];
            datapath.answerer.answer(&mut questions).unwrap();
            found(&questions[0])
        };
        assert_eq!(answer(), Found::Socket);
        datapath.moving.begin(it, MOVE, Phase::Awaiting).unwrap();
        assert_eq!(answer(), Found::Nothing);
        datapath
            .moving
            .advance(it, MOVE.number, Phase::Prepared)
            .unwrap();
        assert_eq!(answer(), Found::Nothing);
        datapath.moving.end(&it, MOVE.number).unwrap();
        datapath.moving.begin(it, MOVE, Phase::Frozen).unwrap();
        assert_eq!(answer(), Found::Socket);
        datapath
            .moving
            .advance(it, MOVE.number, Phase::Released)
            .unwrap();
        destroy(&server);
        assert_eq!(answer(), Found::Socket);
        datapath.moving.end(&it, MOVE.number).unwrap();
        assert_eq!(answer(), Found::Nothing);
    });
}
