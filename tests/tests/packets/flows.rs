//! Flows of UDP services: whose they are, and when the POP is told.

use homing_common::{
    control::Control,
    flow::FLOWS_ENTRIES,
    host::Encapsulation,
    limit::Room,
    outcome::{Hook, Outcome},
};
use homing_tests::{
    packet::{CLIENT_V4, CLIENT_V6, Ip, SERVICE_V4, SERVICE_V6, udp},
    program::{Action, Program, host_1, in_namespace, monotonic_ns, tunnel_v4},
};

use super::common::{TUNNELS, assert_end, outer};

pub const UDP: u8 = 17;

/// A datagram from one endpoint to another.
pub fn datagram(source: &str, destination: &str) -> Ip {
    let [source, destination] =
        [source, destination].map(|end| end.parse::<std::net::SocketAddr>().unwrap());
    let body = udp(source.port(), destination.port(), b"payload");
    Ip::new(source.ip(), destination.ip(), UDP, body)
}

fn ends(v4: bool) -> (&'static str, &'static str) {
    if v4 {
        (CLIENT_V4, SERVICE_V4)
    } else {
        (CLIENT_V6, SERVICE_V6)
    }
}

fn program(tunnel: homing_common::host::TunnelNetwork, way: Encapsulation) -> Program {
    let mut program = host_1(tunnel, way).unwrap();
    for service in [SERVICE_V4, SERVICE_V6] {
        program.add_service_of(service, UDP).unwrap();
    }
    program.know().unwrap();
    program
}

/// Packets until the flow is a session.
fn until_told(program: &mut Program, client: &str, service: &str, answer: bool) -> u32 {
    let before = program.hook(Hook::Opened).unwrap();
    for n in 1..=10 {
        let run = program.run(&datagram(client, service).frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::LocalFlowNew);
        if program.hook(Hook::Opened).unwrap() > before {
            return n;
        }
        if answer {
            let frame = datagram(service, client).frame(&[]);
            assert_eq!(program.leave(&frame).unwrap(), frame);
        }
    }
    panic!("ten packets made no session");
}

#[test]
fn a_flow_is_a_session_when_it_goes_on() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        for (answer, packets) in [(false, 4), (true, 2)] {
            for v4 in [true, false] {
                let (client, service) = ends(v4);
                let client = client.replace("40312", if answer { "40313" } else { "40312" });
                assert_eq!(
                    until_told(&mut program, &client, service, answer),
                    packets,
                    "answered: {answer}"
                );
                let frame = datagram(&client, service).frame(&[]);
                let run = program.run(&frame).unwrap();
                assert_end(&run, Action::Pass, Outcome::LocalFlow);
                assert_eq!(run.frame, frame);
                let session = program.session(&client, service, UDP).unwrap().unwrap();
                assert_eq!(session.id.0, program.id_of(&client, service, UDP).unwrap());
                assert!(session.seen_ns >= session.opened_ns && session.cookie > 0);
            }
        }
        assert_eq!(program.hook(Hook::Opened).unwrap(), 4);
    });
}

#[test]
fn one_packet_each_of_many_forged_clients_tells_nobody() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        for n in 0..2000 {
            let client = format!("198.51.{}.{}:{}", n / 250, n % 250 + 1, 1000 + n);
            let run = program
                .run(&datagram(&client, SERVICE_V4).frame(&[]))
                .unwrap();
            assert_end(&run, Action::Pass, Outcome::LocalFlowNew);
            // The service answers each.
            let answer = datagram(SERVICE_V4, &client).frame(&[]);
            program.leave(&answer).unwrap();
        }
        assert_eq!(program.hook(Hook::Opened).unwrap(), 0);
    });
}

#[test]
fn flows_beyond_what_is_remembered_are_counted() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        // Within one life of an entry, however busy the machine is.
        loop {
            let life = || monotonic_ns().unwrap() / Room::Flows.life_ns();
            let before = (life(), program.hook(Hook::FlowsEvicted).unwrap());
            program.set_made(Room::Flows, FLOWS_ENTRIES - 2).unwrap();
            // One by one, and the last by its answer alone.
            for port in 1..=4 {
                let client = format!("198.51.100.7:{port}");
                for _ in 0..2 {
                    let frame = datagram(&client, SERVICE_V4).frame(&[]);
                    let run = program.run(&frame).unwrap();
                    assert_end(&run, Action::Pass, Outcome::LocalFlowNew);
                }
            }
            let answer = datagram(SERVICE_V4, "198.51.100.7:5").frame(&[]);
            program.leave(&answer).unwrap();
            let counted = program.hook(Hook::FlowsEvicted).unwrap() - before.1;
            program.forget_flows().unwrap();
            if life() == before.0 {
                assert_eq!(counted, 3);
                break;
            }
        }
    });
}

#[test]
fn flows_beyond_their_share_are_served_and_not_told() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        program
            .control(|control| control.flags |= Control::FLOWS_FULL)
            .unwrap();
        let frame = datagram(CLIENT_V4, SERVICE_V4).frame(&[]);
        for _ in 0..6 {
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::LocalFlowNew);
        }
        assert_eq!(program.hook(Hook::Opened).unwrap(), 0);
        assert_eq!(program.hook(Hook::FlowsRefused).unwrap(), 3);
        // As soon as there is room, its next packet makes it a session.
        program
            .control(|control| control.flags &= !Control::FLOWS_FULL)
            .unwrap();
        program.run(&frame).unwrap();
        assert_eq!(program.hook(Hook::Opened).unwrap(), 1);
    });
}

#[test]
fn a_foreign_flow_is_forwarded_and_taken_in_by_its_owner() {
    in_namespace(|| {
        for (tunnel, way) in TUNNELS {
            for v4 in [true, false] {
                let (client, service) = ends(v4);
                let inner = datagram(client, service);
                let mut program = program(tunnel(), way);
                let id = program.id_of(client, service, UDP).unwrap();
                program.set_owner_of(id, 2).unwrap();
                let run = program.run(&inner.frame(&[])).unwrap();
                assert_end(&run, Action::Tx, Outcome::Forwarded);
                let sent = outer(&program, 1, 2, &inner, id);
                assert_eq!(run.frame[14..], sent.bytes());

                // From host 3, which thinks it is ours: on to host 2, not up.
                let arrived = outer(&program, 3, 1, &inner, id).frame(&[]);
                let run = program.run(&arrived).unwrap();
                assert_end(&run, Action::Tx, Outcome::SentOn);
                // From host 2 itself: it knows better than the table.
                let arrived = outer(&program, 2, 1, &inner, id).frame(&[]);
                let run = program.run(&arrived).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedFlowNew);
                assert_eq!(run.frame[14..], inner.bytes());
                for _ in 0..4 {
                    program.run(&arrived).unwrap();
                }
                let run = program.run(&arrived).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedFlow);
                // A flow that is ours stays here, whatever the table says.
                let arrived = outer(&program, 3, 1, &inner, id).frame(&[]);
                let run = program.run(&arrived).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedFlow);
            }
        }
    });
}

#[test]
fn a_host_that_drains_or_cannot_know_keeps_its_flows_and_takes_no_others() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        let told = "198.51.100.7:1000";
        let begun = "198.51.100.7:1001";
        let new = "198.51.100.7:1002";
        until_told(&mut program, told, SERVICE_V4, false);
        program
            .run(&datagram(begun, SERVICE_V4).frame(&[]))
            .unwrap();
        program.set_rendezvous(1, 3).unwrap();
        let live = u64::MAX;
        for (flags, beat_ns) in [
            (Control::SYNCED | Control::DRAINING, live),
            (0, live),
            (Control::SYNCED, 1),
        ] {
            program
                .control(|control| (control.flags, control.beat_ns) = (flags, beat_ns))
                .unwrap();
            for (client, action, outcome) in [
                (told, Action::Pass, Outcome::LocalFlow),
                (begun, Action::Pass, Outcome::LocalFlowNew),
                (new, Action::Tx, Outcome::Rendezvous),
            ] {
                let frame = datagram(client, SERVICE_V4).frame(&[]);
                let run = program.run(&frame).unwrap();
                assert_end(&run, action, outcome);
            }
            // What another host sends here has come to its end.
            let inner = datagram("198.51.100.8:1", SERVICE_V4);
            let arrived = outer(&program, 2, 1, &inner, 5).frame(&[]);
            let run = program.run(&arrived).unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedFlowNew);
        }
        // Nobody takes new flows: this host does as well as any.
        program.set_rendezvous(0, 0).unwrap();
        let run = program.run(&datagram(new, SERVICE_V4).frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::LocalFlowNew);
    });
}

#[test]
fn what_is_no_flow_of_a_service_goes_up_or_away() {
    in_namespace(|| {
        let mut program = program(tunnel_v4(), Encapsulation::Ipip);
        let other = datagram(CLIENT_V4, "203.0.113.10:53");
        let run = program.run(&other.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::NotService);
        let arrived = outer(&program, 2, 1, &other, 0).frame(&[]);
        let run = program.run(&arrived).unwrap();
        assert_end(&run, Action::Drop, Outcome::TunnelNotService);
        // A length that is too small, or beyond the packet.
        for len in [0u16, 7, 16, 9000] {
            let mut bad = datagram(CLIENT_V4, SERVICE_V4);
            bad.body[4..6].copy_from_slice(&len.to_be_bytes());
            let run = program.run(&bad.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::Malformed);
            let arrived = outer(&program, 2, 1, &bad, 0).frame(&[]);
            let run = program.run(&arrived).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelMalformed);
        }
        // What leaves from no service is no answer.
        let frame = datagram("203.0.113.10:53", CLIENT_V4).frame(&[]);
        assert_eq!(program.leave(&frame).unwrap(), frame);
    });
}
