//! Agents come and go; connections stay.

use std::time::Duration;

use homing_tests::lab::{Lab, Node, unique, wait_until};
use serde_json::Value;

use super::common::{FORGOTTEN, PATIENCE, Pop};

/// How a host sees another: `alive`, `down` or `left`.
fn state(pop: &Pop, on: u16, of: u16) -> Option<String> {
    let hosts = pop.lab.homing_json(on, &["hosts"]).unwrap();
    let list = hosts.pointer("/hosts").and_then(Value::as_array).unwrap();
    let entry = list.iter().find(|entry| entry["host"] == of)?;
    Some(entry["state"].as_str().unwrap().to_owned())
}

fn wait_state(pop: &Pop, on: u16, of: u16, wanted: &str) {
    let reached = wait_until(PATIENCE, || {
        Ok(state(pop, on, of).as_deref() == Some(wanted))
    })
    .unwrap();
    assert!(
        reached,
        "h{on} sees h{of} as {:?}, not as {wanted}",
        state(pop, on, of)
    );
}

fn generation(pop: &Pop, host: u16) -> (u64, u64) {
    let status = pop.lab.homing_json(host, &["status"]).unwrap();
    (
        status["incarnation"].as_u64().unwrap(),
        status["generation"].as_u64().unwrap(),
    )
}

/// How soon after its start an agent must know what happened while it was down.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// Whether a host's table has, of another's sessions, those that are open and no
/// others.
fn knows_all_of(pop: &Pop, on: u16, of: u16) -> bool {
    let owners = pop.lab.tables(on).unwrap().owners;
    let known = owners.iter().filter(|(_, owner)| **owner == of);
    known
        .map(|(id, _)| id)
        .eq(&pop.lab.tables(of).unwrap().sessions)
}

#[test]
fn killed_agents_break_nothing_and_find_everything_again() {
    let mut pop = Pop::up("killed1");
    let clients = pop.load(30);
    let before = generation(&pop, 2);
    pop.lab.kill(2).unwrap();
    let clients = pop.tour(clients);
    wait_state(&pop, 1, 2, "down");
    let clients = pop.tour(clients);
    pop.lab.start(2).unwrap();
    let after = generation(&pop, 2);
    assert_eq!(after.0, before.0, "the kernel has lived on");
    assert!(after.1 > before.1, "the agent is another");
    pop.lab.wait_settled(30, PATIENCE).unwrap();

    // All at once: the kernels alone keep every connection.
    for host in 1..=3 {
        pop.lab.kill(host).unwrap();
    }
    let clients = pop.tour(clients);
    pop.lab.start_all().unwrap();
    pop.lab.wait_settled(30, PATIENCE).unwrap();
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.down();
}

#[test]
fn sessions_that_open_and_close_while_an_agent_is_down_are_found() {
    let mut pop = Pop::up("killed2");
    let first = pop.load(20);
    pop.lab.kill(1).unwrap();
    let second = pop.unsettled(20);
    pop.unbroken(first);
    // Closes are held back for a moment. Once the others have told of them, the first
    // host, whose kernel's table has those sessions still, must find out by itself:
    // it is down for longer than the others keep a snapshot (5 s) from which, and from
    // the log since, it would be told of the closes one by one.
    std::thread::sleep(Duration::from_secs(6));
    let told = || Ok(knows_all_of(&pop, 2, 3) && knows_all_of(&pop, 3, 2));
    assert!(wait_until(PATIENCE, told).unwrap());
    assert!(!knows_all_of(&pop, 1, 2) && !knows_all_of(&pop, 1, 3));
    pop.lab.launch(1).unwrap();
    let answers = || Ok(pop.lab.homing_json(1, &["status"]).is_ok());
    assert!(wait_until(PATIENCE, answers).unwrap());
    let took = pop.lab.wait_truth(FOUND_WITHIN).unwrap();
    println!("every table is right {took:?} after the agent began to answer");
    pop.lab.wait_settled(20, PATIENCE).unwrap();
    let second = pop.tour(second);
    pop.unbroken(second);
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.down();
}

#[test]
fn a_restart_of_an_agent_loses_nothing() {
    let mut pop = Pop::up("restart");
    let clients = pop.load(30);
    pop.lab.stop(1).unwrap();
    wait_state(&pop, 2, 1, "left");
    wait_state(&pop, 3, 1, "left");
    // It has left, and its kernel goes on: the others hold its sessions for a while.
    let clients = pop.tour(clients);
    pop.lab.start(1).unwrap();
    pop.lab.wait_settled(30, PATIENCE).unwrap();
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_host_that_joins_late_learns_everything() {
    let mut pop = Pop::from(
        Lab::builder()
            .name(&unique("late"))
            .hosts(3)
            .racks(2)
            .no_homing()
            .up()
            .unwrap(),
    );
    // Two of three: the third host takes no connections yet.
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    pop.lab.start(1).unwrap();
    pop.lab.start(2).unwrap();
    let clients = pop.load(40);
    pop.lab.start(3).unwrap();
    pop.lab.wait_settled(40, PATIENCE).unwrap();
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn unload_removes_everything() {
    let mut pop = Pop::up("unload");
    let on =
        |pop: &Pop, command: &str| pop.lab.exec(Node::Host(1), "sh", &["-c", command]).unwrap();
    let clients = pop.load(20);
    assert!(on(&pop, "ip -details link show eth0").contains("xdp"));
    assert!(on(&pop, "bpftool cgroup show /sys/fs/cgroup").contains("sock_ops"));
    assert!(on(&pop, "find /sys/fs/bpf/homing").lines().count() > 5);
    pop.lab.exec(Node::Host(1), "homing", &["unload"]).unwrap();
    assert!(!on(&pop, "ip -details link show eth0").contains("xdp"));
    assert!(!on(&pop, "bpftool cgroup show /sys/fs/cgroup").contains("sock_ops"));
    assert_eq!(
        on(&pop, "find /sys/fs/bpf/homing 2>/dev/null || true").trim(),
        ""
    );
    let ended = wait_until(PATIENCE, || Ok(pop.lab.agent(1).is_none())).unwrap();
    assert!(ended, "the agent runs on after unload");
    // Nobody forwards to it any more, at once.
    let forgotten = wait_until(PATIENCE, || {
        let settled = pop.lab.settled()?;
        Ok(settled.foreign == settled.sessions)
    });
    assert!(forgotten.unwrap(), "{:?}", pop.lab.settled());
    // It may be repeated, and what is left serves on.
    pop.lab.exec(Node::Host(1), "homing", &["unload"]).unwrap();
    drop(clients);
    pop.lab.set_ecmp(&[2, 3]).unwrap();
    let clients = pop.unsettled(10);
    pop.unbroken(clients);
    pop.down();
}
