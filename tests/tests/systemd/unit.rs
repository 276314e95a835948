//! The unit, by systemd itself.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use homing_tests::{
    capabilities::OF_UNIT,
    lab::{Node, node, wait_until},
};
use serde_json::Value;

use super::common::{PATIENCE, Site, goes_on, packages, unbroken};

/// How long a connection may stand still while its host's agent is reloaded, killed and
/// started: it depends on the kernel alone, and this machine is busy with systemd, too.
const BOUND: Duration = Duration::from_secs(2);

/// The watchdog bites sooner, and no test leaves memory dumps to whoever collects them on
/// this machine: a limit of one byte keeps the kernel from calling it (core(5)).
const SOONER: &str = "[Service]\nWatchdogSec=4\nLimitCORE=1\n";

#[test]
fn systemd_starts_reloads_restarts_and_stops_the_agent_and_no_connection_notices() {
    let Some([package, _]) = packages() else {
        return;
    };
    let mut site = Site::installed("unit", package);
    site.drop_in(SOONER);
    site.start();
    let shown = site.wait("running", |shown| shown.get("SubState") == "running");
    assert_eq!(shown.get("StatusText"), "serving");
    has_no_more_than_it_needs(&site, shown.pid());
    let clients = site.traffic(24);
    let program = site.program().expect("an XDP program is in force");
    let agent = shown.pid();

    // A key file that is wrong, and one that is right.
    let key = site.root.run("cat", &["/etc/homing/pop.key"]).unwrap();
    site.root.write("/etc/homing/pop.key", b"nonsense").unwrap();
    let reload = ["reload", "homing"];
    assert!(site.root.run("systemctl", &reload).is_err(), "it is wrong");
    assert!(
        site.journal().contains("64 hexadecimal digits"),
        "{}",
        site.journal()
    );
    site.root
        .write("/etc/homing/pop.key", key.as_bytes())
        .unwrap();
    site.root.run("homing", &["key", "begin"]).unwrap();
    site.systemctl(&reload);
    assert!(site.journal().contains("keys are in force"));

    // A configuration that is wrong, and one that is right.
    let file = "/etc/homing/homing.toml";
    let config = site.root.run("cat", &[file]).unwrap();
    let with = |line: &str| config.replacen("[pop]\n", &format!("[pop]\n{line}\n"), 1);
    site.root
        .write(file, with("leave-hold = \"77s\"").as_bytes())
        .unwrap();
    assert!(site.root.run("systemctl", &reload).is_err(), "it is wrong");
    assert!(
        site.journal().contains("write leave_hold"),
        "{}",
        site.journal()
    );
    site.root
        .write(file, with("leave_hold = \"77s\"").as_bytes())
        .unwrap();
    site.systemctl(&reload);
    assert!(site.journal().contains("77s"), "{}", site.journal());
    let shown = site.show();
    assert_eq!((shown.get("SubState"), shown.pid()), ("running", agent));
    goes_on(&clients);

    // It hangs: the watchdog.
    site.root
        .run("kill", &["-STOP", &agent.to_string()])
        .unwrap();
    site.wait("killed by its watchdog", |shown| {
        shown.get("SubState") == "auto-restart" && shown.get("Result") == "watchdog"
    });
    assert_eq!(site.program(), Some(program), "in force without an agent");
    goes_on(&clients);
    let shown = site.wait("started again", |shown| shown.get("SubState") == "running");
    assert_eq!(shown.get("NRestarts"), "1");
    assert_ne!(shown.pid(), agent);
    site.wait_found();
    assert!(site.program().is_some());

    // It dies.
    let agent = shown.pid();
    site.root
        .run("kill", &["-KILL", &agent.to_string()])
        .unwrap();
    let shown = site.wait("started again", |shown| {
        shown.get("SubState") == "running" && shown.pid() != agent
    });
    assert_eq!(shown.get("NRestarts"), "2");
    site.wait_found();
    goes_on(&clients);

    // A configuration that will not get right by itself.
    site.root
        .shell("sed -i 's/^id = 1$/id = \"one\"/' /etc/homing/homing.toml")
        .unwrap();
    let restart = ["restart", "homing"];
    assert!(site.root.run("systemctl", &restart).is_err(), "it is wrong");
    let shown = site.show();
    assert_eq!(shown.get("ExecMainStatus"), "5");
    assert_eq!(
        (shown.get("ActiveState"), shown.get("SubState")),
        ("failed", "failed"),
        "it is not tried again"
    );
    goes_on(&clients);
    site.configure();
    site.systemctl(&["start", "homing"]);
    site.wait_found();

    // It stops.
    site.systemctl(&["stop", "homing"]);
    let shown = site.show();
    assert_eq!(
        (shown.get("ActiveState"), shown.get("Result")),
        ("inactive", "success")
    );
    assert_eq!(shown.get("ExecMainStatus"), "0");
    assert!(site.journal().contains("left the POP"));
    assert_eq!(site.seen(), "left");
    assert!(site.program().is_some(), "the kernel side goes on");
    goes_on(&clients);
    let report = unbroken(clients, BOUND);
    println!("the slowest exchange took {} ms", report.slowest_ms);
    site.down();
}

/// What the kernel says of the process and systemd of its sockets.
fn has_no_more_than_it_needs(site: &Site, agent: u32) {
    let status = site.root.run("cat", &[&format!("/proc/{agent}/status")]);
    let status = status.unwrap();
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("no {name} in {status}"))
            .trim()
    };
    let bits = |name| u64::from_str_radix(field(name), 16).unwrap();
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        let wanted = OF_UNIT.iter().fold(0, |bits, number| bits | 1 << number);
        assert_eq!(bits(name), wanted, "{name}");
    }
    for name in ["CapInh", "CapAmb"] {
        assert_eq!(bits(name), 0, "{name}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    // A filter (proc_pid_status(5)).
    assert_eq!(field("Seccomp"), "2");

    let sockets = "cd /run/homing && stat --format '%n %U:%G %a' . *.sock";
    let sockets = site.root.shell(sockets).unwrap();
    let wanted = [
        ". root:root 755",
        "homing.app.sock root:root 660",
        "homing.mux.sock root:root 660",
        "homing.sock root:root 660",
    ];
    assert_eq!(Vec::from_iter(sockets.lines()), wanted);
}

/// What is for sessions that move, and not for the start: without it a connection cannot be
/// given a port below 1024 (`tests/tests/moves`).
const OF_MOVES: &str = "CAP_NET_BIND_SERVICE";

#[test]
fn each_capability_of_the_unit_is_needed() {
    let Some([package, _]) = packages() else {
        return;
    };
    let site = Site::installed("caps", package);
    let unit = site.root.run("systemctl", &["cat", "homing"]).unwrap();
    let bound = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let all: Vec<_> = bound.unwrap().split(' ').collect();
    assert_eq!(all.len(), OF_UNIT.len(), "{all:?}");
    assert!(all.contains(&OF_MOVES), "{all:?}");
    for missing in all.iter().filter(|name| **name != OF_MOVES) {
        let rest: Vec<_> = all
            .iter()
            .filter(|name| *name != missing)
            .copied()
            .collect();
        site.drop_in(&format!(
            "[Service]\nRestart=no\nCapabilityBoundingSet=\nCapabilityBoundingSet={}\n",
            rest.join(" ")
        ));
        let start = site.root.run("systemctl", &["start", "homing"]);
        assert!(start.is_err(), "it starts without {missing}");
        assert_eq!(site.show().get("Result"), "exit-code", "{}", site.journal());
        site.systemctl(&["reset-failed", "homing"]);
    }
    site.drop_in("");
    site.start();
    site.down();
}

/// The highest exposure that there may be, in tenths.
const THRESHOLD: &str = "30";

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_exposed() {
    let Some([package, _]) = packages() else {
        return;
    };
    let site = Site::installed("analyze", package);
    let said = site
        .root
        .shell("systemd-analyze verify homing.service 2>&1")
        .unwrap();
    assert_eq!(said, "");
    let threshold = format!("--threshold={THRESHOLD}");
    let args = [
        "security",
        "--offline=yes",
        &threshold,
        "--no-pager",
        "homing.service",
    ];
    let said = site.root.run("systemd-analyze", &args).unwrap();
    println!("{}", said.lines().last().unwrap_or_default());
    site.down();
}

/// A service below 1024 that no server of the site answers for.
const PORT: u16 = 80;

/// An application as a host has it: in the host's own cgroup, where its sockets are seen.
const ECHO: &str =
    "[Service]\nExecStart=/srv/homing-echo /run/homing/homing.app.sock 203.0.113.10:80\n";

#[test]
fn sessions_move_from_and_to_an_agent_that_has_what_the_unit_gives_it() {
    let Some([package, _]) = packages() else {
        return;
    };
    let mut site = Site::installed("sdmove", package);
    site.start();
    let echo = Path::new(env!("CARGO_BIN_EXE_homing-echo"));
    site.root
        .write("/srv/homing-echo", &fs::read(echo).unwrap())
        .unwrap();
    site.root
        .run("chmod", &["700", "/srv/homing-echo"])
        .unwrap();
    let unit = "/etc/systemd/system/echo.service";
    site.root.write(unit, ECHO.as_bytes()).unwrap();
    site.systemctl(&["daemon-reload"]);
    site.systemctl(&["start", "echo"]);
    let service = site.lab.plan().service(PORT)[0];
    let mut command = Command::new(echo);
    command
        .arg(site.lab.sockets(2).apps)
        .arg(service.to_string());
    let mut other = site.lab.spawn(Node::Host(2), &mut command).unwrap();

    site.lab.set_ecmp(&[1]).unwrap();
    let (mut client, mut answers) = connect(&site, service);
    assert_eq!(say(&mut client, &mut answers), "1: hello\n");
    let name = [client.local_addr().unwrap(), service].map(|address| address.to_string());
    // A server tells its agent of itself once it runs.
    let moved = |outcome: anyhow::Result<Value>| outcome.is_ok_and(|it| it["outcome"] == "moved");
    let away = || Ok(moved(site.root.homing(&["move", &name[0], &name[1], "2"])));
    assert!(wait_until(PATIENCE, away).unwrap(), "{}", site.journal());
    assert_eq!(say(&mut client, &mut answers), "2: hello\n");
    let back = || {
        let args = ["move", &name[0], &name[1], "1"];
        Ok(moved(site.lab.homing_json(2, &args)))
    };
    assert!(wait_until(PATIENCE, back).unwrap(), "{}", site.journal());
    assert_eq!(say(&mut client, &mut answers), "3: hello\n");
    other.kill().unwrap();
    other.wait().unwrap();
    site.down();
}

/// Connects from the lab's client; the connection, to be written to and to be read from.
fn connect(site: &Site, service: SocketAddr) -> (TcpStream, BufReader<TcpStream>) {
    let namespace = site.lab.namespace(Node::Client(1));
    let mut stream = None;
    let connected = wait_until(PATIENCE, || {
        stream = node::in_namespace(&namespace, || Ok(TcpStream::connect(service).ok()))?;
        Ok(stream.is_some())
    });
    assert!(connected.unwrap(), "no server at {service}");
    let stream = stream.expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let reader = BufReader::new(stream.try_clone().unwrap());
    (stream, reader)
}

/// A line, and its answer.
fn say(stream: &mut TcpStream, answers: &mut BufReader<TcpStream>) -> String {
    stream.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    answer
}
