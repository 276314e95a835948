//! Messages flow, whole and bounded.

use std::time::Duration;

use bytes::Bytes;
use homing_agent::mux::{Fate, GOSSIP, Limits, MIGRATION, NotSent, SHORT_MAX, outgoing::cost};
use homing_common::host::HostId;
use homing_tests::wire::Fault;

use super::{Host, collect, eventually, life, limits, message, run, wire_to_two};

#[test]
fn messages_of_every_length_arrive_whole_and_their_fate_is_told() {
    run(|| async {
        let hosts = [1, 2, 3].map(Host::start);
        let [one, mut two, three] = hosts;
        let unasked = SHORT_MAX;
        for (channel, from) in [(GOSSIP, &one), (MIGRATION, &three)] {
            let lens = [0, 1, unasked, unasked + 1, channel.message_max];
            for (number, len) in lens.into_iter().enumerate() {
                let body = message(number, len);
                let fate = from.send(&two, channel, body.clone()).await;
                assert_eq!(fate, Fate::Delivered(life(1)), "{len} bytes");
                let received = two.next(channel).await;
                assert_eq!((received.host, received.stream), (from.id, life(1)));
                assert!(received.body == body, "{len} bytes");
            }
            let max = channel.message_max;
            let fate = from.send(&two, channel, message(0, max + 1)).await;
            let too_long = NotSent::TooLong { len: max + 1, max };
            assert_eq!(fate, Fate::NotSent(too_long));
            // Nothing else suffers from it.
            let fate = from.send(&two, channel, Bytes::new()).await;
            assert_eq!(fate, Fate::Delivered(life(1)));
        }
        let nobody = one.carriers.send(HostId(4), GOSSIP, Bytes::new()).await;
        assert_eq!(nobody, Fate::NotSent(NotSent::NoMember(HostId(4))));
    });
}

#[test]
fn messages_of_many_senders_over_many_carriers_arrive_once_each() {
    run(|| async {
        let [one, two, mut three] = [1, 2, 3].map(Host::start);
        const SENDERS: usize = 16;
        const EACH: usize = 40;
        let mut senders = Vec::new();
        for sender in 0..SENDERS {
            let carriers = [&one, &two][sender % 2].carriers.clone();
            senders.push(tokio::spawn(async move {
                for number in 0..EACH {
                    let number = sender * EACH + number;
                    let len = [10, 3_000, 100_000][number % 3] + number;
                    let fate = carriers.send(HostId(3), GOSSIP, message(number, len)).await;
                    assert_eq!(fate, Fate::Delivered(life(1)));
                }
            }));
        }
        let received = collect(&mut three, GOSSIP, SENDERS * EACH).await;
        for number in 0..SENDERS * EACH {
            let len = [10, 3_000, 100_000][number % 3] + number;
            assert!(received.contains(&message(number, len)));
        }
        for sender in senders {
            sender.await.unwrap();
        }
        let [status, _] = [&one, &two].map(|host| host.carriers.status());
        assert_eq!(status.queued_bytes, 0);
        let most = limits().carriers_per_peer.most() as u64;
        assert!((1..=most).contains(&status.counters.opened));
    });
}

#[test]
fn a_slow_reader_costs_bounded_memory_and_delays_nobody_else() {
    const LEN: usize = 10_000;
    const ROOM: usize = 1 << 20;
    run(|| async {
        let narrow = Limits {
            queued_per_peer: ROOM,
            received_per_peer: ROOM,
            ..limits()
        };
        let narrow = |host| Host::with(host, |options| options.limits = narrow.clone());
        let [one, mut two, mut three] = [1, 2, 3].map(narrow);
        // Host 2 does not read what belongs to moves.
        let carriers = one.carriers.clone();
        const MESSAGES: usize = 500;
        let sending = tokio::spawn(async move {
            let mut fates = Vec::new();
            for number in 0..MESSAGES {
                let told = carriers.queue(HostId(2), MIGRATION, message(number, LEN));
                fates.push(told.await.unwrap());
            }
            for fate in fates {
                assert_eq!(fate.told().await, Fate::Delivered(life(1)));
            }
        });
        let full = || {
            let refused = one
                .carriers
                .try_queue(HostId(2), MIGRATION, message(0, LEN));
            matches!(refused, Err(NotSent::Full(HostId(2))))
        };
        two.until("its room is used up", |counters| counters.stalls > 0)
            .await;
        eventually("the sender has to wait", full).await;
        let fits = (ROOM / cost(LEN)) as u64;
        two.until("it has what it has room for", |counters| {
            counters.messages_received == fits
        })
        .await;
        let queued = one.carriers.status().queued_bytes;
        assert!((ROOM - cost(LEN)..=ROOM).contains(&queued), "{queued}");
        assert!(!sending.is_finished());
        // Others are not delayed: another channel, another host, another sender.
        for (from, to, channel) in [
            (&one, HostId(2), GOSSIP),
            (&one, HostId(3), MIGRATION),
            (&three, HostId(2), MIGRATION),
        ] {
            let fate = from.carriers.send(to, channel, message(1, LEN)).await;
            assert_eq!(fate, Fate::Delivered(life(1)));
        }
        assert_eq!(three.next(MIGRATION).await.host, one.id);
        // What was refused above after all found room may be among them.
        let mut numbers = 0;
        while numbers < MESSAGES {
            let received = two.next(MIGRATION).await;
            numbers += usize::from(received.host == one.id);
        }
        sending.await.unwrap();
        assert_eq!(one.counters().broken + one.counters().silent, 0);
    });
}

#[test]
fn an_idle_carrier_is_closed_and_opened_again_when_there_is_a_message() {
    run(|| async {
        let brief = |host| {
            Host::with(host, |options| {
                options.limits.idle_after = Duration::from_millis(20);
            })
        };
        let [one, two] = [1, 2].map(brief);
        for times in 1..=3 {
            let fate = one.send(&two, MIGRATION, message(0, 10)).await;
            assert_eq!(fate, Fate::Delivered(life(1)));
            one.until("it is closed", |counters| counters.closed_idle == times)
                .await;
            two.until("so it is there", |counters| counters.closed_idle == times)
                .await;
            two.until_alone().await;
        }
        assert_eq!(one.counters().opened, 3);
        assert_eq!(one.counters().messages_unknown, 0);
    });
}

#[test]
fn a_message_that_is_offered_waits_for_room() {
    run(|| async {
        let one = Host::start(1);
        let mut two = Host::with(2, |options| options.limits.received_per_peer = 1 << 20);
        let first = one.queue(2, MIGRATION, message(0, 900_000)).await;
        assert_eq!(first.told().await, Fate::Delivered(life(1)));
        let held = two.next(MIGRATION).await;
        // There is no room for another one of these until the first is dropped.
        let second = one.queue(2, MIGRATION, message(1, 900_000)).await;
        two.until("it is offered", |counters| counters.stalls == 1)
            .await;
        drop(held);
        assert_eq!(second.told().await, Fate::Delivered(life(1)));
        assert_eq!(two.next(MIGRATION).await.body, message(1, 900_000));
        assert_eq!(one.counters().opened, 1);
    });
}

#[test]
fn a_huge_message_that_is_stuck_delays_no_small_one() {
    run(|| async {
        let [one, mut two] = [1, 2].map(Host::start);
        let wire = wire_to_two(&one).await;
        wire.suffer(&[Fault::SwallowAfter(100_000)]);
        let huge = one.queue(2, MIGRATION, message(0, 1_000_000)).await;
        two.until("it is on its way", |counters| counters.accepted == 1)
            .await;
        for number in 1..=10 {
            let fate = one.send(&two, MIGRATION, message(number, 100)).await;
            assert_eq!(fate, Fate::Delivered(life(1)));
            assert_eq!(two.next(MIGRATION).await.body, message(number, 100));
        }
        let counters = one.counters();
        assert_eq!((counters.opened, counters.silent), (2, 0), "it is stuck");
        drop(huge);
    });
}
