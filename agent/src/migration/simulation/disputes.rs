//! Chosen histories in which both hosts could think that a session is theirs: a kernel
//! dies, or is only thought to be dead, between *prepared* and *release*.

use super::*;
use crate::migration::{Phase, limits::void_window};

/// A POP of four in which host 2 is prepared for the session of host 1, and is cut off
/// from all before it could say so.
fn prepared_and_cut_off() -> Pop {
    cut_off_once_prepared(Pop::new(1, 4))
}

fn cut_off_once_prepared(mut pop: Pop) -> Pop {
    pop.open(1, 1);
    pop.command(1, 2, 1);
    pop.until(|pop| is_at(pop, 2, Phase::Prepared));
    pop.isolate(2);
    pop
}

fn is_at(pop: &Pop, host: u16, phase: Phase) -> bool {
    let entry = pop.hosts[&host].journal.get(&tuple(1));
    entry.is_some_and(|entry| entry.phase == phase)
}

/// The kernel of a host dies and is back at once: all hear that.
fn begin_anew(pop: &mut Pop, host: u16) {
    pop.kill_kernel(host);
    pop.heal();
}

/// The source has resumed, and dies: the copy is as old as the cut.
#[test]
fn a_copy_that_its_session_has_outlived_is_not_served() {
    let mut pop = prepared_and_cut_off();
    pop.run(pop.limits.hold + SECOND);
    assert_eq!(pop.served_at(1), Some(1));
    begin_anew(&mut pop, 1);
    pop.run(QUIET);
    pop.assert_settled();
    assert_eq!(pop.counters(2).copies_void_too_late, 1);
    assert!(pop.answering(&tuple(1)).is_empty());
}

/// The same, at a target that would hold sessions for longer itself.
#[test]
fn a_target_goes_by_the_bound_of_the_source() {
    let mut pop = Pop::new(1, 4);
    pop.limits_of(2, |limits| limits.hold *= 4);
    let mut pop = cut_off_once_prepared(pop);
    pop.run(pop.limits.hold + SECOND);
    assert_eq!(pop.served_at(1), Some(1));
    begin_anew(&mut pop, 1);
    pop.run(QUIET);
    pop.assert_settled();
    assert_eq!(pop.counters(2).copies_void_too_late, 1);
}

/// The source has given up, but has not resumed, and dies: the copy is what there is. It
/// makes no difference that the POP has meanwhile taken the target for dead.
#[test]
fn a_source_that_may_not_resume_yet_leaves_the_session_to_the_target() {
    for died_after in [2_500 * MS, 3_600 * MS] {
        let mut pop = prepared_and_cut_off();
        pop.run(died_after);
        assert!(pop.answering(&tuple(1)).is_empty());
        begin_anew(&mut pop, 1);
        pop.run(SECOND);
        assert_eq!(pop.served_at(1), Some(2));
        pop.run(QUIET);
        pop.assert_settled();
    }
}

/// The source was cut off and taken for dead, and the target serves. Now the source is
/// back, and it is the target that cannot be heard: the source must not resume.
#[test]
fn a_source_that_was_taken_for_dead_does_not_resume_without_a_word() {
    for kills_agent in [false, true] {
        let mut pop = Pop::new(1, 4);
        pop.open(1, 1);
        pop.command(1, 2, 1);
        pop.until(|pop| is_at(pop, 2, Phase::Prepared));
        pop.isolate(1);
        pop.run(void_window(pop.limits.hold));
        assert_eq!(pop.served_at(1), Some(2));
        assert!(is_at(&pop, 1, Phase::Frozen));
        pop.cut.clear();
        pop.isolate(2);
        if kills_agent {
            pop.kill_agent(1);
            pop.start_agent(1);
        }
        pop.run(pop.limits.hold * 3);
        assert_eq!(pop.answering(&tuple(1)), [2]);
        // As soon as they hear each other, the source gives its copy up.
        pop.cut.clear();
        pop.run(2 * SECOND);
        assert!(!pop.hosts[&1].sockets.contains_key(&tuple(1)));
        assert_eq!(pop.outcomes(), [Outcome::Moved]);
        pop.run(QUIET);
        pop.assert_settled();
        assert_eq!(pop.served_at(1), Some(2));
    }
}

/// The same, and the target's kernel dies before they hear each other: what the source
/// has is old, and nobody is left who could say so.
#[test]
fn nor_when_the_target_has_died_since() {
    let mut pop = Pop::new(1, 4);
    pop.open(1, 1);
    pop.command(1, 2, 1);
    pop.until(|pop| is_at(pop, 2, Phase::Prepared));
    pop.isolate(1);
    pop.run(void_window(pop.limits.hold));
    assert_eq!(pop.served_at(1), Some(2));
    begin_anew(&mut pop, 2);
    pop.run(QUIET);
    pop.assert_settled();
    assert!(matches!(pop.outcomes()[..], [Outcome::Lost(_)]));
}

/// *Prepare* and *state* come once more, to an agent that knows nothing of the move, when
/// the source has long resumed; then the source dies.
#[test]
fn a_state_that_comes_again_is_not_taken_for_a_new_one() {
    let mut pop = Pop::new(1, 4);
    pop.open(1, 1);
    pop.command(1, 2, 1);
    let to_target = |pop: &Pop| {
        let mut all = Vec::new();
        for Reverse((.., event)) in &pop.events {
            if let Event::Message { to: 2, bytes, .. } = event {
                all.push(bytes.clone());
            }
        }
        all
    };
    let [prepare] = &to_target(&pop)[..] else {
        panic!()
    };
    let prepare = prepare.clone();
    pop.until(|pop| is_at(pop, 1, Phase::Frozen) && !to_target(pop).is_empty());
    let [state] = &to_target(&pop)[..] else {
        panic!()
    };
    let state = state.clone();
    pop.kill_agent(2);
    pop.start_agent(2);
    pop.run(SECOND);
    assert_eq!(pop.served_at(1), Some(1));
    pop.kill_agent(2);
    pop.start_agent(2);
    pop.isolate(1);
    pop.with_agent(2, |agent, now, view| {
        agent.message(now, view, HostId(1), &prepare)
    });
    pop.run(10 * MS);
    assert!(is_at(&pop, 2, Phase::Awaiting));
    pop.with_agent(2, |agent, now, view| {
        agent.message(now, view, HostId(1), &state)
    });
    pop.run(10 * MS);
    begin_anew(&mut pop, 1);
    pop.run(QUIET);
    pop.assert_settled();
    assert!(pop.answering(&tuple(1)).is_empty());
}

/// A target that has dropped its copy does not make another when *prepare* comes again.
#[test]
fn a_move_that_is_over_does_not_begin_again() {
    let mut pop = Pop::new(1, 3);
    pop.open(1, 1);
    pop.command(1, 2, 1);
    let Some(Event::Message { bytes, .. }) = pop.events.iter().find_map(|Reverse((.., event))| {
        matches!(event, Event::Message { .. }).then(|| event.clone())
    }) else {
        panic!()
    };
    pop.until(|pop| is_at(pop, 2, Phase::Awaiting));
    pop.with_agent(1, |agent, now, view| {
        assert!(agent.call_off(now, view, &tuple(1)));
    });
    pop.run(SECOND);
    assert!(pop.hosts[&2].journal.is_empty());
    pop.with_agent(2, |agent, now, view| {
        agent.message(now, view, HostId(1), &bytes)
    });
    pop.run(10 * MS);
    assert!(pop.hosts[&2].journal.is_empty());
    assert_eq!(pop.counters(2).turned_away, 1);
}
