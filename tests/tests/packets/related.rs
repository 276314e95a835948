//! ICMP errors about sessions: to the owner, by the embedded packet.

use homing_common::{control::Control, outcome::Outcome};
use homing_tests::{
    packet::{HOST_MAC, ICMP, ICMPV6, Ip, PEER_MAC, Tcp, ethernet, flags, icmp, segment, udp},
    program::{Action, Program, host_1, in_namespace},
};

use super::{
    common::{TUNNELS, assert_end, outer},
    flows::UDP,
};

/// What a router on the way to the client says about a packet that the service sent.
fn error(about: &Ip, kind: u8, code: u8, keep: usize) -> Ip {
    let service = about.source;
    let router = match service.is_ipv4() {
        true => "192.0.2.1".parse().unwrap(),
        false => "2001:db8:ffff::1".parse().unwrap(),
    };
    let bytes = about.bytes();
    let kept = &bytes[..keep.min(bytes.len())];
    let body = icmp((router, service), kind, code, [0, 0, 5, 120], kept);
    let protocol = if service.is_ipv4() { ICMP } else { ICMPV6 };
    Ip::new(router, service, protocol, body)
}

/// A segment that the test's service sent to the test's client.
fn sent(v4: bool) -> Ip {
    let back = segment(v4, 0);
    let (from, to) = (back.destination.to_string(), back.source.to_string());
    Tcp::new(&from, &to, flags::ACK).payload(vec![9; 600]).ip()
}

/// "The client's host cannot be reached", about the test's session.
pub fn unreachable(v4: bool) -> Ip {
    unreachable_about(&sent(v4))
}

/// The same about a packet of another session.
pub fn unreachable_about(sent: &Ip) -> Ip {
    let kind = if sent.source.is_ipv4() { 3 } else { 1 };
    error(sent, kind, 1, 548)
}

fn own(program: &mut Program, host: u16) -> [u64; 2] {
    [true, false].map(|v4| {
        let session = segment(v4, 0);
        let (client, service) = (session.source.to_string(), session.destination.to_string());
        program.set_owner(&client, &service, host).unwrap();
        program.id(&client, &service).unwrap()
    })
}

const V4_ERRORS: [(u8, u8); 5] = [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)];
const V6_ERRORS: [(u8, u8); 5] = [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)];

#[test]
fn an_error_goes_to_the_owner_whole() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            let ids = own(&mut program, 2);
            for (v4, errors, id) in [(true, V4_ERRORS, ids[0]), (false, V6_ERRORS, ids[1])] {
                for (kind, code) in errors {
                    // As little as RFC 792 asks for is enough; options and extension headers
                    // in front of either header do not matter.
                    for keep in [if v4 { 28 } else { 48 }, 600] {
                        let packet = error(&sent(v4), kind, code, keep);
                        let run = program.run(&packet.frame(&[(0x8100, 5)])).unwrap();
                        assert_end(&run, Action::Tx, Outcome::Forwarded);
                        let outer = outer(&program, 1, 2, &packet, id);
                        let v4 = outer.source.is_ipv4();
                        let expected = ethernet(PEER_MAC, HOST_MAC, &[], v4, &outer.bytes());
                        assert_eq!(run.frame, expected);
                    }
                }
            }
        }
    });
}

#[test]
fn options_and_extension_headers_are_walked() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        own(&mut program, 2);
        let mut forwarded = |packet: &Ip| {
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::Forwarded);
        };
        let mut about = sent(true);
        about.options = vec![1; 40];
        let mut packet = error(&about, 3, 4, 68);
        forwarded(&packet);
        packet.options = vec![1; 40];
        forwarded(&packet);
        // A first fragment names its session.
        forwarded(&error(&sent(true).fragments(3, 64)[0], 11, 1, 100));
        let mut about = sent(false);
        about.first_header = Some(0);
        about.options = [[60, 0, 1, 4, 0, 0, 0, 0], [6, 0, 1, 4, 0, 0, 0, 0]].concat();
        let mut packet = error(&about, 2, 0, 1200);
        forwarded(&packet);
        packet.first_header = Some(60);
        packet.options = vec![58, 0, 1, 4, 0, 0, 0, 0];
        forwarded(&packet);
        forwarded(&error(&sent(false).fragments(3, 64)[0], 3, 1, 200));
    });
}

#[test]
fn what_is_about_no_session_goes_up() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        own(&mut program, 2);
        let mut others = Vec::new();
        for v4 in [true, false] {
            let (unreachable, echo) = if v4 { (3, 8) } else { (1, 128) };
            let about = sent(v4);
            let enough = if v4 { 28 } else { 48 };
            // A ping; redirects and the like; too little; about another's packet.
            others.push(error(&about, echo, 0, 600));
            for kind in if v4 {
                [0, 4, 5, 9, 13]
            } else {
                [0, 129, 133, 135, 137]
            } {
                others.push(error(&about, kind, 0, 600));
            }
            for keep in [0, 8, enough - 20, enough - 5] {
                others.push(error(&about, unreachable, 0, keep));
            }
            let mut foreign = about.clone();
            foreign.source = match v4 {
                true => "203.0.113.11".parse().unwrap(),
                false => "2001:db8:113::11".parse().unwrap(),
            };
            let mut packet = error(&foreign, unreachable, 0, 600);
            packet.destination = about.source;
            others.push(packet);
            // A later fragment; another protocol; nonsense.
            others.push(error(&about.fragments(3, 64)[1], unreachable, 0, 600));
            let mut other = about.clone();
            other.protocol = 132;
            others.push(error(&other, unreachable, 0, 600));
            let mut nonsense = error(&about, unreachable, 0, 600);
            nonsense.body[8] ^= 0xf0;
            others.push(nonsense);
        }
        for packet in others {
            let frame = packet.frame(&[]);
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::NotService);
            assert_eq!(run.frame, frame);
            let run = program
                .run(&outer(&program, 2, 1, &packet, 0).frame(&[]))
                .unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelNotService);
        }
        // A header that contradicts itself.
        let packet = error(&sent(true), 3, 1, 600);
        let run = program.run(&packet.frame(&[])[..100]).unwrap();
        assert_end(&run, Action::Pass, Outcome::Malformed);
    });
}

#[test]
fn an_error_about_a_datagram_goes_to_the_owner_too() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        let session = segment(true, 0);
        let (client, service) = (session.source.to_string(), session.destination.to_string());
        let id = program.id_of(&client, &service, 17).unwrap();
        program.set_owner_of(id, 2).unwrap();
        let (from, to) = (session.destination, session.source);
        let datagram = udp(from.port(), to.port(), &[9; 300]);
        let about = Ip::new(from.ip(), to.ip(), 17, datagram);
        let run = program.run(&error(&about, 3, 3, 28).frame(&[])).unwrap();
        assert_end(&run, Action::Tx, Outcome::Forwarded);
    });
}

#[test]
fn through_the_tunnel_it_is_taken_or_sent_on_but_never_back() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let packet = unreachable(v4);
                let frame = outer(&program, 2, 1, &packet, 0).frame(&[]);
                let run = program.run(&frame).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedIcmp);
                assert_eq!(run.frame, packet.frame(&[]));
            }
            own(&mut program, 2);
            let packet = unreachable(true);
            let run = program
                .run(&outer(&program, 2, 1, &packet, 0).frame(&[]))
                .unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedIcmp);
            own(&mut program, 3);
            let mut arriving = outer(&program, 2, 1, &packet, 0);
            let run = program.run(&arriving.frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::SentOn);
            arriving.ttl = 1;
            let run = program.run(&arriving.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelHops);
        }
    });
}

#[test]
fn a_host_that_cannot_know_sends_it_to_the_rendezvous_host() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        program.set_rendezvous(2, 3).unwrap();
        for v4 in [true, false] {
            let packet = unreachable(v4);
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::IcmpLocal);
        }
        program
            .control(|control| control.flags &= !Control::SYNCED)
            .unwrap();
        for v4 in [true, false] {
            let run = program.run(&unreachable(v4).frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::Rendezvous);
        }
    });
}

#[test]
fn a_host_knows_its_own_flows_whatever_its_agent_does() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        program.set_rendezvous(2, 3).unwrap();
        for (v4, packets) in [(true, 1), (true, 6), (false, 1), (false, 6)] {
            let session = segment(v4, 0);
            let (mut client, service) = (session.source, session.destination);
            client.set_port(5_000 + packets);
            program.add_service_of(&service.to_string(), UDP).unwrap();
            program.know().unwrap();
            let body = udp(client.port(), service.port(), &[1]);
            let datagram = Ip::new(client.ip(), service.ip(), UDP, body);
            for _ in 0..packets {
                let run = program.run(&datagram.frame(&[])).unwrap();
                assert_eq!(run.action, Action::Pass);
            }
            let body = udp(service.port(), client.port(), &[9; 300]);
            let about = Ip::new(service.ip(), client.ip(), UDP, body);
            let error = error(&about, if v4 { 3 } else { 1 }, 1, 548);
            // Its agent has gone.
            program
                .control(|control| (control.flags, control.beat_ns) = (0, 0))
                .unwrap();
            let run = program.run(&error.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::IcmpLocal);
            // Another host claims the flow, too: what this one has told of stays.
            let (client, service) = (client.to_string(), service.to_string());
            let id = program.id_of(&client, &service, UDP).unwrap();
            program.set_owner_of(id, 3).unwrap();
            let tunnelled = outer(&program, 2, 1, &error, 0).frame(&[]);
            let run = program.run(&tunnelled).unwrap();
            match packets {
                1 => assert_end(&run, Action::Tx, Outcome::SentOn),
                _ => assert_end(&run, Action::Pass, Outcome::StrippedIcmp),
            }
        }
    });
}
