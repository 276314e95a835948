//! A host is drained: its sessions move, and their clients notice nothing.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use homing_tests::{
    lab::{Lab, Node, plan::UDP_PORT, unique, wait_until},
    workload::{FlowServers, Flows},
};
use serde_json::Value;

use super::{
    common::{PATIENCE, Pop, wait_synced},
    lines::{Application, Lines, homing, homing_json, service, sessions},
};

fn lab(name: &str) -> Lab {
    let lab = Lab::builder()
        .name(&unique(name))
        .hosts(3)
        .racks(2)
        .up()
        .unwrap();
    wait_synced(&lab);
    lab
}

/// Waits for what a host says of draining.
fn wait_drain(lab: &Lab, host: u16, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let came = wait_until(PATIENCE, || {
        last = lab.homing_json(host, &["drain", "--status"])?;
        Ok(is(&last))
    });
    assert!(came.unwrap(), "{what}: {last:#}");
    last
}

/// The sum of a list of reasons, or of one of them.
fn left(drain: &Value, reason: &str) -> u64 {
    let all = drain["run"]["left"].as_array().unwrap().iter();
    let named = all.filter(|why| why["reason"] == reason);
    named.map(|why| why["sessions"].as_u64().unwrap()).sum()
}

#[test]
fn all_sessions_move_and_clients_notice_nothing() {
    let mut lab = lab("drained");
    let applications = Application::on_all(&lab);
    let lines = Lines::start(&lab, 30);
    for host in 1..=3 {
        let before = sessions(&lab, host).len();
        assert!(before > 0, "h{host} has no session");
        let (code, drain) = homing_json(&lab, host, &["drain"]);
        assert_eq!(code, 0, "{drain:#}");
        let run = &drain["run"];
        assert_eq!(
            (&run["end"], &run["moved"]),
            (&"drained".into(), &before.into()),
            "{run:#}"
        );
        assert_eq!(drain["sessions"], 0);
        assert_eq!(sessions(&lab, host).len(), 0);
        // Wherever the router sends them now, also to the host that has left them.
        for order in [vec![host], vec![1, 2, 3], vec![3, 1, 2]] {
            lab.set_ecmp(&order).unwrap();
            lines.wait_more();
        }
        let (code, drain) = homing_json(&lab, host, &["undrain"]);
        assert_eq!((code, &drain["draining"]), (0, &false.into()));
        assert_eq!(
            sessions(&lab, host).len(),
            0,
            "what has moved stays where it is"
        );
    }
    // All to one, by name.
    homing_json(&lab, 1, &["drain", "--to", "3"]);
    homing_json(&lab, 2, &["drain", "--to", "3"]);
    let everybody = sessions(&lab, 3).len();
    assert_eq!(everybody, 30);
    lines.finish();
    drop(applications);
    lab.down().unwrap();
}

#[test]
fn what_cannot_move_is_told_by_its_reason_and_stays() {
    let mut pop = Pop::from(lab("drainrest"));
    let applications = Application::on_all(&pop.lab);
    let udp = pop.lab.plan().service(UDP_PORT);
    let servers = FlowServers::start(&pop.lab, &udp).unwrap();
    pop.lab.set_ecmp(&[2]).unwrap();
    let clients = pop.load(7);
    let lines = Lines::start(&pop.lab, 5);
    let every = Duration::from_millis(50);
    let flows = Flows::start(&pop.lab, Node::Client(1), &udp, 3, every).unwrap();
    flows.wait_rounds(3, PATIENCE).unwrap();
    pop.lab.wait_settled(7 + 5 + 3, PATIENCE).unwrap();

    let (code, drain) = homing_json(&pop.lab, 2, &["drain"]);
    assert_eq!(code, 1, "{drain:#}");
    let run = &drain["run"];
    assert_eq!(
        (&run["end"], &run["moved"]),
        (&"left".into(), &5.into()),
        "{run:#}"
    );
    assert_eq!(left(&drain, "no_application"), 7, "{run:#}");
    assert_eq!(left(&drain, "udp"), 3, "{run:#}");
    lines.wait_more();
    let (code, out, err) = homing(&pop.lab, 2, &["drain"]);
    assert_eq!(code, 1);
    assert!(out.contains("10 are left"), "{out}");
    assert!(
        out.contains("7  no_application  no application here"),
        "{out}"
    );
    assert!(err.starts_with("0 moved"), "{err}");

    // With --wait it ends when they do.
    let mut waiting = Command::new("homing");
    waiting
        .args(["drain", "--wait", "--json"])
        .stdout(Stdio::piped());
    let waiting = pop.lab.spawn(Node::Host(2), &mut waiting).unwrap();
    wait_drain(&pop.lab, 2, "it waits", |drain| {
        drain["run"]["end"].is_null() && drain["run"]["wait"] == true
    });
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    flows.finish().unwrap();
    drop(servers);
    // The flows go idle only after a minute: the rest has gone before.
    wait_drain(&pop.lab, 2, "all but the flows have ended", |drain| {
        left(drain, "no_application") == 0
    });
    let (code, drain) = homing_json(&pop.lab, 2, &["undrain"]);
    assert_eq!((code, &drain["run"]["end"]), (0, &"stopped".into()));
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "somebody ended the draining");
    lines.finish();
    drop(applications);
    pop.down();
}

#[test]
fn a_drain_that_nobody_follows_goes_on_and_can_be_changed_stopped_and_resumed() {
    let mut lab = lab("drainlong");
    let applications = Application::on_all(&lab);
    lab.set_ecmp(&[2]).unwrap();
    let lines = Lines::start(&lab, 20);
    // Slowly; then whoever asked for it is killed.
    let mut slow = Command::new("homing");
    slow.args(["drain", "--rate", "2", "--wait", "--json"])
        .stdout(Stdio::null());
    let mut slow = lab.spawn(Node::Host(2), &mut slow).unwrap();
    let moved = |drain: &Value| drain["run"]["moved"].as_u64().unwrap_or(0);
    wait_drain(&lab, 2, "some have moved", |drain| moved(drain) >= 2);
    slow.kill().unwrap();
    slow.wait().unwrap();
    wait_drain(&lab, 2, "it goes on", |drain| moved(drain) >= 4);

    // Undrained in the middle, the rest stays, and new ones come.
    let (code, drain) = homing_json(&lab, 2, &["undrain"]);
    assert_eq!(
        (code, &drain["run"]["end"]),
        (0, &"stopped".into()),
        "{drain:#}"
    );
    let stayed = sessions(&lab, 2).len();
    assert!(
        (1..=16).contains(&stayed),
        "{stayed} have stayed: {drain:#}"
    );
    assert_eq!(20 - stayed as u64, moved(&drain), "{drain:#}");
    lines.wait_more();
    let more = Lines::start(&lab, 3);
    assert_eq!(sessions(&lab, 2).len(), stayed + 3);

    // The agent is killed in the middle: the host goes on draining, and the next one
    // moves what is left when told to.
    let mut slow = Command::new("homing");
    slow.args(["drain", "--rate", "2"])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut slow = lab.spawn(Node::Host(2), &mut slow).unwrap();
    wait_drain(&lab, 2, "some have moved", |drain| {
        drain["run"]["end"].is_null() && moved(drain) >= 1
    });
    lab.kill(2).unwrap();
    let code = slow.wait().unwrap().code();
    assert_eq!(code, Some(3), "no agent answers");
    lab.start(2).unwrap();
    let drain = lab.homing_json(2, &["drain", "--status"]).unwrap();
    assert_eq!(
        (&drain["draining"], &drain["run"]),
        (&true.into(), &Value::Null)
    );
    lines.wait_more();
    let before = sessions(&lab, 2).len();
    assert!(before > 0, "nothing is left to be moved");
    // What it was told first no longer holds.
    let mut slow = Command::new("homing");
    slow.args(["drain", "--rate", "1", "--deadline", "1h"])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut slow = lab.spawn(Node::Host(2), &mut slow).unwrap();
    wait_drain(&lab, 2, "it goes on slowly", |drain| {
        drain["run"]["rate"] == 1
    });
    let (code, drain) = homing_json(&lab, 2, &["drain", "--rate", "500"]);
    assert_eq!(code, 0, "{drain:#}");
    assert_eq!(drain["run"]["rate"], 500);
    assert_eq!(
        slow.wait().unwrap().code(),
        Some(0),
        "it has followed the same drain"
    );
    assert_eq!(sessions(&lab, 2).len(), 0);
    lines.wait_more();
    lines.finish();
    more.finish();
    drop(applications);
    lab.down().unwrap();
}

#[test]
fn commands_run_before_a_drain_and_after_and_a_failure_keeps_it_from_beginning() {
    let mut lab = lab("draincmd");
    let log = lab.folder().join("commands");
    let script = lab.folder().join("command");
    let text = format!(
        "#!/bin/sh\necho $1 $HOMING_HOST $HOMING_INSTANCE >> {log}\ntest ! -e {log}.fails",
        log = log.display()
    );
    fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).unwrap();
    let script = script.display();
    let config = format!(
        "[drain]\non_drain = [\"{script}\", \"withdraw\"]\non_undrain = [\"{script}\", \"announce\"]"
    );
    lab.configure(2, &config).unwrap();
    lab.kill(2).unwrap();
    lab.start(2).unwrap();
    let ran = || fs::read_to_string(&log).unwrap_or_default();
    let fails = lab.folder().join("commands.fails");

    fs::write(&fails, "").unwrap();
    let (code, _, err) = homing(&lab, 2, &["drain"]);
    assert_eq!(code, 1);
    assert!(err.contains("goes on taking sessions: "), "{err}");
    let status = lab.homing_json(2, &["drain", "--status"]).unwrap();
    assert_eq!(
        (&status["draining"], &status["run"]),
        (&false.into(), &Value::Null)
    );
    let (code, drain) = homing_json(&lab, 2, &["drain", "--force"]);
    assert_eq!((code, &drain["draining"]), (0, &true.into()), "{drain:#}");
    assert_eq!(drain["command"]["state"], "failed");
    // What came of the last time is no excuse.
    let (code, _, err) = homing(&lab, 2, &["drain"]);
    assert_eq!(code, 1);
    assert!(err.contains("drains as before"), "{err}");
    let (code, out, err) = homing(&lab, 2, &["undrain"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("takes new sessions"), "{out}");
    fs::remove_file(&fails).unwrap();
    let (code, drain) = homing_json(&lab, 2, &["undrain"]);
    assert_eq!(
        (code, &drain["command"]["state"]),
        (0, &"done".into()),
        "{drain:#}"
    );
    let instance = lab.homing_json(2, &["status"]).unwrap()["instance"].clone();
    let instance = instance.as_str().unwrap();
    let each = |what: &str| format!("{what} 2 {instance}\n");
    let all = [
        each("withdraw"),
        each("withdraw"),
        each("withdraw"),
        each("announce"),
        each("announce"),
    ];
    assert_eq!(ran(), all.concat());
    lab.down().unwrap();
}

#[test]
fn a_session_is_moved_by_hand_and_what_came_of_it_is_told() {
    let mut lab = lab("movehand");
    let mut applications = Application::on_all(&lab);
    lab.set_ecmp(&[1]).unwrap();
    let lines = Lines::start(&lab, 2);
    lab.wait_settled(2, PATIENCE).unwrap();
    let service = service(&lab).to_string();
    let client = lines.addresses().next().unwrap().to_string();
    let order = |to: &'static str| {
        [
            "move".to_owned(),
            client.clone(),
            service.clone(),
            to.to_owned(),
        ]
    };
    let run = |host, to| {
        let args = order(to);
        homing_json(&lab, host, &args.each_ref().map(String::as_str))
    };
    for (from, to) in [(1, "2"), (2, "3"), (3, "1")] {
        let (code, moved) = run(from, to);
        assert_eq!((code, &moved["outcome"]), (0, &"moved".into()), "{moved:#}");
        assert!(moved["frozen_us"].as_u64().unwrap() > 0, "{moved:#}");
        lines.wait_more();
    }
    // It is where it is said to be.
    let args = order("2");
    let (code, out, err) = homing(&lab, 3, &args.each_ref().map(String::as_str));
    assert_eq!((code, out.as_str()), (4, ""));
    assert!(err.contains("host 1 has it"), "{err}");
    for (to, words) in [("1", "is this host"), ("9", "is not known here")] {
        let args = order(to);
        let (code, _, err) = homing(&lab, 1, &args.each_ref().map(String::as_str));
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(words), "{err}");
    }
    // The target's application has gone.
    drop(applications.remove(1));
    let gone = wait_until(PATIENCE, || {
        let (code, moved) = run(1, "2");
        assert_eq!(code, 1, "{moved:#}");
        assert_eq!(moved["outcome"], "refused", "{moved:#}");
        Ok(moved["reason"] == "target_no_application")
    });
    assert!(gone.unwrap(), "it is refused for another reason");
    lines.wait_more();
    lines.finish();
    drop(applications);
    lab.down().unwrap();
}
