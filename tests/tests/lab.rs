//! The lab itself: it comes up as planned, goes without a trace, and minds its own
//! business. Needs root.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use homing_tests::{
    demo::Servers,
    lab::{self, Lab, Node, node, state, unique, wait_until},
    random::Random,
    workload::{Clients, Options},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Everything of a lab that shows on this machine.
fn traces(name: &str) -> Vec<String> {
    let name = &unique(name);
    let mut traces = node::namespaces(name);
    traces.extend(
        node::labs_with_cgroups()
            .unwrap()
            .into_iter()
            .filter(|lab| lab == name),
    );
    traces.extend(state::all().unwrap().into_iter().filter(|lab| lab == name));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = [
        format!("hm-{name}-"),
        format!("homing-lab/{name}"),
        "/run/homing-lab/.cgroup".to_owned(),
    ];
    traces.extend(
        mounts
            .lines()
            .filter(|line| ours.iter().any(|our| line.contains(our)))
            .map(str::to_owned),
    );
    traces
}

fn plain(name: &str) -> lab::Builder {
    Lab::builder()
        .name(&unique(name))
        .hosts(3)
        .racks(2)
        .no_homing()
}

fn load(lab: &Lab, connections: u32) -> Clients {
    let options = Options {
        connections,
        targets: lab.plan().service(443).to_vec(),
        seed: 11,
        interval: Duration::from_millis(50),
        deadline: Duration::from_secs(5),
    };
    Clients::start(lab, Node::Client(1), options).unwrap()
}

#[test]
fn a_lab_leaves_no_trace() {
    let lab = plain("trace").clients(2).up().unwrap();
    assert!(!traces("trace").is_empty());
    // Something of its own on every machine must not keep it from going.
    let mut children: Vec<_> = lab
        .plan()
        .nodes()
        .into_iter()
        .map(|node| {
            lab.spawn(node, Command::new("sleep").arg("1000").stdin(Stdio::null()))
                .unwrap()
        })
        .collect();
    assert_eq!(
        node::processes(&unique("trace"), Node::Host(1))
            .unwrap()
            .len(),
        2
    );
    lab.down().unwrap();
    assert_eq!(traces("trace"), Vec::<String>::new());
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    // The same when the value is dropped, as in a test that fails.
    drop(plain("trace").up().unwrap());
    assert_eq!(traces("trace"), Vec::<String>::new());
}

#[test]
fn machines_have_what_was_planned() {
    let lab = plain("plan").up().unwrap();
    let host = |command: &str| lab.exec(Node::Host(3), "sh", &["-c", command]).unwrap();
    assert_eq!(host("hostname").trim(), "h3");
    assert_eq!(host("cat /proc/self/cgroup | grep ^0::").trim(), "0::/");
    assert!(
        host("ls /sys/class/net")
            .split_whitespace()
            .eq(["eth0", "lo"])
    );
    assert_eq!(host("cat /sys/class/net/eth0/mtu").trim(), "1600");
    let socket = format!("/run/homing-lab/{}/h3.sock", unique("plan"));
    assert!(host("echo $HOMING_SOCKET").contains(&socket));
    let addresses = host("ip -brief address");
    for address in [
        "203.0.113.10/32",
        "2001:db8:113::10/128",
        "10.1.2.13/24",
        "fd00:1:2::13/64",
    ] {
        assert!(addresses.contains(address), "{address} in {addresses}");
    }
    let client = lab
        .exec(Node::Client(1), "cat", &["/sys/class/net/eth0/mtu"])
        .unwrap();
    assert_eq!(client.trim(), "1500");
    // What a host does to its BPF file system, no other host sees.
    host("mkdir /sys/fs/bpf/here");
    assert!(host("ls /sys/fs/bpf").contains("here"));
    let other = lab.exec(Node::Host(1), "ls", &["/sys/fs/bpf"]).unwrap();
    assert!(!other.contains("here"), "{other}");
    // Programs of the fast path see whole packets with right checksums, and what they
    // send arrives.
    let port = lab.exec(Node::Router, "ethtool", &["-k", "h3"]).unwrap();
    assert!(port.contains("tx-checksumming: off"), "{port}");
    let port = lab
        .exec(Node::Router, "ip", &["link", "show", "h3"])
        .unwrap();
    assert!(port.contains("prog/xdp"), "{port}");
    let error = lab
        .exec(Node::Host(4), "true", &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no machine h4") && error.contains("h3"),
        "{error}"
    );
}

#[test]
fn two_labs_do_not_meet_and_a_third_of_the_same_name_is_refused() {
    let one = plain("one").up().unwrap();
    let two = plain("two").up().unwrap();
    let _servers = [Servers::start(&one).unwrap(), Servers::start(&two).unwrap()];
    let clients = [load(&one, 12), load(&two, 12)];
    for clients in &clients {
        clients.wait_open(Duration::from_secs(10)).unwrap();
    }
    // The same addresses, and yet a lab that goes does not touch the other.
    one.down().unwrap();
    let [lost, kept] = clients;
    assert_eq!(kept.wait_rounds(3, Duration::from_secs(10)).unwrap(), 12);
    assert_eq!(kept.finish().unwrap().broken, 0);
    assert_eq!(lost.finish().unwrap().broken, 12);
    let error = plain("two").up().unwrap_err().to_string();
    assert!(error.contains("is up already"), "{error}");
    assert!(Lab::open(&unique("two")).is_ok());
}

/// Starts a demo that would go on for long, and returns once its lab stands.
fn long_demo(name: &str) -> (Child, state::State) {
    let name = &unique(name);
    let program = lab::own_program().unwrap();
    let demo = Command::new(program)
        .args([
            "demo",
            "--control-only",
            "--lab",
            name,
            "--hosts",
            "2",
            "--download-mib",
            "1",
        ])
        .args(["--clients", "4", "--reshuffles", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut found = None;
    wait_until(Duration::from_secs(20), || {
        found = state::State::read(name)?.filter(|state| state.stands());
        Ok(found.is_some())
    })
    .unwrap();
    (demo, found.unwrap())
}

#[test]
fn what_a_killed_program_left_is_cleared_at_once() {
    let (mut demo, _) = long_demo("guarded");
    demo.kill().unwrap();
    demo.wait().unwrap();
    let gone = wait_until(Duration::from_secs(20), || Ok(traces("guarded").is_empty()));
    assert!(gone.unwrap(), "{:?}", traces("guarded"));
}

#[test]
fn what_a_crash_of_everything_left_is_cleared_by_the_next_lab() {
    let (mut demo, state) = long_demo("crashed");
    let guard = state.guard.unwrap();
    kill(Pid::from_raw(guard.pid), Signal::SIGKILL).unwrap();
    assert!(wait_until(Duration::from_secs(5), || Ok(!guard.alive())).unwrap());
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(!traces("crashed").is_empty());
    let next = plain("next").up().unwrap();
    assert_eq!(traces("crashed"), Vec::<String>::new());
    next.down().unwrap();
}

#[test]
fn remains_without_any_state_are_cleared() {
    let lab = plain("remains").up().unwrap();
    fs::remove_file(state::run_folder(&unique("remains")).join("state.json")).unwrap();
    assert!(lab::down(&unique("remains")).unwrap());
    assert_eq!(traces("remains"), Vec::<String>::new());
    assert!(!lab::down(&unique("remains")).unwrap());
    drop(lab);
}

#[test]
fn ecmp_spreads_connections_and_a_reshuffle_moves_them() {
    let mut lab = plain("ecmp").up().unwrap();
    let _servers = Servers::start(&lab).unwrap();
    let clients = load(&lab, 60);
    clients.wait_open(Duration::from_secs(10)).unwrap();
    for host in 1..=3 {
        let sockets = lab
            .exec(Node::Host(host), "ss", &["-Htn", "state", "established"])
            .unwrap();
        for family in ["203.0.113.10", "2001:db8:113::10"] {
            let count = sockets.lines().filter(|line| line.contains(family)).count();
            assert!(
                (2..=22).contains(&count),
                "host {host}: {count} connections to {family}"
            );
        }
    }
    // Nobody tells the next host of a connection: its kernel resets it.
    lab.reshuffle(&mut Random::new(1), Some(2)).unwrap();
    clients.wait_rounds(2, Duration::from_secs(10)).unwrap();
    let report = clients.finish().unwrap();
    assert!(
        report.resets > 20 && report.broken == report.resets,
        "{report:?}"
    );
}
