//! Packets that are too large for the tunnel: their sender is told.

use homing_common::{limit::Limit, outcome::Outcome};
use homing_tests::{
    packet::{HOST_MAC, ICMP, ICMPV6, Ip, ROUTER_MAC, ethernet, flags, icmp, segment},
    program::{Action, LOOPBACK, Program, host_1, in_namespace, template},
};

use super::common::{TUNNELS, assert_end, outer};

fn own(program: &mut Program, host: u16) {
    for v4 in [true, false] {
        let session = segment(v4, 0);
        let (client, service) = (session.source.to_string(), session.destination.to_string());
        program.set_owner(&client, &service, host).unwrap();
    }
}

/// Room for an inner packet on the way to host 2.
fn room(program: &Program) -> u16 {
    1500 - u16::from(template(program.settings(), 2, LOOPBACK, None).l3_len)
}

/// The answer to a packet, as RFC 1191 and RFC 4443 have it: from the service, sent
/// back the way the packet came, with the start of the packet in it.
fn answer(packet: &Ip, room: u16, tags: &[(u16, u16)]) -> Vec<u8> {
    let (client, service) = (packet.source, packet.destination);
    let [high, low] = room.to_be_bytes();
    let word = [0, 0, high, low];
    let bytes = packet.bytes();
    let v4 = client.is_ipv4();
    let body = match v4 {
        true => icmp((service, client), 3, 4, word, &bytes[..128]),
        false => icmp((service, client), 2, 0, word, &bytes[..1232]),
    };
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let answer = Ip::new(service, client, protocol, body);
    ethernet(ROUTER_MAC, HOST_MAC, tags, v4, &answer.bytes())
}

#[test]
fn the_sender_is_told_what_fits() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            own(&mut program, 2);
            let room = room(&program);
            for v4 in [true, false] {
                for payload in [1460, 1461, 1990, 3000] {
                    // The pattern shows what is repeated, and where it begins.
                    let payload: Vec<u8> = (0..payload).map(|n| (n % 251) as u8).collect();
                    let mut packet = segment(v4, flags::ACK).payload(payload).ip();
                    for (frags, options) in [(0x4000, vec![]), (0, vec![1; 40])] {
                        if v4 {
                            (packet.frags, packet.options) = (frags, options);
                        }
                        for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                            let run = program.run(&packet.frame(tags)).unwrap();
                            assert_end(&run, Action::Tx, Outcome::TooBigTold);
                            assert_eq!(run.frame, answer(&packet, room, tags));
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn nobody_is_told_what_would_not_help_or_might_harm() {
    in_namespace(|| {
        let (tunnel, encapsulation) = TUNNELS[0];
        let mut program = host_1(tunnel(), encapsulation).unwrap();
        own(&mut program, 2);
        let large = |v4| segment(v4, flags::ACK).payload(vec![7; 1460]);
        // A source that is no host's.
        for (v4, source) in [
            (true, "0.0.0.1:9"),
            (true, "127.0.0.1:9"),
            (true, "224.0.0.5:9"),
            (true, "255.255.255.255:9"),
            (false, "[ff02::1]:9"),
            (false, "[::1]:9"),
        ] {
            let mut packet = large(v4);
            let service = packet.destination.to_string();
            program.set_owner(source, &service, 2).unwrap();
            packet.source = source.parse().unwrap();
            let frame = packet.frame();
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Drop, Outcome::TooBig);
            assert_eq!(run.frame, frame);
        }
        // The way to the sender leads through the host that it came from.
        own(&mut program, 3);
        for v4 in [true, false] {
            let frame = outer(&program, 2, 1, &large(v4).ip(), 0).frame(&[]);
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Drop, Outcome::TooBig);
        }
        // IPv6 senders do not go below 1280.
        let mut narrow = template(program.settings(), 3, LOOPBACK, None);
        narrow.mtu = 1299;
        program.add_host(3, narrow).unwrap();
        let run = program.run(&large(false).frame()).unwrap();
        assert_end(&run, Action::Drop, Outcome::TooBig);
        let run = program.run(&large(true).frame()).unwrap();
        assert_end(&run, Action::Tx, Outcome::TooBigTold);
    });
}

#[test]
fn senders_are_told_so_many_times_a_moment() {
    in_namespace(|| {
        let (tunnel, encapsulation) = TUNNELS[0];
        let mut program = host_1(tunnel(), encapsulation).unwrap();
        own(&mut program, 2);
        let frame = segment(true, flags::ACK).payload(vec![7; 1460]).frame();
        loop {
            program.exhaust(Limit::TooBig).unwrap();
            let run = program.run(&frame).unwrap();
            // Where a window has just begun, the next try meets the limit.
            if run.outcome == Outcome::TooBig {
                assert_end(&run, Action::Drop, Outcome::TooBig);
                assert_eq!(run.frame, frame);
                break;
            }
        }
    });
}

#[test]
fn nobody_is_told_of_fragments_that_came_through_the_tunnel() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            own(&mut program, 3);
            for v4 in [true, false] {
                let mut packet = segment(v4, flags::ACK).payload(vec![7; 3000]).ip();
                packet.frags = 0;
                for piece in packet.fragments(3, 1464).iter().take(2) {
                    // They meet here, and the way on is narrower.
                    let frame = outer(&program, 2, 1, piece, 0).frame(&[]);
                    let run = program.run(&frame).unwrap();
                    assert_end(&run, Action::Drop, Outcome::TooBig);
                    assert_eq!(run.frame, frame);
                }
            }
        }
    });
}
