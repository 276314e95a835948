//! Agents end and start in every way while connections of others are forwarded, and
//! new ones open and close.

use std::{
    fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, thread::sleep,
    time::Duration,
};

use homing_agent::datapath::OBJECT;
use homing_tests::{
    lab::{Lab, Node},
    object::Object,
};

use super::common::{Churn, FORGOTTEN, PATIENCE, Pop, dropped};

/// How an agent's life is interrupted.
#[derive(Clone, Copy, Debug)]
pub enum Restart {
    /// It is killed on the spot, and started a second later.
    Killed,
    /// It leaves, and is started again.
    Stopped,
    /// It is killed on the spot in the middle of its start, and started again.
    KilledInItsStart,
    /// It is started from another build, one with other layouts of maps, or from the
    /// first one again.
    OtherBuild,
    /// It is started with other sizes of tables: new maps take the place of the old.
    OtherTables,
}

/// Interrupts the life of a host's agent. `first`: the program that agents are at
/// first.
pub fn restart(lab: &mut Lab, host: u16, how: Restart, first: &Path) {
    match how {
        Restart::Killed => {
            lab.kill(host).unwrap();
            // Sessions open and close that no agent hears of.
            sleep(Duration::from_secs(1));
        }
        Restart::Stopped => lab.stop(host).unwrap(),
        Restart::KilledInItsStart => {
            for ms in [20, 120, 250, 400] {
                lab.kill(host).unwrap();
                lab.launch(host).unwrap();
                sleep(Duration::from_millis(ms));
            }
            lab.kill(host).unwrap();
        }
        Restart::OtherBuild => {
            lab.stop(host).unwrap();
            let other = lab.folder().join("other/homing");
            if lab.homing() == Some(&other) {
                lab.set_homing(first);
            } else {
                build_other(first, &other);
                lab.set_homing(&other);
            }
        }
        Restart::OtherTables => {
            lab.stop(host).unwrap();
            let limits = "[limits]\nowners = 70000\nsessions = 30000";
            lab.configure(host, limits).unwrap();
        }
    }
    lab.start(host).unwrap();
}

/// Makes a program of which the kernel's maps are laid out in another way, with the
/// same length.
fn build_other(first: &Path, other: &Path) {
    let mut object = Object::parse(OBJECT).unwrap();
    object.exchange("Session", "generation", "flags").unwrap();
    object.exchange("Event", "kind", "zero").unwrap();
    let program = fs::read(first).unwrap();
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    let bytes = other.with_extension("bytes");
    fs::write(&bytes, object.build_into(&program, OBJECT).unwrap()).unwrap();
    fs::set_permissions(&bytes, fs::Permissions::from_mode(0o755)).unwrap();
    // Copied by another process: a child that some other test forks meanwhile would
    // inherit a descriptor open for writing, and the file could not be run.
    let copied = Command::new("cp").arg(&bytes).arg(other).status().unwrap();
    assert!(copied.success(), "cp: {copied}");
}

/// The kernel's id of a host's map.
fn map_id(pop: &Pop, host: u16, name: &str) -> u64 {
    let pin = format!("/sys/fs/bpf/homing/homing/maps/{name}");
    let args = ["--json", "map", "show", "pinned", &pin];
    let text = pop.lab.exec(Node::Host(host), "bpftool", &args).unwrap();
    let map: serde_json::Value = serde_json::from_str(&text).unwrap();
    map["id"].as_u64().unwrap()
}

#[test]
fn no_connection_breaks_and_no_packet_is_lost_however_agents_restart() {
    let mut pop = Pop::up("load");
    let clients = pop.load(30);
    let clients = pop.tour(clients);
    let first = pop.lab.homing().unwrap().to_owned();
    let before = dropped(&pop.lab);
    let mut churned = 0;
    for (host, how) in [
        (1, Restart::Killed),
        (2, Restart::Stopped),
        (3, Restart::OtherTables),
        (1, Restart::OtherBuild),
        (1, Restart::KilledInItsStart),
        (1, Restart::OtherBuild),
        (3, Restart::Killed),
    ] {
        // Most of the long connections are of others than the hosts that see them.
        pop.lab.set_ecmp(&[host, host % 3 + 1]).unwrap();
        let churn = Churn::start(&pop.lab);
        let map = map_id(&pop, host, "SESSIONS");
        restart(&mut pop.lab, host, how, &first);
        let replaced = map_id(&pop, host, "SESSIONS") != map;
        let another = matches!(how, Restart::OtherTables | Restart::OtherBuild);
        assert_eq!(replaced, another, "h{host}: {how:?}");
        let live = clients.wait_rounds(2, PATIENCE).unwrap();
        assert_eq!(live, clients.total(), "after h{host}: {how:?}");
        let sum = churn.finish();
        assert!(sum > 50, "{sum} short connections");
        churned += sum;
        // What opened and closed meanwhile is known: nothing is left over.
        pop.lab
            .wait_settled(30, PATIENCE)
            .unwrap_or_else(|error| panic!("after h{host}: {how:?}: {error:#}"));
    }
    assert_eq!(dropped(&pop.lab), before, "of {churned} short connections");
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.down();
}
