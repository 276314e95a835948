//! Chosen histories: what a move costs, what is refused, what has a bound.

use super::{host::Is, *};
use crate::migration::{
    Step, StepTime,
    wire::{Body, Fate, Life, Message, Parcel, decode},
};

/// A POP with sessions `0..sessions` on host 1.
fn pop(hosts: u16, sessions: u16) -> Pop {
    let mut pop = Pop::new(1, hosts);
    for n in 0..sessions {
        pop.open(1, n);
    }
    pop
}

#[test]
fn a_move_takes_six_messages_and_the_session_is_never_served_by_nobody_for_long() {
    let mut pop = pop(3, 1);
    pop.command(1, 2, 0);
    let mut frozen = 0;
    let end = pop.now + 20 * MS;
    while pop.step(end) {
        frozen += u32::from(pop.answering(&tuple(0)).is_empty());
    }
    assert!(frozen > 0);
    assert_eq!(pop.served_at(0), Some(2));
    assert_eq!(pop.outcomes(), [Outcome::Moved]);
    let counters = pop.counters(1);
    assert_eq!(
        (counters.begun, counters.moved, counters.repeated),
        (1, 1, 0)
    );
    assert_eq!(pop.counters(2).taken_over, 1);
    assert_eq!(pop.hosts[&2].sessions[&tuple(0)], 1);
    // The source diverts for a while, and no longer.
    assert!(pop.hosts[&1].journal.contains_key(&tuple(0)));
    pop.run(pop.limits.settle + SECOND);
    pop.assert_settled();
    assert_eq!(pop.sent, 6);
}

#[test]
fn each_step_of_a_move_is_timed_once_on_its_own_side() {
    let mut pop = pop(2, 1);
    let begun = pop.now;
    pop.command(1, 2, 0);
    while pop.ended.is_empty() {
        assert!(pop.step(begun + SECOND));
    }
    let took = pop.now - begun;
    let frozen = pop.ended[0].1.frozen_us;
    for (host, own) in [(1, "source"), (2, "target")] {
        for step in pop.times(host) {
            assert_eq!(
                step.times,
                u64::from(step.side == own),
                "{step:?} on {host}"
            );
        }
    }
    let source = pop
        .times(1)
        .into_iter()
        .filter(|step| step.side == "source");
    let (before, after): (Vec<_>, Vec<_>) =
        source.partition(|step| ["asking", "exporting", "checking"].contains(&step.step));
    let sum = |steps: &[StepTime]| steps.iter().map(|step| step.sum_us).sum::<u64>();
    assert_eq!((sum(&before), sum(&after)), (took - frozen, frozen));
    assert!(frozen > 0 && frozen < took);
}

#[test]
fn a_session_goes_on_and_back_while_its_first_move_still_diverts() {
    for third in [1, 3] {
        let mut pop = pop(3, 1);
        pop.command(1, 2, 0);
        pop.run(20 * MS);
        assert_eq!(pop.served_at(0), Some(2));
        assert!(pop.hosts[&1].journal.contains_key(&tuple(0)));
        pop.command(2, third, 0);
        pop.run(20 * MS);
        assert_eq!(pop.served_at(0), Some(third));
        pop.command(third, 2, 0);
        pop.run(20 * MS);
        assert_eq!(pop.served_at(0), Some(2));
        pop.run(QUIET);
        pop.assert_settled();
        assert_eq!(pop.outcomes(), [Outcome::Moved; 3]);
        assert_eq!(pop.hosts[&2].sessions[&tuple(0)], 3);
    }
}

/// The confirmation is lost, and the session comes back: who offers it serves it.
#[test]
fn a_session_that_comes_back_confirms_its_move() {
    let mut pop = pop(2, 1);
    pop.command(1, 2, 0);
    while pop.served_at(0) != Some(2) {
        pop.run_events(1);
    }
    // *Committed* is on its way, and lost.
    pop.events
        .retain(|Reverse((.., event))| !matches!(event, Event::Message { .. }));
    pop.command(2, 1, 0);
    pop.run(40 * MS);
    assert_eq!(pop.served_at(0), Some(1));
    assert_eq!(pop.outcomes(), [Outcome::Moved; 2]);
    pop.run(QUIET);
    pop.assert_settled();
}

#[test]
fn what_cannot_be_moved_is_refused_with_a_reason_and_not_touched() {
    let refused = |change: fn(&mut Pop), to: u16, reason: Reason| {
        let mut pop = pop(3, 1);
        change(&mut pop);
        pop.command(1, to, 0);
        pop.run(5 * SECOND);
        assert_eq!(pop.outcomes(), [Outcome::Refused(reason)]);
        assert_eq!(pop.served_at(0), Some(1));
        pop.assert_settled();
    };
    refused(|_| {}, 1, Reason::NoMember);
    refused(|_| {}, 9, Reason::NoMember);
    refused(|pop| pop.host(2).drains = true, 2, Reason::Draining);
    refused(|pop| pop.kill_application(2), 2, Reason::NoApplication);
    refused(|pop| pop.limits_of(2, |l| l.to_here = 0), 2, Reason::Full);
    let other_life = |pop: &mut Pop| {
        pop.host(2).sessions.insert(tuple(0), 0);
    };
    refused(other_life, 2, Reason::Live);

    let mut pop = pop(3, 1);
    pop.command(1, 2, 7);
    assert_eq!(pop.outcomes(), [Outcome::Refused(Reason::Gone)]);
    // A service that the target does not know, and an application of another version.
    for (port, version, reason) in [(81, 1, Reason::NoService), (80, 2, Reason::OtherVersion)] {
        let mut tuple = tuple(5);
        tuple.service_port = Port::new(port);
        pop.host(1).open(tuple, 0);
        let command = Command {
            tuple,
            target: HostId(2),
            deadline: u64::MAX,
            application: Application {
                version,
                ..application()
            },
            bytes: 0,
        };
        pop.with_agent(1, |agent, now, view| agent.command(now, view, command));
        pop.run(SECOND);
        assert_eq!(pop.outcomes().last(), Some(&Outcome::Refused(reason)));
    }
}

#[test]
fn the_second_of_two_moves_of_one_session_is_refused() {
    let mut pop = pop(3, 1);
    pop.command(1, 2, 0);
    pop.command(1, 3, 0);
    pop.run(SECOND);
    let expected = [Outcome::Refused(Reason::Moving), Outcome::Moved];
    assert_eq!(pop.outcomes(), expected);
    assert_eq!(pop.served_at(0), Some(2));
}

#[test]
fn moves_at_once_are_bounded_and_the_rest_waits() {
    let mut pop = pop(2, 200);
    pop.limits_of(1, |limits| {
        limits.from_here = 8;
        limits.waiting = 150;
    });
    for n in 0..200 {
        pop.command(1, 2, n);
    }
    let load = pop.hosts[&1].agent.as_ref().unwrap().load();
    assert_eq!((load.from_here, load.waiting), (8, 150));
    let refused = Outcome::Refused(Reason::Full);
    assert_eq!(pop.outcomes(), [refused; 42]);
    let mut most = 0;
    while !pop.hosts[&1].agent.as_ref().unwrap().is_idle() {
        pop.run_events(1);
        let load = pop.hosts[&2].agent.as_ref().unwrap().load();
        most = most.max(load.to_here);
    }
    assert!(most <= 8, "{most}");
    pop.run(SECOND);
    let moved = (0..158).filter(|&n| pop.served_at(n) == Some(2));
    assert_eq!(moved.count(), 158);
    pop.assert_settled();
}

#[test]
fn bytes_at_once_are_bounded() {
    // Each is said to need 100 bytes.
    let mut pop = pop(2, 20);
    pop.limits_of(1, |limits| limits.bytes = 250);
    for n in 0..20 {
        pop.command(1, 2, n);
    }
    let load = pop.hosts[&1].agent.as_ref().unwrap().load();
    assert_eq!((load.from_here, load.bytes_from_here), (2, 200));
    pop.run(5 * SECOND);
    assert_eq!(pop.outcomes(), [Outcome::Moved; 20]);
    // A target that has less room than that says so.
    pop.limits_of(1, |limits| limits.bytes = 250);
    for n in 0..20 {
        pop.command(2, 1, n);
    }
    pop.run(5 * SECOND);
    pop.assert_settled();
    let full = Outcome::Refused(Reason::Full);
    assert!(pop.outcomes()[20..].contains(&full));
    assert!(pop.outcomes()[20..].contains(&Outcome::Moved));
}

#[test]
fn whatever_cannot_be_done_up_to_the_release_the_source_resumes() {
    let journal = |order: &Order| matches!(order, Order::Journal { .. });
    let at_source: [(Is, Step); 6] = [
        (|o| *o == Order::Export, Step::Exporting),
        (|o| *o == Order::Check, Step::Checking),
        (journal, Step::Freezing),
        (|o| *o == Order::Read, Step::Reading),
        (|o| *o == Order::Recheck, Step::Rechecking),
        (
            |o| matches!(o, Order::Journal { phase, .. } if *phase == crate::migration::Phase::Released),
            Step::Releasing,
        ),
    ];
    for (is_meant, step) in at_source {
        let mut pop = pop(2, 1);
        pop.host(1).refuses = Some((is_meant, Reason::NotCarried, 1));
        if step == Step::Exporting {
            // It goes on as if it had not been asked.
            pop.host(1).refuses = Some((is_meant, Reason::Application, 1));
        }
        pop.command(1, 2, 0);
        pop.run(QUIET);
        let [Outcome::Aborted(at, _)] = pop.outcomes()[..] else {
            panic!("{step:?}: {:?}", pop.outcomes());
        };
        assert_eq!((at, pop.served_at(0)), (step, Some(1)));
        pop.assert_settled();
    }
    let at_target: [Is; 4] = [
        journal,
        |o| *o == Order::Open,
        |o| matches!(o, Order::Restore { .. }),
        |o| matches!(o, Order::Import { .. }),
    ];
    for is_meant in at_target {
        let mut pop = pop(2, 1);
        pop.host(2).refuses = Some((is_meant, Reason::Kernel, 1));
        pop.command(1, 2, 0);
        pop.run(QUIET);
        assert_eq!(pop.served_at(0), Some(1));
        assert_eq!(pop.counters(2).copies_dropped, 1);
        pop.assert_settled();
    }
}

/// After the release what the kernel cannot do at once is asked of it again.
#[test]
fn what_cannot_be_done_after_the_release_is_tried_again() {
    let orders: [(u16, Is); 4] = [
        (1, |o| *o == Order::Destroy),
        (2, |o| *o == Order::Activate),
        (2, |o| matches!(o, Order::HandOver { .. })),
        (2, |o| matches!(o, Order::Adopt { .. })),
    ];
    for (host, is_meant) in orders {
        let mut pop = pop(2, 1);
        pop.host(host).refuses = Some((is_meant, Reason::Kernel, 3));
        pop.command(1, 2, 0);
        pop.run(2 * SECOND);
        assert_eq!(pop.served_at(0), Some(2));
        assert_eq!(pop.outcomes(), [Outcome::Moved]);
        assert_eq!(pop.counters(host).orders_repeated, 3);
        pop.run(QUIET);
        pop.assert_settled();
    }
}

#[test]
fn an_application_that_hangs_or_never_comes_back_has_its_bound() {
    // It does not quiesce; it does not make a socket.
    for host in [1, 2] {
        let mut pop = pop(2, 1);
        pop.host(host).hangs = true;
        pop.command(1, 2, 0);
        pop.run(pop.limits.step + SECOND);
        pop.host(host).hangs = false;
        pop.run(QUIET);
        assert_eq!(pop.outcomes().len(), 1);
        assert_eq!(pop.answering(&tuple(0)), [1], "its socket is untouched");
        pop.assert_settled();
    }
    // It is gone when it should take its session over.
    let mut pop = pop(2, 1);
    pop.host(2).refuses = Some((
        |o| matches!(o, Order::HandOver { .. }),
        Reason::ApplicationGone,
        u32::MAX,
    ));
    pop.command(1, 2, 0);
    pop.run(QUIET);
    assert_eq!(pop.outcomes(), [Outcome::Lost(Reason::ApplicationGone)]);
    assert_eq!(pop.counters(2).copies_lost, 1);
    pop.assert_settled();
}

#[test]
fn a_move_can_be_called_off_until_it_is_released() {
    let mut ends = Vec::new();
    for events in 0..40 {
        let mut pop = pop(3, 1);
        pop.command(1, 2, 0);
        pop.run_events(events);
        let mut could = false;
        pop.with_agent(1, |agent, now, view| {
            could = agent.call_off(now, view, &tuple(0));
        });
        pop.run(SECOND);
        let expected = if could { 1 } else { 2 };
        assert_eq!(pop.served_at(0), Some(expected), "event {events}");
        pop.run(QUIET);
        pop.assert_settled();
        ends.push(could);
    }
    assert!(ends[0] && !ends[39] && ends.is_sorted_by(|a, b| a >= b));
}

#[test]
fn a_move_whose_deadline_has_passed_is_given_up() {
    let mut pop = pop(2, 2);
    pop.limits_of(1, |limits| limits.from_here = 1);
    pop.host(1).hangs = true;
    for n in 0..2 {
        let command = Command {
            tuple: tuple(n),
            target: HostId(2),
            deadline: pop.now + 500 * MS,
            application: application(),
            bytes: 0,
        };
        pop.with_agent(1, |agent, now, view| agent.command(now, view, command));
    }
    pop.run(600 * MS);
    assert_eq!(
        pop.hosts[&1].agent.as_ref().unwrap().step(&tuple(0)),
        Some(Step::GivingBack)
    );
    pop.host(1).hangs = false;
    pop.run(QUIET);
    assert!(pop.wakes < 100, "{}", pop.wakes);
    let outcomes = pop.outcomes();
    assert_eq!(outcomes.len(), 2);
    // One had not been begun.
    assert!(outcomes.contains(&Outcome::Refused(Reason::Deadline)));
    // The other one's application did not even take it back.
    let begun = Outcome::Gone(Step::Exporting, Reason::ApplicationGone);
    assert!(outcomes.contains(&begun), "{outcomes:?}");
    assert_eq!(pop.answering(&tuple(0)), [1]);
    assert_eq!(pop.served_at(1), Some(1));
}

/// A session may have moved more often than gossip can count: it moves on.
#[test]
fn generations_go_on_beyond_what_gossip_counts() {
    let mut pop = pop(2, 1);
    let generation = 0x7fff;
    pop.host(1).sessions.insert(tuple(0), generation);
    pop.command(1, 2, 0);
    pop.run(20 * MS);
    pop.command(2, 1, 0);
    pop.run(20 * MS);
    assert_eq!(pop.served_at(0), Some(1));
    assert_eq!(pop.hosts[&1].sessions[&tuple(0)], generation + 2);
}

/// What a host answers to a message.
fn said(pop: &mut Pop, to: u16, from: u16, id: MoveId, body: Body<'_>) -> Vec<Vec<u8>> {
    let bytes = Message { id, body }.encode();
    let (now, view) = (pop.now, pop.view(to));
    let agent = pop.host(to).agent.as_mut().unwrap();
    agent.message(now, &view, HostId(from), &bytes);
    let mut said = Vec::new();
    while let Some(output) = agent.poll() {
        if let Output::Send { bytes, .. } = output {
            said.push(bytes.to_vec());
        }
    }
    said
}

#[test]
fn a_late_word_of_an_old_life_is_not_taken_for_the_new_one() {
    let mut pop = pop(2, 0);
    let id = MoveId {
        source: HostId(1),
        number: 77,
    };
    let life = |generation| Life {
        tuple: tuple(0),
        generation,
    };
    // The session of before has moved here and closed; this one has never moved.
    pop.open(2, 0);
    for body in [Body::Release(life(0)), Body::Release(life(4))] {
        let said = said(&mut pop, 2, 1, id, body);
        let [bytes] = &said[..] else {
            panic!("{said:?}")
        };
        let failed = Body::Failed(Reason::Over);
        let expected = Parcel::Direct(Message { id, body: failed });
        assert_eq!(decode(bytes), Some(expected));
    }
    // This one has: an agent that has forgotten the move knows it by that.
    pop.host(2).sessions.insert(tuple(0), 1);
    let said = said(&mut pop, 2, 1, id, Body::Release(life(0)));
    let committed = Body::Committed;
    let expected = Parcel::Direct(Message {
        id,
        body: committed,
    });
    assert_eq!(decode(&said[0]), Some(expected));
}

#[test]
fn a_source_says_of_its_own_kernels_numbers_what_became_of_them() {
    let mut pop = pop(2, 0);
    for (incarnation, fate) in [(1, Fate::NotReleased), (2, Fate::Unknown)] {
        let id = MoveId {
            source: HostId(1),
            number: MoveId::number(incarnation, 5),
        };
        let said = said(&mut pop, 1, 2, id, Body::Query);
        let body = Body::Fate(fate);
        assert_eq!(decode(&said[0]), Some(Parcel::Direct(Message { id, body })));
    }
}

#[test]
fn what_is_no_message_or_not_for_this_host_is_counted() {
    let mut pop = pop(3, 0);
    let of = |source| MoveId {
        source: HostId(source),
        number: 1,
    };
    // No message; a source's word from another host; a target's word at another host.
    pop.with_agent(1, |agent, now, view| {
        agent.message(now, view, HostId(2), &[1, 99, 0]);
    });
    let none: Vec<Vec<u8>> = Vec::new();
    let fate = Body::Fate(Fate::Released);
    assert_eq!(said(&mut pop, 1, 2, of(3), fate), none);
    assert_eq!(said(&mut pop, 1, 2, of(3), Body::Committed), none);
    assert_eq!(pop.counters(1).malformed, 3);

    // Passed on for whoever wrote it, and not too often.
    pop.limits_of(1, |limits| limits.passed_on = 2);
    let message = Message {
        id: of(3),
        body: Body::Query,
    };
    let message = message.encode();
    let passed = crate::migration::wire::Passed {
        origin: HostId(2),
        destination: HostId(3),
        message: &message,
    };
    let bytes = passed.encode();
    for from in [2, 2, 2, 3] {
        pop.with_agent(1, |agent, now, view| {
            agent.message(now, view, HostId(from), &bytes);
        });
    }
    let counters = pop.counters(1);
    assert_eq!((counters.passed_on, counters.not_passed_on), (2, 2));
}
