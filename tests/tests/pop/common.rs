//! What the tests of a POP share.

use std::time::Duration;

use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, unique},
    workload::{Clients, Options},
};

/// How long a round of exchanges, or a table, may take to get where it should be.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A lab with its servers.
pub struct Pop {
    pub lab: Lab,
    servers: Servers,
}

impl Pop {
    /// Three hosts in two racks, with agents, and a server on each.
    pub fn up(name: &str) -> Self {
        Self::from(
            Lab::builder()
                .name(&unique(name))
                .hosts(3)
                .racks(2)
                .up()
                .unwrap(),
        )
    }

    pub fn from(lab: Lab) -> Self {
        let servers = Servers::start(&lab).unwrap();
        Self { lab, servers }
    }

    /// Opens connections and waits until every host knows their owners.
    pub fn load(&self, connections: u32) -> Clients {
        let clients = self.unsettled(connections);
        self.lab
            .wait_settled(u64::from(connections), PATIENCE)
            .unwrap();
        clients
    }

    /// Opens connections.
    pub fn unsettled(&self, connections: u32) -> Clients {
        let options = Options {
            connections,
            targets: self.lab.plan().service(443).to_vec(),
            seed: 21,
            interval: Duration::from_millis(50),
            deadline: Duration::from_secs(8),
        };
        let clients = Clients::start(&self.lab, Node::Client(1), options).unwrap();
        clients.wait_open(PATIENCE).unwrap();
        clients
    }

    /// Sends all connections to the hosts in turn, so that each host sees packets of
    /// everybody's sessions. All must live on.
    pub fn tour(&mut self, clients: Clients) -> Clients {
        for order in [vec![1], vec![2], vec![3], vec![3, 1, 2]] {
            self.lab.set_ecmp(&order).unwrap();
            let live = clients.wait_rounds(2, PATIENCE).unwrap();
            if live != clients.total() {
                let outcomes = self.outcomes();
                let report = clients.finish().unwrap();
                panic!("connections broke once ECMP chose {order:?}: {report:#?}\n{outcomes}");
            }
        }
        clients
    }

    /// How packets ended on each host whose agent runs.
    fn outcomes(&self) -> String {
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

    /// Ends the connections; none may have broken.
    pub fn unbroken(&self, clients: Clients) {
        let report = clients.finish().unwrap();
        assert_eq!((report.broken, report.not_opened), (0, 0), "{report:?}");
    }

    /// Ends the servers and the lab.
    pub fn down(self) {
        drop(self.servers);
        self.lab.down().unwrap();
    }
}
