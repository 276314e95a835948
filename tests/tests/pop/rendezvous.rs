//! Hosts that cannot know a session's owner send its packets to a host that can.

use homing_common::outcome::Outcome;
use homing_tests::lab::wait_until;

use super::common::{PATIENCE, Pop, count, knows_others};

#[test]
fn a_host_whose_agent_is_dead_finds_the_owners_of_sessions_it_never_heard_of() {
    let mut pop = Pop::up("blind");
    let sent = Outcome::Rendezvous;
    // An agent that is killed before it has seen the others leaves a kernel that
    // knows of nobody.
    assert!(wait_until(PATIENCE, || Ok(knows_others(&pop, 1))).unwrap());
    let before = count(&pop, 1, sent);
    pop.lab.kill(1).unwrap();
    pop.lab.set_ecmp(&[2, 3]).unwrap();
    let clients = pop.load(30);
    // Nobody has told the first host of any of them.
    pop.lab.set_ecmp(&[1]).unwrap();
    let live = clients.wait_rounds(3, PATIENCE).unwrap();
    assert_eq!(live, clients.total(), "{}", pop.outcomes());
    assert!(count(&pop, 1, sent) - before >= 30, "by another way");
    assert_eq!(count(&pop, 1, Outcome::Unknown), 0);
    pop.lab.start(1).unwrap();
    pop.lab.wait_settled(30, PATIENCE).unwrap();
    let after = count(&pop, 1, sent);
    clients.wait_rounds(2, PATIENCE).unwrap();
    assert_eq!(count(&pop, 1, sent), after, "it knows them now");
    pop.unbroken(clients);
    pop.down();
}
