//! Packets of sessions that nobody here knows: parked for the agent, within limits.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use homing_common::{
    host::Encapsulation,
    limit::{Limit, WINDOW_SHIFT},
    outcome::Outcome,
    park::{PARKED_FRAME_MAX, Why},
    session::Tuple,
};
use homing_tests::{
    packet::{SERVICE_V4, SERVICE_V6, Tcp, flags, segment},
    program::{Action, LOOPBACK, Program, host_1, in_namespace, tunnel_v4},
};

use super::common::{TUNNELS, assert_end, outer};

/// Packets per source and window.
const PER_SOURCE: u64 = 256;
/// Packets per window.
const IN_ALL: u64 = 2048;

fn program() -> Program {
    host_1(tunnel_v4(), Encapsulation::Ipip).unwrap()
}

/// A segment of a session that nobody knows, from the client with this number.
pub fn from(source: u32) -> Tcp {
    let [_, a, b, c] = source.to_be_bytes();
    Tcp::new(&format!("10.{a}.{b}.{c}:4000"), SERVICE_V4, flags::ACK)
}

/// The limit of a client's packets.
pub fn limit(program: &Program, client: &str) -> Limit {
    let client: SocketAddr = client.parse().unwrap();
    Limit::source(&client.ip().into(), &program.settings().session_key)
}

/// As many packets from one source as it may have parked, and more.
fn flood(program: &mut Program, source: u32) -> Vec<(Outcome, u64)> {
    let times = PER_SOURCE as u32 * 4;
    program.run_many(&from(source).frame(), times).unwrap()
}

fn times(counted: &[(Outcome, u64)], outcome: Outcome) -> u64 {
    let of = counted.iter().filter(|(other, _)| *other == outcome);
    of.map(|(_, times)| times).sum()
}

/// The windows that a time touches at most.
fn windows(time: Duration) -> u64 {
    2 + (time.as_nanos() as u64 >> WINDOW_SHIFT)
}

#[test]
fn the_agent_gets_the_packet_as_it_came() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                    for payload in [0, 150, 1300] {
                        let flags = flags::ACK | flags::FIN;
                        let packet = segment(v4, flags).payload(vec![0x5a; payload]);
                        let inner = packet.ip();
                        let through = outer(&program, 2, 1, &inner, 0);
                        for (from, frame) in [(0, inner.frame(tags)), (2, through.frame(tags))] {
                            let run = program.run(&frame).unwrap();
                            assert_end(&run, Action::Drop, Outcome::Asked);
                            let parked = program.parked().unwrap();
                            let [(head, held)] = &parked[..] else {
                                panic!("{} records", parked.len());
                            };
                            assert_eq!(*held, frame);
                            let tuple = Tuple::between(packet.source, packet.destination, 6);
                            assert!(head.tuple == tuple);
                            assert_eq!(head.id, tuple.id(&program.settings().session_key).0);
                            assert_eq!(head.why, Why::Unknown as u16);
                            assert_eq!((head.from, head.flags), (from, flags));
                            assert_eq!(head.ifindex, LOOPBACK);
                            assert!(head.at_ns > 0);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn frames_of_every_length() {
    in_namespace(|| {
        let mut program = program();
        for len in [54, 55, 255, 256, 257, 258, 2046, 2047, 2048, 2049, 3000] {
            let frame = from(len as u32).payload(vec![7; len - 54]).frame();
            assert_eq!(frame.len(), len);
            let run = program.run(&frame).unwrap();
            let parked = program.parked().unwrap();
            assert_eq!(parked.len(), 1);
            if len <= PARKED_FRAME_MAX {
                assert_end(&run, Action::Drop, Outcome::Asked);
                assert_eq!(parked[0].1, frame);
            } else {
                assert_end(&run, Action::Drop, Outcome::AskTooLong);
                assert_eq!(parked[0].0.captured, 0);
            }
            assert_eq!(run.frame, frame);
        }
    });
}

#[test]
fn a_source_has_a_limit_and_shares_it_with_nobody() {
    in_namespace(|| {
        let mut program = program();
        let start = Instant::now();
        let counted = flood(&mut program, 1);
        let asked = times(&counted, Outcome::Asked);
        let limited = times(&counted, Outcome::AskLimitedSource);
        assert_eq!(asked + limited, 4 * PER_SOURCE, "{counted:?}");
        assert!(asked >= PER_SOURCE);
        assert!(asked <= PER_SOURCE * windows(start.elapsed()), "{asked}");
        let run = program.run(&from(2).frame()).unwrap();
        assert_end(&run, Action::Drop, Outcome::Asked);
    });
}

#[test]
fn the_addresses_of_an_ipv6_prefix_are_one_source() {
    in_namespace(|| {
        let mut program = program();
        let start = Instant::now();
        let mut asked = 0;
        let sources = 16;
        for low in 0..sources {
            let client = format!("[2001:db8:c::{low:x}]:4000");
            let frame = Tcp::new(&client, SERVICE_V6, flags::ACK).frame();
            let counted = program.run_many(&frame, PER_SOURCE as u32).unwrap();
            asked += times(&counted, Outcome::Asked);
        }
        assert!(asked <= PER_SOURCE * windows(start.elapsed()), "{asked}");
    });
}

#[test]
fn all_sources_together_have_a_limit() {
    in_namespace(|| {
        let mut program = program();
        let start = Instant::now();
        let mut asked = 0;
        for source in 0..32 {
            asked += times(&flood(&mut program, source), Outcome::Asked);
        }
        assert!(asked <= IN_ALL * windows(start.elapsed()), "{asked}");
    });
}

#[test]
fn what_the_limits_hold_back_is_not_in_the_ring() {
    in_namespace(|| {
        let mut program = program();
        let asked = times(&flood(&mut program, 1), Outcome::Asked);
        assert_eq!(program.parked().unwrap().len() as u64, asked);
    });
}

#[test]
fn a_flood_of_unknown_packets_leaves_known_sessions_alone() {
    in_namespace(|| {
        let mut program = program();
        program
            .set_owner("198.51.100.7:40312", SERVICE_V4, 2)
            .unwrap();
        for source in 0..64 {
            flood(&mut program, source);
        }
        let run = program.run(&segment(true, flags::ACK).frame()).unwrap();
        assert_end(&run, Action::Tx, Outcome::Forwarded);
        let run = program.run(&segment(false, flags::SYN).frame()).unwrap();
        assert_end(&run, Action::Pass, Outcome::LocalSyn);
    });
}
