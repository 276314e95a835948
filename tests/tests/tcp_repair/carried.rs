//! What travels with a session besides its data.

use std::{net::TcpStream, time::Duration};

use homing_agent::datapath::repair::{Frozen, Snapshot};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
use socket2::SockRef;

use super::{
    case::{Case, Pop, Shut, Talk, play},
    socket::{int, int_bytes, owned, set_int},
    switch::{A, B},
    trace,
};

/// What an application may set, to values that no kernel starts with.
const OPTIONS: [(i32, i32, i32); 19] = [
    (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, 7),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, 5),
    (IPPROTO_TCP, libc::TCP_NODELAY, 1),
    (IPPROTO_TCP, libc::TCP_CORK, 1),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
    (IPPROTO_TCP, libc::TCP_LINGER2, 33),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 98_765),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 1),
    (IPPROTO_TCP, libc::TCP_INQ, 1),
    (SOL_SOCKET, libc::SO_MARK, 42),
    (SOL_SOCKET, libc::SO_PRIORITY, 5),
    (SOL_SOCKET, libc::SO_RCVLOWAT, 3),
    (SOL_SOCKET, libc::SO_OOBINLINE, 1),
    (SOL_SOCKET, libc::SO_PEEK_OFF, 9),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE, 50_000_000),
    (SOL_SOCKET, libc::SO_SNDBUF, 50_000),
    (SOL_SOCKET, libc::SO_RCVBUF, 60_000),
];
const OPTIONS_V4: [(i32, i32, i32); 3] = [
    (IPPROTO_IP, libc::IP_TOS, 0x28),
    (IPPROTO_IP, libc::IP_TTL, 55),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
];
const OPTIONS_V6: [(i32, i32, i32); 3] = [
    (IPPROTO_IPV6, libc::IPV6_TCLASS, 0x28),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 55),
    (
        IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    ),
];

/// A connection on host A, and what it is about.
fn connected(case: &Case) -> (Pop, Talk) {
    let pop = Pop::new(case);
    let mut talk = pop.connect();
    talk.go_on(3000, Shut::Nobody);
    (pop, talk)
}

fn finish(pop: &Pop, mut talk: Talk) {
    talk.go_on(3000, Shut::Nobody);
    talk.end(Shut::Nobody);
    trace::judge(&trace::read(&pop.switch.seen()));
}

#[test]
fn socket_options_are_carried() {
    for v6 in [false, true] {
        let (pop, mut talk) = connected(&Case { v6, ..Case::new() });
        let options = || {
            OPTIONS
                .iter()
                .chain(if v6 { &OPTIONS_V6 } else { &OPTIONS_V4 })
        };
        for &(level, name, value) in options() {
            if (level, name) != (SOL_SOCKET, libc::SO_PRIORITY) {
                set_int(&talk.server, level, name, value);
            }
        }
        // The type of service sets it, too.
        set_int(&talk.server, SOL_SOCKET, libc::SO_PRIORITY, 5);
        let linger = Some(Duration::from_secs(11));
        SockRef::from(&talk.server).set_linger(linger).unwrap();
        let timeouts = [Duration::from_secs(12), Duration::from_secs(14)];
        talk.server.set_read_timeout(Some(timeouts[0])).unwrap();
        talk.server.set_write_timeout(Some(timeouts[1])).unwrap();
        let read = |stream: &TcpStream| -> Vec<i32> {
            options()
                .map(|(level, name, _)| int(stream, *level, *name))
                .collect()
        };
        let before = read(&talk.server);
        for (now, (level, name, value)) in before.iter().zip(options()) {
            let doubled =
                matches!(*name, libc::SO_SNDBUF | libc::SO_RCVBUF) && *level == SOL_SOCKET;
            assert_eq!(
                *now,
                if doubled { 2 * value } else { *value },
                "{level}/{name}"
            );
        }
        let locks = int(&talk.server, SOL_SOCKET, libc::SO_BUF_LOCK);
        assert_eq!(locks, 3);
        for host in [B, A] {
            talk.server = pop.move_to(talk.server, host);
            for ((before, now), (level, name, _)) in
                before.iter().zip(read(&talk.server)).zip(options())
            {
                assert_eq!(*before, now, "{level}/{name}");
            }
            assert_eq!(int(&talk.server, SOL_SOCKET, libc::SO_BUF_LOCK), locks);
            assert_eq!(SockRef::from(&talk.server).linger().unwrap(), linger);
            assert_eq!(talk.server.read_timeout().unwrap(), Some(timeouts[0]));
            assert_eq!(talk.server.write_timeout().unwrap(), Some(timeouts[1]));
        }
        set_int(&talk.server, IPPROTO_TCP, libc::TCP_CORK, 0);
        finish(&pop, talk);
    }
}

/// What both sides agreed on, the MSS in use, the congestion control's name, the sizes of
/// buffers and whether the kernel may adapt them.
#[derive(PartialEq, Eq, Debug)]
struct Agreed {
    options: u8,
    scales: u8,
    mss: u32,
    congestion: [u8; 16],
    buffers: [i32; 3],
}

fn agreed(stream: &TcpStream) -> Agreed {
    let info: [u8; 20] = int_bytes(stream, IPPROTO_TCP, libc::TCP_INFO);
    Agreed {
        // Without what says that ECN marks were seen, and a cookie in the SYN taken.
        options: info[5] & 0b100_0111,
        scales: info[6],
        mss: u32::from_ne_bytes([info[16], info[17], info[18], info[19]]),
        congestion: int_bytes(stream, IPPROTO_TCP, libc::TCP_CONGESTION),
        buffers: [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_BUF_LOCK]
            .map(|name| int(stream, SOL_SOCKET, name)),
    }
}

#[test]
fn what_was_agreed_on_is_carried() {
    for v6 in [false, true] {
        for mss in [None, Some(300)] {
            let (pop, mut talk) = connected(&Case {
                v6,
                mss,
                congestion: Some("reno"),
                ..Case::new()
            });
            let before = agreed(&talk.server);
            assert_eq!(before.options, 7);
            assert_eq!(&before.congestion[..5], b"reno\0");
            assert_eq!(before.buffers[2], 0);
            for host in [B, A] {
                talk.server = pop.move_to(talk.server, host);
                assert_eq!(agreed(&talk.server), before);
            }
            finish(&pop, talk);
        }
    }
}

#[test]
fn a_clock_of_microseconds_goes_on_as_one() {
    let (pop, mut talk) = connected(&Case::new());
    // Such clocks come by routes that say so; repair mode can set one, too.
    set_int(&talk.server, IPPROTO_TCP, libc::TCP_REPAIR, 1);
    let clock = int(&talk.server, IPPROTO_TCP, libc::TCP_TIMESTAMP);
    set_int(&talk.server, IPPROTO_TCP, libc::TCP_TIMESTAMP, clock | 1);
    set_int(&talk.server, IPPROTO_TCP, libc::TCP_REPAIR, -1);
    let before = agreed(&talk.server);
    assert_ne!(
        before.options & 64,
        0,
        "the kernel shows no clock of microseconds"
    );
    for host in [B, A] {
        talk.server = pop.move_to(talk.server, host);
        assert_eq!(agreed(&talk.server), before);
    }
    finish(&pop, talk);
}

#[test]
fn a_session_with_ecn_moves_and_says_that_it_loses_it() {
    let ecn = || vec![("ipv4/tcp_ecn", "1".to_owned())];
    let case = Case {
        client_settings: ecn(),
        host_settings: ecn(),
        ..Case::new()
    };
    play(&case);
    let (pop, talk) = connected(&case);
    let snapshot = pop.switch.host(A).on(|| {
        let frozen = Frozen::enter(owned(&talk.server)).unwrap();
        frozen.snapshot().unwrap()
    });
    assert!(snapshot.loses_ecn());
    assert_eq!(Snapshot::decode(&snapshot.encode()).as_ref(), Ok(&snapshot));
    // What is dropped goes on.
    finish(&pop, talk);
}

#[test]
fn a_listener_can_be_started_again_beside_a_session_that_came_or_stayed() {
    let (mut pop, mut talk) = connected(&Case::new());
    talk.server = pop.move_to(talk.server, B);
    pop.restart_listener(B);
    finish(&pop, talk);
    let (mut pop, talk) = connected(&Case::new());
    pop.switch.host(A).on(|| {
        let frozen = Frozen::enter(owned(&talk.server)).unwrap();
        frozen.leave().unwrap();
    });
    pop.restart_listener(A);
    finish(&pop, talk);
}
