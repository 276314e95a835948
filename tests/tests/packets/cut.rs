//! A packet cut at every length is never taken for more than it is.

use homing_common::outcome::{Outcome, Verdict};
use homing_tests::{
    packet::{flags, segment},
    program::{host_1, in_namespace},
};

use super::common::{TUNNELS, outer};

/// The shortest frame that the kernel runs a program on.
const SHORTEST: usize = 14;

#[test]
fn off_the_wire() {
    in_namespace(|| {
        let (tunnel, encapsulation) = TUNNELS[0];
        let mut program = host_1(tunnel(), encapsulation).unwrap();
        for v4 in [true, false] {
            let mut packet = segment(v4, flags::ACK).payload(b"payload".to_vec());
            packet.options = vec![1; 12];
            let (client, service) = (packet.source.to_string(), packet.destination.to_string());
            program.set_owner(&client, &service, 2).unwrap();
            for tags in [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]] {
                let whole = packet.ip().frame(tags);
                for len in SHORTEST..whole.len() {
                    let run = program.run(&whole[..len]).unwrap();
                    assert!(
                        matches!(run.outcome, Outcome::NotIp | Outcome::Malformed),
                        "cut at {len}: {:?}",
                        run.outcome
                    );
                    assert_eq!(run.frame, whole[..len]);
                }
                let run = program.run(&whole).unwrap();
                assert_eq!(run.outcome, Outcome::Forwarded);
            }
        }
    });
}

/// The same with lengths that fit the cut frame, so that only what is inside
/// contradicts itself.
#[test]
fn with_lengths_that_fit() {
    in_namespace(|| {
        let (tunnel, encapsulation) = TUNNELS[0];
        let mut program = host_1(tunnel(), encapsulation).unwrap();
        for v4 in [true, false] {
            let packet = segment(v4, flags::ACK);
            let (client, service) = (packet.source.to_string(), packet.destination.to_string());
            program.set_owner(&client, &service, 2).unwrap();
            let whole = packet.ip();
            for len in 0..whole.body.len() {
                let mut cut = whole.clone();
                cut.body.truncate(len);
                let run = program.run(&cut.frame(&[])).unwrap();
                assert_eq!(run.outcome, Outcome::Malformed, "cut at {len}");
            }
        }
    });
}

#[test]
fn through_the_tunnel() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                let inner = segment(v4, flags::SYN).payload(b"payload".to_vec()).ip();
                let whole = outer(&program, 2, 1, &inner, 1);
                let frame = whole.frame(&[]);
                for len in SHORTEST..frame.len() {
                    let run = program.run(&frame[..len]).unwrap();
                    // Cut before the outer header ends, it is not known to be a
                    // tunnel packet; after that it is dropped.
                    assert!(
                        matches!(run.outcome, Outcome::NotIp | Outcome::Malformed),
                        "cut at {len}: {:?}",
                        run.outcome
                    );
                }
                for len in 0..whole.body.len() {
                    let mut cut = whole.clone();
                    cut.body.truncate(len);
                    let run = program.run(&cut.frame(&[])).unwrap();
                    assert_eq!(run.outcome, Outcome::TunnelMalformed, "cut at {len}");
                    assert_eq!(run.outcome.verdict(), Verdict::Drop);
                }
            }
        }
    });
}
