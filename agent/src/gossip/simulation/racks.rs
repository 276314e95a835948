//! Racks that are away for longer than anything waits, and come back: within 2 s all
//! tables are right again.

use super::Pop;
use crate::pop::{MS, SECOND, membership::State};

const RACKS: u16 = 6;
/// "Convergence after heal within 2 s".
const HEALED_WITHIN: u64 = 2 * SECOND;

/// A POP of six racks with three sessions on each host.
fn settled(seed: u64, hosts: u16, echoes: bool) -> Pop {
    let mut pop = Pop::new(seed, hosts, true);
    pop.domains = RACKS;
    pop.echoes = echoes;
    pop.start_all();
    pop.run(6 * SECOND);
    for host in 1..=hosts {
        for n in 0..3 {
            pop.open(host, session(host, n), 0);
        }
    }
    pop.run(SECOND);
    pop.assert_converged();
    pop
}

fn session(host: u16, n: u64) -> u64 {
    u64::from(host) * 100 + n
}

/// The hosts of one rack.
fn rack(pop: &Pop) -> Vec<u16> {
    let hosts = pop.machines.keys().copied();
    hosts.filter(|host| host % RACKS == 2).collect()
}

/// Sessions come and go everywhere while some hosts are away.
fn churn(pop: &mut Pop) {
    for host in pop.machines.keys().copied().collect::<Vec<_>>() {
        pop.open(host, session(host, 3), 0);
        pop.close(host, session(host, 0));
    }
}

/// What still differs from the truth, for the message of a test that fails.
fn differs(pop: &Pop) -> String {
    let mut text = String::new();
    for (&at, machine) in &pop.machines {
        let (node, applier) = machine.agent.as_ref().unwrap();
        let wrong = applier.table().routes != pop.truth(at);
        let unheard = node.membership().entries();
        let unheard = unheard.filter(|entry| entry.state != State::Alive);
        let unheard: Vec<_> = unheard.map(|entry| entry.member.host.0).collect();
        if wrong || !unheard.is_empty() {
            text += &format!("host {at}: wrong {wrong}, not up for it {unheard:?}\n");
        }
    }
    text
}

/// All is right again within the time.
fn heals(pop: &mut Pop) {
    let begun = pop.now;
    while !differs(pop).is_empty() && pop.now < begun + HEALED_WITHIN {
        pop.run(50 * MS);
    }
    println!("healed after {} ms", (pop.now - begun) / MS);
    let left = differs(pop);
    assert!(left.is_empty(), "not healed:\n{left}");
    pop.assert_converged();
}

/// The rack's hosts reach nobody for so many seconds, not even each other.
fn without_its_switch(mut pop: Pop, away: u64) {
    pop.dark.extend(rack(&pop));
    pop.run(5 * SECOND);
    churn(&mut pop);
    pop.run((away - 5) * SECOND);
    pop.dark.clear();
    heals(&mut pop);
}

/// The rack's hosts reach each other alone.
fn without_its_uplink(mut pop: Pop, away: u64) {
    pop.apart.extend(rack(&pop));
    pop.run(5 * SECOND);
    churn(&mut pop);
    pop.run((away - 5) * SECOND);
    pop.apart.clear();
    heals(&mut pop);
}

#[test]
fn a_rack_whose_switch_was_dead_is_back_within_two_seconds() {
    without_its_switch(settled(11, 60, true), 10);
}

#[test]
fn a_rack_whose_uplink_was_dead_is_back_within_two_seconds() {
    without_its_uplink(settled(12, 60, true), 10);
}

#[test]
fn so_are_small_racks_however_long_they_were_away_and_without_echoes() {
    for (seed, echoes, away) in [(1, true, 40), (2, false, 10), (3, false, 40)] {
        without_its_switch(settled(seed, 24, echoes), away);
        without_its_uplink(settled(seed, 24, echoes), away);
    }
}
