//! Chosen histories.

use super::*;

#[test]
fn a_session_of_another_host_is_found_in_every_domain_at_once() {
    for multicast in [true, false] {
        let mut pop = Pop::new(1, &[6, 5, 1]);
        pop.multicast = multicast;
        pop.look_around();
        for (n, owner) in [2, 5, 6, 7, 10, 12].into_iter().enumerate() {
            let session = n as u32;
            pop.own(owner, session, [Found::Socket, Found::Cookie][n % 2]);
            let start = pop.now;
            pop.packet(1, session);
            pop.packet(1, session);
            pop.wait(20);
            assert_eq!(pop.ways(1, session), [Way::Reenter; 2], "of host {owner}");
            assert_eq!(pop.host(1).routes[&id(session)], HostId(owner));
            let taken = pop.host(1).returned.last().unwrap().0 - start;
            assert!(taken < 2 * MS, "{taken} µs");
        }
        let counters = pop.host(1).asks.counters;
        assert_eq!(counters.ask_answered, 6);
        assert_eq!(counters.ask_up, 0);
    }
}

#[test]
fn what_nobody_owns_goes_up_when_it_comes_again_and_not_before() {
    let mut pop = Pop::new(2, &[4, 3]);
    pop.packet(1, 1);
    pop.wait(100);
    assert!(pop.ways(1, 1).is_empty(), "the first packet is dropped");
    pop.packet(1, 1);
    pop.wait(99);
    assert!(pop.ways(1, 1).is_empty(), "so is one that comes too soon");
    assert_eq!(pop.host(1).asks.counters.ask_early, 1);
    pop.wait(2);
    pop.packet(1, 1);
    pop.wait(30);
    assert_eq!(pop.ways(1, 1), [Way::Up]);
    // The reset was lost: the next packet is asked about once more, and goes up.
    pop.wait(400);
    pop.packet(1, 1);
    pop.wait(30);
    assert_eq!(pop.ways(1, 1), [Way::Up; 2]);
    let counters = pop.host(1).asks.counters;
    assert_eq!((counters.ask_silent, counters.ask_nobody), (1, 2));
    // Nothing is held for longer than needed.
    assert_eq!(pop.host(1).asks.load(), Load::default());
}

#[test]
fn whoever_closed_it_has_it_reset_at_once_unless_someone_owns_it_anew() {
    let mut pop = Pop::new(3, &[3, 2]);
    pop.own(2, 1, Found::Closed);
    pop.packet(1, 1);
    pop.own(2, 2, Found::Closed);
    pop.own(5, 2, Found::Socket);
    pop.packet(1, 2);
    pop.own(2, 3, Found::Closed);
    pop.own(5, 3, Found::Closing);
    pop.packet(1, 3);
    pop.wait(30);
    assert_eq!(pop.ways(1, 1), [Way::Up]);
    for session in [2, 3] {
        assert_eq!(pop.ways(1, session), [Way::Reenter]);
        assert_eq!(pop.host(1).routes[&id(session)], HostId(5));
    }
    // The last owner's word is enough even if not everyone is heard.
    pop.host(4).dead = true;
    pop.host(5).dead = true;
    pop.own(2, 4, Found::Closed);
    pop.packet(1, 4);
    pop.wait(190);
    assert!(pop.ways(1, 4).is_empty());
    pop.wait(20);
    assert_eq!(pop.ways(1, 4), [Way::Up]);
}

#[test]
fn while_someone_cannot_be_asked_nothing_goes_up() {
    // A host of this domain, the only host of another, all of a domain's relays.
    for silent in [&[3][..], &[4], &[5, 6]] {
        let mut pop = Pop::new(4, &[3, 1, 2]);
        for &host in silent {
            pop.host(host).dead = true;
        }
        for _ in 0..5 {
            pop.packet(1, 1);
            pop.wait(300);
        }
        assert!(pop.ways(1, 1).is_empty(), "{silent:?}");
        // Now it is known to be down; its claims stand, so it may own sessions.
        for &host in silent {
            pop.host(host).down = true;
        }
        pop.look_around();
        for _ in 0..5 {
            pop.packet(1, 1);
            pop.wait(300);
        }
        // Where it is one host, the session is presumed to be there.
        let presumed = match silent {
            [host] => (vec![Way::Reenter], Some(HostId(*host))),
            _ => (Vec::new(), None),
        };
        let route = pop.host(1).routes.remove(&id(1));
        assert_eq!((pop.ways(1, 1), route), presumed, "{silent:?}");
        pop.host(1).returned.clear();
        // Its claims are void: it is as if it did not exist.
        for &host in silent {
            pop.hosts.remove(&HostId(host));
        }
        pop.look_around();
        pop.packet(1, 1);
        pop.wait(300);
        assert_eq!(pop.ways(1, 1), [Way::Up], "{silent:?}");
    }
}

#[test]
fn the_second_relay_stands_in_for_the_first() {
    for dead in 2..=6 {
        let mut pop = Pop::new(5, &[1, 5]);
        pop.host(dead).dead = true;
        let owner = if dead == 2 { 3 } else { 2 };
        pop.own(owner, 1, Found::Socket);
        pop.packet(1, 1);
        pop.wait(120);
        assert_eq!(pop.ways(1, 1), [Way::Reenter], "host {dead} is dead");
    }
}

#[test]
fn a_late_answer_still_makes_a_route() {
    let mut pop = Pop::new(6, &[2]);
    pop.faults.delay_max = 1;
    pop.packet(1, 1);
    // Nobody owns it yet; the answer is that of a host that has just accepted.
    pop.wait(20);
    pop.own(2, 1, Found::Socket);
    let answer = Report {
        base: 0,
        heard: 0,
        answers: vec![Answer {
            id: id(1),
            host: HostId(2),
            standing: wire::Standing::Open,
            generation: 3,
        }],
    };
    pop.fly(HostId(2), HostId(1), &answer.encode());
    pop.wait(1);
    assert_eq!(pop.host(1).routes[&id(1)], HostId(2));
    assert_eq!(pop.host(1).asks.counters.ask_late, 1);
    // An answer that nobody asked for makes none.
    let mut unasked = answer;
    unasked.answers[0].id = id(2);
    pop.fly(HostId(2), HostId(1), &unasked.encode());
    pop.wait(1);
    assert!(!pop.host(1).routes.contains_key(&id(2)));
}

#[test]
fn a_route_that_the_table_has_no_room_for_makes_no_loop() {
    let mut pop = Pop::new(7, &[2]);
    pop.own(2, 1, Found::Socket);
    pop.host(1).full = true;
    pop.packet(1, 1);
    pop.wait(10);
    assert_eq!(pop.ways(1, 1), [Way::Reenter]);
    // It comes back at once, and others after it.
    for _ in 0..5 {
        pop.packet(1, 1);
        pop.wait(10);
    }
    assert_eq!(pop.ways(1, 1), [Way::Reenter]);
    assert_eq!(pop.host(1).asks.counters.ask_unrouted, 5);
    pop.wait(1_000);
    pop.packet(1, 1);
    assert_eq!(pop.ways(1, 1), [Way::Reenter; 2]);
}

#[test]
fn a_packet_too_long_to_be_held_still_brings_a_route() {
    let mut pop = Pop::new(11, &[2]);
    pop.own(2, 1, Found::Socket);
    let (now, empty) = (
        pop.now,
        Frame {
            bytes: Vec::new(),
            ..frame(1)
        },
    );
    pop.host(1).asks.parked(now, now, question(1), empty, false);
    pop.settle(HostId(1));
    pop.wait(10);
    assert_eq!(pop.host(1).routes[&id(1)], HostId(2));
    assert!(pop.host(1).returned.is_empty());
}

#[test]
fn a_lone_host_answers_itself() {
    let mut pop = Pop::new(8, &[1]);
    pop.packet(1, 1);
    assert_eq!(pop.ways(1, 1), [Way::Up]);
    assert_eq!(pop.host(1).sent, 0);
}

#[test]
fn nobody_is_alone_before_it_has_looked_around() {
    let mut pop = Pop::new(8, &[1]);
    let settings = pop.host(1).asks.settings;
    pop.host(1).asks = Asks::new(settings);
    // The second is sent again, and late enough to be believed if everyone were heard.
    for _ in 0..2 {
        pop.packet(1, 1);
        pop.wait(300);
    }
    assert!(pop.ways(1, 1).is_empty());
    pop.look_around();
    pop.packet(1, 1);
    assert_eq!(pop.ways(1, 1), [Way::Up]);
}

#[test]
fn a_claim_by_gossip_releases_what_is_held() {
    let mut pop = Pop::new(9, &[3]);
    pop.faults.delay_max = 100 * MS;
    for _ in 0..3 {
        pop.packet(1, 1);
    }
    pop.host(1).asks.known(id(1));
    pop.settle(HostId(1));
    assert_eq!(pop.ways(1, 1), [Way::Reenter; 3]);
}

#[test]
fn a_flood_is_bounded_in_memory_and_on_the_wire_and_known_sessions_are_found() {
    for domains in [&[8][..], &[4, 3, 3, 3]] {
        let mut pop = Pop::new(10, domains);
        let (mut session, start) = (0, pop.now);
        let mut most = Load::default();
        // 20,000 packets of new sessions in a second, for two.
        while pop.now < start + 2_000_000 {
            for _ in 0..20 {
                session += 1;
                pop.packet(1, session);
            }
            let load = pop.host(1).asks.load();
            most.frames = most.frames.max(load.frames);
            most.asks = most.asks.max(load.asks);
            pop.wait(1);
        }
        assert!(most.frames <= 8192, "{most:?}");
        assert!(most.asks <= 1000, "{most:?}");
        let counters = pop.host(1).asks.counters;
        assert_eq!(counters.ask_parked, 40_000);
        assert_eq!(counters.ask_up, 0);
        assert!(
            counters.ask_datagrams <= 2 * 2_000 + 200 + 10,
            "{counters:?}"
        );
        for other in 2..=8 {
            let asks = &pop.hosts[&HostId(other)];
            // An answer to each ask at most, a report each 10 ms, and what a relay
            // sends on behalf of the asker.
            assert!(
                asks.sent <= 2 * (2_000 + 2_000 + 100) + 200,
                "{}",
                asks.sent
            );
        }
        // A session that somebody owns is found in the midst of it, or when it is
        // sent again.
        pop.own(3, 5_000_000, Found::Socket);
        for _ in 0..20 {
            for _ in 0..400 {
                session += 1;
                pop.packet(1, session);
            }
            pop.packet(1, 5_000_000);
            pop.wait(20);
        }
        assert_eq!(pop.host(1).routes.get(&id(5_000_000)), Some(&HostId(3)));
        assert!(!pop.ways(1, 5_000_000).contains(&Way::Up));
    }
}

#[test]
fn what_waits_to_be_given_back_is_bounded() {
    let mut pop = Pop::new(12, &[2]);
    let long = Frame {
        bytes: vec![1; 1_500],
        ..frame(1)
    };
    let asks = &mut pop.host(1).asks;
    // Their owner is known, but while routes are put in force none is given back.
    for n in 0..20_000 {
        asks.parked(0, 0, question(n), frame(n), true);
    }
    assert_eq!(
        (asks.counters.ask_known, asks.counters.ask_returned),
        (20_000, 8_192)
    );
    assert_eq!(asks.counters.ask_no_room, 20_000 - 8_192);
    let mut given = 0;
    while asks.poll_release(1).is_some() {
        given += 1;
    }
    assert_eq!(given, 8_192);
    // Nor more than so many bytes.
    for n in 0..8_000 {
        asks.parked(2, 2, question(30_000 + n), long.clone(), true);
    }
    assert_eq!(asks.counters.ask_returned, 8_192 + (8 << 20) / 1_500);
}

#[test]
fn reports_are_limited_whoever_asks() {
    let mut pop = Pop::new(13, &[120]);
    pop.own(1, 1, Found::Socket);
    let ask = Ask {
        key: 1,
        number: 5,
        pass_on: false,
        questions: vec![question(1)],
    };
    // What is found is reported at once, to each that asks.
    let start = pop.now;
    while pop.now < start + 1_000_000 {
        for asker in 2..=120 {
            pop.fly(HostId(asker), HostId(1), &ask.encode());
        }
        pop.wait(5);
    }
    let counters = pop.host(1).asks.counters;
    assert_eq!(counters.asked_limited, 0);
    assert!(
        (10_000..=11_100).contains(&counters.reports_sent),
        "{counters:?}"
    );
    assert_eq!(
        counters.reports_sent + counters.reports_limited,
        counters.asked_found
    );
}

#[test]
fn others_tell_of_sessions_whose_host_cannot_be_asked() {
    // Of host 2, in this domain, tell one in it and one in another; so of host 4.
    for (down, tells) in [(2, 3), (2, 5), (4, 3), (4, 6)] {
        let mut pop = Pop::new(8, &[3, 3]);
        pop.host(down).down = true;
        pop.look_around();
        for session in 1..=3 {
            pop.host(tells).heard.insert(id(session), HostId(down));
        }
        // One of these has another host now, one had it until a moment ago.
        let other = if tells == 3 { 5 } else { 3 };
        pop.own(other, 2, Found::Socket);
        pop.own(other, 3, Found::Closed);
        for session in 1..=4 {
            pop.packet(1, session);
        }
        pop.wait(250);
        for (session, owner) in [(1, down), (2, other), (3, down)] {
            let why = format!("session {session}, host {down} by host {tells}");
            assert_eq!(pop.ways(1, session), [Way::Reenter], "{why}");
            assert_eq!(pop.host(1).routes[&id(session)], HostId(owner), "{why}");
        }
        assert!(pop.ways(1, 4).is_empty(), "nobody has heard of it");
        pop.packet(1, 4);
        pop.wait(250);
        assert_eq!(pop.host(1).routes[&id(4)], HostId(down), "who else?");
        assert_eq!(pop.host(1).asks.counters.ask_told, 2);
    }
}

/// Gives a host another key of session ids, as if it had the public id `key`; and, while
/// it changes, one more.
fn rekey(pop: &mut Pop, host: u16, key: u8, other: u8) {
    let session = |key: u8| SessionKey([key.into(), 7]);
    let settings = &mut pop.host(host).asks.settings;
    settings.keys = SessionKeys {
        key: session(key),
        other: (other != key).then(|| session(other)),
    };
    settings.key_ids = [key, other];
}

#[test]
fn hosts_on_the_way_to_another_session_key_find_each_others_sessions() {
    // Hosts 1 to 3 here, 4 to 6 in another domain, behind relays: each either at the
    // first step, at which sessions are looked up by the old key, or at the second.
    for asker in [(1, 2), (2, 1)] {
        let mut pop = Pop::new(9, &[3, 3]);
        rekey(&mut pop, 1, asker.0, asker.1);
        for (host, (key, other)) in (2..).zip([(1, 2), (2, 1), (2, 1), (1, 2), (2, 1)]) {
            rekey(&mut pop, host, key, other);
        }
        for (session, owner) in (1..).zip([2, 3, 4, 5, 6]) {
            pop.own(owner, session, Found::Socket);
            pop.packet(1, session);
        }
        pop.own(6, 6, Found::Closed);
        pop.packet(1, 6);
        pop.wait(50);
        for (session, owner) in (1..).zip([2, 3, 4, 5, 6]) {
            assert_eq!(pop.ways(1, session), [Way::Reenter], "of host {owner}");
            let id = pop.host(1).asks.id_of(&question(session).tuple);
            assert_eq!(pop.host(1).routes[&id], HostId(owner));
        }
        assert_eq!(
            pop.ways(1, 6),
            [Way::Up],
            "its last owner says that it closed"
        );
    }
}

#[test]
fn whoever_lacks_the_askers_session_key_stays_silent_and_nothing_goes_up() {
    let mut pop = Pop::new(9, &[2, 2]);
    rekey(&mut pop, 3, 2, 2);
    pop.own(3, 1, Found::Socket);
    for _ in 0..4 {
        pop.packet(1, 1);
        pop.wait(300);
    }
    assert!(pop.ways(1, 1).is_empty());
    let (asked, passed_on) = (pop.host(3).asks.counters, pop.host(4).asks.counters);
    assert!(asked.asked_other_key > 0 || passed_on.asked_passed_on > 0);
}
