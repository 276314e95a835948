//! Message sockets of real agents: found by name, and again when agents have ended.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use homing_client::message::{Agent, Fate, MessageSocket, Outgoing, Received};
use homing_tests::lab::{Node, wait_until};
use tokio::{runtime::Runtime, task::JoinHandle, time::sleep};

use super::{
    common::{PATIENCE, Pop},
    load::{Restart, restart},
};

const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../client/examples/messages.py"
);

/// The example's service in capitals. It ends with this.
struct Service(Child);

impl Service {
    fn offer(pop: &Pop, host: u16) -> Self {
        let mut command = Command::new("python3");
        command
            .arg(EXAMPLE)
            .arg(pop.lab.sockets(host).mux)
            .args(["offer", "upper"])
            .stdout(Stdio::piped());
        let mut child = pop.lab.spawn(Node::Host(host), &mut command).unwrap();
        let mut line = String::new();
        let output = BufReader::new(child.stdout.take().unwrap());
        { output }.read_line(&mut line).unwrap();
        assert_eq!(line, "offering upper\n");
        Self(child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for a word in capitals, wherever that is offered.
fn ask(pop: &Pop, host: u16) -> anyhow::Result<String> {
    let socket = pop.lab.sockets(host).mux;
    let args = [EXAMPLE, &socket.to_string_lossy(), "ask", "upper", "word"];
    pop.lab.exec(Node::Host(host), "python3", &args)
}

#[test]
fn a_service_is_found_by_its_name_across_kills_of_either_agent() {
    let mut pop = Pop::up("messages");
    let mut service = Service::offer(&pop, 2);
    for host in [1, 2, 3] {
        assert_eq!(
            ask(&pop, host).unwrap().trim(),
            "word: WORD",
            "from h{host}"
        );
    }
    let mux = pop.lab.homing_json(2, &["mux", "status"]).unwrap();
    assert_eq!(mux["sockets"][0]["offers"], "upper");
    assert_eq!(
        (&mux["sum"]["services"], &mux["encryption"]),
        (&1.into(), &true.into())
    );
    let table = pop
        .lab
        .exec(Node::Host(2), "homing", &["mux", "status"])
        .unwrap();
    assert!(table.contains("offers upper"), "{table}");
    // The client's agent.
    pop.lab.kill(1).unwrap();
    pop.lab.start(1).unwrap();
    assert_eq!(ask(&pop, 1).unwrap().trim(), "word: WORD");
    // The service's: its application sees the end of its message socket, and ends.
    pop.lab.kill(2).unwrap();
    let ended = wait_until(PATIENCE, || Ok(service.0.try_wait()?.is_some()));
    assert!(
        ended.unwrap(),
        "the service does not see that its agent has gone"
    );
    pop.lab.start(2).unwrap();
    let _service = Service::offer(&pop, 2);
    for host in [1, 3] {
        let found = wait_until(PATIENCE, || Ok(ask(&pop, host).is_ok()));
        assert!(found.unwrap(), "h{host} does not find the service again");
    }
    pop.down();
}

/// What became of messages, as their senders and their receiver saw it.
#[derive(Default)]
struct Log {
    /// By name: the fate, or none if it was not told before the message socket's end.
    fates: BTreeMap<u64, Option<Fate>>,
    /// By name: how often it has arrived.
    arrived: BTreeMap<u64, u32>,
    /// By client: its message sockets so far, and what was delivered on the last one.
    clients: [(u32, u32); 2],
    /// Message sockets of the service so far.
    services: u32,
}

/// A service on host 2 and clients of it on hosts 1 and 3, which send without end. Whoever
/// sees the end of his message socket asks for another one.
struct Traffic {
    runtime: Runtime,
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(pop: &Pop) -> Self {
        let runtime = Runtime::new().unwrap();
        let (log, stop) = (Arc::<Mutex<Log>>::default(), Arc::<AtomicBool>::default());
        let agent = |host| Agent::at(pop.lab.sockets(host).mux);
        runtime.spawn(serve(agent(2), log.clone()));
        let clients = [1, 3].into_iter().enumerate().map(|(which, host)| {
            runtime.spawn(send(agent(host), which, log.clone(), stop.clone()))
        });
        Self {
            clients: clients.collect(),
            runtime,
            log,
            stop,
        }
    }

    /// Waits until so many messages of each client were delivered on its message socket of
    /// this number, counted from 1 on.
    fn wait(&self, sockets: [u32; 2]) {
        let flows = wait_until(PATIENCE, || {
            let clients = lock(&self.log).clients;
            let mut each = clients.iter().zip(sockets);
            Ok(each.all(|((socket, delivered), wanted)| *socket == wanted && *delivered >= 100))
        });
        let clients = lock(&self.log).clients;
        assert!(flows.unwrap(), "{clients:?} instead of {sockets:?}");
    }

    /// Ends it. All fates must be true.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            self.runtime.block_on(client).unwrap();
        }
        // What was delivered is in the service's descriptor at least.
        let arrived = wait_until(PATIENCE, || {
            let log = lock(&self.log);
            let mut delivered = log
                .fates
                .iter()
                .filter(|(_, fate)| **fate == Some(Fate::Delivered));
            Ok(delivered.all(|(name, _)| log.arrived.contains_key(name)))
        });
        assert!(arrived.unwrap(), "delivered, and not received");
        let log = lock(&self.log);
        let mut told = BTreeMap::<String, u32>::new();
        for (name, fate) in &log.fates {
            let times = log.arrived.get(name).copied().unwrap_or(0);
            let most = u32::from(!matches!(fate, Some(Fate::NotSent(_))));
            assert!(
                times <= most,
                "message {name}: {fate:?}, and received {times} times"
            );
            *told
                .entry(format!("{fate:?}, received {times}"))
                .or_default() += 1;
        }
        println!("{told:?}");
        assert!(log.arrived.keys().all(|name| log.fates.contains_key(name)));
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap()
}

/// The next that comes; none at the end of the message socket, which may be told as
/// `ECONNRESET` first.
async fn next(socket: &mut MessageSocket) -> Option<(u64, Option<Fate>)> {
    for _ in 0..2 {
        match socket.receiver.receive().await {
            Ok(Some(Received::Message { name, .. })) => return Some((name, None)),
            Ok(Some(Received::Fate { name, fate, .. })) => return Some((name, Some(fate))),
            Ok(None) => return None,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    panic!("ECONNRESET twice");
}

/// Offers the service, over and over, and keeps a list of what arrives.
async fn serve(agent: Agent, log: Arc<Mutex<Log>>) {
    loop {
        let Ok(mut socket) = agent.offer("work").await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        lock(&log).services += 1;
        while let Some((name, _)) = next(&mut socket).await {
            *lock(&log).arrived.entry(name).or_default() += 1;
        }
    }
}

/// Sends until it is told to stop, with some messages on their way, and keeps a list of
/// their fates.
async fn send(agent: Agent, which: usize, log: Arc<Mutex<Log>>, stop: Arc<AtomicBool>) {
    let mut name = (which as u64) << 32;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut socket) = agent.connect("work", None, PATIENCE).await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        {
            let (sockets, delivered) = &mut lock(&log).clients[which];
            (*sockets, *delivered) = (*sockets + 1, 0);
        }
        let mut open = 0;
        let mut ended = false;
        while !ended && (open > 0 || !stop.load(Ordering::Relaxed)) {
            if open < 16 && !stop.load(Ordering::Relaxed) {
                name += 1;
                let message = Outgoing {
                    body: &vec![
                        0;
                        if name.is_multiple_of(50) {
                            100_000
                        } else {
                            100
                        }
                    ],
                    name,
                    repeatable: name.is_multiple_of(4),
                    tell: true,
                    ..Outgoing::default()
                };
                // Before it can arrive.
                lock(&log).fates.insert(name, None);
                match socket.sender.send(&message).await {
                    Ok(_) => open += 1,
                    Err(error) => {
                        let errors = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
                        assert!(errors.contains(&error.kind()), "{error}");
                        ended = true;
                    }
                }
                continue;
            }
            match next(&mut socket).await {
                Some((name, fate)) => {
                    open -= 1;
                    told(&log, which, name, fate);
                }
                None => ended = true,
            }
        }
        // What was told before the end.
        while ended && let Some((name, fate)) = next(&mut socket).await {
            told(&log, which, name, fate);
        }
    }
}

fn told(log: &Mutex<Log>, which: usize, name: u64, fate: Option<Fate>) {
    let mut log = lock(log);
    log.clients[which].1 += u32::from(fate == Some(Fate::Delivered));
    let before = log.fates.insert(name, fate);
    assert_eq!(before, Some(None), "message {name} has two fates");
}

#[test]
fn message_sockets_end_with_an_agent_that_is_upgraded_and_their_fates_are_true() {
    let mut pop = Pop::up("upgraded");
    let first = pop.lab.homing().unwrap().to_owned();
    let traffic = Traffic::start(&pop);
    traffic.wait([1, 1]);
    // The service's agent: all message sockets end.
    restart(&mut pop.lab, 2, Restart::OtherBuild, &first);
    traffic.wait([2, 2]);
    // A client's: its own ends.
    restart(&mut pop.lab, 1, Restart::OtherBuild, &first);
    traffic.wait([3, 2]);
    // The service's again, in the same build.
    restart(&mut pop.lab, 2, Restart::Stopped, &first);
    traffic.wait([4, 3]);
    assert_eq!(lock(&traffic.log).services, 3);
    traffic.finish();
    pop.down();
}
