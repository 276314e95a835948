use std::time::Duration;

use super::*;
use crate::{
    gossip::{machine::Settings, wire::bulk::Part},
    pop::{Domain, Fingerprint, Member},
};

pub const ONE: HostId = HostId(1);

pub fn life(generation: u64) -> Stream {
    Stream {
        incarnation: 5,
        generation,
    }
}

pub fn one(generation: u64) -> Member {
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

/// Host 2, which knows nobody.
pub fn alone() -> Gossip {
    let settings = Settings {
        host: HostId(2),
        domain: Domain::try_from("d").unwrap(),
        stream: life(1),
        multicast: false,
        void_after: Duration::from_secs(1),
        claims_max: 100,
        first_bulk: 1,
    };
    Gossip::new(0, 0, settings, std::iter::empty(), std::iter::empty())
}

/// Hears a heartbeat of a host, which says that it has no sessions.
pub fn hear(gossip: &mut Gossip, now: u64, host: HostId, stream: Stream, calls: bool) {
    let heartbeat = Heartbeat {
        hears: false,
        calls,
        next: 1,
        oldest: 1,
        count: 0,
        digest: 0,
    };
    gossip.receive(now, host, stream, false, &heartbeat.encode());
    gossip.on_time(now);
}

/// The only part of a snapshot that holds the effect of the records below `at`.
pub fn part(number: u64, at: u64, claims: &[u8]) -> Vec<u8> {
    let part = Part {
        number,
        snapshot: at,
        index: 0,
        total: 1,
        records: Records::from_bytes(claims),
    };
    part.encode()
}

/// Host 2, which follows host 1 in its first life.
fn follower() -> Gossip {
    let mut gossip = alone();
    gossip.member_up(0, &one(1));
    hear(&mut gossip, 0, ONE, life(1), false);
    let pull = gossip.poll_bulk().unwrap();
    gossip.receive_bulk(0, ONE, life(1), &part(pull.number, 1, &[]));
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
