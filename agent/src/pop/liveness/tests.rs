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
    // Host 6 alone is in another domain than host 1.
    let domain = Domain::try_from(if host == 6 { "e" } else { "d" }).unwrap();
    Member::starting(
        HostId(host),
        stream,
        address,
        domain,
        Fingerprint::default(),
    )
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

/// One by duty, one in turn: both are asked before either is answered.
#[test]
fn the_answer_to_each_of_two_questions_counts_once() {
    let mut liveness = one(2..=2);
    let first = question(&mut liveness, 0);
    let second = question(&mut liveness, SECOND);
    assert_ne!(first, second);
    let answers = [first, second]
        .map(|asked| answer_for_test(TWO, 5, &KEYS[0], member(1, 7).address, &asked).unwrap());
    let from = member(2, 5).address;
    for (answer, heard) in answers.iter().zip(1..) {
        liveness.echo(2 * SECOND, from, answer);
        assert_eq!(liveness.counters.echoes_heard, heard);
        assert_eq!(liveness.counters.echoes_refused, 0);
    }
    for (answer, refused) in answers.iter().zip(1..) {
        liveness.echo(2 * SECOND, from, answer);
        assert_eq!(liveness.counters.echoes_refused, refused);
    }
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

/// Host 1 in a POP of six whose kernels it has all heard; host 2's agent is down, so
/// that host 1 watches its kernel.
fn settled() -> (Liveness, u64) {
    let mut liveness = one(2..=6);
    let now = run(&mut liveness, 0, 5 * SECOND, &[2, 3, 4, 5, 6], |_| None);
    liveness.peer_down(now, &member(2, 5));
    let now = run(&mut liveness, now, SECOND, &[2, 3, 4, 5, 6], |_| None);
    (liveness, now)
}

/// Runs host 1 for a time while the kernels of these hosts answer, and others say
/// what they are told to when they are asked.
fn run(
    liveness: &mut Liveness,
    from: u64,
    time: u64,
    kernels: &[u16],
    say: impl Fn(u16) -> Option<Voice>,
) -> u64 {
    for now in (from..from + time).step_by(10_000) {
        liveness.on_time(now);
        while let Some(question) = liveness.poll_question() {
            let answering = kernels
                .iter()
                .filter(|host| member(**host, 5).address == question.to);
            for &host in answering {
                let asker = member(1, 7).address;
                let answer = answer_for_test(HostId(host), 5, &KEYS[0], asker, &question.bytes);
                liveness.echo(now, question.to, &answer.unwrap());
            }
        }
        while let Some(out) = liveness.poll_outgoing() {
            if let Some(Message::Ask(asked)) = wire::decode(&out.body)
                && let Some(voice) = say(out.to.0)
            {
                liveness.receive(now, out.to, &wire::encode_say(&asked, voice));
            }
        }
        while liveness.poll_event().is_some() {}
    }
    from + time
}

#[test]
fn a_judgement_needs_voices_of_others_and_of_another_domain() {
    use Voice::{CannotTell, Hears, Lost, Silent};
    let (mut liveness, mut now) = settled();
    let is_dead = |liveness: &Liveness| matches!(liveness.kernel(TWO), Some(Kernel::Dead { .. }));
    // What three others and host 6, in the other domain, say; and whether it will do.
    let cases = [
        ([None, None, None], None),
        ([Some(Silent), None, None], None),
        (
            [Some(CannotTell), Some(CannotTell), Some(CannotTell)],
            Some(CannotTell),
        ),
        ([Some(Silent), Some(Silent), Some(Silent)], None),
        ([Some(Silent), Some(Lost), Some(Hears)], Some(Silent)),
        ([Some(Silent), Some(Lost), Some(Silent)], Some(CannotTell)),
    ];
    for (near, far) in cases {
        let say = |by: u16| match by {
            3..=5 => near[usize::from(by) - 3],
            6 => far,
            _ => None,
        };
        now = run(&mut liveness, now, 10 * SECOND, &[3, 4, 5, 6], say);
        assert!(!is_dead(&liveness), "{near:?} {far:?}");
        assert!(matches!(liveness.kernel(TWO), Some(Kernel::Silent { .. })));
        // What was said of this silence is not said of the next.
        now = run(&mut liveness, now, SECOND, &[2, 3, 4, 5, 6], |_| None);
    }
    assert!(liveness.counters.suspicions_unconfirmed > 5);
    assert!(liveness.counters.suspicions_refuted > 3);
    // Its agent's word is enough to save it.
    let myself = |by| Some(if by == 2 { Voice::Myself } else { Lost });
    now = run(&mut liveness, now, 10 * SECOND, &[3, 4, 5, 6], myself);
    assert!(!is_dead(&liveness));
    // Two voices, one of them of the other domain.
    let say = |by| [3, 6].contains(&by).then_some(Silent);
    run(&mut liveness, now, 2 * SECOND, &[3, 4, 5, 6], say);
    assert!(is_dead(&liveness));
}

#[test]
fn one_voice_of_others_is_not_enough_where_there_are_two() {
    let (mut liveness, now) = settled();
    let six = HostId(6);
    liveness.peer_down(now, &member(6, 5));
    let now = run(&mut liveness, now, SECOND, &[2, 3, 4, 5, 6], |_| None);
    let is_dead = |liveness: &Liveness| matches!(liveness.kernel(six), Some(Kernel::Dead { .. }));
    let one = |by| (by == 3).then_some(Voice::Lost);
    let now = run(&mut liveness, now, 20 * SECOND, &[2, 3, 4, 5], one);
    assert!(!is_dead(&liveness));
    let two = |by| [3, 4].contains(&by).then_some(Voice::Lost);
    run(&mut liveness, now, 2 * SECOND, &[2, 3, 4, 5], two);
    assert!(is_dead(&liveness));
}

#[test]
fn who_reaches_under_half_judges_nobody_whatever_others_say() {
    let (mut liveness, now) = settled();
    let now = run(&mut liveness, now, 20 * SECOND, &[6], |_| Some(Voice::Lost));
    assert_eq!(liveness.minority(now), Some((2, 6)));
    assert_eq!(liveness.counters.kernels_judged_dead, 0);
    assert!(liveness.counters.suspicions_in_minority > 5);
}

#[test]
fn who_hears_a_kernel_vetoes_judgements_on_it() {
    let told = |number| {
        wire::encode_judgements(&[wire::Judgement {
            host: TWO,
            by: HostId(3),
            incarnation: 5,
            standing: Standing {
                number,
                heard: false,
            },
        }])
    };
    let (mut liveness, now) = settled();
    liveness.receive(now, HostId(3), &told(1));
    assert!(matches!(liveness.kernel(TWO), Some(Kernel::Alive { .. })));
    assert_eq!(liveness.counters.judgements_vetoed, 1);
    // It is taken back, under the same number, and that is told.
    liveness.on_time(now);
    let body = std::iter::from_fn(|| liveness.poll_outgoing())
        .next()
        .unwrap()
        .body;
    let Some(Message::Judgements(taken_back)) = wire::decode(&body) else {
        panic!("{body:?}")
    };
    let standing = Standing {
        number: 1,
        heard: true,
    };
    assert_eq!(
        (taken_back[0].host, taken_back[0].standing),
        (TWO, standing)
    );
    // What was heard long ago is no veto.
    liveness.receive(now + SECOND, HostId(3), &told(2));
    assert!(matches!(liveness.kernel(TWO), Some(Kernel::Dead { .. })));
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
