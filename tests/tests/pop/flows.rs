//! UDP services: flows stay with their host, and only those that go on are told of.

use std::time::Duration;

use homing_tests::{
    lab::{Lab, Node, plan::UDP_PORT, unique},
    workload::{FlowReport, FlowServers, Flows, forge},
};

use super::common::PATIENCE;

const INTERVAL: Duration = Duration::from_millis(50);

struct Udp {
    lab: Lab,
    servers: FlowServers,
}

impl Udp {
    fn up(name: &str) -> Self {
        let lab = Lab::builder()
            .name(&unique(name))
            .hosts(3)
            .racks(2)
            .up()
            .unwrap();
        let servers = FlowServers::start(&lab, &lab.plan().service(UDP_PORT)).unwrap();
        Self { lab, servers }
    }

    fn flows(&self, count: usize) -> Flows {
        let targets = self.lab.plan().service(UDP_PORT);
        Flows::start(&self.lab, Node::Client(1), &targets, count, INTERVAL).unwrap()
    }

    /// All flows' packets come to the hosts in turn.
    fn tour(&mut self, flows: &Flows) {
        for order in [vec![1], vec![2], vec![3], vec![3, 1, 2]] {
            self.lab.set_ecmp(&order).unwrap();
            flows.wait_rounds(4, PATIENCE).unwrap();
        }
    }

    fn announced(&self) -> u64 {
        let status = |host| self.lab.homing_json(host, &["status"]).unwrap();
        let announced = |host| status(host)["gossip"]["announced"].as_u64().unwrap();
        (1..=3).map(announced).sum()
    }

    /// What each host has counted.
    fn stats(&self) -> String {
        let stats = |host| self.lab.exec(Node::Host(host), "homing", &["stats"]);
        let stats = (1..=3).map(|host| format!("h{host}:\n{}", stats(host).unwrap()));
        stats.collect::<Vec<_>>().join("\n")
    }

    fn down(self) {
        drop(self.servers);
        self.lab.down().unwrap();
    }
}

/// Every packet was answered, each flow's by one host.
#[track_caller]
fn assert_whole(report: FlowReport) {
    assert!(report.answers > 0);
    assert_eq!((report.lost, report.moved), (0, 0), "{report:?}");
}

#[test]
fn flows_stay_with_their_host_and_end_when_they_are_idle() {
    let mut pop = Udp::up("udp");
    let flows = pop.flows(24);
    pop.lab.wait_settled(24, PATIENCE).unwrap();
    pop.tour(&flows);
    // The agent of one host goes and comes back: its kernel has kept its flows.
    pop.lab.kill(2).unwrap();
    pop.tour(&flows);
    pop.lab.start(2).unwrap();
    pop.lab.wait_settled(24, PATIENCE).unwrap();
    pop.tour(&flows);
    let client = pop.lab.homing_json(1, &["sessions"]).unwrap();
    for session in client["sessions"].as_array().unwrap() {
        assert_eq!(session["protocol"], "udp");
        let ends = ["client", "service"].map(|end| session[end].as_str().unwrap().to_owned());
        let args = ["owner", &ends[0], &ends[1], "--protocol", "udp"];
        let owner = pop.lab.homing_json(3, &args).unwrap();
        assert_eq!(owner["owner"], 1, "{owner}");
    }
    assert_whole(flows.finish().unwrap());
    pop.lab.wait_settled(0, PATIENCE).unwrap();
    pop.down();
}

#[test]
fn a_flood_of_forged_clients_is_not_told_of_and_harms_no_flow() {
    let mut pop = Udp::up("udpflood");
    let flows = pop.flows(12);
    pop.lab.wait_settled(12, PATIENCE).unwrap();
    let announced = pop.announced();
    let target = pop.lab.plan().service(UDP_PORT)[0];
    forge(&pop.lab, Node::Client(1), target, 100_000).unwrap();
    pop.tour(&flows);
    let seen = pop.lab.outcomes(&["local_flow_new"]).unwrap();
    assert!(seen > 50_000, "only {seen} packets of the flood arrived");
    assert_eq!(pop.announced(), announced);
    pop.lab.wait_settled(12, PATIENCE).unwrap();
    let report = flows.finish().unwrap();
    assert_eq!(report.moved, 0, "{report:?}\n{}", pop.stats());
    // The machine may have dropped packets under the flood; flows went on.
    assert!(report.lost * 20 < report.answers, "{report:?}");
    pop.down();
}
