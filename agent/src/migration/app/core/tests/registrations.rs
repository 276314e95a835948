//! Who registers, what is told, and what is wrong.

use super::*;

#[test]
fn an_application_that_reads_nothing_is_asked_for_no_more() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    let mut asked = 0;
    // It answers, which it need not read for, and reads nothing.
    while bench.core.export(asked, session(1, 1), bench.now).is_ok() {
        let number = asked;
        bench.say(app, Message::Exported { number });
        bench.core.committed(number).expect("pending");
        asked += 1;
        assert!(asked < 100);
    }
    let now = bench.now;
    assert_eq!(
        bench.core.export(asked, session(1, 1), now),
        Err(Failure::TooMany)
    );
    bench.sent(app);
    bench
        .core
        .export(asked, session(1, 1), now)
        .expect("it has read");
}

#[test]
fn registrations_that_cannot_be_are_refused() {
    let mut bench = Bench::new();
    let first = bench.ready(&[1]);
    for (ports, why) in [
        (&[1][..], Closing::Taken),
        (&[2, 1], Closing::Taken),
        (&[2, 2], Closing::Taken),
        (&[2, 7], Closing::NotAService),
        (&[9], Closing::NotAService),
        (&[2, 3, 4], Closing::TooMany),
    ] {
        let app = bench.connect();
        bench.register(app, ports);
        assert_eq!(bench.closed(app), why, "{ports:?}");
    }
    assert!(bench.core.registered(&service(2)).is_none());
    let second = bench.ready(&[2, 3]);
    assert_eq!(bench.core.status().len(), 2);
    bench.connect();
    let fourth = bench.core.connected(Peer::default(), bench.now);
    assert_eq!(fourth, Err(Closing::TooMany));
    bench.core.gone(first);
    bench.core.gone(second);
    bench.ready(&[1, 2]);
}

#[test]
fn other_limits_and_services_count_for_who_registers_from_then_on() {
    let mut bench = Bench::new();
    let before = bench.ready(&[1]);
    let lower = Limits {
        blob: limits().blob / 2,
        moves: 1,
        ..limits()
    };
    bench.core.set([service(2), service(3)], lower);
    // One that is registered keeps to what it was told, and its service.
    let longest = vec![7; limits().blob as usize];
    bench.exported(before, 1, session(1, 1), &longest);
    bench
        .core
        .resume(1, Some(Blob::from(longest)))
        .expect("pending");
    let told = bench.sent(before);
    assert_eq!(told.last(), Some(&resume(1, true)));
    // Another is told of the new ones.
    let app = bench.connect();
    bench.register(app, &[2]);
    let registered = Message::Registered {
        blob_max: lower.blob,
        moves_max: 1,
    };
    assert_eq!(bench.sent(app), [registered.encode()]);
    bench.say(app, Message::Ready);
    bench.core.take_outputs();
    let now = bench.now;
    bench.core.export(2, session(1, 2), now).expect("asked");
    let many = bench.core.export(3, session(2, 2), now);
    assert_eq!(many, Err(Failure::TooMany));
    bench.state(app, 2, lower.blob + 1, 0, &[7]);
    assert_eq!(bench.closed(app), Closing::TooLarge);
    let app = bench.connect();
    bench.register(app, &[4]);
    assert_eq!(bench.closed(app), Closing::NotAService);
}

#[test]
fn who_does_not_register_in_time_is_closed() {
    let mut bench = Bench::new();
    let (silent, half, ready) = (bench.connect(), bench.connect(), bench.ready(&[2]));
    bench.wait(4 * SECOND);
    bench.register(half, &[1]);
    bench.outputs();
    bench.wait(SECOND);
    assert_eq!(bench.closed(silent), Closing::Slow);
    bench.wait(4 * SECOND);
    assert_eq!(bench.closed(half), Closing::Slow);
    bench.wait(100 * SECOND);
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.core.status()[0].app, ready);
}

#[test]
fn what_is_wrong_closes_the_connection_and_is_counted() {
    let number = 1;
    let wrong: [(&[u8], Option<u32>, Closing); 9] = [
        (b"garbage", None, Closing::Version),
        (&[1, 2, 3], None, Closing::Malformed),
        (&Message::Ready.encode(), None, Closing::Unexpected),
        (&Message::Ready.encode(), Some(7), Closing::Malformed),
        (
            &Message::Committed { number }.encode(),
            None,
            Closing::Unexpected,
        ),
        (
            &Message::Exported { number }.encode(),
            None,
            Closing::Malformed,
        ),
        (
            &Message::Exported { number }.encode(),
            Some(7),
            Closing::Unexpected,
        ),
        (
            &Message::Kept { number: 2 }.encode(),
            None,
            Closing::Unexpected,
        ),
        (&[9; 50], None, Closing::Version),
    ];
    for (datagram, descriptor, why) in wrong {
        let mut bench = Bench::new();
        let app = bench.ready(&[1]);
        bench.imported(app, number, session(1, 1));
        bench.core.received(app, datagram, descriptor, bench.now);
        assert_eq!(bench.closed(app), why, "{datagram:?}");
        let closed: u64 = bench
            .core
            .counters()
            .iter()
            .filter(|(name, ..)| name.starts_with("closed_"))
            .map(|(.., count)| count)
            .sum();
        assert_eq!(closed, 1);
        bench.assert_empty();
    }
}

#[test]
fn nobody_answers_for_another_application() {
    let mut bench = Bench::new();
    let (app, other) = (bench.ready(&[1]), bench.ready(&[2]));
    bench
        .core
        .export(1, session(1, 1), bench.now)
        .expect("asked");
    bench.sent(app);
    bench.say(other, Message::Exported { number: 1 });
    assert_eq!(bench.closed(other), Closing::Unexpected);
    bench.say(app, Message::Exported { number: 1 });
    assert!(matches!(bench.outputs()[..], [Output::Answer(1, Ok(_))]));
}

#[test]
fn what_is_pending_is_told_before_anything_is_asked_and_can_be_settled() {
    let mut bench = Bench::new();
    let app = bench.connect();
    bench.register(app, &[1]);
    for (number, pending) in [
        (1, Pending::Export),
        (2, Pending::Import),
        (3, Pending::Kept),
    ] {
        let session = session(number as u16, 1);
        let message = Message::Pending {
            number,
            pending,
            connection: connection(&session),
        };
        bench.say(app, message);
        let left = Left {
            number,
            session,
            pending,
        };
        let descriptor = 7;
        let event = Event::Pending {
            app,
            left,
            descriptor,
        };
        assert_eq!(bench.outputs(), [Output::Event(app, event)]);
    }
    let now = bench.now;
    assert!(bench.core.registered(&service(1)).is_none());
    assert_eq!(
        bench.core.export(9, session(9, 1), now),
        Err(Failure::NotRegistered)
    );
    bench.sent(app);
    bench.core.resume(1, None).expect("pending");
    bench.core.drop_import(2).expect("pending");
    bench.say(app, Message::Ready);
    assert!(matches!(
        bench.outputs()[..],
        [Output::Event(_, Event::Registered { .. })]
    ));
    bench.core.adopt(3, now).expect("it was kept");
    let settled = [
        resume(1, false),
        Message::Drop { number: 2 }.encode(),
        Message::Adopt { number: 3 }.encode(),
    ];
    assert_eq!(bench.sent(app), settled);
    bench.say(app, Message::Adopted { number: 3 });
    bench.assert_empty();
}

#[test]
fn a_pending_move_that_cannot_be_closes_the_connection() {
    let pending = |number, session: Tuple| Message::Pending {
        number,
        pending: Pending::Export,
        connection: connection(&session),
    };
    for (second, why) in [
        (pending(1, session(2, 1)), Closing::Unexpected),
        (pending(2, session(1, 1)), Closing::Unexpected),
        (pending(2, session(2, 2)), Closing::NotAService),
    ] {
        let mut bench = Bench::new();
        let app = bench.connect();
        bench.register(app, &[1]);
        bench.say(app, pending(1, session(1, 1)));
        bench.say(app, second);
        assert_eq!(bench.closed(app), why);
        bench.assert_empty();
    }
}

#[test]
fn a_stop_tells_everybody() {
    let mut bench = Bench::new();
    let (first, second) = (bench.ready(&[1]), bench.ready(&[2]));
    bench.core.close_all();
    let closed: Vec<_> = bench
        .outputs()
        .into_iter()
        .filter_map(|output| match output {
            Output::Close(app, Closing::Stopping, _) => Some(app),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [first, second]);
}
