//! A session whose move is held at one of its steps, while something happens.

use homing_tests::{
    lab::{Lab, wait_until},
    puppet::ECHO,
    steps::{At, Followed},
};

use super::{
    client::{Client, Wish},
    common::{Came, PATIENCE, Pop, Scene, Session as _},
};

/// From where to where the sessions of these tests move.
pub const SOURCE: u16 = 1;
pub const TARGET: u16 = 2;

/// What came of a session whose move was held.
pub struct Held {
    /// The steps of the agent that was held, up to the one that it had not made.
    pub steps: Vec<String>,
    /// What came of the move, as far as who asked for it heard.
    pub came: Came,
    /// The session, if it went on; else how it ended.
    pub client: Result<Client, (Client, String)>,
}

/// Opens a session, moves it, holds the agent of host `on` before a step, and
/// then has something happen; lets the agent go on, if it lives, at once has something
/// else happen, and sees what became of the session. None if the move has no such step.
pub fn hold(
    pop: &mut Pop,
    scene: &mut Scene,
    on: u16,
    at: &At,
    act: impl FnOnce(&mut Pop),
    then: impl FnOnce(&mut Pop),
) -> Option<Held> {
    pop.wait_registered();
    let service = pop.lab.plan().service(ECHO)[at.nth % 2];
    let mut client = pop.connect(SOURCE, service, Wish::default());
    client.exchange(1000);
    let (named, who) = (client.named(), client.address);
    scene.path(who, &[SOURCE, TARGET]);
    let chat = client.chat();
    let mut followed = Followed::attach(agent(&pop.lab, on), Some(at)).unwrap();
    let order = pop.order(SOURCE, TARGET, &named);
    let step = followed.wait(PATIENCE, || order.is_over()).unwrap();
    let steps = followed.steps().to_vec();
    if step.is_some() {
        act(pop);
    }
    followed.release();
    if step.is_some() {
        then(pop);
    }
    let came = order.end();
    let client = chat
        .try_end()
        .and_then(|mut client| match client.try_exchange(20_000) {
            Ok(()) => Ok(client),
            Err(error) => Err((client, error)),
        });
    step?;
    Some(Held {
        steps,
        came,
        client,
    })
}

/// The session went on, and is at one of the two hosts; it closes.
pub fn went_on(pop: &mut Pop, held: Held) {
    let mut client = match held.client {
        Ok(client) => client,
        Err((client, error)) => {
            let words: Vec<String> = [SOURCE, TARGET]
                .map(|host| format!("--- h{host}\n{}", pop.lab.last_words(host)))
                .into();
            panic!(
                "{} before {:?}: {error}; {:?}\n{}",
                client.address,
                held.steps,
                held.came,
                words.join("\n")
            )
        }
    };
    let who = client.address;
    let one = || Ok(pop.servers(who).len() == 1);
    assert!(wait_until(PATIENCE, one).unwrap(), "{:?}", pop.servers(who));
    client.shut();
    client.hear_end();
}

/// The process of a host's agent.
fn agent(lab: &Lab, host: u16) -> i32 {
    lab.agent(host).expect("it runs").pid
}

/// A fair sample of the steps of a move at its source, and at its target: those that
/// nothing takes back, and what comes next.
pub fn sample(on: u16) -> Vec<At> {
    let at = |nth, of| At::nth(nth, of);
    if on == SOURCE {
        vec![
            // Export.
            at(1, "talk to applications"),
            // Frozen.
            at(1, "write MOVING"),
            at(1, "TCP_REPAIR 1"),
            // Released.
            at(2, "write MOVING"),
            at(1, "destroy"),
            // Committed.
            at(2, "talk to applications"),
        ]
    } else {
        vec![
            // Awaiting.
            at(1, "write MOVING"),
            // Its socket.
            at(1, "TCP_REPAIR 1"),
            // State.
            at(2, "talk to applications"),
            // Prepared.
            at(2, "write MOVING"),
            at(1, "TCP_REPAIR 0"),
            at(1, "write SESSIONS"),
            at(1, "delete from MOVING"),
        ]
    }
}
