//! Kernels that answer echoes: what voids claims, and what does not.

use homing_common::session::SessionId;

use super::{Pop, VOID_AFTER};
use crate::{
    gossip::alerts::Alert,
    pop::{MS, SECOND, liveness::Kernel, membership::State},
};

/// Sessions of host 1.
const SESSIONS: u64 = 20;

/// A POP whose kernels answer, with sessions on hosts 1 and 2.
fn settled(hosts: u16) -> Pop {
    let mut pop = Pop::new(7, hosts, true);
    pop.echoes = true;
    pop.start_all();
    pop.run(4 * SECOND);
    for id in 0..SESSIONS {
        pop.open(1, id, 0);
        pop.open(2, 100 + id, 0);
    }
    pop.run(SECOND);
    pop.assert_converged();
    pop
}

/// How many of host 1's sessions another host has routes for.
fn routes(pop: &Pop, at: u16) -> usize {
    let ids = (0..SESSIONS).map(SessionId);
    ids.filter(|id| pop.routes(at).contains_key(id)).count()
}

/// A host's agent is down for another one, and its kernel and claims stand there.
fn assert_stands(pop: &Pop, at: u16, of: u16) {
    let seen = pop.seen(at, of).unwrap();
    assert_eq!(seen.state, Some(State::Down));
    assert!(
        matches!(seen.kernel, Some(Kernel::Alive { .. })),
        "{seen:?}"
    );
    assert!(seen.is_routed());
}

#[test]
fn sessions_stand_while_the_agent_is_down_and_the_kernel_is_up() {
    let mut pop = settled(5);
    pop.kill(1);
    // Longer than any other claim is kept.
    pop.run(600 * SECOND);
    for at in 2..=5 {
        assert_eq!(routes(&pop, at), SESSIONS as usize, "at {at}");
        assert_stands(&pop, at, 1);
    }
    // The machine is switched off: its kernel's end is noticed all the same.
    pop.dark.insert(1);
    pop.run(3 * SECOND);
    for at in 2..=5 {
        assert_eq!(routes(&pop, at), 0, "at {at}");
        assert!(!pop.seen(at, 1).unwrap().is_routed());
    }
}

#[test]
fn agents_that_start_while_another_is_down_ask_its_kernel_and_keep_its_claims() {
    let mut pop = settled(5);
    pop.kill(1);
    pop.run(4 * SECOND);
    // One after another, so that each hears of host 1 from others that were told.
    for at in 2..=5 {
        pop.kill(at);
        pop.run(SECOND);
        pop.start(at);
        pop.run(3 * SECOND);
    }
    pop.run(600 * SECOND);
    for at in 2..=5 {
        assert_eq!(routes(&pop, at), SESSIONS as usize, "at {at}");
        assert_stands(&pop, at, 1);
    }
    pop.dark.insert(1);
    pop.run(3 * SECOND);
    for at in 2..=5 {
        assert_eq!(routes(&pop, at), 0, "at {at}");
    }
    pop.dark.clear();
    pop.start(1);
    pop.run(3 * SECOND);
    pop.assert_converged();
}

#[test]
fn the_only_agent_that_starts_asks_the_kernels_that_it_remembers() {
    let mut pop = settled(5);
    for at in 1..=5 {
        pop.kill(at);
    }
    pop.run(5 * SECOND);
    pop.start(3);
    pop.run(600 * SECOND);
    assert_eq!(routes(&pop, 3), SESSIONS as usize);
    for of in [1, 2, 4, 5] {
        assert_stands(&pop, 3, of);
    }
    // One machine is switched off. There is nobody to ask but other kernels.
    pop.dark.insert(1);
    pop.run(3 * SECOND);
    assert_eq!(routes(&pop, 3), 0);
    assert_eq!(pop.counters(3).voided_hosts, 1);
    // Who comes back is called, although host 5 is the seed of nobody that runs.
    pop.dark.clear();
    for at in [5, 4, 2, 1] {
        pop.start(at);
        pop.run(2 * SECOND);
    }
    pop.run(5 * SECOND);
    pop.assert_converged();
}

#[test]
fn an_agent_that_starts_after_another_left_keeps_its_claims_for_the_rest_of_the_hold() {
    let mut pop = settled(4);
    pop.kill(3);
    pop.leave(1, VOID_AFTER);
    pop.run(SECOND);
    pop.start(3);
    // Its own clock of the claims that it found would end a second later.
    pop.run(VOID_AFTER.as_micros() as u64 - SECOND - 100 * MS);
    assert_eq!(routes(&pop, 3), SESSIONS as usize);
    pop.run(300 * MS);
    for at in 2..=4 {
        assert_eq!(routes(&pop, at), 0, "at {at}");
        assert_eq!(pop.seen(at, 1).unwrap().state, Some(State::Left));
    }
    // Nobody watches for its kernel.
    pop.run(60 * SECOND);
    for at in 2..=4 {
        let (node, _) = pop.machines[&at].agent.as_ref().unwrap();
        assert_eq!(node.liveness().counters.kernels_judged_dead, 0, "at {at}");
    }
}

#[test]
fn a_host_that_joins_hears_of_one_that_is_down_and_resets_nothing_of_it() {
    let mut pop = settled(4);
    pop.kill(4);
    pop.run(600 * SECOND);
    pop.kill(2);
    pop.run(4 * SECOND);
    pop.reboot(4, 10);
    pop.run(2 * SECOND);
    let (node, _) = pop.machines[&4].agent.as_ref().unwrap();
    let audience = node.gossip().audience();
    // Both are of one rack: nobody else could ask host 2 on its behalf.
    assert!(audience.near_blind, "{audience:?}");
}

#[test]
fn a_host_that_is_cut_off_voids_nothing_is_voided_and_comes_back() {
    for hosts in [3, 5, 8] {
        let mut pop = settled(hosts);
        pop.dark.insert(1);
        pop.run(3 * SECOND);
        for at in 2..=hosts {
            assert_eq!(routes(&pop, at), 0, "at {at} of {hosts}");
        }
        pop.run(20 * SECOND);
        assert_eq!(pop.routes(1).len(), SESSIONS as usize, "of {hosts}");
        let (node, _) = pop.machines[&1].agent.as_ref().unwrap();
        let alerts = node.alerts(pop.now);
        let is_minority = |alert: &Alert| matches!(alert, Alert::Minority { reached: 1, .. });
        assert!(alerts.iter().any(is_minority), "{alerts:?}");
        // Meanwhile sessions come and go there.
        pop.open(1, 50, 0);
        pop.close(1, 0);
        pop.dark.clear();
        pop.run(2 * SECOND);
        pop.assert_converged();
        assert_eq!(pop.counters(1).voided_hosts, 0);
    }
}

#[test]
fn an_agent_that_comes_back_before_the_judgement_loses_nothing() {
    let mut pop = settled(4);
    pop.dark.insert(1);
    pop.run(900 * MS);
    pop.dark.clear();
    pop.run(10 * SECOND);
    pop.assert_converged();
    for at in 2..=4 {
        assert_eq!(pop.counters(at).voided_hosts, 0, "at {at}");
    }
}

#[test]
fn a_new_life_voids_the_old_one_and_waits_for_its_sweep() {
    let mut pop = settled(4);
    pop.reboot(1, 10);
    pop.open(1, 3, 0);
    pop.run(SECOND);
    pop.assert_converged();
    for at in 2..=4 {
        assert_eq!(routes(&pop, at), 1, "at {at}");
        assert_eq!(pop.counters(at).voided_hosts, 1, "at {at}");
    }
}

#[test]
fn a_session_that_two_hosts_claim_is_reported_once_it_lasts() {
    let mut pop = settled(4);
    let doubled = |pop: &Pop, at: u16| {
        let (node, _) = pop.machines[&at].agent.as_ref().unwrap();
        let alerts = node.alerts(pop.now);
        alerts.contains(&Alert::DoubleClaim {
            session: SessionId(3),
        })
    };
    // A moment of it is in order.
    pop.open(2, 4, 0);
    pop.run(2 * SECOND);
    pop.close(1, 4);
    pop.open(2, 3, 0);
    pop.run(8 * SECOND);
    assert!((1..=4).all(|at| !doubled(&pop, at)));
    pop.run(4 * SECOND);
    for at in 1..=4 {
        assert!(doubled(&pop, at), "at {at}");
    }
    // Harmless: all name the same owner, and both serve what is theirs.
    pop.assert_converged();
    pop.close(2, 3);
    pop.run(2 * SECOND);
    assert!((1..=4).all(|at| !doubled(&pop, at)));
}
