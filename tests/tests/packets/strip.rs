//! Tunnel packets: taken from members only, one layer deep, and never sent in a
//! circle.

use std::net::{TcpListener, TcpStream};

use homing_common::outcome::Outcome;
use homing_tests::{
    packet::{CLIENT_V4, CLIENT_V6, Ip, SERVICE_V4, SERVICE_V6, Tcp, flags, frame, segment, udp},
    program::{Action, Program, host_1, in_namespace, tunnel_v4},
};

use super::{
    common::{TUNNELS, assert_end, outer},
    loops::marked,
};

fn programs() -> impl Iterator<Item = Program> {
    TUNNELS
        .iter()
        .map(|(tunnel, encapsulation)| host_1(tunnel(), *encapsulation).unwrap())
}

/// A tunnel packet from host 2 to this host.
fn arriving(program: &Program, inner: &Ip) -> Ip {
    outer(program, 2, 1, inner, 0xabcd_1234)
}

#[test]
fn the_inner_packet_comes_out_whole() {
    in_namespace(|| {
        for mut program in programs() {
            for v4 in [true, false] {
                for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                    let inner = segment(v4, flags::SYN).payload(vec![9; 100]).ip();
                    let packet = arriving(&program, &inner);
                    let run = program.run(&packet.frame(tags)).unwrap();
                    assert_end(&run, Action::Pass, Outcome::StrippedSyn);
                    assert_eq!(run.frame, inner.frame(tags));
                }
            }
        }
    });
}

#[test]
fn both_kinds_of_tunnel_are_understood_whichever_is_sent() {
    in_namespace(|| {
        // Neighbours in `TUNNELS` differ in encapsulation alone.
        for (sender, receiver) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
            let [sender, mut receiver] = [sender, receiver].map(|i| {
                let (tunnel, encapsulation) = TUNNELS[i];
                host_1(tunnel(), encapsulation).unwrap()
            });
            let inner = segment(true, flags::SYN).ip();
            let packet = arriving(&sender, &inner);
            let run = receiver.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedSyn);
            assert_eq!(run.frame, inner.frame(&[]));
        }
    });
}

#[test]
fn a_local_socket_comes_before_the_table() {
    in_namespace(|| {
        for mut program in programs() {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).unwrap();
                let service = listener.local_addr().unwrap().to_string();
                let client = TcpStream::connect(&service).unwrap();
                let source = client.local_addr().unwrap().to_string();
                program.add_service(&service).unwrap();
                program.set_owner(&source, &service, 3).unwrap();
                let inner = Tcp::new(&source, &service, flags::ACK).ip();
                let packet = arriving(&program, &inner);
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedSocket);
                assert_eq!(run.frame, inner.frame(&[]));
            }
        }
    });
}

#[test]
fn nobody_knows_it() {
    in_namespace(|| {
        for mut program in programs() {
            let packet = arriving(&program, &segment(true, flags::ACK).ip());
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::Asked);
            // What nobody is asked about goes up.
            let inner = segment(true, flags::RST).ip();
            let packet = arriving(&program, &inner);
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedUnknown);
            assert_eq!(run.frame, inner.frame(&[]));
        }
    });
}

#[test]
fn a_session_that_has_moved_on_is_sent_on_with_a_hop_less() {
    in_namespace(|| {
        for mut program in programs() {
            for v4 in [true, false] {
                let packet = segment(v4, flags::ACK).payload(vec![3; 300]);
                let (client, service) = (packet.source.to_string(), packet.destination.to_string());
                program.set_owner(&client, &service, 3).unwrap();
                let inner = packet.ip();
                let mut arriving = arriving(&program, &inner);
                arriving.ttl = 5;
                let run = program.run(&arriving.frame(&[(0x8100, 5)])).unwrap();
                assert_end(&run, Action::Tx, Outcome::SentOn);
                let id = program.id(&client, &service).unwrap();
                let mut expected = marked(outer(&program, 1, 3, &inner, id));
                expected.ttl = 4;
                assert_eq!(run.frame[14..], expected.bytes());
            }
        }
    });
}

#[test]
fn hops_run_out() {
    in_namespace(|| {
        for mut program in programs() {
            program.set_owner(CLIENT_V4, SERVICE_V4, 3).unwrap();
            for (ttl, action, outcome) in [
                (2, Action::Tx, Outcome::SentOn),
                (1, Action::Drop, Outcome::TunnelHops),
                (0, Action::Drop, Outcome::TunnelHops),
            ] {
                let mut packet = arriving(&program, &segment(true, flags::ACK).ip());
                packet.ttl = ttl;
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, action, outcome);
            }
        }
    });
}

#[test]
fn never_back_to_the_sender() {
    in_namespace(|| {
        for mut program in programs() {
            program.set_owner(CLIENT_V4, SERVICE_V4, 2).unwrap();
            let packet = arriving(&program, &segment(true, flags::ACK).ip());
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelBounce);
            // The sender takes this host for the owner: a SYN has found its host.
            let packet = arriving(&program, &segment(true, flags::SYN).ip());
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::StrippedSyn);
        }
    });
}

#[test]
fn only_members_are_believed() {
    in_namespace(|| {
        for mut program in programs() {
            let inner = segment(true, flags::SYN).ip();
            // Host 9 is no member, and this host does not send to itself.
            for from in [9, 1] {
                let packet = outer(&program, from, 1, &inner, 0);
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::TunnelNotMember);
            }
            // Sources just outside of the tunnel network, and a client's.
            let v4 = program.settings().tunnel.is_v4();
            for source in if v4 {
                ["10.76.255.255", "10.78.0.0", "198.51.100.7"]
            } else {
                ["fd76:ffff:ffff:ffff::1", "fd77:0:1::1", "2001:db8:c::7"]
            } {
                let mut packet = arriving(&program, &inner);
                packet.source = source.parse().unwrap();
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::TunnelNotMember);
            }
        }
    });
}

#[test]
fn an_address_that_is_mapped_is_no_tunnel_address() {
    in_namespace(|| {
        let mut program = host_1(TUNNELS[0].0(), TUNNELS[0].1).unwrap();
        let packet = arriving(&program, &segment(true, flags::SYN).ip());
        // By IPv6 from an address whose upper half is host 2's tunnel address.
        let forged = Ip::new(
            "::a4d:20:0:0:0:0".parse().unwrap(),
            "::ffff:10.77.0.16".parse().unwrap(),
            4,
            packet.body,
        );
        let run = program.run(&forged.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::Malformed);
    });
}

#[test]
fn only_services_are_reached_through_the_tunnel() {
    in_namespace(|| {
        for mut program in programs() {
            let other_port = Tcp::new(CLIENT_V4, "203.0.113.10:22", flags::SYN).ip();
            let other_address = Tcp::new(CLIENT_V6, "[2001:db8::1]:443", flags::SYN).ip();
            let mut other_protocol = segment(true, flags::SYN).ip();
            other_protocol.protocol = 1;
            for inner in [other_port, other_address, other_protocol] {
                let packet = arriving(&program, &inner);
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::TunnelNotService);
            }
        }
    });
}

#[test]
fn one_layer_deep() {
    in_namespace(|| {
        for mut program in programs() {
            let inner = segment(true, flags::SYN).ip();
            let nested = outer(&program, 3, 1, &inner, 0);
            let packet = arriving(&program, &nested);
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelNested);
        }
    });
}

#[test]
fn what_is_no_tunnel_packet_is_the_stacks_business() {
    in_namespace(|| {
        for mut program in programs() {
            let base = arriving(&program, &segment(true, flags::SYN).ip());
            let ping = Ip {
                protocol: if base.source.is_ipv4() { 1 } else { 58 },
                body: vec![8, 0, 0, 0],
                ..base.clone()
            };
            let dns = Ip {
                protocol: 17,
                body: udp(53, 53, b"query"),
                ..base
            };
            for packet in [ping, dns] {
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Pass, Outcome::NotService);
                assert_eq!(run.frame, packet.frame(&[]));
            }
        }
    });
}

#[test]
fn contradictions_are_dropped() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            let inner = segment(true, flags::SYN).payload(vec![1; 8]).ip();
            let packet = arriving(&program, &inner);
            let body_at = packet.body.len() - inner.bytes().len();
            let with = |offset: usize, byte: u8| {
                let mut packet = packet.clone();
                packet.body[body_at + offset] = byte;
                packet
            };
            let mut longer = with(3, inner.bytes().len() as u8 + 1); // longer than the outer packet says
            longer.body.truncate(packet.body.len());
            let cases = [
                ("longer than its tunnel packet", longer),
                ("version 5", with(0, 0x55)),
                ("header length 16", with(0, 0x44)),
                ("TCP header length 16", with(20 + 12, 0x40)),
                ("TCP header beyond the packet", with(20 + 12, 0xf0)),
            ];
            for (what, packet) in cases {
                // Padding, so that the frame itself is long enough.
                let bytes = [packet.bytes(), vec![0; 64]].concat();
                let run = program.run(&frame(&[], packet.source.is_ipv4(), &bytes));
                let run = run.unwrap();
                assert_eq!(run.action, Action::Drop, "{what}");
                assert_eq!(run.outcome, Outcome::TunnelMalformed, "{what}");
            }
        }
    });
}

#[test]
fn the_protocol_and_the_version_inside_must_agree() {
    in_namespace(|| {
        for (tunnel, encapsulation) in [TUNNELS[0], TUNNELS[2]] {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let mut packet = arriving(&program, &segment(v4, flags::SYN).ip());
                packet.protocol = if v4 { 41 } else { 4 };
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::TunnelMalformed);
            }
        }
    });
}

#[test]
fn a_fragment_of_a_tunnel_packet_is_dropped() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        for frags in [0x2000, 0x0001, 0x2001] {
            let mut packet = arriving(&program, &segment(true, flags::SYN).ip());
            packet.frags = frags;
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelMalformed);
        }
    });
}

#[test]
fn gue_lengths_must_agree() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[1].1).unwrap();
        for change in [-1, 1] {
            let mut packet = arriving(&program, &segment(true, flags::SYN).ip());
            let len = packet.body.len() as i32 + change;
            packet.body[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            let run = program.run(&packet.frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelMalformed);
        }
    });
}

#[test]
fn services_and_sessions_of_both_families_are_told_apart() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        program.set_owner(CLIENT_V6, SERVICE_V6, 3).unwrap();
        let packet = arriving(&program, &segment(true, flags::ACK).ip());
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Drop, Outcome::Asked);
        let packet = arriving(&program, &segment(false, flags::ACK).ip());
        let run = program.run(&packet.frame(&[])).unwrap();
        assert_end(&run, Action::Tx, Outcome::SentOn);
    });
}
