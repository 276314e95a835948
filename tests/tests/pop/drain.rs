//! A host is taken out of service: new sessions go elsewhere, old ones stay.

use std::time::Duration;

use homing_tests::{
    lab::{Node, plan::UDP_PORT, wait_until},
    workload::{FlowServers, Flows},
};
use serde_json::Value;

use super::common::{PATIENCE, Pop};

/// This host's own sessions.
fn sessions(pop: &Pop, host: u16) -> u64 {
    let status = pop.lab.homing_json(host, &["status"]).unwrap();
    status["sessions"]["count"].as_u64().unwrap()
}

/// Waits until all hosts know whether one drains, and know the whole POP.
fn wait_known(pop: &Pop, host: u16, draining: bool) {
    let known = wait_until(PATIENCE, || {
        let mut all = true;
        for asked in pop.lab.running() {
            let hosts = pop.lab.homing_json(asked, &["hosts"])?;
            let list = hosts["hosts"].as_array().unwrap();
            let entry = list.iter().find(|entry| entry["host"] == host).unwrap();
            all &= entry["draining"] == draining && entry["state"] == "alive";
        }
        Ok(all)
    });
    assert!(
        known.unwrap(),
        "not all know that h{host} drains: {draining}"
    );
}

#[test]
fn a_host_that_drains_takes_no_new_sessions_and_keeps_its_old_ones() {
    let mut pop = Pop::up("drain");
    let service = pop.lab.plan().service(UDP_PORT);
    let servers = FlowServers::start(&pop.lab, &service).unwrap();
    let clients = pop.load(30);
    let before = sessions(&pop, 2);
    assert!(before > 0, "host 2 has no session to keep");
    let drained = pop.lab.homing_json(2, &["drain", "--no-move"]).unwrap();
    assert_eq!(drained["draining"], Value::Bool(true));
    assert_eq!(drained["takers"], 2);
    wait_known(&pop, 2, true);

    // Whatever the router does: all packets land on the host that drains.
    pop.lab.set_ecmp(&[2]).unwrap();
    let more = pop.unsettled(20);
    let flows = Flows::start(
        &pop.lab,
        Node::Client(1),
        &service,
        8,
        Duration::from_millis(50),
    )
    .unwrap();
    flows.wait_rounds(3, PATIENCE).unwrap();
    assert_eq!(sessions(&pop, 2), before, "a new session landed on host 2");
    assert_eq!(flows.on_host(2), 0, "a new flow landed on host 2");
    pop.lab.wait_settled(30 + 20 + 8, PATIENCE).unwrap();
    assert_eq!(flows.finish().unwrap().moved, 0);

    // It goes on draining when its agent starts anew.
    pop.lab.kill(2).unwrap();
    pop.lab.start(2).unwrap();
    wait_known(&pop, 2, true);
    let status = pop.lab.homing_json(2, &["status"]).unwrap();
    assert_eq!(status["draining"], Value::Bool(true));
    let clients = pop.tour(clients);
    let more = pop.tour(more);
    assert_eq!(sessions(&pop, 2), before);

    // Not all have ended by the deadline; then they have.
    let wait = ["drain", "--no-move", "--wait", "--deadline"];
    let error = pop.lab.homing_json(2, &[&wait[..], &["1s"]].concat());
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("still open after"), "{error}");
    pop.unbroken(clients);
    let done = pop.lab.homing_json(2, &[&wait[..], &["20s"]].concat());
    assert_eq!(done.unwrap()["sessions"], 0);

    pop.lab.homing_json(2, &["undrain"]).unwrap();
    wait_known(&pop, 2, false);
    pop.lab.set_ecmp(&[2]).unwrap();
    let again = pop.unsettled(10);
    assert_eq!(sessions(&pop, 2), 10);
    pop.unbroken(again);
    pop.unbroken(more);
    drop(servers);
    pop.down();
}
