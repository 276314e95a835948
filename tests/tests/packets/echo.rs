//! Echoes: who is answered, with what, and who is not.

use std::net::IpAddr;

use homing_common::{
    control::Control,
    echo::Echo,
    host::{Encapsulation, HostId},
    limit::Limit,
    net::Address,
    outcome::Outcome,
    session::SessionKey,
};
use homing_tests::{
    packet::{HOST_MAC, Ip, ROUTER_MAC, ethernet, udp, udp_checksum},
    program::{self, Action, Program, Run, in_namespace, tunnel_v4},
};

use super::common::assert_end;

const OLD: SessionKey = SessionKey([3, 4]);
const NEW: SessionKey = SessionKey([5, 6]);
const INCARNATION: u64 = 0x0000_019a_1234_5678;
const PORT: u16 = 7946;

/// Host 1's fabric address and host 2's.
fn addresses(v4: bool) -> (IpAddr, IpAddr) {
    let (one, two) = if v4 {
        ("10.1.0.1", "10.1.0.2")
    } else {
        ("fd01::1", "fd01::2")
    };
    (one.parse().unwrap(), two.parse().unwrap())
}

fn program(v4: bool) -> Program {
    let mut settings = program::settings(tunnel_v4(), Encapsulation::Ipip);
    settings.fabric = addresses(v4).0.into();
    settings.fabric_port = PORT;
    let mut program = program::host(settings).unwrap();
    tell_keys(&mut program);
    program
}

fn tell_keys(program: &mut Program) {
    let tell = |control: &mut Control| {
        control.echo_keys = [NEW, OLD];
        control.incarnation = INCARNATION;
    };
    program.control(tell).unwrap();
}

/// A question of host 2 to host 1.
fn question(asker: IpAddr, key: SessionKey) -> Echo {
    let mut echo = Echo {
        magic: Echo::MAGIC,
        from: [0, 2],
        to: [0, 1],
        nonce: *b"a nonce.",
        incarnation: [0; 8],
        tag: [0; 8],
    };
    echo.tag = echo.tag(&Address::from(asker), &key);
    echo
}

fn bytes(echo: &Echo) -> Vec<u8> {
    [
        &echo.magic[..],
        &echo.from,
        &echo.to,
        &echo.nonce,
        &echo.incarnation,
        &echo.tag,
    ]
    .concat()
}

/// The packet that carries an echo, or something else.
fn packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Ip {
    Ip::new(source, destination, 17, udp(PORT, PORT, payload))
}

/// Runs a question over IPv4, correct but for `change`.
pub fn ask(program: &mut Program, change: impl FnOnce(&mut Echo)) -> anyhow::Result<Run> {
    tell_keys(program);
    let (host, asker) = addresses(true);
    let mut echo = question(asker, NEW);
    change(&mut echo);
    program.run(&packet(asker, host, &bytes(&echo)).frame(&[]))
}

#[test]
fn a_member_is_answered() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program(v4);
            let (host, asker) = addresses(v4);
            for key in [NEW, OLD] {
                for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                    let echo = question(asker, key);
                    let mut asked = packet(asker, host, &bytes(&echo));
                    asked.ttl = 7;
                    // A frame from a sender that leaves checksums to its device.
                    asked.body[6..8].copy_from_slice(&[0x12, 0x34]);
                    let run = program.run(&asked.frame(tags)).unwrap();
                    assert_end(&run, Action::Tx, Outcome::EchoAnswered);

                    let mut answer = echo;
                    answer.incarnation = INCARNATION.to_be_bytes();
                    answer.tag = answer.tag(&Address::from(asker), &key);
                    let mut expected = packet(host, asker, &bytes(&answer));
                    let checksum = udp_checksum(host, asker, &expected.body);
                    expected.body[6..8].copy_from_slice(&checksum);
                    let expected = ethernet(ROUTER_MAC, HOST_MAC, tags, v4, &expected.bytes());
                    assert_eq!(run.frame, expected);
                }
            }
        });
    }
}

#[test]
fn it_takes_no_agent() {
    in_namespace(|| {
        let mut program = program(true);
        program
            .control(|control| (control.flags, control.beat_ns) = (0, 0))
            .unwrap();
        let run = ask(&mut program, |_| {}).unwrap();
        assert_end(&run, Action::Tx, Outcome::EchoAnswered);
    });
}

#[test]
fn nobody_else_is() {
    in_namespace(|| {
        let mut program = program(true);
        let (host, asker) = addresses(true);
        let stranger: IpAddr = "192.0.2.1".parse().unwrap();
        let good = question(asker, NEW);
        let signed = |change: &dyn Fn(&mut Echo)| {
            let mut echo = good;
            change(&mut echo);
            echo.tag = echo.tag(&Address::from(asker), &NEW);
            echo
        };
        let cases = [
            ("another key", asker, question(asker, SessionKey([9, 9]))),
            ("no key", asker, question(asker, SessionKey([0, 0]))),
            ("for host 3", asker, signed(&|echo| echo.to = [0, 3])),
            ("of no member", asker, signed(&|echo| echo.from = [0, 9])),
            ("of nobody", asker, signed(&|echo| echo.from = [0, 0])),
            ("of itself", asker, signed(&|echo| echo.from = [0, 1])),
            (
                "of no host id",
                asker,
                signed(&|echo| echo.from = [0xff, 0xff]),
            ),
            ("recorded, from elsewhere", stranger, good),
        ];
        for (what, source, echo) in cases {
            let frame = packet(source, host, &bytes(&echo)).frame(&[]);
            let run = program.run(&frame).unwrap();
            assert_eq!(
                (run.action, run.outcome),
                (Action::Drop, Outcome::EchoRefused),
                "{what}"
            );
            assert_eq!(run.frame, frame, "{what}");
        }
        for bit in 0..Echo::LEN * 8 {
            let mut payload = bytes(&good);
            payload[bit / 8] ^= 1 << (bit % 8);
            let run = program
                .run(&packet(asker, host, &payload).frame(&[]))
                .unwrap();
            assert_ne!(run.outcome, Outcome::EchoAnswered, "bit {bit}");
        }
    });
}

#[test]
fn without_keys_or_incarnation_nobody_is() {
    in_namespace(|| {
        let mut program = program(true);
        let (host, asker) = addresses(true);
        for (keys, incarnation, key) in [
            ([NEW, OLD], 0, NEW),
            ([SessionKey([0; 2]); 2], INCARNATION, SessionKey([0; 2])),
        ] {
            let tell = |control: &mut Control| {
                control.echo_keys = keys;
                control.incarnation = incarnation;
            };
            program.control(tell).unwrap();
            let echo = question(asker, key);
            let frame = packet(asker, host, &bytes(&echo)).frame(&[]);
            let run = program.run(&frame).unwrap();
            assert_end(&run, Action::Drop, Outcome::EchoRefused);
        }
    });
}

#[test]
fn an_echo_has_one_length_and_no_options() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program(v4);
            let (host, asker) = addresses(v4);
            let echo = bytes(&question(asker, NEW));
            let longer = [&echo[..], &[0]].concat();
            let mut cases = vec![
                packet(asker, host, &echo[..31]),
                packet(asker, host, &echo[..5]),
                packet(asker, host, &longer),
            ];
            let mut options = packet(asker, host, &echo);
            options.options = if v4 {
                vec![1; 4]
            } else {
                options.first_header = Some(60);
                vec![17, 0, 1, 4, 0, 0, 0, 0]
            };
            cases.push(options);
            // UDP's length, against the packet's.
            for len in [39u16, 41] {
                let mut packet = packet(asker, host, &echo);
                packet.body[4..6].copy_from_slice(&len.to_be_bytes());
                cases.push(packet);
            }
            for packet in cases {
                let run = program.run(&packet.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::EchoRefused);
            }
            // Behind a short packet, Ethernet's padding is not part of it.
            let mut padded = packet(asker, host, &echo[..31]).frame(&[]);
            padded.resize(padded.len() + 20, 0);
            let run = program.run(&padded).unwrap();
            assert_end(&run, Action::Drop, Outcome::EchoRefused);
        });
    }
}

#[test]
fn the_agents_talk_is_the_agents() {
    for v4 in [true, false] {
        in_namespace(|| {
            let mut program = program(v4);
            let (host, asker) = addresses(v4);
            let echo = question(asker, NEW);
            let mut answer = echo;
            answer.incarnation = [1; 8];
            let elsewhere = Ip::new(asker, host, 17, udp(PORT, PORT + 1, &bytes(&echo)));
            let other_address = packet(asker, asker, &bytes(&echo));
            for packet in [
                packet(asker, host, &bytes(&answer)),
                packet(
                    asker,
                    host,
                    b"Hm\x01 a sealed datagram of more than forty bytes",
                ),
                packet(asker, host, b"Hm"),
                packet(asker, host, b""),
                elsewhere,
                other_address,
            ] {
                let frame = packet.frame(&[]);
                let run = program.run(&frame).unwrap();
                assert_end(&run, Action::Pass, Outcome::NotService);
                assert_eq!(run.frame, frame);
            }
        });
    }
}

#[test]
fn one_member_cannot_use_up_the_answers_of_another() {
    in_namespace(|| {
        let mut program = program(true);
        let limited = |run: Run| run.outcome == Outcome::EchoLimited;
        // Again if a window of time ended in between.
        while !limited({
            program.exhaust(Limit::Echo(HostId(2))).unwrap();
            ask(&mut program, |_| {}).unwrap()
        }) {}
        let (host, asker) = addresses(true);
        let mut echo = question(asker, NEW);
        echo.from = [0, 3];
        echo.tag = echo.tag(&Address::from(asker), &NEW);
        let frame = packet(asker, host, &bytes(&echo)).frame(&[]);
        let run = program.run(&frame).unwrap();
        assert_end(&run, Action::Tx, Outcome::EchoAnswered);
    });
}
