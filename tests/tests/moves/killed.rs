//! Agents and applications that are killed at every step of a move, on either side.

use homing_tests::{puppet::ECHO, steps::At};

use super::{
    common::{PATIENCE, Pop, Scene, shared},
    steps::{Held, SOURCE, TARGET, hold, sample, went_on},
};

/// Kills an agent and starts it again, while another one (or itself) is held at a step.
fn kill_agent(pop: &mut Pop, scene: &mut Scene, on: u16, at: &At, victim: u16) -> bool {
    let held = hold(
        pop,
        scene,
        on,
        at,
        |pop| pop.lab.kill(victim).unwrap(),
        |pop| pop.lab.launch(victim).unwrap(),
    );
    let Some(held) = held else { return false };
    println!(
        "h{victim} dies, h{on} before {:?}: {:?}",
        held.steps.last(),
        held.came
    );
    pop.lab.wait_ready(PATIENCE).unwrap();
    went_on(pop, held);
    true
}

/// What must become of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Must {
    GoOn,
    /// It goes on, or ends as connections of a process that ends do.
    GoOnOrEnd,
}

/// Kills an application and starts it again.
fn kill_application(
    pop: &mut Pop,
    scene: &mut Scene,
    on: u16,
    at: &At,
    must: impl Fn(&Held) -> Must,
) -> bool {
    let held = hold(
        pop,
        scene,
        on,
        at,
        |pop| pop.puppet(on).kill().unwrap(),
        |pop| pop.revive(on),
    );
    let Some(held) = held else { return false };
    let must = must(&held);
    println!(
        "the application of h{on} dies before {:?}, and the session is to {must:?}: {:?}, {:?}",
        held.steps.last(),
        held.came,
        held.client.as_ref().map(drop).map_err(|(_, error)| error)
    );
    if must == Must::GoOn || held.client.is_ok() {
        went_on(pop, held);
    } else {
        // Its kernel ended it, and may have reset it: it was right if nobody else was
        // asked. That all hosts have forgotten it is seen in the end.
        let client = held.client.unwrap_or_else(|(client, _)| client);
        scene.leave_out(client.address);
    }
    true
}

/// The source's application has to live until it has given its state, which the agent
/// freezes the session for.
fn of_source(held: &Held) -> Must {
    match held.steps.iter().any(|step| step == "write MOVING") {
        true => Must::GoOn,
        false => Must::GoOnOrEnd,
    }
}

/// The target's application has to live until the session is announced, which makes it
/// its own: what is killed before that comes back, and gets it.
fn of_target(held: &Held) -> Must {
    match held.steps.iter().any(|step| step == "write SESSIONS") {
        true => Must::GoOnOrEnd,
        false => Must::GoOn,
    }
}

#[test]
fn an_agent_that_is_killed_in_a_move_loses_no_session() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for host in [SOURCE, TARGET] {
        for at in sample(host) {
            assert!(kill_agent(pop, &mut scene, host, &at, host), "no {at:?}");
        }
    }
    scene.end(pop);
}

#[test]
fn an_application_that_is_killed_in_a_move_takes_no_session_with_it_that_was_not_its_own() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for (host, must) in [
        (SOURCE, of_source as fn(&Held) -> Must),
        (TARGET, of_target),
    ] {
        for at in sample(host).iter().step_by(2) {
            assert!(
                kill_application(pop, &mut scene, host, at, must),
                "no {at:?}"
            );
        }
    }
    scene.end(pop);
}

#[test]
#[ignore = "takes many minutes: `cargo xtask test --full`"]
fn either_agent_may_be_killed_at_every_step() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for on in [SOURCE, TARGET] {
        for victim in [SOURCE, TARGET] {
            let done = (1..)
                .take_while(|number| kill_agent(pop, &mut scene, on, &At::number(*number), victim));
            let steps = done.count();
            assert!(steps > 10, "only {steps} steps on h{on}");
        }
    }
    scene.end(pop);
}

#[test]
#[ignore = "takes many minutes: `cargo xtask test --full`"]
fn either_application_may_be_killed_at_every_step() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for (host, must) in [
        (SOURCE, of_source as fn(&Held) -> Must),
        (TARGET, of_target),
    ] {
        let done = (1..).take_while(|number| {
            kill_application(pop, &mut scene, host, &At::number(*number), must)
        });
        let steps = done.count();
        assert!(steps > 10, "only {steps} steps on h{host}");
    }
    scene.end(pop);
}

#[test]
fn what_moves_can_be_moved_after_its_agents_were_killed() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    let service = pop.lab.plan().service(ECHO)[0];
    let mut client = pop.connect(SOURCE, service, Default::default());
    scene.path(client.address, &[SOURCE, TARGET, 3]);
    client.exchange(1000);
    pop.go(SOURCE, TARGET, &client);
    for host in [SOURCE, TARGET] {
        pop.lab.kill(host).unwrap();
        client.exchange(1000);
        pop.lab.start(host).unwrap();
        client.exchange(1000);
    }
    pop.go(TARGET, 3, &client);
    client.exchange(1000);
    client.shut();
    client.hear_end();
    scene.end(pop);
}
