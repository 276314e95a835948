//! The plan against a host that is made up: sessions come and go, moves end as chance has
//! it, and looks are late.

mod random;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use homing_common::net::{Address, Port, TCP};
use proptest::prelude::*;

use super::*;
use crate::migration::{
    Step,
    drain::{DEADLINE, Found, Look},
};

fn tuple(number: u16) -> Tuple {
    Tuple::new(
        Address::v4([198, 51, 100, 7]),
        Port::new(number),
        Address::v4([203, 0, 113, 10]),
        Port::new(443 + number % 3),
        TCP,
    )
}

fn found(number: u16, hindrance: Option<Why>) -> Found {
    Found {
        tuple: tuple(number),
        cookie: u64::from(number) + 1,
        key: u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        hindrance,
    }
}

fn look(sessions: &[Found]) -> Look {
    Look {
        sessions: sessions.to_vec(),
        ..Look::default()
    }
}

fn hosts(ids: &[u16]) -> BTreeSet<HostId> {
    ids.iter().copied().map(HostId).collect()
}

fn ended(begin: &Begin, outcome: Outcome) -> Ended {
    Ended {
        tuple: begin.tuple,
        target: begin.target,
        number: Some(1),
        outcome,
        frozen_us: 300,
    }
}

/// A plan that has looked once.
fn plan(options: Options, ids: &[u16], sessions: &[Found]) -> Plan {
    let mut plan = Plan::new(0, options, 4, 0);
    plan.hosts(hosts(ids));
    assert!(plan.begin_look(0));
    plan.looked(0, &look(sessions));
    plan
}

/// Looks once more, as soon as that is due.
fn look_again(plan: &mut Plan, now: u64, sessions: &[Found]) -> u64 {
    let now = plan.look_at().max(now);
    assert!(plan.begin_look(now));
    plan.looked(now, &look(sessions));
    now
}

fn left(plan: &Plan, now: u64) -> Vec<(Why, u64)> {
    plan.progress(now).left.into_iter().collect()
}

#[test]
fn all_sessions_move_so_many_at_once() {
    let sessions: Vec<_> = (0..10).map(|n| found(n, None)).collect();
    let mut plan = plan(Options::default(), &[2, 3], &sessions);
    let mut begun: Vec<Begin> = std::iter::from_fn(|| plan.poll(1)).collect();
    assert_eq!(begun.len(), 4);
    let mut targets = BTreeSet::new();
    let mut moved = 0;
    while let Some(begin) = begun.pop() {
        targets.insert(begin.target);
        plan.ended(2, &ended(&begin, Outcome::Moved));
        moved += 1;
        begun.extend(std::iter::from_fn(|| plan.poll(2)));
    }
    assert_eq!((moved, targets), (10, hosts(&[2, 3])));
    assert_eq!(
        plan.end(2),
        None,
        "nobody has looked whether more have come"
    );
    let now = look_again(&mut plan, 2, &[]);
    assert_eq!(plan.end(now), Some(End::Drained));
    let progress = plan.progress(now);
    assert_eq!((progress.counts.seen, progress.counts.moved), (10, 10));
    assert_eq!(progress.counts.frozen.samples(), 10);
}

#[test]
fn so_many_at_once_as_are_allowed_by_now() {
    let sessions: Vec<_> = (0..10).map(|n| found(n, None)).collect();
    let mut plan = plan(Options::default(), &[2, 3], &sessions);
    let mut begun: Vec<Begin> = std::iter::from_fn(|| plan.poll(1)).collect();
    plan.set_at_once(6);
    begun.extend(std::iter::from_fn(|| plan.poll(1)));
    assert_eq!(begun.len(), 6);
    plan.set_at_once(2);
    for begin in begun.drain(..4) {
        plan.ended(2, &ended(&begin, Outcome::Moved));
        assert_eq!(plan.poll(2), None, "more are under way than may be");
    }
    plan.ended(2, &ended(&begun[0], Outcome::Moved));
    assert!(plan.poll(2).is_some());
}

#[test]
fn what_cannot_move_is_told_by_reason_and_ends_the_drain_unless_it_is_to_wait() {
    let sessions = [
        found(1, Some(Why::Udp)),
        found(2, Some(Why::NoApplication)),
        found(3, Some(Why::NoApplication)),
    ];
    let mut plan_now = plan(Options::default(), &[2], &sessions);
    assert_eq!(plan_now.poll(1), None);
    assert_eq!(plan_now.end(1), Some(End::Left));
    let whys = [(Why::NoApplication, 2), (Why::Udp, 1)];
    assert_eq!(left(&plan_now, 1), whys);

    let options = Options {
        wait: true,
        ..Options::default()
    };
    let mut plan = plan(options, &[2], &sessions);
    assert_eq!(plan.end(1), None);
    // An application registers; the flow goes idle.
    let now = look_again(&mut plan, 1, &[found(2, None), found(3, None)]);
    for _ in 0..2 {
        let begin = plan.poll(now).unwrap();
        plan.ended(now, &ended(&begin, Outcome::Moved));
    }
    let now = look_again(&mut plan, now, &[]);
    assert_eq!(plan.end(now), Some(End::Drained));
    assert_eq!(plan.progress(now).counts.ended, 1);
}

#[test]
fn applications_and_hosts_have_some_time_to_come_after_a_start() {
    let sessions = [found(1, Some(Why::NoApplication)), found(2, None)];
    let mut plan = Plan::new(0, Options::default(), 4, 5 * SECOND);
    assert!(plan.begin_look(0));
    plan.looked(0, &look(&sessions));
    assert_eq!(plan.poll(0), None);
    assert_eq!(plan.end(0), None);
    assert_eq!(
        left(&plan, 0),
        [(Why::NoApplication, 1), (Why::NoTarget, 1)]
    );
    plan.hosts(hosts(&[2]));
    let now = look_again(&mut plan, SECOND, &sessions);
    let begin = plan.poll(now).unwrap();
    plan.ended(now, &ended(&begin, Outcome::Moved));
    let now = look_again(&mut plan, 4 * SECOND, &sessions[..1]);
    assert_eq!(plan.end(now), None);
    let now = look_again(&mut plan, 5 * SECOND, &sessions[..1]);
    assert_eq!(plan.end(now), Some(End::Left));
}

#[test]
fn what_closes_is_waited_for() {
    let closing = [
        found(1, Some(Why::Closing)),
        found(2, Some(Why::NotAccepted)),
    ];
    let mut plan = plan(Options::default(), &[2], &closing);
    assert_eq!(plan.end(1), None);
    let mut now = look_again(&mut plan, 1, &[]);
    assert_eq!(plan.end(now), Some(End::Drained));

    // So is what the kernel still answers for, but only until the deadline, and it is no
    // session that is left.
    for (deadline, arriving, end) in [
        (None, 0, None),
        (Some(1), 0, Some(End::Drained)),
        (Some(1), 1, Some(End::Left)),
    ] {
        let options = Options {
            deadline: deadline.map(Duration::from_micros),
            ..Options::default()
        };
        plan = Plan::new(0, options, 4, 0);
        assert!(plan.begin_look(0));
        plan.looked(
            0,
            &Look {
                time_wait: 7,
                arriving,
                sessions: vec![],
            },
        );
        now = 1;
        assert_eq!(plan.end(now), end);
        assert_eq!(plan.progress(now).time_wait, 7);
    }
}

#[test]
fn a_target_that_refuses_is_passed_over_and_the_next_one_asked() {
    let sessions: Vec<_> = (0..4).map(|n| found(3 * n, None)).collect();
    let mut plan = plan(Options::default(), &[2, 3, 4], &sessions);
    let mut asked = BTreeMap::<HostId, u32>::new();
    let mut begun: Vec<Begin> = Vec::new();
    loop {
        begun.extend(std::iter::from_fn(|| plan.poll(1)));
        let Some(begin) = begun.pop() else { break };
        *asked.entry(begin.target).or_default() += 1;
        // Those that were under way when a host first refused had asked it as well.
        assert!(asked.values().sum::<u32>() <= 4 * 3, "{asked:?}");
        let reason = Reason::NoApplication;
        plan.ended(1, &ended(&begin, Outcome::Refused(reason)));
    }
    assert_eq!(asked.len(), 3);
    let why = Why::Move(Reason::NoApplication);
    assert_eq!(left(&plan, 1), [(why, 4)]);
    // After a while they are offered again.
    let now = look_again(&mut plan, 2 * SECOND, &sessions);
    assert_eq!((plan.poll(now), plan.end(now)), (None, Some(End::Left)));
}

#[test]
fn what_fails_is_tried_again_so_many_times_and_elsewhere_if_it_can() {
    let sessions = [found(1, None)];
    let mut plan = plan(Options::default(), &[2, 3], &sessions);
    let (mut now, mut targets, mut pauses) = (1, Vec::new(), Vec::new());
    loop {
        let at = plan.queue.first().map_or(now, |(at, ..)| *at);
        pauses.push(at.saturating_sub(now));
        now = now.max(at);
        let Some(begin) = plan.poll(now) else { break };
        targets.push(begin.target);
        let outcome = Outcome::Aborted(Step::Sending, Reason::Timeout);
        plan.ended(now, &ended(&begin, outcome));
    }
    assert_eq!(targets.len(), usize::from(TRIES));
    assert!(
        targets.windows(2).all(|pair| pair[0] != pair[1]),
        "{targets:?}"
    );
    assert!(pauses[1..usize::from(TRIES)].is_sorted(), "{pauses:?}");
    let now = look_again(&mut plan, now, &sessions);
    assert_eq!(plan.end(now), Some(End::Left));
    assert_eq!(left(&plan, now), [(Why::Move(Reason::Timeout), 1)]);
    assert_eq!(
        plan.progress(now).counts.failed.values().sum::<u64>(),
        u64::from(TRIES)
    );
}

#[test]
fn what_cannot_be_carried_is_not_tried_again_but_may_still_end() {
    let sessions = [found(1, None)];
    let options = Options {
        wait: true,
        ..Options::default()
    };
    let mut plan = plan(options, &[2, 3], &sessions);
    let begin = plan.poll(1).unwrap();
    plan.ended(1, &ended(&begin, Outcome::Refused(Reason::NotCarried)));
    let now = look_again(&mut plan, 60 * MS, &sessions);
    assert_eq!((plan.poll(now), plan.end(now)), (None, None));
    assert_eq!(left(&plan, now), [(Why::Move(Reason::NotCarried), 1)]);
    let now = look_again(&mut plan, now, &[found(1, Some(Why::Closing))]);
    assert_eq!(left(&plan, now), [(Why::Closing, 1)]);
    let now = look_again(&mut plan, now, &[]);
    assert_eq!(plan.end(now), Some(End::Drained));
}

#[test]
fn a_look_that_is_late_brings_nothing_back_and_a_new_session_of_a_tuple_is_one() {
    let mut plan = plan(Options::default(), &[2], &[found(1, None)]);
    let begin = plan.poll(1).unwrap();
    let now = plan.look_at();
    assert!(plan.begin_look(now));
    plan.ended(now, &ended(&begin, Outcome::Moved));
    // It was read before the session had left.
    plan.looked(now, &look(&[found(1, None)]));
    assert_eq!((plan.poll(now), plan.progress(now).counts.seen), (None, 1));
    let again = Found {
        cookie: 77,
        ..found(1, None)
    };
    let now = look_again(&mut plan, now, &[again]);
    assert!(plan.poll(now).is_some());
    assert_eq!(plan.progress(now).counts.seen, 2);
}

#[test]
fn at_the_deadline_what_was_not_begun_stays_and_what_was_is_waited_for() {
    let sessions: Vec<_> = (0..6).map(|n| found(n, None)).collect();
    let options = Options {
        deadline: Some(Duration::from_secs(1)),
        ..Options::default()
    };
    let mut plan = plan(options, &[2], &sessions);
    let begun: Vec<Begin> = std::iter::from_fn(|| plan.poll(SECOND / 2)).collect();
    assert!(
        begun
            .iter()
            .all(|begin| begin.within == Duration::from_millis(500))
    );
    plan.ended(SECOND, &ended(&begun[0], Outcome::Moved));
    assert_eq!((plan.poll(SECOND), plan.end(SECOND)), (None, None));
    for begin in &begun[1..] {
        let outcome = Outcome::Aborted(Step::Sending, Reason::Deadline);
        plan.ended(SECOND, &ended(begin, outcome));
    }
    assert_eq!(plan.end(SECOND), Some(End::Left));
    let whys = [(Why::Move(Reason::Deadline), 3), (Why::TimeUp, 2)];
    assert_eq!(left(&plan, SECOND), whys);
}

#[test]
fn other_options_hold_from_then_on() {
    let sessions: Vec<_> = (0..40).map(|n| found(n, None)).collect();
    let only = |host| Options {
        to: hosts(&[host]),
        ..Options::default()
    };
    let mut plan = plan(only(2), &[2, 3], &sessions);
    let begin = plan.poll(1).unwrap();
    assert_eq!(begin.target, HostId(2));
    plan.replace(2, only(3), true);
    let begin = plan.poll(2).unwrap();
    assert_eq!(begin.target, HostId(3));
    // What no host was there for is offered again.
    plan.replace(3, only(9), true);
    assert_eq!(plan.poll(3), None);
    assert_eq!(left(&plan, 3), [(Why::NoTarget, 38)]);
    plan.replace(4, only(2), true);
    let now = look_again(&mut plan, 4, &sessions);
    assert_eq!(plan.poll(now).unwrap().target, HostId(2));
    let progress = plan.progress(now);
    assert_eq!(
        progress.remaining,
        Some(DEADLINE - Duration::from_micros(now - 4))
    );
    // The deadline that there is goes on.
    plan.replace(now, only(2), false);
    assert_eq!(plan.progress(now).remaining, progress.remaining);
}

#[test]
fn stopped_it_begins_nothing_and_calls_off_what_is_under_way() {
    let sessions: Vec<_> = (0..6).map(|n| found(n, None)).collect();
    let mut plan = plan(Options::default(), &[2], &sessions);
    let begun: Vec<Begin> = std::iter::from_fn(|| plan.poll(1)).collect();
    let called: BTreeSet<_> = plan.stop().into_iter().collect();
    assert_eq!(called, begun.iter().map(|begin| begin.tuple).collect());
    assert_eq!((plan.poll(2), plan.end(2)), (None, None));
    // One was released already.
    plan.ended(2, &ended(&begun[0], Outcome::Moved));
    for begin in &begun[1..] {
        let outcome = Outcome::Aborted(Step::Sending, Reason::CalledOff);
        plan.ended(2, &ended(begin, outcome));
    }
    assert_eq!(plan.end(2), Some(End::Stopped));
    let whys = [(Why::Move(Reason::CalledOff), 3), (Why::Stopped, 2)];
    assert_eq!(left(&plan, 2), whys);
}
