//! Datagrams while agents end and start in every way: nobody sends one again, so one
//! that a kernel loses is missed, whether anything has counted it or not.

use std::time::Duration;

use homing_tests::{
    lab::{Lab, Node, plan::UDP_PORT, unique},
    workload::{FlowServers, Flows},
};

use super::{
    common::{PATIENCE, dropped, wait_synced},
    load::{Restart, restart},
};

/// Flows, half of them over IPv6.
const FLOWS: usize = 24;
/// How long a flow waits between an answer and the next datagram.
const INTERVAL: Duration = Duration::from_millis(1);
/// Datagrams of each flow that follow on each restart.
const AFTER: u64 = 50;

/// Every host is the owner of a third of the flows, and forwards those of another
/// one: whatever its agent goes through, it does in both places.
#[test]
fn no_datagram_is_lost_however_agents_restart() {
    let mut lab = Lab::builder()
        .name(&unique("dgram"))
        .hosts(3)
        .racks(2)
        .up()
        .unwrap();
    wait_synced(&lab);
    let targets = lab.plan().service(UDP_PORT);
    let servers = FlowServers::start(&lab, &targets).unwrap();
    let flows = Flows::start(&lab, Node::Client(1), &targets, FLOWS, INTERVAL).unwrap();
    lab.wait_settled(FLOWS as u64, PATIENCE).unwrap();
    for host in 1..=3 {
        assert!(flows.on_host(host) > 0, "h{host} owns no flow");
    }
    assert_eq!(lab.set_ecmp(&[2, 3, 1]).unwrap(), 1.0);
    let first = lab.homing().unwrap().to_owned();
    let (before, forwarded) = (dropped(&lab), lab.outcomes(&["forwarded"]).unwrap());
    let begun = flows.report().answers;
    for (host, how) in [
        (1, Restart::Killed),
        (2, Restart::Stopped),
        (3, Restart::OtherTables),
        (1, Restart::OtherBuild),
        (2, Restart::KilledInItsStart),
        (1, Restart::OtherBuild),
    ] {
        restart(&mut lab, host, how, &first);
        flows.wait_rounds(AFTER, PATIENCE).unwrap();
        let report = flows.report();
        let bad = (report.lost, report.moved);
        assert_eq!(bad, (0, 0), "h{host}, {how:?}: {report:?}");
    }
    let report = flows.finish().unwrap();
    let forwarded = lab.outcomes(&["forwarded"]).unwrap() - forwarded;
    assert_eq!((report.lost, report.moved), (0, 0), "{report:?}");
    assert_eq!(dropped(&lab), before);
    let answered = report.answers - begun;
    println!("{answered} datagrams answered, {forwarded} forwarded");
    assert!(answered > 10_000, "{answered}");
    assert!(forwarded >= answered, "{forwarded} of {answered}");
    drop(servers);
    lab.down().unwrap();
}
