//! Foreign sessions: encapsulated towards their owner.

use homing_common::{host::Template, outcome::Outcome};
use homing_tests::{
    packet::{CLIENT_V4, HOST_MAC, Ip, PEER_MAC, SERVICE_V4, ethernet, flags, segment},
    program::{Action, LOOPBACK, Program, host_1, in_namespace, template, tunnel_v4},
};

use super::common::{TUNNELS, assert_end, outer};

/// Makes host 2 the owner of the test's sessions and returns their ids.
fn own(program: &mut Program, host: u16) {
    for v4 in [true, false] {
        let session = segment(v4, 0);
        let (client, service) = (session.source.to_string(), session.destination.to_string());
        program.set_owner(&client, &service, host).unwrap();
    }
}

fn id_of(program: &Program, packet: &homing_tests::packet::Tcp) -> u64 {
    program
        .id(&packet.source.to_string(), &packet.destination.to_string())
        .unwrap()
}

/// The frame that must leave towards host 2.
fn expected(program: &Program, inner: &Ip, id: u64, tags: &[(u16, u16)]) -> Vec<u8> {
    let outer = outer(program, 1, 2, inner, id);
    ethernet(
        PEER_MAC,
        HOST_MAC,
        tags,
        outer.source.is_ipv4(),
        &outer.bytes(),
    )
}

#[test]
fn every_tunnel_and_family_byte_by_byte() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            own(&mut program, 2);
            for v4 in [true, false] {
                for flags in [flags::ACK, flags::SYN, flags::RST, flags::FIN | flags::ACK] {
                    for payload in [0, 1, 999] {
                        let packet = segment(v4, flags).payload(vec![0x5a; payload]);
                        let mut inner = packet.ip();
                        inner.tos = 0xb9; // EF, and an ECN mark that stays inside
                        let id = id_of(&program, &packet);
                        for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                            let run = program.run(&inner.frame(tags)).unwrap();
                            assert_end(&run, Action::Tx, Outcome::Forwarded);
                            assert_eq!(run.frame, expected(&program, &inner, id, &[]));
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_template_with_a_vlan_tags_the_frame() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            own(&mut program, 2);
            let tagged = template(program.settings(), 2, LOOPBACK, Some(100));
            program.add_host(2, tagged).unwrap();
            for v4 in [true, false] {
                let packet = segment(v4, flags::ACK);
                let run = program.run(&packet.frame()).unwrap();
                assert_end(&run, Action::Tx, Outcome::Forwarded);
                let id = id_of(&program, &packet);
                let expected = expected(&program, &packet.ip(), id, &[(0x8100, 100)]);
                assert_eq!(run.frame, expected);
            }
        }
    });
}

#[test]
fn flows_differ_in_the_outer_header_and_packets_of_a_flow_do_not() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            let mut headers = std::collections::HashSet::new();
            for port in 0..64 {
                let client = format!("198.51.100.7:{}", 40_000 + port);
                program.set_owner(&client, SERVICE_V4, 2).unwrap();
                let packet = homing_tests::packet::Tcp::new(&client, SERVICE_V4, flags::ACK);
                let run = program.run(&packet.frame()).unwrap();
                assert_end(&run, Action::Tx, Outcome::Forwarded);
                let again = program.run(&packet.frame()).unwrap();
                assert_eq!(run.frame, again.frame);
                headers.insert(run.frame[14..run.frame.len() - 40].to_vec());
            }
            // 16 sources in a /28; more for the other kinds.
            assert!(
                headers.len() >= 12,
                "{} kinds of outer header",
                headers.len()
            );
        }
    });
}

#[test]
fn another_interface_means_redirect() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        own(&mut program, 2);
        let elsewhere = template(program.settings(), 2, 7, None);
        program.add_host(2, elsewhere).unwrap();
        let run = program.run(&segment(true, flags::ACK).frame()).unwrap();
        assert_end(&run, Action::Redirect, Outcome::Redirected);
    });
}

#[test]
fn the_mtu_is_kept_to_the_byte() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            own(&mut program, 2);
            let l3_len = usize::from(template(program.settings(), 2, LOOPBACK, None).l3_len);
            for (v4, headers) in [(true, 40), (false, 60)] {
                let room = 1500 - l3_len - headers;
                let fits = segment(v4, flags::ACK).payload(vec![1; room]).frame();
                let run = program.run(&fits).unwrap();
                assert_end(&run, Action::Tx, Outcome::Forwarded);
                assert_eq!(run.frame.len(), 1514);
                let exceeds = segment(v4, flags::ACK).payload(vec![1; room + 1]).frame();
                let run = program.run(&exceeds).unwrap();
                assert_end(&run, Action::Tx, Outcome::TooBigTold);
            }
        }
    });
}

#[test]
fn ethernet_padding_is_not_taken_for_payload() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        own(&mut program, 2);
        let packet = segment(true, flags::ACK);
        let mut frame = packet.frame();
        frame.resize(60, 0);
        let run = program.run(&frame).unwrap();
        assert_end(&run, Action::Tx, Outcome::Forwarded);
        let bare = expected(&program, &packet.ip(), id_of(&program, &packet), &[]);
        assert_eq!(run.frame[..bare.len()], bare);
        assert_eq!(run.frame.len(), bare.len() + 6);
    });
}

#[test]
fn no_way_means_drop_and_not_a_reset() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        let frame = segment(true, flags::ACK).frame();
        // Host 2 is a member, but its next hop is not known.
        program.set_owner(CLIENT_V4, SERVICE_V4, 2).unwrap();
        program.add_host(2, Template::NONE).unwrap();
        let run = program.run(&frame).unwrap();
        assert_end(&run, Action::Drop, Outcome::NoWay);
    });
}

/// One write voids all that a host has.
#[test]
fn sessions_of_a_host_that_is_no_member_any_more_are_unknown() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), TUNNELS[0].1).unwrap();
        program.know().unwrap();
        program.set_owner(CLIENT_V4, SERVICE_V4, 2).unwrap();
        let segments = [flags::ACK, flags::SYN].map(|flags| segment(true, flags).frame());
        for frame in &segments {
            let run = program.run(frame).unwrap();
            assert_end(&run, Action::Tx, Outcome::Forwarded);
        }
        let ends = [
            (Action::Drop, Outcome::Asked),
            (Action::Pass, Outcome::LocalSyn),
        ];
        let remove: [fn(&mut Program); 2] = [
            |program| program.set_void(2).unwrap(),
            |program| program.remove_host(2).unwrap(),
        ];
        for remove in remove {
            remove(&mut program);
            for (frame, (action, outcome)) in segments.iter().zip(ends) {
                assert_end(&program.run(frame).unwrap(), action, outcome);
            }
        }
    });
}
