//! Hosts that are cut off for longer than the others wait for them: at most one of two
//! serves a session, and what is given up is counted.

use std::time::Duration;

use homing_tests::{
    lab::{fault::Traffic, wait_until},
    puppet::ECHO,
    steps::{At, Followed},
};

use super::{
    client::{Client, Wish},
    common::{PATIENCE, Pop, Scene, Session as _},
    steps::{SOURCE, TARGET, hold},
};

/// What stays until a move is counted as lost, and some more (`docs/migration.md`).
const LOST_WITHIN: Duration = Duration::from_secs(90);

/// How soon a lost session is claimed no longer: what looks for sessions without a socket
/// takes longer.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(3);

/// The source is cut off from all hosts, and they take it for dead: the target serves.
/// Once it is back it neither answers nor takes anything.
fn source_cut_off(name: &str, at: &At) {
    let mut pop = Pop::with(name, 3, "kernel_dead_after = \"1s\"\n");
    let mut scene = Scene::begin(&pop);
    let held = hold(
        &mut pop,
        &mut scene,
        SOURCE,
        at,
        |pop| {
            pop.lab.set_ecmp(&[3]).unwrap();
            pop.lab.cut(Traffic::All, &[SOURCE], &[TARGET, 3]).unwrap();
        },
        |pop| {
            let serves = || Ok(pop.count(TARGET, "taken_over_void") == 1);
            let serves = wait_until(PATIENCE, serves).unwrap();
            assert!(serves, "{}", pop.lab.last_words(TARGET));
            pop.lab.heal().unwrap();
        },
    );
    let held = held.expect("the step");
    println!("cut off before {:?}: {:?}", held.steps.last(), held.came);
    let mut client = held.client.unwrap_or_else(|(_, error)| panic!("{error}"));
    assert_eq!(pop.servers(client.address), [TARGET]);
    // It is back in the middle of the POP, and its packets come there.
    pop.lab.set_ecmp(&[SOURCE]).unwrap();
    pop.wait_still();
    client.exchange(20_000);
    client.shut();
    client.hear_end();
    scene.end(&mut pop);
}

#[test]
fn a_source_that_is_taken_for_dead_before_the_release_never_answers_again() {
    source_cut_off("apart1", &At::nth(2, "write MOVING"));
}

#[test]
fn a_source_that_is_taken_for_dead_after_the_release_never_answers_again() {
    source_cut_off("apart2", &At::nth(1, "destroy"));
}

/// Begins to move a session between two hosts that are a POP, and cuts the wire between
/// them before the source's step.
fn cut_for_good(pop: &mut Pop, scene: &mut Scene, at: &At) -> Client {
    let service = pop.lab.plan().service(ECHO)[0];
    let mut client = pop.connect(SOURCE, service, Wish::default());
    client.exchange(1000);
    scene.path(client.address, &[SOURCE, TARGET]);
    let pid = pop.lab.agent(SOURCE).unwrap().pid;
    let mut followed = Followed::attach(pid, Some(at)).unwrap();
    let order = pop.order(SOURCE, TARGET, &client.named());
    let step = followed.wait(PATIENCE, || order.is_over()).unwrap();
    assert!(step.is_some());
    pop.lab.cut(Traffic::All, &[SOURCE], &[TARGET]).unwrap();
    followed.release();
    client
}

fn wait_count(pop: &Pop, host: u16, name: &str) {
    let counted = || Ok(pop.count(host, name) == 1);
    let counted = wait_until(LOST_WITHIN, counted).unwrap();
    assert!(counted, "{name}:\n{}", pop.lab.last_words(host));
}

#[test]
#[ignore = "takes over a minute: `cargo xtask test --full`"]
fn a_release_that_never_arrives_is_given_up_on_both_sides_and_counted() {
    let mut pop = Pop::with("apart3", 2, "");
    let mut scene = Scene::begin(&pop);
    // Released is written: the source never resumes.
    let client = cut_for_good(&mut pop, &mut scene, &At::nth(1, "destroy"));
    wait_count(&pop, TARGET, "copies_given_up");
    wait_count(&pop, SOURCE, "lost");
    // The source claims it no longer, and found that out from the move itself.
    let forgotten = || {
        let status = pop.lab.homing_json(SOURCE, &["status"])?;
        Ok(status["sessions"]["count"] == 0)
    };
    let forgotten = wait_until(FORGOTTEN_WITHIN, forgotten).unwrap();
    assert!(forgotten, "{}", pop.lab.last_words(SOURCE));
    pop.wait_still();
    assert!(pop.servers(client.address).is_empty());
    // Nobody has answered, and nobody has said that it is gone.
    let reports = scene.judge();
    assert_eq!(reports[&client.address].speakers, [SOURCE]);
    pop.lab.heal().unwrap();
    pop.lab.wait_truth(PATIENCE).unwrap();
    pop.lab.wait_ready(PATIENCE).unwrap();
    // The service goes on, for whoever comes.
    let mut another = pop.connect(TARGET, client.service, Wish::default());
    another.exchange(1000);
    pop.go(TARGET, SOURCE, &another);
    another.exchange(1000);
}

#[test]
#[ignore = "takes a while: `cargo xtask test --full`"]
fn a_source_that_reaches_half_of_the_pop_goes_on_once_nobody_else_can_serve() {
    let mut pop = Pop::with("apart4", 2, "");
    let mut scene = Scene::begin(&pop);
    // Nothing is released: the session is frozen, and its state on the way.
    let mut client = cut_for_good(&mut pop, &mut scene, &At::nth(1, "TCP_REPAIR 1"));
    client.exchange(1000);
    pop.lab.heal().unwrap();
    assert_eq!(pop.servers(client.address), [SOURCE]);
    client.shut();
    client.hear_end();
    scene.end(&mut pop);
}
