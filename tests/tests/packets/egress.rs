//! What leaves: the MSS of services' SYN|ACKs is lowered, and nothing else changes.

use homing_common::{host::Encapsulation, outcome::Hook};
use homing_tests::{
    packet::{Ip, Tcp, flags, segment},
    program::{Program, host_1, in_namespace, tunnel_v4},
};

const MSS_V4: u16 = 1440;
const MSS_V6: u16 = 1420;

fn program() -> Program {
    let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
    program
        .control(|control| {
            control.mss_v4 = MSS_V4;
            control.mss_v6 = MSS_V6;
        })
        .unwrap();
    program
}

/// A SYN|ACK of the test's service.
fn answer(v4: bool, options: &[u8]) -> Tcp {
    let to = segment(v4, 0);
    let (source, destination) = (to.destination.to_string(), to.source.to_string());
    let mut answer = Tcp::new(&source, &destination, flags::SYN | flags::ACK);
    answer.options = options.to_vec();
    answer
}

fn mss(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    vec![2, 4, high, low]
}

#[test]
fn a_larger_mss_is_lowered_and_the_checksum_is_right() {
    in_namespace(|| {
        let mut program = program();
        // Before and behind the MSS: none, an odd number, and many other options.
        let before: [&[u8]; 4] = [
            &[],
            &[1],
            &[3, 3, 7],
            &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        ];
        let mut lowered = 0;
        for (v4, max) in [(true, MSS_V4), (false, MSS_V6)] {
            for before in before {
                for (offered, expected) in [(max + 1, max), (65_535, max), (max, max), (536, 536)] {
                    let options = |value| {
                        let mut options = [before, &mss(value)].concat();
                        options.resize(options.len().next_multiple_of(4), 1);
                        options
                    };
                    for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                        let sent = answer(v4, &options(offered)).ip().frame(tags);
                        let wanted = answer(v4, &options(expected)).ip().frame(tags);
                        assert_eq!(program.leave(&sent).unwrap(), wanted);
                        lowered += u64::from(offered != expected);
                    }
                }
            }
        }
        assert_eq!(program.hook(Hook::MssLowered).unwrap(), lowered);
        // Zero stands for "leave it".
        program
            .control(|control| (control.mss_v4, control.mss_v6) = (0, 0))
            .unwrap();
        for v4 in [true, false] {
            let frame = answer(v4, &mss(9000)).frame();
            assert_eq!(program.leave(&frame).unwrap(), frame);
        }
    });
}

#[test]
fn everything_else_leaves_as_it_came() {
    in_namespace(|| {
        let mut program = program();
        let large = mss(9000);
        for v4 in [true, false] {
            let good = answer(v4, &large);
            let mut others: Vec<Vec<u8>> = Vec::new();
            // Other flags; a SYN that leaves is of a connection from here.
            for flags in [
                0,
                flags::SYN,
                flags::ACK,
                flags::SYN | flags::ACK | flags::RST,
                flags::SYN | flags::ACK | flags::FIN,
            ] {
                others.push(
                    Tcp {
                        flags,
                        ..good.clone()
                    }
                    .frame(),
                );
            }
            // No service.
            let mut other = good.clone();
            other.source.set_port(22);
            others.push(other.frame());
            // Options that end before the MSS, contradict themselves, or are none.
            for options in [
                [&[0, 0, 0, 0], &large[..]].concat(),
                [&[3, 0, 7, 1], &large[..]].concat(),
                [&[3, 200, 7, 1], &large[..]].concat(),
                vec![2, 3, 0x23, 0x28],
                vec![1, 1, 2, 4],
                vec![],
            ] {
                others.push(answer(v4, &options).frame());
            }
            // In the payload it is no option.
            others.push(answer(v4, &[]).payload(large.clone()).frame());
            // A fragment, and a header that is cut short.
            if v4 {
                let mut fragment = good.ip();
                fragment.frags = 0x2000;
                others.push(fragment.frame(&[]));
            }
            let frame = good.frame();
            for len in 14..frame.len() {
                others.push(frame[..len].to_vec());
            }
            let mut body = good.ip().body;
            body[12] = 0xf0;
            let ip = good.ip();
            others.push(Ip::new(ip.source, ip.destination, 6, body[..24].to_vec()).frame(&[]));
            for frame in others {
                let left = program.leave(&frame);
                match left {
                    Ok(left) => assert_eq!(left, frame),
                    // The kernel refuses to make a packet of so little.
                    Err(error) => assert!(frame.len() < 14 + 40, "{error:#}"),
                }
            }
        }
        assert_eq!(program.hook(Hook::MssLowered).unwrap(), 0);
    });
}
