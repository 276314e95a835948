//! Two machines with one host id: the one that the POP knows keeps it, and nobody
//! else is harmed.

use homing_common::{host::HostId, session::SessionId};

use super::Pop;
use crate::{
    gossip::alerts::Alert,
    pop::{SECOND, membership::State},
};

const HOSTS: u16 = 16;
/// Sessions of host 1.
const SESSIONS: u64 = 20;

/// A POP of several racks, with sessions on host 1, in which a last machine is
/// about to start with the id of host 1 and a later incarnation.
fn with_impostor(hosts: u16) -> Pop {
    let mut pop = Pop::new(5, hosts + 1, true);
    pop.domains = 4;
    pop.echoes = true;
    let impostor = pop.machines.get_mut(&(hosts + 1)).unwrap();
    impostor.id = 1;
    impostor.stream.incarnation = 5_000;
    for host in 1..=hosts {
        pop.start(host);
    }
    pop.run(30 * SECOND);
    for id in 0..SESSIONS {
        pop.open(1, id, 0);
    }
    pop.run(20 * SECOND);
    pop
}

/// How many of host 1's sessions another host knows.
fn known(pop: &Pop, at: u16) -> usize {
    let ids = (0..SESSIONS).map(SessionId);
    ids.filter(|id| pop.routes(at).contains_key(id)).count()
}

/// Nobody but the impostor has lost anything.
fn assert_unharmed(pop: &Pop, hosts: u16) {
    for at in 2..=hosts {
        assert_eq!(known(pop, at), SESSIONS as usize, "at {at}");
        let seen = pop.seen(at, 1).unwrap();
        assert_eq!(seen.state, Some(State::Alive), "at {at}");
        assert_eq!(seen.member.unwrap().address, super::address(1), "at {at}");
        assert_eq!(pop.counters(at).voided_hosts, 0, "at {at}");
    }
    assert_eq!(pop.machines[&1].stream.incarnation, 1_000);
}

/// Lets time go by, a second at a time.
fn watch(pop: &mut Pop, seconds: u64) {
    for _ in 0..seconds {
        pop.run(SECOND);
        assert_unharmed(pop, HOSTS);
    }
}

fn impostor(pop: &Pop) -> &crate::gossip::node::Node {
    &pop.machines[&(HOSTS + 1)].agent.as_ref().unwrap().0
}

#[test]
fn a_second_machine_with_an_id_takes_nothing_from_the_first() {
    let mut pop = with_impostor(HOSTS);
    pop.start(HOSTS + 1);
    watch(&mut pop, 30);
    let alerts = impostor(&pop).alerts(pop.now);
    let is_refused = |alert: &Alert| matches!(alert, Alert::Refused { .. });
    assert!(alerts.iter().any(is_refused), "{alerts:?}");
    assert!(impostor(&pop).membership().is_alone());
    let is_told = |at| {
        let (node, _) = pop.machines[&at].agent.as_ref().unwrap();
        let alerts = node.alerts(pop.now);
        let is_it = |alert: &Alert| {
            matches!(
                alert,
                Alert::TwoMachines {
                    host: HostId(1),
                    ..
                }
            )
        };
        alerts.iter().any(is_it)
    };
    assert!((2..=HOSTS).any(is_told));
}

#[test]
fn an_agent_that_is_down_does_not_lose_its_id_to_another_machine() {
    let mut pop = with_impostor(HOSTS);
    pop.start(HOSTS + 1);
    pop.run(SECOND);
    pop.kill(1);
    for _ in 0..20 {
        pop.run(SECOND);
        for at in 2..=HOSTS {
            assert_eq!(known(&pop, at), SESSIONS as usize, "at {at}");
        }
    }
    pop.start(1);
    pop.run(3 * SECOND);
    assert_unharmed(&pop, HOSTS);
}

#[test]
fn an_id_is_free_once_its_machine_is_gone() {
    let mut pop = with_impostor(HOSTS);
    pop.start(HOSTS + 1);
    pop.run(SECOND);
    pop.kill(1);
    pop.dark.insert(1);
    pop.open(HOSTS + 1, 500, 0);
    pop.run(20 * SECOND);
    for at in 2..=HOSTS {
        assert_eq!(known(&pop, at), 0, "at {at}");
        let route = pop.routes(at).get(&SessionId(500));
        assert_eq!(route, Some(&HostId(1)), "at {at}");
        let address = pop.seen(at, 1).unwrap().member.unwrap().address;
        assert_eq!(address, super::address(HOSTS + 1), "at {at}");
    }
}

#[test]
fn who_hears_of_the_wrong_one_first_harms_nobody_else() {
    let mut pop = with_impostor(HOSTS);
    // Nobody else lets the second machine in; one that knows nobody yet may.
    pop.kill(2);
    pop.run(10 * SECOND);
    let others: Vec<u16> = (1..=HOSTS).filter(|&host| host != 2).collect();
    pop.dark.extend(&others);
    pop.start(2);
    pop.start(HOSTS + 1);
    pop.run(2 * SECOND);
    let (node, _) = pop.machines[&2].agent.as_ref().unwrap();
    assert!(!node.membership().is_alone());
    for host in others {
        pop.dark.remove(&host);
    }
    for _ in 0..30 {
        pop.run(SECOND);
        for at in 3..=HOSTS {
            assert_eq!(known(&pop, at), SESSIONS as usize, "at {at}");
            assert_eq!(pop.counters(at).voided_claims, 0, "at {at}");
        }
    }
}
