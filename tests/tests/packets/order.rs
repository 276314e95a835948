//! The order of decisions for sessions that neither the table nor a socket places.

use std::net::{TcpListener, TcpStream};

use homing_common::{
    control::{CLOSED_NS, Control},
    host::Encapsulation,
    outcome::Outcome,
};
use homing_tests::{
    packet::{CLIENT_V4, CLIENT_V6, SERVICE_V4, SERVICE_V6, Tcp, flags, segment},
    program::{Action, Program, Run, host_1, in_namespace, monotonic_ns, template, tunnel_v4},
};

use super::{
    common::{TUNNELS, assert_end, outer},
    local::Handshake,
};

fn program() -> Program {
    host_1(tunnel_v4(), Encapsulation::Ipip).unwrap()
}

fn run(program: &mut Program, v4: bool, flags: u8) -> Run {
    program.run(&segment(v4, flags).frame()).unwrap()
}

fn arrive(program: &mut Program, v4: bool, flags: u8) -> Run {
    let packet = outer(program, 2, 1, &segment(v4, flags).ip(), 0);
    program.run(&packet.frame(&[])).unwrap()
}

fn drain(program: &mut Program) {
    program
        .control(|control| control.flags |= Control::DRAINING)
        .unwrap();
}

/// Makes it a host that cannot know, in each of the ways.
fn ignorances() -> [(&'static str, fn(&mut Control)); 4] {
    [
        ("not synced", |control| control.flags &= !Control::SYNCED),
        ("its agent is down", |control| {
            control.beat_ns = monotonic_ns().unwrap() - Control::BEAT_MAX_NS - 1;
        }),
        ("no agent has ever run", |control| control.beat_ns = 0),
        ("all of it", |control| {
            (control.flags, control.beat_ns) = (0, 0)
        }),
    ]
}

#[test]
fn a_draining_host_sends_syns_to_their_rendezvous_host() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            program.set_rendezvous(3, 2).unwrap();
            drain(&mut program);
            for v4 in [true, false] {
                let packet = segment(v4, flags::SYN);
                let run = program.run(&packet.frame()).unwrap();
                assert_end(&run, Action::Tx, Outcome::RendezvousSyn);
                let id = program.id(&packet.source.to_string(), &packet.destination.to_string());
                let expected = outer(&program, 1, 3, &packet.ip(), id.unwrap());
                assert_eq!(run.frame[14..], expected.bytes());
            }
        }
    });
}

#[test]
fn the_rendezvous_host_is_never_this_one() {
    in_namespace(|| {
        let mut program = program();
        drain(&mut program);
        for (first, second, expected) in [
            (1, 2, Outcome::RendezvousSyn),
            (2, 1, Outcome::RendezvousSyn),
            (1, 0, Outcome::LocalSyn),
            (1, 1, Outcome::LocalSyn),
            (0, 0, Outcome::LocalSyn),
        ] {
            program.set_rendezvous(first, second).unwrap();
            let run = run(&mut program, true, flags::SYN);
            assert_eq!(run.outcome, expected, "{first}, {second}");
        }
    });
}

#[test]
fn a_draining_host_goes_on_with_handshakes_it_has_begun() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program();
            program.set_rendezvous(2, 3).unwrap();
            drain(&mut program);
            let (_handshake, _) = Handshake::by_request(v4);
            let run = run(&mut program, v4, flags::SYN);
            assert_end(&run, Action::Pass, Outcome::LocalSocket);
        });
    }
}

#[test]
fn a_draining_host_opens_no_session_where_one_has_ended() {
    in_namespace(|| {
        let mut program = program();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap().to_string();
        let client = TcpStream::connect(&service).unwrap();
        let source = client.local_addr().unwrap().to_string();
        drop(listener.accept().unwrap());
        drop(client);
        program.add_service(&service).unwrap();
        program.set_rendezvous(2, 3).unwrap();
        let syn = Tcp::new(&source, &service, flags::SYN).frame();
        let run = program.run(&syn).unwrap();
        assert_end(&run, Action::Pass, Outcome::LocalSyn);
        drain(&mut program);
        let ack = Tcp::new(&source, &service, flags::ACK).frame();
        let run = program.run(&ack).unwrap();
        assert_end(&run, Action::Pass, Outcome::LocalSocket);
        let run = program.run(&syn).unwrap();
        assert_end(&run, Action::Tx, Outcome::RendezvousSyn);
    });
}

#[test]
fn a_syn_that_came_through_the_tunnel_is_taken() {
    in_namespace(|| {
        for (_, ignorance) in ignorances() {
            let mut program = program();
            program.set_rendezvous(2, 3).unwrap();
            drain(&mut program);
            program.control(ignorance).unwrap();
            for v4 in [true, false] {
                let run = arrive(&mut program, v4, flags::SYN);
                assert_end(&run, Action::Pass, Outcome::StrippedSyn);
            }
        }
    });
}

#[test]
fn a_host_that_knows_asks_and_one_that_does_not_sends_it_on() {
    in_namespace(|| {
        for (why, ignorance) in ignorances() {
            for v4 in [true, false] {
                let mut program = program();
                program.set_rendezvous(2, 3).unwrap();
                let known = run(&mut program, v4, flags::ACK);
                assert_end(&known, Action::Drop, Outcome::Asked);
                program.control(ignorance).unwrap();
                // What would not be asked about is sent there too.
                for flags in [flags::ACK, flags::RST, flags::SYN | flags::ACK, 0] {
                    let run = run(&mut program, v4, flags);
                    assert_eq!(run.outcome, Outcome::Rendezvous, "{why}");
                    assert_eq!(run.action, Action::Tx);
                }
                let run = run(&mut program, v4, flags::SYN);
                assert_end(&run, Action::Pass, Outcome::LocalSyn);
            }
        }
    });
}

#[test]
fn a_host_without_room_for_all_owners_sends_on_what_comes_to_it_and_asks_for_others() {
    in_namespace(|| {
        for v4 in [true, false] {
            let full = |it: &mut Control| it.flags |= Control::OWNERS_FULL;
            let mut program = program();
            program.control(full).unwrap();
            // Nobody else could have room.
            let alone = run(&mut program, v4, flags::ACK);
            assert_end(&alone, Action::Drop, Outcome::Asked);
            program.set_rendezvous(2, 3).unwrap();
            let sent = run(&mut program, v4, flags::ACK);
            assert_end(&sent, Action::Tx, Outcome::Rendezvous);
            let opens = run(&mut program, v4, flags::SYN);
            assert_end(&opens, Action::Pass, Outcome::LocalSyn);
            let sent_here = arrive(&mut program, v4, flags::ACK);
            assert_end(&sent_here, Action::Drop, Outcome::Asked);
        }
    });
}

#[test]
fn by_another_interface_too() {
    in_namespace(|| {
        let mut program = program();
        program.set_rendezvous(2, 3).unwrap();
        let elsewhere = template(program.settings(), 2, 7, None);
        program.add_host(2, elsewhere).unwrap();
        drain(&mut program);
        let opens = run(&mut program, true, flags::SYN);
        assert_end(&opens, Action::Redirect, Outcome::RendezvousSyn);
        let run = run(&mut program, true, flags::ACK);
        assert_end(&run, Action::Redirect, Outcome::Rendezvous);
    });
}

#[test]
fn a_host_that_cannot_know_and_knows_no_other_resets_nothing() {
    in_namespace(|| {
        for (why, ignorance) in ignorances() {
            let mut program = program();
            program.control(ignorance).unwrap();
            let run = run(&mut program, true, flags::ACK);
            assert_eq!(run.outcome, Outcome::RendezvousNone, "{why}");
        }
        // One that is draining knows well enough.
        let mut program = program();
        drain(&mut program);
        let run = run(&mut program, true, flags::ACK);
        assert_end(&run, Action::Drop, Outcome::Asked);
    });
}

#[test]
fn through_the_tunnel_nothing_goes_to_a_rendezvous_host() {
    in_namespace(|| {
        for (why, ignorance) in ignorances() {
            for v4 in [true, false] {
                let mut program = program();
                program.set_rendezvous(3, 2).unwrap();
                program.control(ignorance).unwrap();
                let run = arrive(&mut program, v4, flags::ACK);
                assert_eq!(run.outcome, Outcome::TunnelUnready, "{why}");
                let run = arrive(&mut program, v4, flags::RST);
                assert_end(&run, Action::Pass, Outcome::StrippedUnknown);
            }
        }
        let mut program = program();
        program.set_rendezvous(3, 2).unwrap();
        drain(&mut program);
        let run = arrive(&mut program, true, flags::ACK);
        assert_end(&run, Action::Drop, Outcome::Asked);
    });
}

#[test]
fn what_this_host_knows_needs_no_agent() {
    in_namespace(|| {
        for (_, ignorance) in ignorances() {
            let mut program = program();
            program.set_rendezvous(3, 2).unwrap();
            program.control(ignorance).unwrap();
            program.set_owner(CLIENT_V4, SERVICE_V4, 2).unwrap();
            let forwarded = run(&mut program, true, flags::ACK);
            assert_end(&forwarded, Action::Tx, Outcome::Forwarded);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let service = listener.local_addr().unwrap().to_string();
            let client = TcpStream::connect(&service).unwrap();
            let source = client.local_addr().unwrap().to_string();
            program.add_service(&service).unwrap();
            let run = program.run(&Tcp::new(&source, &service, flags::ACK).frame());
            assert_end(&run.unwrap(), Action::Pass, Outcome::LocalSocket);
        }
    });
}

#[test]
fn a_session_closed_here_is_not_asked_about() {
    const MOMENT: u64 = 1_000_000_000;
    in_namespace(|| {
        let mut program = program();
        program.set_rendezvous(2, 3).unwrap();
        for (v4, client, service) in [
            (true, CLIENT_V4, SERVICE_V4),
            (false, CLIENT_V6, SERVICE_V6),
        ] {
            for (ago, direct, through) in [
                (0, Outcome::LocalClosed, Outcome::StrippedClosed),
                (
                    CLOSED_NS - MOMENT,
                    Outcome::LocalClosed,
                    Outcome::StrippedClosed,
                ),
                (CLOSED_NS, Outcome::Asked, Outcome::Asked),
            ] {
                program.set_closed(client, service, ago).unwrap();
                for flags in [flags::ACK, flags::ACK | flags::FIN] {
                    assert_eq!(run(&mut program, v4, flags).outcome, direct);
                    assert_eq!(arrive(&mut program, v4, flags).outcome, through);
                }
            }
            // A SYN opens a new session, whatever became of the last one.
            program.set_closed(client, service, 0).unwrap();
            assert_eq!(run(&mut program, v4, flags::SYN).outcome, Outcome::LocalSyn);
        }
        // Who closed it needs nobody to know that.
        program.control(|control| control.flags = 0).unwrap();
        assert_eq!(
            run(&mut program, true, flags::ACK).outcome,
            Outcome::LocalClosed
        );
        assert_eq!(
            arrive(&mut program, true, flags::ACK).outcome,
            Outcome::StrippedClosed
        );
    });
}

#[test]
fn a_session_opened_elsewhere_since_belongs_to_its_owner() {
    in_namespace(|| {
        let mut program = program();
        program.set_closed(CLIENT_V4, SERVICE_V4, 0).unwrap();
        program.set_owner(CLIENT_V4, SERVICE_V4, 3).unwrap();
        assert_eq!(
            run(&mut program, true, flags::ACK).outcome,
            Outcome::Forwarded
        );
        assert_eq!(
            arrive(&mut program, true, flags::ACK).outcome,
            Outcome::SentOn
        );
    });
}

#[test]
fn no_way_to_the_rendezvous_host_is_not_a_reset() {
    in_namespace(|| {
        let mut program = program();
        program.set_rendezvous(9, 9).unwrap();
        program.control(|control| control.flags = 0).unwrap();
        let run = run(&mut program, true, flags::ACK);
        assert_end(&run, Action::Drop, Outcome::NoWay);
    });
}
