//! Carriers break, hosts end and begin again: what is said of messages is true.

use std::time::Duration;

use homing_agent::mux::{Fate, GOSSIP, MIGRATION, NotSent, Peer};
use homing_common::host::HostId;
use homing_tests::wire::Fault;

use super::{Host, address, eventually, life, members, message, run, until_alone, wire_to_two};

#[test]
fn fates_are_true_wherever_a_carrier_is_cut() {
    run(|| async {
        let [one, mut two] = [1, 2].map(|host| {
            Host::with(host, |options| {
                // One carrier for each message: nothing else is to be cut.
                options.limits.idle_after = Duration::ZERO;
            })
        });
        let wire = wire_to_two(&one).await;
        let body = message(0, 300);
        let fate = one.send(&two, GOSSIP, body.clone()).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        two.next(GOSSIP).await;
        until_alone([&one, &two]).await;
        let whole = wire.said()[0].len();
        let mut unknown = 0;
        for at in 1..=whole {
            until_alone([&one, &two]).await;
            wire.suffer(&[Fault::CutAfter(at)]);
            let body = message(at, 300);
            let received = two.counters().messages_received;
            let fate = one.send(&two, GOSSIP, body.clone()).await;
            // The next one takes another carrier, and is not harmed.
            until_alone([&one, &two]).await;
            wire.suffer(&[]);
            let last = one.send(&two, GOSSIP, message(0, 1)).await;
            assert_eq!(last, Fate::Delivered(life(1)), "cut at {at}");
            let came = two.counters().messages_received - received;
            let mut bodies = Vec::new();
            for _ in 0..came {
                bodies.push(two.next(GOSSIP).await.body);
            }
            let came = bodies.contains(&body);
            assert!(
                came || bodies.len() == 1,
                "cut at {at}: half a message came"
            );
            match fate {
                Fate::Delivered(_) => assert!(came, "cut at {at}: delivered, but it did not come"),
                Fate::Unknown(_) => unknown += 1,
                Fate::NotSent(why) => panic!("cut at {at}: {why}"),
            }
        }
        assert!(unknown > 300, "only {unknown} cuts were within the message");
    });
}

#[test]
fn a_peer_that_ends_in_the_middle_of_a_message_leaves_its_fate_unknown() {
    run(|| async {
        let [one, two] = [1, 2].map(Host::start);
        let wire = wire_to_two(&one).await;
        wire.suffer(&[Fault::SwallowAfter(1 << 20)]);
        let told = one.queue(2, MIGRATION, message(0, 8 << 20)).await;
        eventually("it is on its way", || {
            wire.said().first().is_some_and(|said| said.len() > 1 << 20)
        })
        .await;
        two.carriers.stop().await;
        drop(two);
        // It comes back, in a new life. What waited meanwhile reaches that one.
        let waiting = one.queue(2, MIGRATION, message(1, 100)).await;
        let mut two = Host::with(2, |options| options.stream = life(2));
        let mut peers = members(&[1, 3]);
        let (address, stream) = (address(2), life(2));
        peers.insert(HostId(2), Peer { address, stream });
        one.carriers.set_peers(&peers);
        assert!(matches!(told.told().await, Fate::Unknown(_)));
        assert_eq!(waiting.told().await, Fate::Delivered(life(2)));
        assert_eq!(two.next(MIGRATION).await.body, message(1, 100));
        assert_eq!(one.counters().messages_unknown, 1);
    });
}

#[test]
fn a_new_life_ends_the_carriers_of_the_one_before() {
    run(|| async {
        let [one, two] = [1, 2].map(Host::start);
        for (from, to) in [(&one, &two), (&two, &one)] {
            let fate = from.send(to, GOSSIP, message(0, 10)).await;
            assert_eq!(fate, Fate::Delivered(life(1)));
        }
        // Host 1 hears of a new life of host 2, while the old one still answers.
        let mut peers = members(&[1, 2, 3]);
        let (address, stream) = (address(2), life(2));
        peers.insert(HostId(2), Peer { address, stream });
        one.carriers.set_peers(&peers);
        one.until("both are closed", |counters| counters.closed_life == 2)
            .await;
        let told = one.queue(2, GOSSIP, message(1, 10)).await;
        one.until("it is not opened again", |counters| {
            counters.open_failures > 0
        })
        .await;
        let status = one.carriers.status();
        let problem = status.peers[0].lines[0].problem.clone().unwrap();
        assert!(problem.contains("earlier life"), "{problem}");
        let back = two.queue(1, GOSSIP, message(2, 10)).await;
        one.until("nor accepted", |counters| counters.refused_stale > 0)
            .await;
        assert_eq!(two.counters().messages_received, 1);
        // The life that was announced comes: what waited goes to it.
        two.carriers.stop().await;
        assert_eq!(back.told().await, Fate::NotSent(NotSent::Stopped));
        let two = Host::with(2, |options| options.stream = life(2));
        assert_eq!(told.told().await, Fate::Delivered(life(2)));
        let fate = two.send(&one, GOSSIP, message(3, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
    });
}

#[test]
fn a_host_that_says_it_began_anew_needs_no_word_of_membership() {
    run(|| async {
        let [one, two] = [1, 2].map(Host::start);
        let fate = one.send(&two, GOSSIP, message(0, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        two.carriers.stop().await;
        one.until("it has ended", |counters| counters.broken == 1)
            .await;
        let two = Host::with(2, |options| options.stream = life(5));
        let fate = one.send(&two, GOSSIP, message(1, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(5)));
        assert_eq!(one.carriers.status().peers[0].stream, life(5));
        // What membership says later than the host itself changes nothing.
        one.carriers.set_peers(&members(&[1, 2, 3]));
        assert_eq!(one.carriers.status().peers[0].stream, life(5));
    });
}

#[test]
fn who_is_no_member_any_more_is_sent_nothing() {
    run(|| async {
        let [one, two] = [1, 2].map(Host::start);
        let wire = wire_to_two(&one).await;
        wire.suffer(&[Fault::SwallowAfter(2000)]);
        let begun = one.queue(2, GOSSIP, message(0, 50_000)).await;
        eventually("it is on its way", || {
            wire.said().first().is_some_and(|said| said.len() > 2000)
        })
        .await;
        let waits = one.queue(3, GOSSIP, message(1, 10)).await;
        one.carriers.set_peers(&members(&[1]));
        let gone = NotSent::NoMember(HostId(3));
        assert_eq!(waits.told().await, Fate::NotSent(gone));
        assert!(matches!(begun.told().await, Fate::Unknown(_)));
        let fate = one.send(&two, GOSSIP, message(1, 10)).await;
        assert_eq!(fate, Fate::NotSent(NotSent::NoMember(HostId(2))));
        let fate = two.carriers.try_queue(HostId(1), GOSSIP, message(1, 10));
        let fate = fate.unwrap();
        one.until("it is a stranger", |counters| {
            counters.refused_strangers > 0
        })
        .await;
        drop(fate);
        assert_eq!(one.counters().messages_received, 0);
    });
}

#[test]
fn a_dead_wire_is_seen_on_both_sides_and_what_was_not_sent_takes_another() {
    run(|| async {
        let [one, mut two] = [1, 2].map(|host| {
            Host::with(host, |options| {
                options.limits.dead_after = Duration::from_secs(1);
            })
        });
        let wire = wire_to_two(&one).await;
        // How far the handshake goes, is seen on another channel.
        let fate = one.send(&two, GOSSIP, message(0, 0)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        let begun = wire.said()[0].len();
        wire.suffer(&[Fault::SwallowAfter(begun)]);
        // A message goes through that is as long as that; then the wire is dead.
        let fate = one.send(&two, MIGRATION, message(1, 0)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        two.next(MIGRATION).await;
        let told = one.queue(2, MIGRATION, message(2, 100_000)).await;
        one.until("it is seen here", |counters| counters.silent == 1)
            .await;
        two.until("and there", |counters| counters.silent == 1)
            .await;
        // Only the offer was sent, so the message took a new carrier.
        assert_eq!(told.told().await, Fate::Delivered(life(1)));
        assert_eq!(two.next(MIGRATION).await.body, message(2, 100_000));
        assert_eq!(one.counters().messages_unknown, 0);
    });
}

#[test]
fn a_host_that_cannot_be_reached_is_given_up_and_the_reason_is_told() {
    run(|| async {
        let one = Host::with(1, |options| {
            options.limits.give_up_after = Duration::from_millis(50);
        });
        let sent = one.carriers.send(HostId(2), GOSSIP, message(0, 10)).await;
        let Fate::NotSent(NotSent::Unreachable { host, why }) = sent else {
            panic!("{sent:?}");
        };
        assert_eq!(host, HostId(2));
        assert!(why.contains("cannot connect to 127.0.0.2:7946"), "{why}");
        // It comes up: the next message arrives.
        let two = Host::start(2);
        let fate = one.send(&two, GOSSIP, message(1, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
    });
}
