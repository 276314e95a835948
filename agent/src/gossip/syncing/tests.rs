use std::collections::BTreeSet;

use homing_common::session::SessionId;

use super::*;
use crate::{
    gossip::{
        inbound::tests::{ONE, alone, hear, life, one, part},
        machine::Outgoing,
        pulls::PULLS_MAX,
        replica::PULL_PATIENCE,
        view::Progress,
        wire::{self, Record, bulk::encode_claims},
    },
    pop::{MS, Member, SECOND, seal::To},
};

/// A claim to a session, as it stands in a snapshot.
fn claim(id: u64) -> Vec<u8> {
    encode_claims(std::iter::once(Record {
        id: SessionId(id),
        generation: 0,
        closed: false,
    }))
}

/// Host 2, which has just asked host 1 for a snapshot, and what it asked.
fn pulling() -> (Gossip, u64) {
    let mut gossip = alone();
    gossip.member_up(0, &one(1));
    hear(&mut gossip, 0, ONE, life(1), false);
    let bulk = gossip.poll_bulk().unwrap();
    let pull = bulk::Pull {
        number: bulk.number,
        stream: life(1),
        have: 1,
    };
    assert_eq!((bulk.to, &bulk.body[..]), (ONE, &pull.encode()[..]));
    assert!(gossip.poll_bulk().is_none());
    (gossip, bulk.number)
}

/// Heartbeats to host 1: whether each calls it.
fn calls(gossip: &mut Gossip) -> Vec<bool> {
    let sent = std::iter::from_fn(|| gossip.poll_outgoing());
    let calls = sent.map(|Outgoing { to, body }| match wire::decode(&body) {
        Some(wire::Message::Heartbeat { heartbeat, .. }) if to == To::Host(ONE) => heartbeat.calls,
        other => panic!("{other:?}"),
    });
    calls.collect()
}

#[test]
fn a_host_is_called_until_it_is_heard_and_only_then_asked_for_its_sessions() {
    let mut gossip = alone();
    gossip.member_up(0, &one(1));
    let mut at = Vec::new();
    let mut now = 0;
    while now < 3 * SECOND {
        gossip.on_time(now);
        for calls in calls(&mut gossip) {
            assert!(calls);
            at.push(now / MS);
        }
        assert!(gossip.poll_bulk().is_none());
        now = gossip.next_time().max(now + 1);
    }
    assert_eq!(at, [0, 30, 90, 210, 450, 930, 1_890, 2_890]);
    // What all hear says nothing of what it knows of this host.
    let batch = wire::encode_batch(
        1,
        0,
        false,
        std::iter::once(Record {
            id: SessionId(1),
            generation: 0,
            closed: false,
        }),
    );
    gossip.receive(now, ONE, life(1), true, &batch);
    gossip.on_time(now);
    assert!(gossip.poll_bulk().is_none());
    hear(&mut gossip, now, ONE, life(1), false);
    assert!(gossip.poll_bulk().is_some());
    gossip.on_time(now + SECOND);
    assert_eq!(calls(&mut gossip), [false], "the hosts have met");
}

#[test]
fn who_calls_is_answered_at_once() {
    let (mut gossip, _) = pulling();
    gossip.on_time(SECOND);
    calls(&mut gossip);
    hear(&mut gossip, SECOND + MS, ONE, life(1), false);
    assert!(calls(&mut gossip).is_empty());
    hear(&mut gossip, SECOND + MS, ONE, life(1), true);
    assert_eq!(calls(&mut gossip), [false]);
}

#[test]
fn an_answer_to_another_request_or_of_another_life_does_nothing() {
    let (mut gossip, number) = pulling();
    let stale = part(number - 1, 5, &claim(7));
    gossip.receive_bulk(0, ONE, life(1), &stale);
    let of_before = part(number, 5, &claim(7));
    gossip.receive_bulk(0, ONE, life(0), &of_before);
    gossip.receive_bulk(0, HostId(9), life(1), &of_before);
    assert_eq!(gossip.counters().parts_unasked, 3);
    gossip.receive_bulk(0, ONE, life(1), &part(number, 1, &claim(8)));
    assert_eq!(gossip.route(SessionId(7)), None);
    assert_eq!(gossip.route(SessionId(8)), Some(ONE));
    // The same once more is late, whatever it says.
    gossip.receive_bulk(0, ONE, life(1), &part(number, 9, &claim(7)));
    assert_eq!(gossip.route(SessionId(7)), None);
    gossip.receive_bulk(0, ONE, life(1), b"\x02nonsense");
    assert_eq!(gossip.counters().messages_malformed, 1);
}

#[test]
fn a_pull_that_is_lost_begins_again_soon_and_one_without_an_answer_later() {
    let (mut gossip, first) = pulling();
    // The fate of another message, and a good one: all is well.
    gossip.bulk_told(0, ONE, first + 1, None);
    gossip.bulk_told(0, ONE, first, Some(life(1)));
    assert_eq!(gossip.counters().syncs_failed, 0);
    let again = |gossip: &mut Gossip, now: u64| {
        gossip.on_time(now);
        gossip.poll_bulk().map(|bulk| bulk.number)
    };
    gossip.bulk_told(0, ONE, first, None);
    assert_eq!(again(&mut gossip, 49 * MS), None);
    let second = again(&mut gossip, 50 * MS).unwrap();
    // An earlier or later life has it, which does not answer for this one.
    gossip.bulk_told(50 * MS, ONE, second, Some(life(2)));
    assert_eq!(again(&mut gossip, 149 * MS), None);
    let third = again(&mut gossip, 150 * MS).unwrap();
    gossip.bulk_told(150 * MS, ONE, third, Some(life(1)));
    let over = 150 * MS + PULL_PATIENCE;
    assert_eq!(again(&mut gossip, over - 1), None);
    assert_eq!(again(&mut gossip, over), None);
    assert_eq!(gossip.counters().syncs_failed, 3);
    assert!(again(&mut gossip, over + 200 * MS).is_some());
}

#[test]
fn a_pull_ends_with_the_life_that_it_is_about() {
    let (mut gossip, number) = pulling();
    gossip.member_up(0, &one(2));
    gossip.receive_bulk(0, ONE, life(1), &part(number, 5, &claim(7)));
    gossip.bulk_told(0, ONE, number, None);
    let counters = gossip.counters();
    assert_eq!((counters.parts_unasked, counters.syncs_failed), (1, 0));
    hear(&mut gossip, 0, ONE, life(2), false);
    let pull = gossip.poll_bulk().unwrap();
    gossip.member_down(0, ONE, true);
    gossip.receive_bulk(0, ONE, life(2), &part(pull.number, 5, &claim(7)));
    assert_eq!(gossip.counters().parts_unasked, 2);
    assert_eq!(gossip.route(SessionId(7)), None);
}

#[test]
fn hosts_that_do_not_answer_hold_up_nobody() {
    let mut gossip = alone();
    let count = 3 * PULLS_MAX as u16;
    for host in 3..3 + count {
        let member = Member {
            host: HostId(host),
            ..one(1)
        };
        gossip.member_up(0, &member);
        hear(&mut gossip, 0, HostId(host), life(1), false);
    }
    let mut asked = BTreeSet::new();
    let mut now = 0;
    while now < SECOND {
        gossip.on_time(now);
        asked.extend(std::iter::from_fn(|| gossip.poll_bulk()).map(|bulk| bulk.to));
        if now == 0 {
            assert_eq!(asked.len(), PULLS_MAX, "so many at once");
        }
        now = gossip.next_time().max(now + 1);
    }
    assert_eq!(asked.len(), usize::from(count));
}

#[test]
fn who_asks_gets_the_live_set_and_who_asks_an_earlier_life_nothing() {
    let mut gossip = alone();
    gossip.open(0, SessionId(7), 0, 0);
    let ask = |gossip: &mut Gossip, number, stream| {
        let pull = bulk::Pull {
            number,
            stream,
            have: 1,
        };
        // Membership need not know who asks.
        gossip.receive_bulk(0, ONE, life(3), &pull.encode());
        gossip.on_time(0);
        gossip.poll_bulk()
    };
    assert!(ask(&mut gossip, 5, life(0)).is_none());
    let bulk = ask(&mut gossip, 6, life(1)).unwrap();
    assert_eq!((bulk.to, &bulk.body[..]), (ONE, &part(6, 2, &claim(7))[..]));
    gossip.bulk_told(0, ONE, bulk.number, Some(life(3)));
    let counters = gossip.counters();
    assert_eq!((counters.snapshots_asked, counters.snapshots_sent), (1, 1));
    let bulk = ask(&mut gossip, 7, life(1)).unwrap();
    gossip.bulk_told(0, ONE, bulk.number, None);
    assert_eq!(gossip.counters().snapshots_lost, 1);
}

#[test]
fn a_snapshot_counts_when_it_is_complete() {
    let (mut gossip, number) = pulling();
    let progress = |gossip: &Gossip| gossip.origins().next().unwrap().progress;
    for (index, complete) in [(1, false), (0, true)] {
        let claim = claim(index.into());
        let part = bulk::Part {
            number,
            snapshot: 1,
            index,
            total: 2,
            records: wire::Records::from_bytes(&claim),
        };
        gossip.receive_bulk(0, ONE, life(1), &part.encode());
        assert_eq!(progress(&gossip) == Progress::Following, complete);
        assert_eq!(gossip.claimed() == 2, complete);
    }
}
