//! Clocks of the day that jump: nothing of the protocol depends on them.

use super::{Pop, WALL};
use crate::{
    gossip::machine::CLOCKS_MAX,
    pop::{MS, SECOND},
};

const HOUR: u64 = 3_600 * SECOND;

/// Sessions that open and close on five hosts, with loss and restarts, while clocks
/// jump as told. Returns the POP at its end.
fn history(jumps: &[(u64, u16, u64)]) -> Pop {
    let mut pop = Pop::new(9, 5, true);
    pop.echoes = true;
    pop.start_all();
    pop.run(4 * SECOND);
    pop.faults.loss_percent = 10;
    pop.faults.delay_max = 5 * MS;
    for step in 0..60u64 {
        for (_, host, wall) in jumps.iter().filter(|(at, ..)| *at == step) {
            pop.walls.insert(*host, *wall);
        }
        let host = (step % 5) as u16 + 1;
        pop.open(host, step, 0);
        if step >= 20 {
            let opened = step - 20;
            pop.close((opened % 5) as u16 + 1, opened);
        }
        match step {
            25 => pop.kill(2),
            35 => {
                pop.machines.get_mut(&2).unwrap().stream.generation += 1;
                pop.start(2);
            }
            _ => {}
        }
        pop.run(200 * MS);
    }
    pop.faults.loss_percent = 0;
    pop.run(4 * SECOND);
    pop
}

#[test]
fn clocks_that_jump_change_nothing() {
    let jumps = [
        (5, 1, WALL + HOUR),
        (10, 2, WALL - HOUR),
        (15, 1, WALL - HOUR),
        (20, 3, WALL + 1_000 * HOUR),
        (30, 2, WALL + HOUR),
        (40, 4, 0),
        (45, 3, WALL),
    ];
    let (steady, jumpy) = (history(&[]), history(&jumps));
    steady.assert_converged();
    jumpy.assert_converged();
    let (node, _) = jumpy.machines[&5].agent.as_ref().unwrap();
    assert!(node.gossip().latency().samples() > 0);
    // To the last datagram.
    assert_eq!(steady.flown, jumpy.flown);
    for host in 1..=5 {
        assert_eq!(steady.routes(host), jumpy.routes(host), "host {host}");
        let before = steady.counters(host);
        assert_eq!(before.clock_differs, 0);
        let after = jumpy.counters(host);
        assert!(after.clock_differs > 0, "host {host} noticed nothing");
        assert_eq!(before.records_applied, after.records_applied);
        // What cannot be a latency is not counted as one.
        let (node, _) = jumpy.machines[&host].agent.as_ref().unwrap();
        let latency = node.gossip().latency();
        assert!(latency.max_us() <= CLOCKS_MAX);
    }
}
