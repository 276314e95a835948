//! What the tests of a POP share.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, node, unique, wait_until},
    workload::{self, Clients, End, Options},
};
use serde_json::Value;

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
        Self::with_ports(lab, &[443])
    }

    /// With servers on these ports of the services.
    pub fn with_ports(lab: Lab, ports: &[u16]) -> Self {
        let servers = Servers::start_ports(&lab, ports).unwrap();
        Self { lab, servers }
    }

    /// Starts a host's agent and waits until it answers, whether it is ready or not.
    pub fn launch(&mut self, host: u16) {
        self.lab.launch(host).unwrap();
        let answers = wait_until(PATIENCE, || {
            Ok(self.lab.homing_json(host, &["status"]).is_ok())
        });
        assert!(answers.unwrap(), "{}", self.lab.last_words(host));
    }

    /// Opens connections and waits until every host knows their owners.
    pub fn load(&self, connections: u32) -> Clients {
        let clients = self.unsettled(connections);
        self.lab
            .wait_settled(u64::from(connections), PATIENCE)
            .unwrap();
        clients
    }

    /// Opens more connections and waits until every host knows the owners of all
    /// `open` that are open then.
    pub fn load_more(&self, connections: u32, open: u64) -> Clients {
        let clients = self.unsettled(connections);
        self.lab.wait_settled(open, PATIENCE).unwrap();
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

/// Connections that open, have one exchange and close, one after another, on several
/// threads of a client.
pub struct Churn {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u64, Vec<End>)>>,
}

impl Churn {
    /// Starts it.
    pub fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let targets = lab.plan().service(443);
        let threads = (0..4).map(|number| {
            let (stop, target) = (stop.clone(), targets[number % targets.len()]);
            let namespace = lab.namespace(Node::Client(1));
            std::thread::spawn(move || {
                node::in_namespace(&namespace, || Ok(churn(&stop, target, number as u64))).unwrap()
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Ends it. Every connection must have gone well. Returns how many there were.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Relaxed);
        let mut sum = 0;
        for thread in self.threads {
            let (well, ends) = thread.join().unwrap();
            assert!(ends.is_empty(), "of {well} and more: {ends:?}");
            sum += well;
        }
        sum
    }
}

fn churn(stop: &AtomicBool, target: SocketAddr, seed: u64) -> (u64, Vec<End>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut sum, mut all) = (0, Vec::new());
    while !stop.load(Relaxed) {
        let some = workload::churn(target, Duration::from_millis(100), seed + sum);
        let (well, ends) = runtime.block_on(some);
        sum += well;
        all.extend(ends);
    }
    (sum, all)
}

/// Packets that Homing or a driver dropped, by host and reason.
pub fn dropped(lab: &Lab) -> Vec<(u16, String, u64)> {
    let mut all = Vec::new();
    for host in lab.running() {
        let stats = lab.homing_json(host, &["stats"]).unwrap();
        for outcome in stats["outcomes"].as_array().unwrap() {
            if outcome["verdict"] == "drop" {
                let name = outcome["name"].as_str().unwrap().to_owned();
                all.push((host, name, outcome["packets"].as_u64().unwrap()));
            }
        }
        for (interface, errors) in stats["interfaces"].as_object().unwrap() {
            for (name, count) in errors.as_object().unwrap() {
                all.push((host, format!("{interface} {name}"), count.as_u64().unwrap()));
            }
        }
    }
    all.retain(|(_, _, packets)| *packets > 0);
    all
}

/// Waits until every host whose agent runs can know whose a session is: before that, it
/// leaves the first packet of a flow to another one.
pub fn wait_synced(lab: &Lab) {
    let synced = |host: u16| {
        let status = lab.homing_json(host, &["status"])?;
        anyhow::Ok(status["gossip"]["synced"] == true)
    };
    let all = wait_until(PATIENCE, || {
        let mut hosts = lab.running().into_iter();
        hosts.try_fold(true, |all, host| Ok(all && synced(host)?))
    });
    assert!(all.unwrap(), "not all hosts are in sync");
}

/// What `homing status` names as problems on a host.
pub fn problems(lab: &Lab, host: u16) -> Vec<String> {
    let status = lab.homing_json(host, &["status"]).unwrap();
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    let texts = problems.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// A counter of the hooks on sockets.
pub fn hook(lab: &Lab, host: u16, name: &str) -> u64 {
    let stats = lab.homing_json(host, &["stats"]).unwrap();
    let hooks = stats["hooks"].as_array().unwrap();
    let counter = hooks.iter().find(|counter| counter["name"] == name);
    counter.unwrap()["count"].as_u64().unwrap()
}
