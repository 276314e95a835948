//! What the tests of a POP share.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::{Array, PerCpuArray};
use homing_common::{
    control::{RENDEZVOUS_ENTRIES, Rendezvous},
    outcome::Outcome,
};
use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, node, unique, wait_until},
    packet::{Ip, ethernet},
    raw::{Raw, index_of},
    workload::{self, Clients, End, MAGIC, Options},
};
use serde_json::Value;

/// How long a round of exchanges, or a table, may take to get where it should be.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long until no route of a session stands that has ended: one that an ask brought to
/// light while the session ended stands for 30 s.
pub const FORGOTTEN: Duration = Duration::from_secs(45);

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

/// How many packets ended so on a host, read from its kernel: its agent may be dead.
pub fn count(pop: &Pop, host: u16, outcome: Outcome) -> u64 {
    let map = pop.lab.map(host, "STATS").unwrap();
    let stats = PerCpuArray::<_, u64>::try_from(map).unwrap();
    stats.get(&outcome.index(), 0).unwrap().iter().sum()
}

/// Whether a host's kernel has been told where to send what it cannot decide on.
pub fn knows_others(pop: &Pop, host: u16) -> bool {
    let map = pop.lab.map(host, "RENDEZVOUS").unwrap();
    let table = Array::<_, Rendezvous>::try_from(map).unwrap();
    (0..RENDEZVOUS_ENTRIES).all(|slot| table.get(&slot, 0).unwrap().second != 0)
}

/// A number from a file of a host's `/proc/net`: the group's line of names, then its
/// line of numbers.
pub fn netstat(lab: &Lab, host: u16, file: &str, group: &str, name: &str) -> u64 {
    let path = format!("/proc/net/{file}");
    let text = lab.exec(Node::Host(host), "cat", &[&path]).unwrap();
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'))
        .map(str::split_whitespace);
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.zip(numbers).find(|(found, _)| *found == name);
    found.unwrap().1.parse().unwrap()
}

/// Puts packets onto the wire between the router and a host.
pub fn inject(lab: &Lab, host: u16, packets: impl Iterator<Item = Ip> + Send) {
    let text = lab.plan().host_mac(host);
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap();
    }
    node::in_namespace(&lab.namespace(Node::Router), || {
        let (socket, port) = (Raw::sender()?, index_of(&format!("h{host}"))?);
        for packet in packets {
            let bytes = packet.bytes();
            let frame = ethernet(mac, [2, 0, 0, 0, 0, 0xfe], &[], bytes[0] >> 4 == 4, &bytes);
            // In a burst, what finds no room on the wire is lost, as everywhere.
            socket.send(port, &frame).ok();
        }
        Ok(())
    })
    .unwrap();
}

/// The first exchange of a connection with the lab's server.
pub fn exchange(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = MAGIC.to_vec();
    request.extend(7u64.to_be_bytes());
    request.extend(0u32.to_be_bytes());
    request.extend(100u32.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut answer = [0; 100];
    stream.read_exact(&mut answer).expect("no answer");
}

/// One more exchange on a connection that has had one.
pub fn exchange_more(stream: &mut TcpStream) {
    stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 50]).unwrap();
    stream.read_exact(&mut [0; 50]).expect("no answer");
}
