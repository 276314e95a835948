//! Wires that are cut in the middle of a move, for a while or for longer than anybody
//! waits.

use std::{thread, time::Duration};

use homing_tests::{
    lab::fault::{Fault, Traffic},
    steps::At,
};

use super::{
    common::{Pop, Scene, shared},
    steps::{SOURCE, TARGET, hold, sample, went_on},
};

/// Cuts the wire between the two hosts, and heals it a while later.
fn cut(pop: &mut Pop, scene: &mut Scene, on: u16, at: &At, for_ms: u64) -> bool {
    let held = hold(
        pop,
        scene,
        on,
        at,
        |pop| {
            pop.lab.cut(Traffic::All, &[SOURCE], &[TARGET]).unwrap();
        },
        |pop| {
            // No event to wait for: nothing is to happen meanwhile that the cut prevents.
            thread::sleep(Duration::from_millis(for_ms));
            pop.lab.heal().unwrap();
        },
    );
    let Some(held) = held else { return false };
    println!("cut, h{on} before {:?}: {:?}", held.steps.last(), held.came);
    went_on(pop, held);
    true
}

/// Has the program at work that makes faults, which takes a while to start.
fn warm_up(pop: &mut Pop) {
    pop.lab.fault(Fault::gossip().from(&[3]).to(&[3])).unwrap();
    pop.lab.heal().unwrap();
}

#[test]
fn a_wire_that_is_cut_in_a_move_for_a_while_costs_no_session() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    warm_up(pop);
    let mut scene = Scene::begin(pop);
    for host in [SOURCE, TARGET] {
        for at in sample(host).iter().step_by(2) {
            assert!(cut(pop, &mut scene, host, at, 300), "no {at:?}");
        }
    }
    scene.end(pop);
}

#[test]
#[ignore = "takes many minutes: `cargo xtask test --full`"]
fn the_wire_may_be_cut_at_every_step() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    warm_up(pop);
    let mut scene = Scene::begin(pop);
    for host in [SOURCE, TARGET] {
        let done = (1..).take_while(|number| {
            let at = At::number(*number);
            cut(pop, &mut scene, host, &at, 100)
        });
        let steps = done.count();
        assert!(steps > 10, "only {steps} steps on h{host}");
        for at in sample(host) {
            assert!(cut(pop, &mut scene, host, &at, 2500), "no {at:?}");
        }
    }
    scene.end(pop);
}
