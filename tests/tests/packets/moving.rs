//! Sessions that are moving: the source diverts what arrives, the target parks it, and
//! neither sends anything.

use homing_common::{
    control::Control,
    host::{Encapsulation, Template},
    moving::Phase,
    net::TCP,
    outcome::{Hook, Outcome},
    park::{PARKED_FRAME_MAX, Why},
    session::Tuple,
};
use homing_tests::{
    packet::{CLIENT_V4, HOST_MAC, Ip, PEER_MAC, SERVICE_V4, Tcp, ethernet, flags, segment},
    program::{Action, Program, Run, host_1, in_namespace, template, tunnel_v4},
};

use super::{
    common::{TUNNELS, assert_end, outer},
    local::Handshake,
    loops::{Pop, marked_as},
    related,
};

/// The marks, as `mark.rs` has them.
const DECIDED: u8 = 1;
const SENT_ON: u8 = 2;
const DIVERTED: u8 = 4;
const DIVERTED_ON: u8 = 6;

const SOURCE: [Phase; 2] = [Phase::Frozen, Phase::Released];
const TARGET: [Phase; 2] = [Phase::Awaiting, Phase::Prepared];

const ALL_FLAGS: [u8; 5] = [
    flags::ACK,
    flags::SYN,
    flags::RST,
    flags::FIN | flags::ACK,
    flags::SYN | flags::ACK,
];

fn session(packet: &Tcp) -> Tuple {
    Tuple::between(packet.source, packet.destination, TCP)
}

fn id_of(program: &Program, packet: &Tcp) -> u64 {
    session(packet).id(&program.settings().session_key).0
}

fn ends(packet: &Tcp) -> (String, String) {
    (packet.source.to_string(), packet.destination.to_string())
}

/// The frame that must leave for host `to`.
fn tunnelled(program: &Program, to: u16, inner: &Ip, entropy: u64, mark: u8, ttl: u8) -> Vec<u8> {
    let mut outer = marked_as(outer(program, 1, to, inner, entropy), mark);
    outer.ttl = ttl;
    let v4 = outer.source.is_ipv4();
    ethernet(PEER_MAC, HOST_MAC, &[], v4, &outer.bytes())
}

fn arrive(program: &mut Program, from: u16, inner: &Ip, mark: u8) -> Run {
    let packet = outer(program, from, 1, inner, 0);
    let packet = match mark {
        0 => packet,
        mark => marked_as(packet, mark),
    };
    program.run(&packet.frame(&[(0x8100, 5)])).unwrap()
}

#[test]
fn at_the_source_everything_is_diverted_byte_by_byte() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                for (phase, flags) in SOURCE.into_iter().flat_map(|p| ALL_FLAGS.map(|f| (p, f))) {
                    let packet = segment(v4, flags).payload(vec![0x5a; 300]);
                    let id = id_of(&program, &packet);
                    program.set_moving(session(&packet), phase, 2).unwrap();
                    // Whatever the table says.
                    let (client, service) = ends(&packet);
                    program.set_owner(&client, &service, 3).unwrap();
                    for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                        let run = program.run(&packet.ip().frame(tags)).unwrap();
                        assert_end(&run, Action::Tx, Outcome::Diverted);
                        let wanted = tunnelled(&program, 2, &packet.ip(), id, DIVERTED, 8);
                        assert_eq!(run.frame, wanted);
                    }
                    // What another host sent here: once more, and it says so.
                    let run = arrive(&mut program, 3, &packet.ip(), 0);
                    assert_end(&run, Action::Tx, Outcome::Diverted);
                    let wanted = tunnelled(&program, 2, &packet.ip(), id, DIVERTED_ON, 7);
                    assert_eq!(run.frame, wanted);
                }
            }
            assert!(program.held().unwrap().is_empty());
        }
    });
}

#[test]
fn what_is_diverted_makes_no_second_hop_and_never_goes_back() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let packet = segment(v4, flags::ACK);
                for phase in SOURCE {
                    program.set_moving(session(&packet), phase, 2).unwrap();
                    for (from, mark, outcome) in [
                        (2, 0, Outcome::TunnelBounce),
                        (2, DIVERTED, Outcome::TunnelBounce),
                        (3, DIVERTED, Outcome::Diverted),
                        (3, SENT_ON, Outcome::TunnelAgain),
                        (3, DIVERTED_ON, Outcome::TunnelAgain),
                    ] {
                        let run = arrive(&mut program, from, &packet.ip(), mark);
                        assert_eq!(run.outcome, outcome, "from {from}, mark {mark}");
                    }
                    let mut last = outer(&program, 3, 1, &packet.ip(), 0);
                    last.ttl = 1;
                    let run = program.run(&last.frame(&[])).unwrap();
                    assert_end(&run, Action::Drop, Outcome::TunnelHops);
                }
            }
        }
    });
}

#[test]
fn by_another_interface_and_not_where_there_is_no_way_or_no_room() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let packet = segment(true, flags::ACK);
        program
            .set_moving(session(&packet), Phase::Frozen, 2)
            .unwrap();
        let large = packet.clone().payload(vec![0; 1450]);
        let run = program.run(&large.frame()).unwrap();
        assert_end(&run, Action::Tx, Outcome::TooBigTold);
        let run = arrive(&mut program, 3, &large.ip(), 0);
        assert_end(&run, Action::Drop, Outcome::TooBig);
        let elsewhere = template(program.settings(), 2, 7, None);
        program.add_host(2, elsewhere).unwrap();
        let run = program.run(&packet.frame()).unwrap();
        assert_end(&run, Action::Redirect, Outcome::Diverted);
        program.add_host(2, Template::NONE).unwrap();
        let run = program.run(&packet.frame()).unwrap();
        assert_end(&run, Action::Drop, Outcome::NoWay);
    });
}

#[test]
fn at_the_target_everything_is_parked_whole_and_in_order() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let mut sent = Vec::new();
                for (phase, flags) in TARGET.into_iter().flat_map(|p| ALL_FLAGS.map(|f| (p, f))) {
                    let longest = PARKED_FRAME_MAX - if v4 { 54 } else { 74 };
                    for payload in [0, 1, 500, longest] {
                        let packet = segment(v4, flags).payload(vec![flags; payload]);
                        program.set_moving(session(&packet), phase, 2).unwrap();
                        let (client, service) = ends(&packet);
                        program.set_owner(&client, &service, 3).unwrap();
                        let frame = packet.ip().frame(&[]);
                        let run = program.run(&frame).unwrap();
                        assert_end(&run, Action::Drop, Outcome::Parked);
                        sent.push((0, frame));
                    }
                    // Through the tunnel, however often it was sent on.
                    let inner = segment(v4, flags).payload(vec![7; 90]).ip();
                    for (from, mark) in [(2, DIVERTED), (3, DIVERTED_ON), (3, SENT_ON), (2, 0)] {
                        let run = arrive(&mut program, from, &inner, mark);
                        assert_end(&run, Action::Drop, Outcome::Parked);
                        sent.push((from, run.frame));
                    }
                }
                let packet = segment(v4, 0);
                let held = program.held().unwrap();
                assert_eq!(held.len(), sent.len());
                for ((head, frame), (from, wanted)) in held.iter().zip(&sent) {
                    assert_eq!((head.why, head.from), (Why::Moving as u16, *from));
                    assert!(head.tuple == session(&packet));
                    assert_eq!(head.id, id_of(&program, &packet));
                    assert_eq!(frame, wanted);
                }
                let longer = PARKED_FRAME_MAX - if v4 { 53 } else { 73 };
                let longer = packet.payload(vec![0; longer]).frame();
                let run = program.run(&longer).unwrap();
                assert_end(&run, Action::Drop, Outcome::ParkTooLong);
                assert!(program.held().unwrap()[0].1.is_empty());
            }
            // Strangers have a ring of their own.
            assert!(program.parked().unwrap().is_empty());
        }
    });
}

#[test]
fn a_session_that_moves_comes_before_its_socket() {
    for v4 in [true, false] {
        for (phase, outcome) in [
            (Phase::Awaiting, Outcome::Parked),
            (Phase::Prepared, Outcome::Parked),
            (Phase::Frozen, Outcome::Diverted),
            (Phase::Released, Outcome::Diverted),
        ] {
            in_namespace(|| {
                let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
                let (_handshake, ack) = Handshake::by_request(v4);
                let (_, service) = ends(&ack);
                program.add_service(&service).unwrap();
                let run = program.run(&ack.frame()).unwrap();
                assert_end(&run, Action::Pass, Outcome::LocalSocket);
                let run = arrive(&mut program, 3, &ack.ip(), 0);
                assert_end(&run, Action::Pass, Outcome::StrippedSocket);
                program.set_moving(session(&ack), phase, 2).unwrap();
                assert_eq!(program.run(&ack.frame()).unwrap().outcome, outcome);
                let run = arrive(&mut program, 3, &ack.ip(), 0);
                assert_eq!(run.outcome, outcome);
                // Another session of the service is none of this.
                let mut other = ack.clone();
                other.source.set_port(1);
                let run = program.run(
                    &Tcp {
                        flags: flags::SYN,
                        ..other
                    }
                    .frame(),
                );
                assert_eq!(run.unwrap().outcome, Outcome::LocalSyn);
            });
        }
    }
}

#[test]
fn nobody_looks_while_the_flag_says_that_nothing_moves() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let packet = segment(true, flags::ACK);
        program.set_owner(CLIENT_V4, SERVICE_V4, 3).unwrap();
        for phase in [Phase::Awaiting, Phase::Frozen] {
            program.set_moving(session(&packet), phase, 2).unwrap();
            program.control(|it| it.flags &= !Control::MOVING).unwrap();
            let run = program.run(&packet.frame()).unwrap();
            assert_end(&run, Action::Tx, Outcome::Forwarded);
            assert!(program.leaves(&answer(true)).unwrap());
        }
        assert_eq!(program.hook(Hook::MovingSilenced).unwrap(), 0);
    });
}

#[test]
fn what_was_diverted_to_a_host_without_the_session_is_dropped() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                for flags in ALL_FLAGS {
                    let packet = segment(v4, flags);
                    let (client, service) = ends(&packet);
                    for mark in [DIVERTED, DIVERTED_ON] {
                        let run = arrive(&mut program, 2, &packet.ip(), mark);
                        assert_end(&run, Action::Drop, Outcome::TunnelStray);
                        program.set_owner(&client, &service, 2).unwrap();
                        let run = arrive(&mut program, 2, &packet.ip(), mark);
                        assert_end(&run, Action::Drop, Outcome::TunnelStray);
                        program.clear_owner(&client, &service).unwrap();
                    }
                    // It has moved on from here, and the source has not heard of it.
                    program.set_owner(&client, &service, 3).unwrap();
                    let run = arrive(&mut program, 2, &packet.ip(), DIVERTED);
                    assert_end(&run, Action::Tx, Outcome::SentOn);
                    let run = arrive(&mut program, 2, &packet.ip(), DIVERTED_ON);
                    assert_end(&run, Action::Drop, Outcome::TunnelAgain);
                    program.clear_owner(&client, &service).unwrap();
                }
                // This host had it, and closed it: the stack has the last word.
                let (client, service) = ends(&segment(v4, 0));
                program.set_closed(&client, &service, 0).unwrap();
                for (flags, outcome) in [
                    (flags::ACK, Outcome::StrippedClosed),
                    (flags::SYN, Outcome::StrippedSyn),
                ] {
                    let packet = segment(v4, flags).ip();
                    let run = arrive(&mut program, 2, &packet, DIVERTED);
                    assert_end(&run, Action::Pass, outcome);
                    assert!(run.frame.ends_with(&packet.bytes()));
                }
                program.set_closed(&client, &service, 1 << 40).unwrap();
            }
            assert!(program.parked().unwrap().is_empty());
        }
    });
}

#[test]
fn errors_about_it_go_its_way() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let (packet, it) = (related::unreachable(v4), segment(v4, 0));
                let id = id_of(&program, &it);
                program.set_moving(session(&it), Phase::Frozen, 2).unwrap();
                let run = program.run(&packet.frame(&[(0x8100, 5)])).unwrap();
                assert_end(&run, Action::Tx, Outcome::Diverted);
                assert_eq!(run.frame, tunnelled(&program, 2, &packet, id, DIVERTED, 8));
                let run = arrive(&mut program, 3, &packet, 0);
                assert_end(&run, Action::Tx, Outcome::Diverted);
                let wanted = tunnelled(&program, 2, &packet, id, DIVERTED_ON, 7);
                assert_eq!(run.frame, wanted);
                let run = arrive(&mut program, 2, &packet, 0);
                assert_end(&run, Action::Drop, Outcome::TunnelBounce);

                program
                    .set_moving(session(&it), Phase::Awaiting, 2)
                    .unwrap();
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::Parked);
                let run = arrive(&mut program, 2, &packet, DIVERTED);
                assert_end(&run, Action::Drop, Outcome::Parked);
                let held = program.held().unwrap();
                assert_eq!(held[0].1, packet.frame(&[]));
                assert_eq!(held[1].1, run.frame);
                assert!(held.iter().all(|(head, _)| head.tuple == session(&it)));
            }
        }
    });
}

#[test]
fn its_fragments_follow_it_from_where_they_meet_and_are_dropped_elsewhere() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut pop = Pop::new(tunnel(), encapsulation, 3);
            for v4 in [true, false] {
                let packet = segment(v4, flags::ACK).payload(vec![0x5a; 400]);
                let pieces = |id| {
                    let mut whole = packet.ip();
                    whole.frags = 0;
                    whole.fragments(id, 128)
                };
                // Host 3 is where all meet, and the source; host 1 is the target.
                for host in &mut pop.hosts {
                    host.set_rendezvous(3, 2).unwrap();
                }
                for phase in SOURCE {
                    let it = session(&packet);
                    pop.host(3).set_moving(it, phase, 1).unwrap();
                    pop.host(1).clear_moving(&it).unwrap();
                    for first in [2, 3] {
                        for piece in pieces(10 * phase as u32 + first) {
                            let (way, outcome) = pop.follow(first as u16, piece.frame(&[]));
                            assert_eq!(outcome, Outcome::StrippedFragment);
                            assert_eq!(way[way.len() - 2..], [3, 1]);
                        }
                    }
                    // The target holds whole packets alone.
                    pop.host(1).set_moving(it, Phase::Awaiting, 3).unwrap();
                    let first = &pieces(10 * phase as u32 + 7)[0];
                    let (way, outcome) = pop.follow(2, first.frame(&[]));
                    assert_eq!(
                        (&way[..], outcome),
                        (&[2, 3, 1][..], Outcome::MovingFragment)
                    );
                }
                // Where they meet is the target, or what is decided on comes to the source.
                for phase in TARGET {
                    pop.host(3).set_moving(session(&packet), phase, 1).unwrap();
                    let run = pop.host(3).run(&pieces(50)[0].frame(&[])).unwrap();
                    assert_end(&run, Action::Drop, Outcome::MovingFragment);
                }
                for phase in SOURCE {
                    pop.host(1).set_moving(session(&packet), phase, 3).unwrap();
                    let to = outer(pop.host(1), 2, 1, &pieces(51)[0], 1);
                    let run = pop.host(1).run(&decided(to).frame(&[])).unwrap();
                    assert_end(&run, Action::Drop, Outcome::MovingFragment);
                }
            }
        }
    });
}

/// A tunnel packet with the mark of a fragment for the host that it is sent to.
fn decided(mut outer: Ip) -> Ip {
    match outer.source.is_ipv4() {
        true => outer.id = u16::from(DECIDED),
        false => outer.flow |= 1,
    }
    outer
}

/// What the service sends to the client.
fn answer(v4: bool) -> Vec<u8> {
    let to = segment(v4, 0);
    let (client, service) = ends(&to);
    Tcp::new(&service, &client, flags::ACK)
        .payload("late")
        .frame()
}

#[test]
fn nothing_of_it_leaves() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let mut dropped = 0;
        for v4 in [true, false] {
            let (client, service) = ends(&segment(v4, 0));
            let it = session(&segment(v4, 0));
            for phase in SOURCE.into_iter().chain(TARGET) {
                program.set_moving(it, phase, 2).unwrap();
                for flags in ALL_FLAGS {
                    for tags in [&[][..], &[(0x8100, 5)]] {
                        let answer = Tcp::new(&service, &client, flags).ip().frame(tags);
                        assert!(!program.leaves(&answer).unwrap(), "{phase:?}");
                        dropped += 1;
                    }
                }
                let mut other = Tcp::new(&service, &client, flags::ACK);
                other.destination.set_port(1);
                assert!(program.leaves(&other.frame()).unwrap());
            }
            program.clear_moving(&it).unwrap();
            assert!(program.leaves(&answer(v4)).unwrap());
        }
        assert_eq!(program.hook(Hook::MovingSilenced).unwrap(), dropped);
    });
}
