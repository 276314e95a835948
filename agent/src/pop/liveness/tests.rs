//! One host against hand-made datagrams.

use std::time::Duration;

use homing_common::session::SessionKey;

use super::{echoes::answer_for_test, wire::Voice, *};
use crate::pop::{Domain, Fingerprint, MS, SECOND, Stream};

const KEYS: [SessionKey; 2] = [SessionKey([1, 2]), SessionKey([3, 4])];
const TWO: HostId = HostId(2);

fn member(host: u16, incarnation: u64) -> Member {
    let stream = Stream {
        incarnation,
        generation: 1,
    };
    let [high, low] = host.to_be_bytes();
    let address = ([10, 0, high, low], 7946).into();
    let domain = Domain::try_from("d").unwrap();
    Member::starting(HostId(host), stream, address, domain, Fingerprint(1))
}

/// Host 1, with some others.
fn one(others: std::ops::RangeInclusive<u16>) -> Liveness {
    let settings = Settings {
        host: HostId(1),
        address: member(1, 7).address,
        domain: Domain::try_from("d").unwrap(),
        keys: KEYS,
        dead_after: Duration::from_secs(3),
    };
    let mut liveness = Liveness::new(0, 7, settings, [9; 32]);
    for host in others {
        liveness.peer_up(0, &member(host, 5));
    }
    liveness
}

/// The next question to host 2.
fn question(liveness: &mut Liveness, now: u64) -> Vec<u8> {
    for later in 0..1_000 {
        liveness.on_time(now + later * MS);
        while let Some(question) = liveness.poll_question() {
            if question.to == member(2, 5).address {
                return question.bytes.to_vec();
            }
        }
    }
    panic!("host 2 is not asked")
}

#[test]
fn an_answer_counts_only_as_asked() {
    let mut liveness = one(2..=3);
    let asked = question(&mut liveness, 0);
    let good = answer_for_test(TWO, 5, &KEYS[0], member(1, 7).address, &asked).unwrap();
    let from = member(2, 5).address;
    let mut refused = 0;
    let mut refuse = |liveness: &mut Liveness, from, bytes: &[u8]| {
        liveness.echo(9, from, bytes);
        refused += 1;
        assert_eq!(liveness.counters.echoes_refused, refused);
        assert_eq!(liveness.kernel(TWO), Some(Kernel::Unheard));
    };
    // Every bit of it matters.
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refuse(&mut liveness, from, &bad);
    }
    for len in [0, 4, 31] {
        refuse(&mut liveness, from, &good[..len]);
    }
    refuse(&mut liveness, from, &[&good[..], &[0]].concat());
    // Another address, another life, another host that knows the key.
    refuse(&mut liveness, member(3, 5).address, &good);
    for incarnation in [4, 6] {
        let other =
            answer_for_test(TWO, incarnation, &KEYS[0], member(1, 7).address, &asked).unwrap();
        refuse(&mut liveness, from, &other);
    }
    // As asked, and once.
    liveness.echo(10, from, &good);
    assert_eq!(liveness.kernel(TWO), Some(Kernel::Alive { heard_at: 10 }));
    assert_eq!(liveness.poll_event(), Some(Event::Answers { host: TWO }));
    liveness.echo(11, from, &good);
    assert_eq!(liveness.kernel(TWO), Some(Kernel::Alive { heard_at: 10 }));
}

#[test]
fn an_answer_may_be_signed_with_either_key() {
    let mut liveness = one(2..=2);
    let asked = question(&mut liveness, 0);
    let good = answer_for_test(TWO, 5, &KEYS[0], member(1, 7).address, &asked).unwrap();
    let signed = |key: &SessionKey| {
        let mut echo = echoes::read(&good).unwrap();
        echo.tag = echo.tag(&member(1, 7).address.ip().into(), key);
        echoes::to_bytes(&echo)
    };
    let from = member(2, 5).address;
    liveness.echo(1, from, &signed(&SessionKey([7, 7])));
    assert!(!liveness.can_be_asked(TWO));
    liveness.echo(1, from, &signed(&KEYS[1]));
    assert!(liveness.can_be_asked(TWO));
}

#[test]
fn a_question_to_this_host_is_never_answered_by_its_agent() {
    let mut liveness = one(2..=2);
    let mut echo = echoes::read(&question(&mut liveness, 0)).unwrap();
    std::mem::swap(&mut echo.from, &mut echo.to);
    let asker = member(2, 5).address;
    echo.tag = echo.tag(&asker.ip().into(), &KEYS[0]);
    while liveness.poll_question().is_some() {}
    liveness.echo(1, asker, &echoes::to_bytes(&echo));
    assert_eq!(liveness.counters.echoes_unanswered_here, 1);
    assert!(liveness.poll_question().is_none());
    assert!(liveness.poll_outgoing().is_none());
}

#[test]
fn a_kernel_that_was_never_heard_cannot_be_judged() {
    let mut liveness = one(2..=2);
    for now in (0..60 * SECOND).step_by(10_000) {
        liveness.on_time(now);
        while liveness.poll_question().is_some() {}
    }
    assert_eq!(liveness.kernel(TWO), Some(Kernel::Unheard));
    assert!(
        liveness
            .poll_event()
            .is_none_or(|e| matches!(e, Event::Minority { .. }))
    );
    assert_eq!(liveness.counters.kernels_judged_dead, 0);
}

#[test]
fn a_later_life_begins_with_a_clean_sheet() {
    let mut liveness = one(2..=3);
    let dead = wire::Judgement {
        host: TWO,
        by: HostId(3),
        incarnation: 5,
        standing: Standing {
            number: 1,
            heard: false,
        },
    };
    let body = wire::encode_judgements(&[dead]);
    liveness.receive(SECOND, HostId(3), &body);
    let dead = Kernel::Dead {
        since: SECOND,
        heard_at: None,
    };
    assert_eq!(liveness.kernel(TWO), Some(dead));
    liveness.peer_up(2 * SECOND, &member(2, 6));
    assert_eq!(liveness.kernel(TWO), Some(Kernel::Unheard));
    // What is said of the earlier life means nothing.
    liveness.receive(2 * SECOND, HostId(3), &body);
    assert_eq!(liveness.kernel(TWO), Some(Kernel::Unheard));
}

#[test]
fn strangers_and_nonsense_are_refused() {
    let mut liveness = one(2..=3);
    let asked = wire::Asked {
        host: TWO,
        incarnation: 5,
        number: 1,
    };
    liveness.receive(0, HostId(9), &wire::encode_ask(&asked));
    liveness.receive(0, HostId(3), &[1, 2, 3]);
    liveness.receive(0, HostId(3), &[]);
    assert_eq!(liveness.counters.liveness_refused, 3);
    assert!(liveness.poll_outgoing().is_none());
    // Voices on what was not asked are ignored.
    liveness.receive(0, HostId(3), &wire::encode_say(&asked, Voice::Silent));
    assert_eq!(liveness.counters.kernels_judged_dead, 0);
}

#[test]
fn tables_stay_bounded_whatever_others_ask() {
    let mut liveness = one(2..=4095);
    liveness.on_time(0);
    for host in 3..=4095 {
        let asked = wire::Asked {
            host: HostId(host),
            incarnation: 5,
            number: 1,
        };
        for by in 2..40 {
            liveness.receive(0, HostId(by), &wire::encode_ask(&asked));
        }
    }
    assert!(liveness.checks.len() <= 64);
    assert!(liveness.watched.len() <= WATCHED_MAX);
    assert_eq!(liveness.counters.censuses, 1);
}
