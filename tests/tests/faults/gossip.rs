//! Gossip on a bad network: the tables converge, and no connection breaks while
//! there is a path.

use homing_agent::{gossip::targets::RELAYS, pop::rendezvous};
use homing_common::host::HostId;
use homing_tests::lab::fault::{Fault, Traffic};

use super::common::{CONVERGED, CONVERGED_UNDER_LOSS, PATIENCE, Pop};

#[test]
fn loss_duplication_and_reordering() {
    let mut pop = Pop::up("fltloss", 4, 2);
    pop.lab.seed_faults(11).unwrap();
    let fault = Fault::gossip().loss(30.0).duplicate(10.0).delay(1, 20);
    pop.lab.fault(fault).unwrap();
    let first = pop.load(60);
    let took = pop.converges_within(CONVERGED_UNDER_LOSS, &[]);
    println!("with 30 % loss: converged {took:?} after the last was opened");
    pop.tour(&first);
    let second = pop.load(60);
    pop.converges_within(CONVERGED_UNDER_LOSS, &[]);
    pop.tour(&second);
    pop.unbroken(first);
    pop.tour(&second);
    pop.unbroken(second);
    let tally = pop.lab.faults_tally().unwrap();
    assert!(tally.lost > 200 && tally.duplicated > 40, "{tally:?}");
    // Closed sessions stay in the tables for a while (`pop.close_linger`).
    pop.converges_within(CONVERGED_UNDER_LOSS, &[]);
    let third = pop.load(60);
    pop.lab.heal().unwrap();
    let took = pop.converges();
    println!("without loss again: converged in {took:?}");
    pop.tour(&third);
    pop.unbroken(third);
    pop.down();
}

#[test]
fn two_hundred_milliseconds_of_delay() {
    let mut pop = Pop::up("fltdelay", 4, 2);
    pop.lab.fault(Fault::gossip().delay(200, 0)).unwrap();
    let clients = pop.load(60);
    let took = pop.converges();
    println!("with 200 ms of delay: converged {took:?} after the last was opened");
    pop.tour(&clients);
    pop.lab.heal().unwrap();
    pop.lab.wait_ready(PATIENCE).unwrap();
    pop.converges();
    pop.tour(&clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_host_that_does_not_hear_another() {
    let mut pop = Pop::up("fltone", 4, 2);
    let first = pop.load(40);
    pop.converges();
    // Within a rack, then from rack to rack.
    for (from, to) in [(1, 2), (1, 3)] {
        let cut = Fault::gossip().from(&[from]).to(&[to]).cut();
        pop.lab.fault(cut).unwrap();
        // The sessions that are opened meanwhile on the one, the other does not know,
        // nor does it hear the answer when it asks. It must not reset them: they are
        // silent until they are known.
        pop.lab.set_ecmp(&[from]).unwrap();
        let second = pop.load(20);
        pop.lab.set_ecmp(&[to]).unwrap();
        let live = first.wait_rounds(3, PATIENCE).unwrap();
        assert_eq!(live, first.total());
        assert_eq!(second.live(), second.total(), "{}", pop.outcomes());
        pop.lab.heal().unwrap();
        pop.converges();
        pop.tour(&second);
        pop.unbroken(second);
    }
    pop.unbroken(first);
    pop.down();
}

#[test]
fn a_relay_is_dead() {
    let mut pop = Pop::up("fltrelay", 6, 2);
    let relays = rendezvous::choose(1, (4..=6).map(HostId), RELAYS);
    // Each in turn: host 1 has chosen both, and does not know of it yet.
    for relay in &relays {
        let (relay, others) = (relay.0, [1, 2, 3, 4, 5, 6]);
        let others: Vec<u16> = others.into_iter().filter(|host| *host != relay).collect();
        pop.lab.set_ecmp(&[1]).unwrap();
        let stood_in = |pop: &Pop| {
            let count = |host| pop.lab.gossip_count(host, "relay_stood_in").unwrap();
            relays.iter().map(|host| count(host.0)).sum::<u64>()
        };
        let before = stood_in(&pop);
        pop.lab.cut(Traffic::Gossip, &[relay], &others).unwrap();
        let clients = pop.load(40);
        let took = pop.converges_within(CONVERGED, &[relay]);
        println!("without relay h{relay}: converged {took:?} after the last was opened");
        if relay == relays[0].0 {
            // Not by repair alone: the other one passed on what this one did not.
            assert!(stood_in(&pop) > before, "nobody stood in for h{relay}");
        }
        pop.lab.heal().unwrap();
        let took = pop.converges();
        println!("with relay h{relay} again: converged in {took:?}");
        pop.tour(&clients);
        pop.unbroken(clients);
        pop.lab.wait_settled(0, PATIENCE).unwrap();
    }
    pop.down();
}

#[test]
fn partition_of_gossip_and_its_end() {
    let mut pop = Pop::up("fltpart", 4, 2);
    let first = pop.load(40);
    pop.converges();
    pop.lab.cut(Traffic::Gossip, &[1, 2], &[3, 4]).unwrap();
    pop.wait_parted(&[1, 2], &[3, 4]);
    // What was known before is known on: packets still find their way.
    pop.tour(&first);
    // What is opened meanwhile is known on its side only.
    let second = pop.load(40);
    assert!(!pop.lab.untruths().unwrap().is_empty());
    pop.lab.heal().unwrap();
    let took = pop.converges();
    println!("after a partition of gossip: converged in {took:?}");
    pop.tour(&first);
    pop.tour(&second);
    pop.unbroken(first);
    pop.unbroken(second);
    pop.down();
}

#[test]
fn partition_of_everything_and_its_end() {
    let mut pop = Pop::up("fltfull", 4, 2);
    let first = pop.load(40);
    pop.converges();
    // Clients still reach everybody, and ECMP sends nobody elsewhere.
    pop.lab.cut(Traffic::All, &[1, 2], &[3, 4]).unwrap();
    pop.wait_parted(&[1, 2], &[3, 4]);
    let live = first.wait_rounds(3, PATIENCE).unwrap();
    assert_eq!(live, first.total());
    let second = pop.load(40);
    pop.lab.heal().unwrap();
    let took = pop.converges();
    println!("after a full partition: converged in {took:?}");
    pop.tour(&first);
    pop.tour(&second);
    pop.unbroken(first);
    pop.unbroken(second);
    pop.down();
}

#[test]
fn multicast_dead_and_unicast_alive() {
    let mut pop = Pop::up("fltmulti", 4, 2);
    let mut loads = vec![pop.load(40)];
    pop.converges();
    pop.wait_hears(true);
    pop.lab.fault(Fault::multicast().cut()).unwrap();
    loads.push(pop.load(40));
    let took = pop.converges();
    println!("without multicast: converged {took:?} after the last was opened");

    // At first by repair; once hosts know that they are not heard, by unicast.
    pop.wait_hears(false);
    loads.push(pop.load(12));
    pop.converges();
    let repairs = |pop: &Pop| -> u64 {
        let asked = |host| pop.lab.gossip_count(host, "repairs_asked").unwrap();
        (1..=4).map(asked).sum()
    };
    let before = repairs(&pop);
    loads.push(pop.load(40));
    pop.converges();
    assert_eq!(repairs(&pop), before, "unicast left something to repair");
    assert!(pop.lab.faults_tally().unwrap().lost > 0);

    pop.lab.heal().unwrap();
    pop.wait_hears(true);
    loads.push(pop.load(40));
    pop.converges();
    for clients in &loads {
        pop.tour(clients);
    }
    for clients in loads {
        pop.unbroken(clients);
    }
    pop.down();
}
