//! Reading packets: correctly, or not at all.

use homing_common::outcome::Outcome;
use homing_tests::{
    packet::{CLIENT_V4, CLIENT_V6, Ip, SERVICE_V4, SERVICE_V6, Tcp, flags, frame, segment, udp},
    program::{Action, Program, host_1, in_namespace, tunnel_v4},
};

use super::common::{TUNNELS, assert_end, outer};

fn program() -> Program {
    let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
    program.set_owner(CLIENT_V4, SERVICE_V4, 2).unwrap();
    program.set_owner(CLIENT_V6, SERVICE_V6, 2).unwrap();
    program
}

/// Runs a packet that must be forwarded, and checks that it is inside, unchanged.
#[track_caller]
fn assert_forwarded(program: &mut Program, packet: &Ip) {
    let run = program.run(&packet.frame(&[])).unwrap();
    assert_end(&run, Action::Tx, Outcome::Forwarded);
    assert_eq!(run.frame[34..], packet.bytes());
}

#[test]
fn ipv4_options() {
    in_namespace(|| {
        let mut program = program();
        for words in 1..=10 {
            let mut packet = segment(true, flags::ACK).payload(vec![7; 50]).ip();
            packet.options = vec![1; words * 4]; // no-operation
            assert_forwarded(&mut program, &packet);
        }
    });
}

#[test]
fn tcp_options() {
    in_namespace(|| {
        let mut program = program();
        for v4 in [true, false] {
            for words in 1..=10 {
                let mut packet = segment(v4, flags::ACK);
                packet.options = vec![1; words * 4];
                assert_forwarded(&mut program, &packet.ip());
            }
        }
    });
}

#[test]
fn ipv6_extension_headers() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    in_namespace(|| {
        let mut program = program();
        for chain in [
            &[HOP_BY_HOP][..],
            &[DESTINATION],
            &[HOP_BY_HOP, ROUTING, DESTINATION],
            &[DESTINATION, DESTINATION, DESTINATION, DESTINATION],
        ] {
            for units in [0, 3] {
                let mut packet = segment(false, flags::ACK).ip();
                packet.first_header = Some(chain[0]);
                for (i, _) in chain.iter().enumerate() {
                    let next = chain.get(i + 1).copied().unwrap_or(6);
                    let mut header = vec![0; (units + 1) * 8];
                    header[0] = next;
                    header[1] = units as u8;
                    packet.options.extend(header);
                }
                assert_forwarded(&mut program, &packet);
            }
        }
        // A route that goes on from here: where it ends, that stack knows.
        let mut packet = segment(false, flags::ACK).ip();
        packet.first_header = Some(ROUTING);
        packet.options.extend([6, 2, 0, 1]);
        packet.options.extend([0; 20]);
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::NotService);
        // One more than is read: up to the local stack.
        let mut packet = segment(false, flags::ACK).ip();
        packet.first_header = Some(DESTINATION);
        for i in 0..5 {
            let next = if i == 4 { 6 } else { DESTINATION };
            packet.options.extend([next, 0, 0, 0, 0, 0, 0, 0]);
        }
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::NotService);
        // A header that claims to reach beyond the packet.
        let mut packet = segment(false, flags::ACK).ip();
        packet.first_header = Some(DESTINATION);
        packet.options.extend([6, 200, 0, 0, 0, 0, 0, 0]);
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::Malformed);
    });
}

#[test]
fn ipv4_headers_that_contradict_themselves() {
    in_namespace(|| {
        let mut program = program();
        let good = segment(true, flags::ACK).payload(vec![7; 20]).ip().bytes();
        let with = |offset: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[offset] = byte;
            frame(&[], true, &bytes)
        };
        for (what, frame) in [
            ("version 6", with(0, 0x65)),
            ("header length 0", with(0, 0x40)),
            ("header length 16", with(0, 0x44)),
            ("header longer than the packet", {
                let mut bytes = good.clone();
                bytes[0] = 0x4f;
                bytes[3] = 40;
                frame(&[], true, &bytes)
            }),
            ("longer than the frame", with(3, good.len() as u8 + 1)),
            ("much longer than the frame", with(2, 0xff)),
            ("shorter than its header", with(3, 19)),
            ("too short for TCP", with(3, 39)),
            ("TCP header length 0", with(32, 0x00)),
            ("TCP header length 16", with(32, 0x40)),
            ("TCP header beyond the packet", with(32, 0xf0)),
        ] {
            let run = program.run(&frame).unwrap();
            assert_eq!(
                (run.action, run.outcome),
                (Action::Pass, Outcome::Malformed),
                "{what}"
            );
            assert_eq!(run.frame, frame, "{what}");
        }
    });
}

#[test]
fn ipv6_headers_that_contradict_themselves() {
    in_namespace(|| {
        let mut program = program();
        let good = segment(false, flags::ACK).payload(vec![7; 20]).ip().bytes();
        for (what, offset, byte) in [
            ("version 4", 0, 0x45),
            ("longer than the frame", 5, 41),
            ("much longer than the frame", 4, 0xff),
            ("too short for TCP", 5, 19),
            ("no payload", 5, 0),
            ("TCP header length 0", 40 + 12, 0x00),
            ("TCP header beyond the packet", 40 + 12, 0xf0),
        ] {
            let mut bytes = good.clone();
            bytes[offset] = byte;
            let frame = frame(&[], false, &bytes);
            let run = program.run(&frame).unwrap();
            assert_eq!(
                (run.action, run.outcome),
                (Action::Pass, Outcome::Malformed),
                "{what}"
            );
            assert_eq!(run.frame, frame, "{what}");
        }
    });
}

#[test]
fn what_is_a_fragment_and_what_is_none() {
    in_namespace(|| {
        let mut program = program();
        for frags in [0x2000, 0x0001, 0x2001, 0x1fff] {
            let mut packet = segment(true, flags::ACK).ip();
            packet.frags = frags;
            packet.destination = "203.0.113.11".parse().unwrap();
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::Fragment);
        }
        // DF, and the bit nobody uses: no fragments.
        for frags in [0x0000, 0x4000, 0x8000] {
            let mut packet = segment(true, flags::ACK).ip();
            packet.frags = frags;
            assert_forwarded(&mut program, &packet);
        }
        let mut packet = segment(false, flags::ACK).ip();
        packet.first_header = Some(44);
        packet.options = vec![6, 0, 0, 1, 0, 0, 0, 1];
        packet.destination = "2001:db8:113::11".parse().unwrap();
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::Fragment);
    });
}

#[test]
fn what_is_for_no_service_goes_up() {
    in_namespace(|| {
        let mut program = program();
        let datagram = Ip::new(
            "198.51.100.7".parse().unwrap(),
            "203.0.113.10".parse().unwrap(),
            17,
            udp(40_312, 443, b"quic"),
        );
        for frame in [
            Tcp::new(CLIENT_V4, "203.0.113.10:80", flags::SYN).frame(),
            Tcp::new(CLIENT_V4, "203.0.113.11:443", flags::ACK).frame(),
            Tcp::new(CLIENT_V6, "[2001:db8:113::11]:443", flags::ACK).frame(),
            datagram.frame(&[]),
            // A tunnel packet that is not for this host.
            outer(&program, 2, 3, &segment(true, flags::ACK).ip(), 0).frame(&[]),
        ] {
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::NotService);
            assert_eq!(run.frame, frame);
        }
    });
}

#[test]
fn what_is_not_ip_goes_up() {
    in_namespace(|| {
        let mut program = program();
        let three_tags =
            segment(true, flags::ACK)
                .ip()
                .frame(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3)]);
        let mut arp = segment(true, flags::ACK).frame();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let bare = vec![0; 14];
        for frame in [three_tags, arp, bare] {
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::NotIp);
            assert_eq!(run.frame, frame);
        }
    });
}

#[test]
fn ipv6_packets_with_ipv4_addresses_in_them_are_nobodys() {
    in_namespace(|| {
        let mut program = program();
        let mapped = |address: &str| format!("[::ffff:{address}]:");
        let client = format!("{}40312", mapped("198.51.100.7"));
        let service = format!("{}443", mapped("203.0.113.10"));
        for (client, service) in [
            (&*client, SERVICE_V6),
            (CLIENT_V6, &*service),
            // Of an IPv4 session this has the tuple, and so the id.
            (&*client, &*service),
        ] {
            let packet = Tcp::new(client, service, flags::ACK).ip();
            let frame = packet.frame(&[]);
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Pass, Outcome::Malformed);
            assert_eq!(run.frame, frame);
            let tunnelled = outer(&program, 2, 1, &packet, 0).frame(&[]);
            let run = program.run(&tunnelled).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelMalformed);
        }
        assert!(program.parked().unwrap().is_empty(), "the POP is asked");
    });
}
