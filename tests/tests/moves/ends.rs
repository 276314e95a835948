//! Sessions whose clients end them, or say all that they have, in the middle of a move.

use homing_tests::{
    lab::wait_until,
    puppet::ECHO,
    steps::{At, Followed},
};

use super::{
    client::{Client, Wish},
    common::{PATIENCE, Pop, Scene, Session as _, shared},
    steps::{SOURCE, TARGET, sample},
};

/// What a client does in the middle of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// It ends its side, and hears the other's end.
    Close,
    /// The same, after all that it has to say.
    SayAndClose,
    Reset,
}

/// The client does something while an agent is held before a step.
fn play(pop: &mut Pop, scene: &mut Scene, on: u16, at: &At, act: Act) -> bool {
    pop.wait_registered();
    let service = pop.lab.plan().service(ECHO)[at.nth % 2];
    let mut client = pop.connect(SOURCE, service, Wish::default());
    client.exchange(1000);
    let (named, who) = (client.named(), client.address);
    scene.path(who, &[SOURCE, TARGET]);
    let pid = pop.lab.agent(on).unwrap().pid;
    let mut followed = Followed::attach(pid, Some(at)).unwrap();
    let order = pop.order(SOURCE, TARGET, &named);
    let step = followed.wait(PATIENCE, || order.is_over()).unwrap();
    let client = match act {
        Act::Close => {
            client.shut();
            Some(client)
        }
        Act::SayAndClose => {
            client.say(60_000);
            client.shut();
            Some(client)
        }
        Act::Reset => {
            client.reset();
            None
        }
    };
    followed.release();
    let came = order.end();
    println!("{act:?}, h{on} before {step:?}: {came:?}");
    if let Some(mut client) = client {
        if act == Act::SayAndClose {
            client.hear(60_000);
        }
        client.hear_end();
    }
    // Nobody has it any more.
    let gone = || Ok(pop.servers(who).is_empty());
    assert!(
        wait_until(PATIENCE, gone).unwrap(),
        "{:?}",
        pop.servers(who)
    );
    step.is_some()
}

const ACTS: [Act; 3] = [Act::Close, Act::SayAndClose, Act::Reset];

#[test]
fn a_client_may_end_its_session_in_the_middle_of_a_move() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for on in [SOURCE, TARGET] {
        for (at, act) in sample(on).iter().zip(ACTS.into_iter().cycle()) {
            assert!(play(pop, &mut scene, on, at, act), "no {at:?}");
        }
    }
    scene.end(pop);
}

#[test]
#[ignore = "takes many minutes: `cargo xtask test --full`"]
fn a_client_may_end_its_session_at_every_step() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for on in [SOURCE, TARGET] {
        for act in ACTS {
            let done =
                (1..).take_while(|number| play(pop, &mut scene, on, &At::number(*number), act));
            let steps = done.count();
            assert!(steps > 10, "only {steps} steps on h{on}");
        }
    }
    scene.end(pop);
}

#[test]
fn a_client_may_say_all_it_has_and_leave_while_its_session_moves() {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for service in pop.lab.plan().service(ECHO) {
        for kib in [64, 512, 4096] {
            let mut client = pop.connect(SOURCE, service, Wish::default());
            client.exchange(1000);
            scene.path(client.address, &[SOURCE, TARGET]);
            let order = pop.order(SOURCE, TARGET, &client.named());
            let client = std::thread::spawn(move || all_and_leave(client, kib << 10));
            let came = order.end();
            // It may have gone before it was asked for.
            println!("{kib} KiB: {came:?}");
            client.join().unwrap();
        }
    }
    scene.end(pop);
}

fn all_and_leave(mut client: Client, bytes: u64) {
    client.bulk(bytes);
    client.shut();
    client.hear_end();
}
