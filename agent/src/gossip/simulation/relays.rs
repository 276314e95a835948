//! Chosen histories of a POP with several domains: announcements cross by relays.

use homing_common::{host::HostId, session::SessionId};

use super::Pop;
use crate::pop::{Domain, MS, SECOND};

/// Three domains of five hosts each, of which nothing goes wrong.
fn settled() -> Pop {
    let mut pop = Pop::new(1, 15, true);
    pop.domains = 3;
    pop.start_all();
    // Not on a full second, when heartbeats fly.
    pop.run(4 * SECOND + 321 * MS);
    pop.assert_converged();
    pop
}

/// The relays of host 1, which is in domain 1, in domain 2.
fn relays(pop: &Pop) -> [u16; 2] {
    let (node, _) = pop.machines[&1].agent.as_ref().unwrap();
    let relays = node.gossip().relays_of(Domain::try_from("rack 2").unwrap());
    [relays[0].0, relays[1].0]
}

fn know(pop: &Pop, id: u64) -> Vec<u16> {
    let others = (2..=15).filter(|host| pop.machines[host].agent.is_some());
    others
        .filter(|&host| pop.routes(host).get(&SessionId(id)) == Some(&HostId(1)))
        .collect()
}

/// Over all hosts that run: a sum of something counted.
fn sum(pop: &Pop, counter: impl Fn(super::super::machine::Counters) -> u64) -> u64 {
    let running = pop.machines.iter().filter(|(_, m)| m.agent.is_some());
    running.map(|(&host, _)| counter(pop.counters(host))).sum()
}

#[test]
fn announcement_crosses_each_domain_once() {
    let mut pop = settled();
    let before = pop.flown;
    pop.open(1, 77, 0);
    pop.run(300);
    assert_eq!(know(&pop, 77).len(), 14);
    // Four copies of one multicast in its own domain; in each of the other two,
    // one to each relay and four copies of one multicast.
    assert_eq!(pop.flown - before, 4 + 2 * (2 + 4));
    pop.run(15 * MS);
    assert_eq!(pop.flown - before, 4 + 2 * (2 + 4));
    assert_eq!(sum(&pop, |c| c.relay_passed_on), 2);
    assert_eq!(sum(&pop, |c| c.relay_covered), 2);
    assert_eq!(sum(&pop, |c| c.relay_stood_in), 0);
}

#[test]
fn origins_share_the_datagrams_of_a_relay() {
    let mut pop = settled();
    let before = sum(&pop, |c| c.relay_passed_on);
    let flown = pop.flown;
    for n in 0..2_000 {
        pop.open(1 + (n % 5) as u16 * 3, n, 0);
        pop.run(10);
    }
    pop.run(50 * MS);
    pop.assert_converged();
    assert_eq!(sum(&pop, |c| c.relay_passed_on) - before, 4_000);
    assert_eq!(sum(&pop, |c| c.repairs_asked), 0);
    let per_announcement = (pop.flown - flown) as f64 / 2_000.0;
    // One by one they would be sixteen.
    assert!(per_announcement < 2.5, "{per_announcement}");
}

#[test]
fn dead_relay_costs_a_moment() {
    let mut pop = settled();
    let [first, other] = relays(&pop);
    pop.kill(first);
    pop.open(1, 5, 0);
    pop.run(10 * MS);
    assert_eq!(
        know(&pop, 5).len(),
        13,
        "long before anyone knows it is gone"
    );
    assert_eq!(pop.counters(other).relay_stood_in, 1);
    // And from when that is known, not even that.
    pop.run(5 * SECOND);
    assert_eq!(relays(&pop)[0], other);
    pop.open(1, 6, 0);
    pop.run(500);
    assert_eq!(know(&pop, 6).len(), 13);
    assert_eq!(sum(&pop, |c| c.repairs_asked), 0);
}

#[test]
fn slow_relay_costs_a_moment() {
    let mut pop = settled();
    let [first, other] = relays(&pop);
    pop.faults.slow = Some((first, 60 * MS));
    for id in 0..20 {
        pop.open(1, id, 0);
        pop.run(MS);
    }
    pop.run(10 * MS);
    let behind = (2..=15).filter(|&host| host != first && pop.routes(host).len() < 20);
    assert_eq!(behind.count(), 0);
    assert_eq!(pop.counters(other).relay_stood_in, 20);
    pop.run(SECOND);
    pop.assert_converged();
}

#[test]
fn what_does_not_reach_the_first_relay_is_passed_on_by_the_other() {
    let mut pop = settled();
    let [first, other] = relays(&pop);
    pop.faults.one_way = Some((1, first));
    pop.open(1, 5, 0);
    pop.run(100);
    // The batch after it does arrive, and shows that this one did not.
    pop.faults.one_way = None;
    pop.open(1, 6, 0);
    pop.run(MS);
    assert_eq!(pop.counters(other).relay_stood_in, 1);
    let at = know(&pop, 6).len();
    assert_eq!((know(&pop, 5).len(), at), (14, 14));
    assert_eq!(sum(&pop, |c| c.repairs_asked), 0);
    // For good: the other one stands in for as long as it takes.
    pop.faults.one_way = Some((1, first));
    pop.open(1, 7, 0);
    pop.run(10 * MS);
    assert_eq!(know(&pop, 7).len(), 14);
}

#[test]
fn both_relays_dead_is_repaired_once_others_are_chosen() {
    let mut pop = settled();
    for relay in relays(&pop) {
        pop.kill(relay);
    }
    pop.open(1, 5, 0);
    pop.run(5 * SECOND);
    assert_eq!(know(&pop, 5).len(), 12);
    pop.assert_converged();
}

#[test]
fn heartbeats_of_other_domains_come_by_relays() {
    let mut pop = settled();
    let before: Vec<_> = (1..=15).map(|h| pop.counters(h).heartbeats_sent).collect();
    pop.run(10 * SECOND);
    for host in 1..=15 {
        let sent = pop.counters(host).heartbeats_sent - before[usize::from(host) - 1];
        // Each second one to the group, four to its hosts, one to each of two
        // other domains.
        assert_eq!(sent, 70, "host {host}");
    }
    // A difference is found by them.
    pop.open(1, 5, 0);
    pop.run(3 * SECOND);
    let (node, _) = pop.machines.get_mut(&2).unwrap().agent.as_mut().unwrap();
    node.corrupt_for_test(HostId(1), SessionId(5));
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).digest_mismatches, 1);
}
