//! Exports and imports, and what ends them.

use homing_client::wire::PART_MAX;

use super::*;

#[test]
fn an_export_ends_with_committed_or_with_resume_and_the_state_back() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    assert!(bench.core.registered(&service(1)).is_some());
    let (number, session) = (11, session(1000, 1));
    bench
        .core
        .export(number, session, bench.now)
        .expect("asked");
    let export = Message::Export {
        number,
        within_ms: 1000,
        connection: connection(&session),
    };
    assert_eq!(bench.sent(app), [export.encode()]);
    bench.state(app, number, 5, 0, b"abc");
    bench.state(app, number, 5, 3, b"de");
    assert_eq!(bench.core.held_bytes(), 5);
    bench.say(app, Message::Exported { number });
    let state = Blob::from(b"abcde".to_vec());
    let answer = Answer::Exported {
        descriptor: 7,
        state: state.clone(),
        session,
    };
    assert_eq!(bench.outputs(), [Output::Answer(number, Ok(answer))]);
    bench.core.resume(number, Some(state)).expect("pending");
    let part = Message::State {
        number,
        total: 5,
        offset: 0,
        part: b"abcde",
    };
    assert_eq!(bench.core.held_bytes(), 5, "until it is sent");
    assert_eq!(bench.sent(app), [part.encode(), resume(number, true)]);
    bench.assert_empty();

    bench.exported(app, 12, session, b"x");
    assert_eq!(bench.core.resume(13, None), Err(Failure::NotPending));
    bench.core.committed(12).expect("pending");
    assert_eq!(
        bench.sent(app),
        [Message::Committed { number: 12 }.encode()]
    );
    assert_eq!(bench.core.committed(12), Err(Failure::NotPending), "twice");
    bench.assert_empty();
}

#[test]
fn an_import_goes_step_by_step() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    let (number, session) = (11, session(1000, 1));
    assert_eq!(
        bench.core.adopt(number, bench.now),
        Err(Failure::NotPending)
    );
    bench.imported(app, number, session);
    let early = bench.core.adopt(number, bench.now);
    assert_eq!(early, Err(Failure::NotPending), "it has no state");
    bench
        .core
        .give(number, Blob::default(), bench.now)
        .expect("given");
    let part = Message::State {
        number,
        total: 0,
        offset: 0,
        part: &[],
    };
    assert_eq!(bench.sent(app), [part.encode()]);
    let early = bench.core.adopt(number, bench.now);
    assert_eq!(early, Err(Failure::NotPending), "it was not looked at");
    bench.say(app, Message::Kept { number });
    assert_eq!(bench.outputs(), [Output::Answer(number, Ok(Answer::Kept))]);
    bench.core.adopt(number, bench.now).expect("kept");
    assert_eq!(bench.sent(app), [Message::Adopt { number }.encode()]);
    assert_eq!(
        bench.core.drop_import(number),
        Err(Failure::NotPending),
        "it is the application's"
    );
    bench.say(app, Message::Adopted { number });
    assert_eq!(
        bench.outputs(),
        [Output::Answer(number, Ok(Answer::Adopted))]
    );
    bench.assert_empty();

    bench.kept(app, 12, session);
    bench.core.drop_import(12).expect("pending");
    assert_eq!(bench.sent(app), [Message::Drop { number: 12 }.encode()]);
    bench.assert_empty();
}

#[test]
fn what_is_not_answered_in_time_is_taken_back_and_the_late_answer_is_swallowed() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    let (s1, s2, s3, s4) = (session(1, 1), session(2, 1), session(3, 1), session(4, 1));
    bench.kept(app, 4, s4);
    bench.imported(app, 3, s3);
    bench.core.export(1, s1, bench.now).expect("asked");
    bench.state(app, 1, 9, 0, b"half");
    bench
        .core
        .import(2, s2, Family::V6, bench.now)
        .expect("asked");
    bench
        .core
        .give(3, Blob::from(vec![1; 9]), bench.now)
        .expect("given");
    bench.core.adopt(4, bench.now).expect("kept");
    bench.sent(app);
    bench.wait(SECOND - Duration::from_millis(1));
    assert_eq!(bench.outputs(), []);
    bench.wait(Duration::from_millis(1));
    let all = [1, 2, 3, 4].map(|number| Output::Answer(number, Err(Failure::TimedOut)));
    assert_eq!(bench.outputs(), all);
    let taken_back = [
        resume(1, false),
        Message::Drop { number: 2 }.encode(),
        Message::Drop { number: 3 }.encode(),
    ];
    assert_eq!(bench.sent(app), taken_back);
    assert_eq!(bench.core.held_bytes(), 0);
    let again = bench.core.export(5, s1, bench.now);
    assert_eq!(again, Err(Failure::Busy), "the answer is owed");

    bench.state(app, 1, 9, 4, b"state");
    bench.say(app, Message::Exported { number: 1 });
    bench.say(app, Message::Imported { number: 2 });
    bench.say(app, Message::Kept { number: 3 });
    bench.say(app, Message::Adopted { number: 4 });
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.core.counters().late, 4);
    bench.assert_empty();
    bench
        .core
        .export(5, s1, bench.now)
        .expect("it is free again");
}

#[test]
fn of_an_application_that_has_gone_nothing_is_left() {
    let mut bench = Bench::new();
    let sessions = [1, 2, 3, 4].map(|client| session(client, 1));
    // Those that wait for an answer.
    let app = bench.ready(&[1]);
    bench.kept(app, 4, sessions[3]);
    bench.imported(app, 3, sessions[2]);
    bench.core.export(1, sessions[0], bench.now).expect("asked");
    bench.state(app, 1, 9, 0, b"half");
    bench
        .core
        .import(2, sessions[1], Family::V4, bench.now)
        .expect("asked");
    bench
        .core
        .give(3, Blob::from(vec![1; 9]), bench.now)
        .expect("given");
    bench.core.adopt(4, bench.now).expect("kept");
    bench.outputs();
    bench.core.gone(app);
    let mut outputs = bench.outputs();
    let moves = Vec::new();
    assert_eq!(
        outputs.pop(),
        Some(Output::Event(app, Event::Gone { app, moves }))
    );
    let all = [1, 2, 3, 4].map(|number| Output::Answer(number, Err(Failure::Gone)));
    assert_eq!(outputs, all);
    bench.assert_empty();

    // The others.
    let app = bench.ready(&[1]);
    bench.exported(app, 1, sessions[0], b"state");
    bench.imported(app, 2, sessions[1]);
    bench.kept(app, 3, sessions[2]);
    bench.core.gone(app);
    let left = |number: u64, pending| Left {
        number,
        session: sessions[number as usize - 1],
        pending,
    };
    let moves = vec![
        left(1, Pending::Export),
        left(2, Pending::Import),
        left(3, Pending::Kept),
    ];
    assert_eq!(
        bench.outputs(),
        [Output::Event(app, Event::Gone { app, moves })]
    );
    assert!(bench.core.registered(&service(1)).is_none());
    bench.assert_empty();
    assert_eq!(bench.core.resume(1, None), Err(Failure::NotPending));
    let now = bench.now;
    assert_eq!(
        bench.core.export(9, sessions[0], now),
        Err(Failure::NotRegistered)
    );
}

#[test]
fn a_connection_is_in_one_move_and_a_number_names_one() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1, 2]);
    let now = bench.now;
    bench.exported(app, 1, session(1, 1), b"");
    assert_eq!(bench.core.export(2, session(1, 1), now), Err(Failure::Busy));
    let import = bench.core.import(2, session(1, 1), Family::V4, now);
    assert_eq!(import, Err(Failure::Busy));
    assert_eq!(
        bench.core.export(1, session(2, 1), now),
        Err(Failure::NumberInUse)
    );
    for number in 2..=4 {
        bench
            .core
            .export(number, session(number as u16, 2), now)
            .expect("there is room");
    }
    assert_eq!(
        bench.core.export(5, session(5, 1), now),
        Err(Failure::TooMany)
    );
    assert_eq!(
        bench.core.export(5, session(5, 3), now),
        Err(Failure::NotRegistered)
    );
}

#[test]
fn states_are_bounded() {
    // One that is longer than the application was told.
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    bench
        .core
        .export(1, session(1, 1), bench.now)
        .expect("asked");
    bench.state(app, 1, 101, 0, b"a");
    assert_eq!(bench.closed(app), Closing::TooLarge);
    bench.assert_empty();

    // One whose end is missing.
    let app = bench.ready(&[1]);
    bench
        .core
        .export(1, session(1, 1), bench.now)
        .expect("asked");
    bench.state(app, 1, 9, 0, b"a");
    bench.say(app, Message::Exported { number: 1 });
    assert_eq!(bench.closed(app), Closing::Unexpected);

    // All together: the third finds no room, and the others stay.
    let app = bench.ready(&[1]);
    bench.exported(app, 1, session(1, 1), &[1; 100]);
    bench.exported(app, 2, session(2, 1), &[1; 100]);
    bench
        .core
        .export(3, session(3, 1), bench.now)
        .expect("asked");
    bench.sent(app);
    bench.state(app, 3, 51, 0, &[1; 20]);
    assert_eq!(bench.outputs(), failed(3, Failure::NoRoom));
    assert_eq!(bench.sent(app), [resume(3, false)]);
    bench.state(app, 3, 51, 20, &[1; 31]);
    bench.say(app, Message::Exported { number: 3 });
    bench.imported(app, 4, session(4, 1));
    let given = bench.core.give(4, Blob::from(vec![1; 51]), bench.now);
    assert_eq!(given, Err(Failure::NoRoom));
    bench.core.committed(1).expect("pending");
    let given = bench.core.give(4, Blob::from(vec![1; 51]), bench.now);
    given.expect("there is room now");
    assert_eq!(bench.core.held_bytes(), 151);
    bench.core.gone(app);
    bench.assert_empty();
}

#[test]
fn a_state_of_several_parts_goes_out_in_order() {
    let mut bench = Bench::with(Limits::default());
    let app = bench.ready(&[1]);
    bench.imported(app, 1, session(1, 1));
    let state: Vec<u8> = (0..PART_MAX + 9).map(|n| n as u8).collect();
    bench
        .core
        .give(1, state.clone().into(), bench.now)
        .expect("given");
    let mut assembly = Assembly::new(state.len() as u32);
    for datagram in bench.sent(app) {
        match Message::decode(&datagram) {
            Ok(Message::State {
                number: 1,
                total,
                offset,
                part,
            }) => assembly.push(total, offset, part).expect("in order"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(*assembly.finish(), *state);
    assert_eq!(bench.core.held_bytes(), 0);
}

#[test]
fn an_application_that_refuses_ends_the_move() {
    let mut bench = Bench::new();
    let app = bench.ready(&[1]);
    let refused = || Failure::Refused {
        reason: Reason::Busy,
        text: "later".to_owned(),
    };
    let refuse = |number| Message::Refuse {
        number,
        reason: Reason::Busy,
        text: "later",
    };
    bench
        .core
        .export(1, session(1, 1), bench.now)
        .expect("asked");
    bench.state(app, 1, 9, 0, b"half");
    bench.say(app, refuse(1));
    assert_eq!(bench.outputs(), failed(1, refused()));
    bench
        .core
        .import(2, session(1, 1), Family::V4, bench.now)
        .expect("asked");
    bench.say(app, refuse(2));
    assert_eq!(bench.outputs(), failed(2, refused()));
    bench.imported(app, 3, session(1, 1));
    bench
        .core
        .give(3, Blob::default(), bench.now)
        .expect("given");
    bench.say(app, refuse(3));
    assert_eq!(bench.outputs(), failed(3, refused()));
    bench.kept(app, 4, session(1, 1));
    bench.core.adopt(4, bench.now).expect("kept");
    bench.say(app, refuse(4));
    assert_eq!(bench.outputs(), failed(4, refused()));
    bench.assert_empty();
}
