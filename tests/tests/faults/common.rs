//! What the tests of faults share.

use std::time::Duration;

use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, unique, wait_until},
    workload::{Clients, Options},
};
use serde_json::Value;

/// How long a round of exchanges may take: longer than a few retransmissions.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How soon after the last fault every table must be right.
pub const CONVERGED: Duration = Duration::from_secs(2);
/// The same while much is being lost: what tells of a loss may be lost, too.
pub const CONVERGED_UNDER_LOSS: Duration = Duration::from_secs(10);

/// A lab with its servers.
pub struct Pop {
    pub lab: Lab,
    servers: Servers,
    /// How many loads there were: each gets connections of its own.
    loads: u64,
}

impl Pop {
    /// Hosts in racks, with agents, and a server on each.
    pub fn up(name: &str, hosts: u16, racks: u16) -> Self {
        let lab = Lab::builder()
            .name(&unique(name))
            .hosts(hosts)
            .racks(racks)
            .up()
            .unwrap();
        let servers = Servers::start(&lab).unwrap();
        Self {
            lab,
            servers,
            loads: 0,
        }
    }

    /// Opens connections and waits until they are open; not until anybody knows.
    pub fn load(&mut self, connections: u32) -> Clients {
        self.loads += 1;
        let options = Options {
            connections,
            targets: self.lab.plan().service(443).to_vec(),
            seed: self.loads,
            interval: Duration::from_millis(50),
            deadline: Duration::from_secs(12),
        };
        let clients = Clients::start(&self.lab, Node::Client(1), options).unwrap();
        clients.wait_open(PATIENCE).unwrap();
        clients
    }

    /// Sends all connections to the hosts in turn, so that each host sees packets of
    /// everybody's sessions. All must live on.
    pub fn tour(&mut self, clients: &Clients) {
        let hosts = self.lab.plan().hosts;
        let mut orders: Vec<Vec<u16>> = (1..=hosts).map(|host| vec![host]).collect();
        orders.push((1..=hosts).rev().collect());
        for order in orders {
            self.lab.set_ecmp(&order).unwrap();
            let live = clients.wait_rounds(2, PATIENCE).unwrap();
            assert_eq!(
                live,
                clients.total(),
                "connections broke once ECMP chose {order:?}\n{}",
                self.outcomes()
            );
        }
    }

    /// Ends the connections; none may have broken.
    pub fn unbroken(&self, clients: Clients) {
        let report = clients.finish().unwrap();
        assert_eq!(
            (report.broken, report.not_opened),
            (0, 0),
            "{report:?}\n{}",
            self.outcomes()
        );
    }

    /// Waits until each of `these` takes each of `those` to be down, and the other
    /// way round.
    pub fn wait_parted(&self, these: &[u16], those: &[u16]) {
        let sees_down = |on: u16, of: u16| {
            let hosts = self.lab.homing_json(on, &["hosts"])?;
            let list = hosts.pointer("/hosts").and_then(Value::as_array);
            let entry = list.into_iter().flatten().find(|entry| entry["host"] == of);
            anyhow::Ok(entry.is_some_and(|entry| entry["state"] == "down"))
        };
        for (this, that) in these
            .iter()
            .flat_map(|a| those.iter().map(move |b| (*a, *b)))
        {
            for (on, of) in [(this, that), (that, this)] {
                let parted = wait_until(PATIENCE, || sees_down(on, of)).unwrap();
                assert!(parted, "h{on} never saw h{of} down");
            }
        }
    }

    /// Waits until every host takes every other one of its rack to hear its
    /// multicast, or not to.
    pub fn wait_hears(&self, hears: bool) {
        let mut all = Vec::new();
        let reached = wait_until(PATIENCE, || {
            all.clear();
            for host in self.lab.running() {
                let hosts = self.lab.homing_json(host, &["hosts"])?;
                let list = hosts.pointer("/hosts").and_then(Value::as_array);
                all.extend(
                    list.into_iter()
                        .flatten()
                        .map(|host| host["hears_us"].clone()),
                );
            }
            Ok(all.iter().all(|said| said.is_null() || *said == hears))
        });
        assert!(reached.unwrap(), "never all {hears}: {all:?}");
        assert!(all.iter().any(Value::is_boolean));
    }

    /// All tables must be right within the bound.
    pub fn converges(&self) -> Duration {
        self.converges_within(CONVERGED, &[])
    }

    /// The same within another bound and without the tables of some hosts.
    pub fn converges_within(&self, bound: Duration, without: &[u16]) -> Duration {
        match self.lab.wait_truth_but(without, bound) {
            Ok(took) => took,
            Err(error) => panic!("{error:#}\n{}", self.outcomes()),
        }
    }

    /// How packets ended on each host whose agent runs.
    pub fn outcomes(&self) -> String {
        let mut text = String::new();
        for host in self.lab.running() {
            let stats = self
                .lab
                .exec(Node::Host(host), "homing", &["stats"])
                .unwrap_or_else(|error| error.to_string());
            text += &format!("h{host}:\n{stats}\n");
        }
        text
    }

    /// Ends the servers and the lab.
    pub fn down(self) {
        drop(self.servers);
        self.lab.down().unwrap();
    }
}
