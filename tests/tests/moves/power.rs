//! Hosts that lose their power in the middle of a move.

use homing_tests::{lab::wait_until, steps::At};

use super::{
    common::{PATIENCE, Pop, Scene},
    steps::{SOURCE, TARGET, hold},
};

/// Cuts a host's power while an agent is held before a step; the session goes on at the
/// other host.
fn cut_power(name: &str, on: u16, at: &At, victim: u16) -> Pop {
    let other = SOURCE + TARGET - victim;
    let mut pop = Pop::with(name, 3, "kernel_dead_after = \"1s\"\n");
    let mut scene = Scene::begin(&pop);
    let held = hold(
        &mut pop,
        &mut scene,
        on,
        at,
        |pop| {
            pop.lab.set_ecmp(&[3]).unwrap();
            pop.lose(victim);
            pop.lab.cut_power(victim).unwrap();
        },
        |_| {},
    );
    let held = held.expect("the step");
    println!(
        "h{victim} loses its power before {:?}: {:?}",
        held.steps.last(),
        held.came
    );
    let client = held.client;
    let mut client =
        client.unwrap_or_else(|(_, error)| panic!("{error}\n{}", pop.lab.last_words(other)));
    assert_eq!(pop.servers(client.address), [other]);
    let still = || Ok(pop.journal(other).is_empty());
    assert!(wait_until(PATIENCE, still).unwrap());
    client.exchange(20_000);
    client.shut();
    client.hear_end();
    scene.judge();
    pop
}

#[test]
fn a_target_that_is_prepared_serves_when_the_source_loses_its_power() {
    // Before it writes that it has released the session.
    let at = At::nth(2, "write MOVING");
    let pop = cut_power("power1", SOURCE, &at, SOURCE);
    assert_eq!(pop.count(TARGET, "taken_over_void"), 1);
}

#[test]
fn a_source_goes_on_when_the_target_loses_its_power_before_the_release() {
    // Before it says that it is prepared, whose note in the journal is the last thing
    // that it has done.
    let at = At::nth(2, "write MOVING");
    let pop = cut_power("power2", TARGET, &at, TARGET);
    assert_eq!(pop.count(SOURCE, "aborted"), 1);
}
