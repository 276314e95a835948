use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    gossip::{
        machine::{Outgoing, Settings},
        pulls::PULLS_MAX,
    },
    pop::{Domain, Fingerprint, Member, SECOND, seal::To},
};

const ONE: HostId = HostId(1);

fn life(generation: u64) -> Stream {
    Stream {
        incarnation: 5,
        generation,
    }
}

fn one(generation: u64) -> Member {
    let address = "10.0.0.1:7946".parse().unwrap();
    let domain = Domain::try_from("d").unwrap();
    Member::starting(
        ONE,
        life(generation),
        address,
        domain,
        Fingerprint::default(),
    )
}

/// Host 2, which follows host 1 in its first life.
fn follower() -> Gossip {
    let settings = Settings {
        host: HostId(2),
        domain: Domain::try_from("d").unwrap(),
        stream: life(1),
        multicast: false,
        void_after: Duration::from_secs(1),
        claims_max: 100,
    };
    let mut gossip = Gossip::new(0, 0, settings, std::iter::empty(), std::iter::empty());
    gossip.member_up(0, &one(1));
    gossip.on_time(0);
    let chunk = wire::encode_chunk(1, 0, 1, std::iter::empty());
    gossip.receive(0, ONE, life(1), false, &chunk);
    gossip
}

fn batch(first: u64, id: u64) -> Vec<u8> {
    let record = Record {
        id: SessionId(id),
        generation: 0,
        closed: false,
    };
    wire::encode_batch(first, 0, false, std::iter::once(record))
}

#[test]
fn message_of_another_life_than_the_members_is_not_applied() {
    let mut gossip = follower();
    gossip.receive(0, ONE, life(1), false, &batch(1, 7));
    assert_eq!(gossip.route(SessionId(7)), Some(ONE));
    for stream in [life(0), life(2)] {
        gossip.receive(0, ONE, stream, false, &batch(2, 8));
    }
    gossip.receive(0, HostId(3), life(1), false, &batch(2, 8));
    gossip.member_up(0, &one(2));
    // What was on its way when the agent restarted.
    gossip.receive(0, ONE, life(1), false, &batch(2, 8));
    assert_eq!(gossip.counters().not_member, 4);
    gossip.member_down(0, ONE, false);
    gossip.receive(0, ONE, life(2), false, &batch(2, 8));
    assert_eq!(gossip.counters().not_member, 5);
    assert_eq!(gossip.route(SessionId(8)), None);
    assert_eq!(
        gossip.route(SessionId(7)),
        Some(ONE),
        "stands until replaced"
    );
}

#[test]
fn hosts_that_do_not_answer_hold_up_nobody() {
    let mut gossip = follower();
    while gossip.poll_outgoing().is_some() {}
    let count = 3 * PULLS_MAX as u16;
    for host in 3..3 + count {
        let member = Member {
            host: HostId(host),
            ..one(1)
        };
        gossip.member_up(0, &member);
    }
    let mut asked = BTreeSet::new();
    let mut now = 0;
    while now < 2 * SECOND {
        gossip.on_time(now);
        while let Some(Outgoing { to, body }) = gossip.poll_outgoing() {
            if let (To::Host(host), Some(Message::Pull(_))) = (to, wire::decode(&body)) {
                asked.insert(host);
            }
        }
        if now == 0 {
            assert_eq!(asked.len(), PULLS_MAX, "so many at once");
        }
        now = gossip.next_time().max(now + 1);
    }
    assert_eq!(asked.len(), usize::from(count));
}

#[test]
fn batch_that_overlaps_is_applied_from_where_the_log_stands() {
    let mut gossip = follower();
    gossip.receive(0, ONE, life(1), false, &batch(1, 7));
    let records = [(7, true), (8, false), (9, false)].map(|(id, closed)| Record {
        id: SessionId(id),
        generation: 0,
        closed,
    });
    let overlapping = wire::encode_batch(1, 0, true, records.into_iter());
    gossip.receive(0, ONE, life(1), false, &overlapping);
    // The first of the three has number 1, which was applied before.
    assert_eq!(gossip.route(SessionId(7)), Some(ONE));
    assert_eq!(gossip.route(SessionId(9)), Some(ONE));
    assert_eq!(gossip.counters().records_applied, 3);
    gossip.receive(0, ONE, life(1), false, &overlapping);
    assert_eq!(gossip.counters().duplicates, 1);
}
