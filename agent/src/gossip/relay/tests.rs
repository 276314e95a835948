//! Tests of the relay's side.

use homing_common::session::SessionId;
use proptest::prelude::*;

use super::{
    super::wire::{self, Message, Record, Section},
    *,
};

const ORIGIN: Source = Source {
    host: HostId(7),
    tag: 1,
};

fn batch(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let records = numbers.clone().map(|id| Record {
        id: SessionId(id),
        generation: 0,
        closed: false,
    });
    let records: Vec<_> = records.collect();
    wire::encode_batch(numbers.start, 0, false, records.into_iter())
}

fn give(relay: &mut Relay, now: u64, pass_on: PassOn, numbers: std::ops::Range<u64>) {
    let body = batch(numbers);
    match wire::decode(&body) {
        Some(Message::Batch { first, records, .. }) => {
            relay.take_records(now, pass_on, ORIGIN, first, 0, records);
        }
        other => panic!("{other:?}"),
    }
}

/// The numbers of the records in messages.
fn numbers(bodies: &[Vec<u8>]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for body in bodies {
        let Some(Message::Relayed(relayed)) = wire::decode(body) else {
            panic!("no message of a relay")
        };
        for section in relayed.iter() {
            if let Section::Records { first, records, .. } = section {
                let ids: Vec<_> = records.iter().map(|r| r.id.0).collect();
                assert_eq!(ids[0], u64::from(first));
                numbers.extend(ids);
            }
        }
    }
    numbers
}

fn relay(foreign: usize) -> Relay {
    let mut relay = Relay::default();
    relay.set_foreign_hosts(foreign);
    relay
}

#[test]
fn first_relay_passes_on_at_once_then_collects() {
    let mut relay = relay(500);
    give(&mut relay, 0, PassOn::Now, 1..4);
    assert_eq!(numbers(&relay.on_time(0, false)), [1, 2, 3]);
    give(&mut relay, 100, PassOn::Now, 4..6);
    give(&mut relay, 900, PassOn::Now, 6..8);
    assert_eq!(relay.next_time(), 5 * MS);
    let bodies = relay.on_time(5 * MS, false);
    assert_eq!((bodies.len(), numbers(&bodies)), (1, vec![4, 5, 6, 7]));
    assert_eq!(relay.next_time(), u64::MAX);
    // What fills a datagram does not wait.
    give(&mut relay, 5 * MS + 10, PassOn::Now, 8..136);
    assert_eq!(relay.next_time(), 5 * MS + INTERVAL_MIN);
    assert_eq!(relay.tallied.passed, 7);
}

#[test]
fn other_relay_passes_on_what_it_does_not_hear() {
    let mut relay = relay(100);
    give(&mut relay, 0, PassOn::Unheard, 1..11);
    give(&mut relay, 0, PassOn::Unheard, 11..13);
    give(&mut relay, 0, PassOn::Unheard, 13..21);
    relay.heard(100, ORIGIN, 1, 4);
    relay.heard(100, ORIGIN, 5, 8);
    // Of another life, and another origin.
    relay.heard(100, Source { tag: 2, ..ORIGIN }, 13, 8);
    let host = HostId(8);
    relay.heard(100, Source { host, ..ORIGIN }, 13, 8);
    let until = MS + HOLD_MARGIN;
    assert_eq!(relay.next_time(), until);
    assert!(relay.on_time(until - 1, false).is_empty());
    assert_eq!(
        numbers(&relay.on_time(until, false)),
        (13..21).collect::<Vec<_>>()
    );
    let Tallied {
        in_place, covered, ..
    } = relay.tallied;
    assert_eq!((in_place, covered), (8, 12));
    assert_eq!((relay.next_time(), relay.waiting), (u64::MAX, 0));
}

#[test]
fn what_the_first_relay_passed_over_is_passed_on_at_once() {
    let mut relay = relay(100);
    give(&mut relay, 0, PassOn::Unheard, 1..3);
    give(&mut relay, 0, PassOn::Unheard, 3..5);
    relay.heard(50, ORIGIN, 4, 5);
    assert_eq!(relay.next_time(), 50);
    assert_eq!(numbers(&relay.on_time(50, false)), [1, 2, 3]);
    assert!(relay.on_time(10 * MS, false).is_empty());
    assert_eq!(relay.waiting, 0);
}

#[test]
fn what_waits_is_bounded_and_counted() {
    let mut relay = relay(1_000);
    for first in (1..60_000).step_by(100) {
        give(&mut relay, 0, PassOn::Unheard, first..first + 100);
    }
    assert!(relay.waiting <= WAITING_MAX);
    assert_eq!(relay.tallied.dropped, 60_000 - relay.waiting as u64);
    let bodies = relay.on_time(20 * MS, false);
    assert_eq!(
        numbers(&bodies).len(),
        60_000 - relay.tallied.dropped as usize
    );
    assert_eq!(relay.waiting, 0);
}

proptest! {
    /// Whatever the other relay was heard to pass on, in whatever pieces, before
    /// or after it came from the origin: the two together pass on everything.
    #[test]
    fn nothing_is_left_out(
        steps in prop::collection::vec(
            prop_oneof![
                (1u64..30).prop_map(|len| (None, len, 0)),
                (0u64..200, 1u64..40, 0..30 * MS).prop_map(|(f, len, after)| (Some(f), len, after)),
            ],
            1..40,
        ),
    ) {
        let mut relay = relay(100);
        let (mut next, mut now, mut passed) = (1, 0, Vec::new());
        for (heard, len, after) in steps {
            match heard {
                None => {
                    give(&mut relay, now, PassOn::Unheard, next..next + len);
                    next += len;
                }
                Some(first) => {
                    relay.heard(now, ORIGIN, 1 + first, len);
                    passed.extend(1 + first..1 + first + len);
                }
            }
            now += after;
            passed.extend(numbers(&relay.on_time(now, false)));
        }
        passed.extend(numbers(&relay.on_time(now + SECOND, false)));
        passed.extend(numbers(&relay.on_time(now + 2 * SECOND, false)));
        for number in 1..next {
            prop_assert!(passed.contains(&number), "{}", number);
        }
        prop_assert_eq!(relay.waiting, 0);
        prop_assert_eq!(relay.next_time(), u64::MAX);
    }
}

const SECOND: u64 = crate::pop::SECOND;
