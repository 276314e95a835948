//! Packets that are parked, from the main program to the socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use homing_agent::datapath::{Datapath, hosts::Change, moving::park::Park};
use homing_common::{
    moving::Phase,
    net::TCP,
    outcome::Outcome,
    session::{Session, SessionKey, Tuple},
};
use homing_tests::{
    packet::{Ip, Tcp, flags, segment},
    raw::{Raw, index_of},
    sandbox::{self, Sandbox, eventually},
};
use tokio::runtime;

use crate::common::{MOVE, load};

/// A host to which a session comes.
struct Target {
    datapath: Datapath,
    ifindex: u32,
    session: Tuple,
    packet: Tcp,
}

impl Target {
    fn new(sandbox: &Sandbox, v4: bool) -> Self {
        let packet = segment(v4, flags::ACK);
        let mut datapath = load(sandbox, packet.destination);
        let member = Change {
            member: Some(true),
            template: None,
        };
        let changes = BTreeMap::from([(MOVE.peer, member)]);
        datapath.hosts.commit(&changes).unwrap();
        let session = Tuple::between(packet.source, packet.destination, TCP);
        datapath
            .moving
            .begin(session, MOVE, Phase::Awaiting)
            .unwrap();
        Self {
            datapath,
            ifindex: index_of("eth0").unwrap(),
            session,
            packet,
        }
    }

    fn park(&self) -> &Park {
        &self.datapath.park
    }

    /// The packet of this number, as it comes off the wire.
    fn frame(&self, number: u32) -> Vec<u8> {
        self.numbered(number).frame()
    }

    fn numbered(&self, number: u32) -> Tcp {
        let mut packet = self
            .packet
            .clone()
            .payload(vec![0x5a; number as usize % 1000]);
        packet.seq = number;
        packet
    }

    /// The same, diverted here by host 2.
    fn diverted(&self, number: u32) -> Vec<u8> {
        let inner = self.numbered(number).ip();
        let protocol = if inner.source.is_ipv4() { 4 } else { 41 };
        let ends = ["10.77.0.32", "10.77.0.16"].map(|end| end.parse().unwrap());
        let mut outer = Ip::new(ends[0], ends[1], protocol, inner.bytes());
        outer.id = 4;
        outer.frame(&[])
    }

    /// Lets a frame come in by the main program.
    fn arrive(&self, frame: &[u8]) {
        self.datapath.injector.reenter(self.ifindex, frame).unwrap();
    }

    fn record(&self) {
        let session = Session {
            id: self.session.id(&SessionKey([1, 2])),
            cookie: 1,
            opened_ns: 1,
            seen_ns: 0,
            generation: 1,
            flags: 0,
        };
        self.datapath
            .sessions
            .record(&self.session, session)
            .unwrap();
    }

    fn parked(&self) -> u64 {
        self.datapath.stats.read().unwrap().outcome(Outcome::Parked)
    }
}

/// Hears what is handed to the local stack of this namespace.
struct Stack(Raw, SocketAddr);

impl Stack {
    fn new(target: &Target) -> Self {
        Self(Raw::listener(target.ifindex).unwrap(), target.packet.source)
    }

    /// The numbers of the packets that have come, in their order.
    fn numbers(&self) -> Vec<u32> {
        let mut buffer = [0; 4096];
        let mut numbers = Vec::new();
        while let Some(frame) = self.0.receive(&mut buffer, Duration::ZERO).unwrap() {
            let tcp = if self.1.is_ipv4() { 34 } else { 54 };
            let port = frame.get(tcp..tcp + 2);
            if port == Some(&self.1.port().to_be_bytes()) {
                numbers.push(u32::from_be_bytes(
                    frame[tcp + 4..tcp + 8].try_into().unwrap(),
                ));
            }
        }
        numbers
    }
}

#[test]
fn what_was_parked_goes_up_in_the_order_in_which_it_came() {
    const PACKETS: u32 = 600;
    for v4 in [true, false] {
        sandbox::run(|sandbox| {
            let target = Target::new(sandbox, v4);
            let stack = Stack::new(&target);
            let all: Vec<u32> = (0..PACKETS).collect();
            for number in &all {
                match number % 3 {
                    0 => target.arrive(&target.diverted(*number)),
                    _ => target.arrive(&target.frame(*number)),
                }
                if *number == PACKETS / 2 {
                    let number = MOVE.number;
                    let advanced =
                        target
                            .datapath
                            .moving
                            .advance(target.session, number, Phase::Prepared);
                    advanced.unwrap();
                }
            }
            assert_eq!(target.parked(), u64::from(PACKETS));
            assert!(stack.numbers().is_empty());
            target.record();
            let fed = target.park().serve(&target.session, MOVE.number).unwrap();
            assert_eq!(fed, all.len());
            assert_eq!(stack.numbers(), all);
            assert!(target.datapath.moving.is_empty());
            assert_eq!(target.park().waiting(), 0);
            // From now on it is as any other.
            target.arrive(&target.frame(PACKETS));
            assert_eq!(target.parked(), u64::from(PACKETS));
            let counters = target.park().counters();
            assert_eq!(counters.held.load(Ordering::Relaxed), u64::from(PACKETS));
            assert_eq!(counters.refused.load(Ordering::Relaxed), 0);
        });
    }
}

#[test]
fn none_is_lost_and_none_is_doubled_while_more_arrive() {
    sandbox::run(|sandbox| {
        let target = Target::new(sandbox, true);
        let stack = Stack::new(&target);
        // A socket of the session, so that what comes after the move goes up, too.
        let stop = AtomicBool::new(false);
        let before = 200;
        for number in 0..before {
            target.arrive(&target.frame(number));
        }
        target.record();
        let sent = thread::scope(|scope| {
            let (target, stop) = (&target, &stop);
            let client = scope.spawn(move || {
                let mut number = before;
                // Until it has moved, and at most what one session may have waiting.
                while !stop.load(Ordering::Relaxed) && number < 900 {
                    target.arrive(&target.frame(number));
                    number += 1;
                }
                number
            });
            eventually("more arrive", || target.parked() > u64::from(before) + 50);
            target.park().serve(&target.session, MOVE.number).unwrap();
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap()
        });
        // What a program had in its hands is read now.
        let other = Tuple::new(
            target.session.client,
            target.session.client_port,
            target.session.client,
            target.session.client_port,
            TCP,
        );
        target.park().serve(&other, 0).unwrap();
        let numbers = stack.numbers();
        let parked = target.parked() as usize;
        let counters = target.park().counters();
        assert_eq!(counters.fed.load(Ordering::Relaxed) as usize, parked);
        // Those that came after the end were asked about, for want of a real socket.
        assert!(numbers.len() >= parked && numbers.len() <= sent as usize);
        let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
        assert_eq!(distinct.len(), numbers.len(), "doubled");
        assert!(numbers.len() >= parked, "lost");
        let first: Vec<u32> = (0..before).collect();
        assert_eq!(numbers[..before as usize], first);
    });
}

#[test]
fn what_is_read_after_the_move_goes_up_if_it_is_served_here_and_away_if_not() {
    sandbox::run(|sandbox| {
        let target = Target::new(sandbox, true);
        let stack = Stack::new(&target);
        let read = |count: u32| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let park = target.park().clone();
                let task = tokio::spawn(park.clone().run());
                let counters = park.counters();
                let read = || {
                    [&counters.late, &counters.dropped, &counters.held]
                        .map(|counter| counter.load(Ordering::Relaxed))
                        .iter()
                        .sum::<u64>()
                };
                while read() < u64::from(count) {
                    tokio::task::yield_now().await;
                }
                task.abort();
            });
        };
        // Waits: a program parked it, and the move is over before it is read.
        target.arrive(&target.frame(1));
        target
            .datapath
            .moving
            .end(&target.session, MOVE.number)
            .unwrap();
        read(1);
        assert!(stack.numbers().is_empty());
        target
            .datapath
            .moving
            .begin(target.session, MOVE, Phase::Awaiting)
            .unwrap();
        target.arrive(&target.frame(2));
        target.record();
        target
            .datapath
            .moving
            .end(&target.session, MOVE.number)
            .unwrap();
        read(2);
        assert_eq!(stack.numbers(), [2]);
        let counters = target.park().counters();
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(counters.late.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn what_waits_for_a_move_that_is_given_up_is_dropped() {
    sandbox::run(|sandbox| {
        let target = Target::new(sandbox, false);
        let stack = Stack::new(&target);
        for number in 0..10 {
            target.arrive(&target.frame(number));
        }
        let dropped = target.park().give_up(&target.session, MOVE.number).unwrap();
        assert_eq!(dropped, 10);
        assert!(stack.numbers().is_empty());
        assert!(target.datapath.moving.is_empty());
        assert!(!target.datapath.control.is_moving());
    });
}
