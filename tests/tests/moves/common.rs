//! What the tests of moves share: a POP with puppets, sessions and their paths.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use homing_common::{
    moving::{Moving, Phase},
    session::Tuple,
};
use homing_tests::{
    capture::{Capture, Report, Trace},
    lab::{Lab, Node, unique, wait_until},
    puppet::{Ask, Puppet},
};
use serde_json::Value;

use super::client::{Client, Wish};

/// How long anything may take, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A lab with a puppet on each host.
pub struct Pop {
    pub lab: Lab,
    puppets: BTreeMap<u16, Puppet>,
}

impl Pop {
    /// So many hosts in two racks.
    pub fn up(name: &str, hosts: u16) -> Self {
        let lab = Lab::builder().name(&unique(name)).hosts(hosts).racks(2);
        Self::of(lab.up().unwrap())
    }

    /// The same with these lines in the hosts' `[pop]`.
    pub fn with(name: &str, hosts: u16, lines: &str) -> Self {
        let lab = Lab::builder().name(&unique(name)).hosts(hosts).racks(2);
        let mut lab = lab.no_homing().up().unwrap();
        for host in 1..=hosts {
            let path = lab.folder_of(Node::Host(host)).join("homing.toml");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("[pop]\n", &format!("[pop]\n{lines}"))).unwrap();
        }
        lab.start_all().unwrap();
        Self::of(lab)
    }

    pub fn of(lab: Lab) -> Self {
        let hosts = 1..=lab.plan().hosts;
        let puppets = hosts.map(|host| (host, start_puppet(&lab, host))).collect();
        let mut pop = Self { lab, puppets };
        pop.wait_registered();
        pop
    }

    pub fn puppet(&mut self, host: u16) -> &mut Puppet {
        self.puppets.get_mut(&host).expect("a puppet")
    }

    pub fn ask(&mut self, host: u16, ask: Ask) {
        self.puppet(host).ask(&ask).unwrap();
    }

    /// Starts another puppet in the place of one that was killed.
    pub fn revive(&mut self, host: u16) {
        let puppet = start_puppet(&self.lab, host);
        self.puppets.insert(host, puppet);
    }

    /// A host's puppet is about to be gone, for good.
    pub fn lose(&mut self, host: u16) {
        self.puppets.remove(&host);
    }

    /// Opens a session at a host.
    pub fn connect(&mut self, host: u16, service: SocketAddr, wish: Wish) -> Client {
        self.lab.set_ecmp(&[host]).unwrap();
        let client = Client::connect(&self.lab, service, wish);
        self.ask(host, Ask::Here(client.address));
        client
    }

    /// Begins to move a session; [`Order::end`] waits for what comes of it.
    pub fn order(&self, from: u16, to: u16, client: &Named) -> Order {
        let (client, service) = (client.0.to_string(), client.1.to_string());
        let target = to.to_string();
        let mut command = std::process::Command::new("homing");
        command.args(["move", &client, &service, &target, "--json"]);
        self.lab.place(Node::Host(from), &mut command).unwrap();
        Order(std::thread::spawn(move || command.output().unwrap()))
    }

    /// Moves a session.
    pub fn go(&self, from: u16, to: u16, client: &impl Session) {
        let came = self.order(from, to, &client.named()).end();
        assert!(came.is_moved(), "from h{from} to h{to}: {came:?}");
    }

    /// Moves a session along a path.
    pub fn walk(&self, path: &[u16], client: &impl Session) {
        for pair in path.windows(2) {
            self.go(pair[0], pair[1], client);
        }
    }

    /// What is in a host's journal.
    pub fn journal(&self, host: u16) -> BTreeMap<u16, Phase> {
        let map = self.lab.map(host, "MOVING").unwrap();
        let map = HashMap::<MapData, Tuple, Moving>::try_from(map).unwrap();
        let entries = map.iter().map(Result::unwrap);
        entries
            .map(|(tuple, moving)| {
                (
                    u16::from_be_bytes(tuple.client_port.0),
                    moving.phase().unwrap(),
                )
            })
            .collect()
    }

    /// Waits until no session moves any more on any host.
    pub fn wait_still(&self) {
        let hosts = 1..=self.lab.plan().hosts;
        let still = || Ok(hosts.clone().all(|host| self.journal(host).is_empty()));
        assert!(
            wait_until(2 * PATIENCE, still).unwrap(),
            "moves that do not end: {:?}",
            hosts
                .clone()
                .map(|host| self.journal(host))
                .collect::<Vec<_>>()
        );
    }

    /// The hosts whose applications have the session.
    pub fn servers(&mut self, client: SocketAddr) -> Vec<u16> {
        let puppets = self.puppets.iter_mut();
        puppets
            .filter_map(|(host, puppet)| puppet.has(client).unwrap().then_some(*host))
            .collect()
    }

    /// A counter of a host's moves.
    pub fn count(&self, host: u16, name: &str) -> u64 {
        let stats = self.lab.homing_json(host, &["stats"]).unwrap();
        let counters = stats["moves"].as_array().unwrap();
        let counter = counters.iter().find(|counter| counter["name"] == name);
        counter.unwrap()["count"].as_u64().unwrap()
    }

    /// Waits until the agents know their applications.
    pub fn wait_registered(&mut self) {
        for puppet in self.puppets.values_mut() {
            let registered = || Ok(puppet.told()?.is_registered);
            assert!(wait_until(PATIENCE, registered).unwrap(), "no agent");
        }
    }
}

fn start_puppet(lab: &Lab, host: u16) -> Puppet {
    Puppet::start(lab, host, &lab.sockets(host).apps).unwrap()
}

/// The lab that most tests use, one after another.
pub fn shared() -> MutexGuard<'static, Option<Pop>> {
    static SHARED: Mutex<Option<Pop>> = Mutex::new(None);
    let mut pop = SHARED.lock().unwrap_or_else(|poisoned| {
        // Whoever failed has left it in no known state.
        let mut pop = PoisonError::into_inner(poisoned);
        pop.take();
        SHARED.clear_poison();
        pop
    });
    if pop.is_none() {
        *pop = Some(Pop::up("moves", 3));
    }
    pop
}

/// A move that was asked for.
pub struct Order(JoinHandle<std::process::Output>);

impl Order {
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// What came of it, once that is certain.
    pub fn end(self) -> Came {
        let output = self.0.join().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        Came {
            value: serde_json::from_str(&text).unwrap_or(Value::Null),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// What came of a move.
#[derive(Debug)]
pub struct Came {
    pub value: Value,
    #[expect(dead_code, reason = "shown where something else came than was to")]
    error: String,
}

impl Came {
    pub fn is_moved(&self) -> bool {
        self.value["outcome"] == "moved"
    }
}

/// A client and its service.
pub struct Named(pub SocketAddr, pub SocketAddr);

/// What is a session's.
pub trait Session {
    fn named(&self) -> Named;
}

/// A capture, and the paths that sessions take in it.
pub struct Scene {
    capture: Capture,
    paths: Vec<(SocketAddr, Vec<u16>)>,
}

impl Scene {
    pub fn begin(pop: &Pop) -> Self {
        Self {
            capture: Capture::start(&pop.lab).unwrap(),
            paths: Vec::new(),
        }
    }

    /// The session of this client went this way.
    pub fn path(&mut self, client: SocketAddr, path: &[u16]) {
        self.paths.push((client, path.to_vec()));
    }

    /// What was said of this client's session is not looked at.
    pub fn leave_out(&mut self, client: SocketAddr) {
        self.paths.retain(|(other, _)| *other != client);
    }

    /// Once nothing moves any more: every host knows the truth, no application has seen a
    /// byte that it should not, and each session was answered along its path, by one host
    /// after another, and not reset.
    pub fn end(self, pop: &mut Pop) -> BTreeMap<SocketAddr, Report> {
        pop.wait_still();
        pop.lab.wait_truth(PATIENCE).unwrap();
        for host in 1..=pop.lab.plan().hosts {
            let told = pop.puppet(host).told().unwrap();
            assert!(told.wrong.is_empty(), "h{host}: {told:?}");
        }
        self.judge()
    }

    /// What was captured.
    pub fn trace(self) -> Trace {
        self.capture.finish().unwrap()
    }

    /// What was captured is as it must be.
    pub fn judge(self) -> BTreeMap<SocketAddr, Report> {
        let trace: Trace = self.capture.finish().unwrap();
        let judge = |(client, path): (SocketAddr, Vec<u16>)| {
            let talk = trace.of(client).unwrap();
            let report = talk.judge(&path);
            (client, report.unwrap_or_else(|error| panic!("{error:#}")))
        };
        self.paths.into_iter().map(judge).collect()
    }
}
