//! Tables that are full: what happens, how it is seen, and how it ends.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use homing_common::outcome::Outcome;
use homing_tests::lab::{Lab, Node, node, unique, wait_until};

use super::common::{FORGOTTEN, PATIENCE, Pop, count, hook, problems, wait_synced};

/// A lab of three hosts whose agents are not started yet.
fn cold(name: &str) -> Lab {
    let builder = Lab::builder().name(&unique(name)).hosts(3).racks(2);
    builder.no_homing().up().unwrap()
}

/// Opens connections and resets them at once, one after another.
fn open_and_reset(lab: &Lab, count: u32) {
    let targets = lab.plan().service(443);
    node::in_namespace(&lab.namespace(Node::Client(1)), || {
        for number in 0..count {
            let target: SocketAddr = targets[number as usize % targets.len()];
            let stream = TcpStream::connect(target)?;
            // No TIME_WAIT keeps the port.
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn events_that_find_no_room_are_made_up_for() {
    let mut pop = Pop::up("events");
    pop.lab.set_ecmp(&[1]).unwrap();
    let first = pop.load(20);
    let second = pop.load_more(20, 40);
    pop.lab.pause(1).unwrap();
    // 30,000 openings and closings; there is room for some 10,000.
    open_and_reset(&pop.lab, 15_000);
    pop.unbroken(second);
    let third = pop.unsettled(10);
    pop.lab.resume(1).unwrap();
    let resumed = Instant::now();
    pop.lab.wait_settled(30, PATIENCE).unwrap();
    println!(
        "all is known {:?} after the agent went on",
        resumed.elapsed()
    );
    assert!(hook(&pop.lab, 1, "events_lost") > 1000);
    // Nothing is left of what opened and closed: it stays as it is, for longer than
    // a close is held back.
    std::thread::sleep(Duration::from_secs(3));
    pop.lab.wait_settled(30, Duration::ZERO).unwrap();
    let first = pop.tour(first);
    pop.unbroken(first);
    pop.unbroken(third);
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.down();
}

#[test]
fn sessions_that_find_no_room_work_and_are_recorded_once_there_is_room() {
    let mut lab = cold("sessions");
    lab.configure(1, "[limits]\nsessions = 20").unwrap();
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    pop.lab.set_ecmp(&[1]).unwrap();
    let first = pop.unsettled(20);
    let second = pop.unsettled(20);
    assert_eq!(first.wait_rounds(2, PATIENCE).unwrap(), 20);
    assert_eq!(second.wait_rounds(2, PATIENCE).unwrap(), 20);
    assert!(hook(&pop.lab, 1, "sessions_full") >= 20);
    let named = || {
        let problems = problems(&pop.lab, 1);
        Ok(problems
            .iter()
            .any(|text| text.contains("raise limits.sessions")))
    };
    assert!(
        wait_until(PATIENCE, named).unwrap(),
        "{:?}",
        problems(&pop.lab, 1)
    );

    // Nobody was told of those that are not recorded; who gets their packets asks.
    let first = pop.tour(first);
    let second = pop.tour(second);
    pop.lab.set_ecmp(&[1]).unwrap();

    // As many as there is room for go, whichever were recorded; the others get room.
    pop.unbroken(first);
    pop.lab.wait_settled(20, PATIENCE).unwrap();
    let healed = || Ok(problems(&pop.lab, 1).is_empty());
    assert!(
        wait_until(PATIENCE, healed).unwrap(),
        "{:?}",
        problems(&pop.lab, 1)
    );
    // And now they can be found from everywhere.
    let second = pop.tour(second);
    pop.unbroken(second);
    // Their end is noticed as that of any other.
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.down();
}

#[test]
fn sessions_that_are_forgotten_too_early_are_named() {
    let mut lab = cold("forgotten");
    lab.configure(1, "[limits]\nclosed = 50").unwrap();
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    pop.lab.set_ecmp(&[1]).unwrap();
    let first = pop.load(10);
    assert!(problems(&pop.lab, 1).is_empty());
    let named = || {
        // Enough of them in whatever minute it is.
        open_and_reset(&pop.lab, 60);
        let problems = problems(&pop.lab, 1);
        Ok(problems
            .iter()
            .any(|text| text.contains("raise limits.closed")))
    };
    assert!(
        wait_until(PATIENCE, named).unwrap(),
        "{:?}",
        problems(&pop.lab, 1)
    );
    assert!(hook(&pop.lab, 1, "closed_evicted_at_least") > 0);
    pop.unbroken(first);
    pop.down();
}

#[test]
fn owners_that_find_no_room_are_named_and_placed_once_there_is_room() {
    let mut lab = cold("owners");
    lab.configure(3, "[limits]\nowners = 20").unwrap();
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    let first = pop.unsettled(16);
    pop.lab.wait_settled(16, PATIENCE).unwrap();
    let second = pop.unsettled(18);
    let named = || {
        let problems = problems(&pop.lab, 3);
        Ok(problems
            .iter()
            .any(|text| text.contains("raise limits.owners")))
    };
    assert!(
        wait_until(PATIENCE, named).unwrap(),
        "{:?}",
        problems(&pop.lab, 3)
    );
    assert_eq!(first.wait_rounds(2, PATIENCE).unwrap(), 16);

    // Those that had places go; the others get them, though no packet of theirs ever
    // came there.
    pop.unbroken(first);
    pop.lab.wait_settled(18, PATIENCE).unwrap();
    let healed = |pop: &Pop| {
        let healed = || Ok(problems(&pop.lab, 3).is_empty());
        assert!(
            wait_until(PATIENCE, healed).unwrap(),
            "{:?}",
            problems(&pop.lab, 3)
        );
    };
    healed(&pop);

    // Those that have no entry there live, too, if packets of them come there.
    let third = pop.unsettled(30);
    let second = pop.tour(second);
    let third = pop.tour(third);
    pop.unbroken(third);
    pop.lab.wait_settled(18, PATIENCE).unwrap();
    healed(&pop);
    let second = pop.tour(second);
    pop.unbroken(second);
    pop.down();
}

#[test]
fn sessions_that_find_no_room_on_any_host_work_all_the_same() {
    let mut lab = cold("everyfull");
    for host in 1..=3 {
        lab.configure(host, "[limits]\nowners = 20").unwrap();
    }
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    let clients = pop.unsettled(90);
    let named = |host| {
        let problems = problems(&pop.lab, host);
        problems
            .iter()
            .any(|text| text.contains("raise limits.owners"))
    };
    let all_full = || Ok((1..=3).all(named));
    assert!(wait_until(PATIENCE, all_full).unwrap());

    // Each host in turn gets packets of all, of which it has places for a third.
    let clients = pop.tour(clients);
    let kept = (1..=3).map(|host| pop.lab.gossip_count(host, "routes_kept").unwrap());
    let kept: Vec<_> = kept.collect();
    assert!(kept.iter().all(|count| *count > 0), "{kept:?}");
    // An agent that starts finds more than it has places for.
    pop.lab.kill(2).unwrap();
    pop.lab.start(2).unwrap();
    let clients = pop.tour(clients);
    pop.unbroken(clients);

    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    for host in 1..=3 {
        let healed = || Ok(problems(&pop.lab, host).is_empty());
        assert!(
            wait_until(PATIENCE, healed).unwrap(),
            "{:?}",
            problems(&pop.lab, host)
        );
    }
    pop.down();
}

#[test]
fn agents_that_are_killed_while_tables_are_full_break_nothing() {
    let mut lab = cold("fullkill");
    let limits = "[limits]\nowners = 10\nsessions = 8\nclosed = 4\nfragments = 4";
    for host in 1..=3 {
        lab.configure(host, limits).unwrap();
    }
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    let clients = pop.unsettled(60);
    let mut clients = pop.tour(clients);
    for host in [1, 2, 3] {
        pop.lab.kill(host).unwrap();
        pop.lab.set_ecmp(&[host % 3 + 1]).unwrap();
        pop.lab.start(host).unwrap();
        clients = pop.tour(clients);
        // And for so long that everyone knows that it is down.
        pop.lab.kill(host).unwrap();
        clients = pop.tour(clients);
        pop.lab.start(host).unwrap();
        clients = pop.tour(clients);
    }
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn an_agent_that_starts_resets_nothing_of_what_it_finds_parked() {
    let mut lab = cold("parked");
    lab.configure(3, "[limits]\nsessions = 8").unwrap();
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    wait_synced(&pop.lab);
    // The third host has no room to record most of its sessions: the others must ask.
    pop.lab.set_ecmp(&[3]).unwrap();
    let clients = pop.unsettled(40);
    // The first host's agent hangs, and its kernel parks for it what comes, until the
    // agent has been silent for a second.
    let before = count(&pop, 1, Outcome::Asked);
    pop.lab.pause(1).unwrap();
    pop.lab.set_ecmp(&[1]).unwrap();
    let parked = || Ok(count(&pop, 1, Outcome::Asked) >= before + 20);
    assert!(wait_until(PATIENCE, parked).unwrap());
    // The agent after it finds that before it has heard of any other host.
    pop.lab.kill(1).unwrap();
    pop.lab.start(1).unwrap();
    let live = clients.wait_rounds(2, PATIENCE).unwrap();
    assert_eq!(live, 40, "{}", pop.outcomes());
    assert!(pop.lab.gossip_count(1, "ask_parked").unwrap() > 0);
    pop.unbroken(clients);
    pop.down();
}
