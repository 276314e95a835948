//! Sessions that move with whatever stands in their queues, and half closed.

use homing_tests::{
    lab::{Node, fault::Fault, wait_until},
    puppet::{Ask, STILL},
};

use super::{
    client::{Client, Wish},
    common::{PATIENCE, Pop, Scene, shared},
};

/// What stands in the server's send queue when the session moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Out {
    Nothing,
    /// Sent, and not acknowledged: the client's packets are lost.
    Unacknowledged,
    /// The client's window is full of the first bytes, and the rest was never sent.
    Unsent,
}

/// Who has shut down writing when the session moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shut {
    Nobody,
    Client,
    Server,
    /// The server, and the client's answer is lost.
    ServerUnacknowledged,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    v6: bool,
    /// Bytes that the server has received and not read.
    unread: u64,
    out: Out,
    shut: Shut,
}

/// TCP's states, as the kernel counts them (`include/net/tcp_states.h`).
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// Brings a session into a state, moves it along a path, and takes it to its end.
fn play(pop: &mut Pop, scene: &mut Scene, case: Case, path: &[u16]) {
    let service = pop.lab.plan().service(STILL)[usize::from(case.v6)];
    let wish = Wish {
        buffer: (case.out == Out::Unsent).then_some(8192),
        ..Wish::default()
    };
    let mut client = pop.connect(path[0], service, wish);
    let (from, who) = (path[0], client.address);
    scene.path(who, path);
    let mut owed = prepare(pop, case, from, &mut client);
    pop.walk(path, &client);
    pop.lab.heal().unwrap();

    // All that stood in queues arrives, and then more.
    let at = *path.last().unwrap();
    pop.ask(at, Ask::Here(who));
    assert_eq!(pop.servers(who), [at], "{case:?}");
    pop.ask(at, Ask::Read(who, case.unread));
    client.hear(owed);
    if case.shut != Shut::Client {
        client.say(5000);
        pop.ask(at, Ask::Read(who, 5000));
        client.shut();
    }
    pop.ask(at, Ask::End(who));
    if !matches!(case.shut, Shut::Server | Shut::ServerUnacknowledged) {
        owed = pop.puppet(at).count(&Ask::Write(who, 5000)).unwrap();
        client.hear(owed);
        pop.ask(at, Ask::Shut(who));
    }
    client.hear_end();
    pop.ask(at, Ask::Close(who));
}

/// Gives how much the client is yet to hear.
fn prepare(pop: &mut Pop, case: Case, host: u16, client: &mut Client) -> u64 {
    let who = client.address;
    client.say(3000);
    pop.ask(host, Ask::Read(who, 3000));
    let said = pop.puppet(host).count(&Ask::Write(who, 3000)).unwrap();
    client.hear(said);
    client.say(case.unread);
    if case.shut == Shut::Client {
        client.shut();
    }
    let queues = |pop: &mut Pop| pop.puppet(host).queues(who).unwrap();
    let wait = |pop: &mut Pop, what: &dyn Fn(&mut Pop) -> bool| {
        let done = wait_until(PATIENCE, || Ok(what(pop))).unwrap();
        assert!(done, "{case:?}: {:?}", pop.puppet(host).queues(who));
    };
    wait(pop, &|pop| {
        let queues = queues(pop);
        let ended = case.shut != Shut::Client || queues.state == CLOSE_WAIT;
        queues.unread == case.unread && queues.unacknowledged == 0 && ended
    });
    if case.out == Out::Unacknowledged {
        lose_what_the_client_says(pop);
    }
    let most = match case.out {
        Out::Nothing => 0,
        Out::Unacknowledged => 5000,
        Out::Unsent => 60_000,
    };
    let owed = pop.puppet(host).count(&Ask::Write(who, most)).unwrap();
    match case.out {
        Out::Nothing => {}
        Out::Unacknowledged => assert_eq!(queues(pop).unacknowledged, 5000),
        Out::Unsent => wait(pop, &|pop| {
            let queues = queues(pop);
            queues.unsent > 0 && queues.unsent == queues.unacknowledged
        }),
    }
    match case.shut {
        Shut::Nobody | Shut::Client => {}
        Shut::Server => {
            pop.ask(host, Ask::Shut(who));
            let wanted = [FIN_WAIT1, FIN_WAIT2][usize::from(case.out == Out::Nothing)];
            wait(pop, &|pop| queues(pop).state == wanted);
        }
        Shut::ServerUnacknowledged => {
            if case.out != Out::Unacknowledged {
                lose_what_the_client_says(pop);
            }
            pop.ask(host, Ask::Shut(who));
            assert_eq!(queues(pop).state, FIN_WAIT1);
        }
    }
    owed
}

fn lose_what_the_client_says(pop: &mut Pop) {
    let lost = Fault {
        from: vec![Node::Client(1)],
        ..Fault::all().to(&[1, 2, 3]).cut()
    };
    pop.lab.fault(lost).unwrap();
}

const SHUTS: [Shut; 4] = [
    Shut::Nobody,
    Shut::Client,
    Shut::Server,
    Shut::ServerUnacknowledged,
];

fn play_all(cases: impl Iterator<Item = Case>) {
    let mut pop = shared();
    let pop = pop.as_mut().unwrap();
    let mut scene = Scene::begin(pop);
    for (number, case) in cases.enumerate() {
        let paths: [&[u16]; 3] = [&[1, 2], &[2, 3, 2], &[3, 1, 2]];
        play(pop, &mut scene, case, paths[number % paths.len()]);
    }
    scene.end(pop);
}

fn matrix() -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(|v6| {
        [0, 7000].into_iter().flat_map(move |unread| {
            [Out::Nothing, Out::Unacknowledged, Out::Unsent]
                .into_iter()
                .flat_map(move |out| {
                    SHUTS.map(|shut| Case {
                        v6,
                        unread,
                        out,
                        shut,
                    })
                })
        })
    })
}

#[test]
fn a_session_moves_with_what_stands_in_its_queues() {
    let whole = matrix().filter(|case| case.shut == Shut::Nobody);
    play_all(whole.filter(|case| case.v6 == (case.unread == 0)));
}

#[test]
fn a_session_moves_half_closed() {
    let halves = matrix().filter(|case| case.shut != Shut::Nobody && case.out == Out::Nothing);
    play_all(halves.filter(|case| case.v6 == (case.unread > 0)));
}

#[test]
#[ignore = "takes a minute: `cargo xtask test --full`"]
fn every_state_and_queue() {
    play_all(matrix());
}
