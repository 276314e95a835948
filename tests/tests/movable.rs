//! The movable server and its clients. On this machine's loopback, with an agent's end
//! that stands in for a whole agent, and has connections stopped, exported and resumed
//! from their states all the time; and in a lab, whose hosts come and go.

use std::{fs, net::SocketAddr, path::PathBuf, process::Child, process::Command, time::Duration};

use homing_agent::migration::app::{
    AppListener, Apps, Event, Events, Failure, Limits, server::serve,
};
use homing_common::{
    net::{Port, Service, TCP},
    session::Tuple,
};
use homing_tests::{
    lab::{Lab, Node, node, unique},
    movable::{Clients, NetCounts, Options, PORT, Report, ServerOptions, Work},
};

/// Longer than anything takes, on whatever machine.
const LONG: Duration = Duration::from_secs(60);

/// A server, and the agent's end of it.
struct Stage {
    apps: Apps,
    events: Events,
    folder: PathBuf,
    service: SocketAddr,
    server: Server,
}

/// It ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }
}

impl Stage {
    async fn set(port: u16, arguments: &[&str]) -> Self {
        let [a, b] = (std::process::id() as u16).to_be_bytes();
        let service = SocketAddr::from(([127, a, b, 78], port));
        let folder = std::env::temp_dir().join(format!("homing-mv-{}-{port}", std::process::id()));
        let socket = AppListener::bind(&folder.join("app.sock"), "apps").expect("bind");
        let limits = Limits {
            register_within: LONG,
            export_within: LONG,
            read_within: LONG,
            ..Limits::default()
        };
        let known = Service::new(service.ip().into(), Port::new(service.port()), TCP);
        let (apps, mut events) = Apps::new([known], limits);
        tokio::spawn(serve(socket, apps.clone(), std::future::pending()));
        let server = Command::new(env!("CARGO_BIN_EXE_homing-movable"))
            .arg("--agent")
            .arg(folder.join("app.sock"))
            .args(["--listen", &service.to_string()])
            .args(arguments)
            .spawn()
            .expect("homing-movable runs");
        let event = tokio::time::timeout(LONG, events.recv()).await;
        let event = event.expect("in vain: an event").expect("the agent runs");
        assert!(matches!(event, Event::Registered { .. }), "{event:?}");
        Self {
            apps,
            events,
            folder,
            service,
            server: Server(server),
        }
    }

    fn clients(&self, work: Vec<Work>) -> Clients {
        let options = Options {
            work,
            targets: vec![self.service],
            seed: 9,
            deadline: LONG,
        };
        let clients = Clients::start_in(None, options).expect("started");
        clients.wait_open(LONG).expect("open");
        clients
    }

    /// Has each connection that is open exported and resumed; says how many were.
    async fn stop_and_go(&self, clients: &Clients, number: &mut u64) -> usize {
        let mut done = 0;
        for seen in clients.seen() {
            let Some((client, service)) = seen.ends else {
                continue;
            };
            *number += 1;
            let tuple = Tuple::between(client, service, TCP);
            match self.apps.export(*number, tuple).await {
                Ok(exported) => {
                    let state = Some(exported.state);
                    self.apps.resume(*number, state).expect("pending");
                    done += 1;
                }
                // One that comes after another has just ended.
                Err(Failure::Refused { .. }) => {}
                Err(failure) => panic!("{client}: {failure:?}"),
            }
        }
        done
    }

    async fn end(mut self) {
        drop(self.server);
        let gone = tokio::time::timeout(LONG, self.events.recv()).await;
        assert!(matches!(gone, Ok(Some(Event::Gone { .. }))), "{gone:?}");
        fs::remove_dir_all(&self.folder).expect("removed");
    }
}

/// Some of every kind.
fn every_kind() -> Vec<Work> {
    let every = Duration::from_millis(3);
    let kinds = [
        Work::Bulk {
            up: 2_000_000,
            down: 3_000_000,
        },
        Work::Bulk {
            up: 20_000,
            down: 30_000,
        },
        Work::Echo { every, len: 32 },
        Work::Lines { every },
        Work::CloseWait {
            len: 200_000,
            rate: 400_000,
        },
        Work::FinWait {
            len: 5_000,
            up: 100_000,
        },
    ];
    kinds.repeat(3)
}

fn unbroken(report: &Report) {
    assert_eq!((report.broken, report.not_opened), (0, 0), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_stopped_anywhere_go_on_without_a_wrong_byte() {
    let stage = Stage::set(7800, &["--blob-bytes", "5000"]).await;
    let clients = stage.clients(every_kind());
    let mut number = 0;
    let mut exported = 0;
    for _ in 0..20 {
        exported += stage.stop_and_go(&clients, &mut number).await;
    }
    assert!(exported > 200, "{exported} exports");
    let total = clients.total();
    assert_eq!(clients.wait_rounds(2, LONG).expect("rounds"), total);
    let report = clients.finish().expect("finished");
    unbroken(&report);
    assert!(report.bytes_up > 100_000 && report.bytes_down > 100_000);
    stage.end().await;
}

/// What checks everything must be able to see that something is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_a_byte_off_breaks_its_connection() {
    let stage = Stage::set(7801, &["--spoil"]).await;
    let clients = stage.clients(every_kind());
    stage.stop_and_go(&clients, &mut 0).await;
    clients.wait_rounds(3, LONG).expect("rounds");
    let report = clients.finish().expect("finished");
    // All but those that were done sending before.
    assert!(report.broken >= 12, "{report:#?}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_refused_is() {
    let stage = Stage::set(7802, &["--refuse", "export"]).await;
    let every = Duration::from_millis(3);
    let clients = stage.clients(vec![Work::Lines { every }]);
    assert_eq!(stage.stop_and_go(&clients, &mut 0).await, 0);
    clients.wait_rounds(2, LONG).expect("rounds");
    unbroken(&clients.finish().expect("finished"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_gets_what_it_asks_for() {
    let stage = Stage::set(7803, &[]).await;
    let base = format!("http://{}", stage.service);
    let wanted = |seed, len| {
        let mut bytes = vec![0; len];
        homing_tests::random::stream(seed, 0, &mut bytes);
        bytes
    };
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail"])
        .arg(format!("{base}/100000?seed=5&rate=2000000"))
        .arg(format!("{base}/3"))
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == [wanted(5, 100_000), wanted(0, 3)].concat());
    stage.end().await;
}

#[test]
fn a_host_of_a_lab_loses_its_power_and_comes_back() {
    let mut lab = Lab::builder()
        .name(&unique("power"))
        .hosts(3)
        .racks(2)
        .up()
        .expect("up");
    let mut servers = lab
        .start_movables(&ServerOptions::default())
        .expect("servers");
    let clients = |lab: &Lab, count| {
        let options = Options {
            work: [Work::Bulk {
                up: 4_000,
                down: 4_000,
            }]
            .repeat(count),
            targets: lab.plan().service(PORT).to_vec(),
            seed: 9,
            deadline: LONG,
        };
        let clients = Clients::start(lab, Node::Client(1), options).expect("started");
        clients.wait_open(LONG).expect("open");
        clients
    };
    lab.set_ecmp(&[1, 3]).expect("ECMP");
    let before = NetCounts::of(&lab, Node::Client(1)).expect("counts");
    let held = clients(&lab, 20);
    lab.wait_settled(20, LONG).expect("settled");

    lab.set_ecmp(&[3, 1]).expect("ECMP");
    lab.cut_power(2).expect("no power");
    assert_eq!(lab.running(), [1, 3]);
    servers.remove(1);
    let alive = node::processes(&lab.plan().name, Node::Host(2)).expect("its cgroup");
    assert_eq!(alive.len(), 1, "more than its keeper: {alive:?}");
    let bare = lab.exec(Node::Host(2), "ss", &["-Htua"]).expect("ss");
    assert_eq!(bare.trim(), "");

    lab.power_on(2).expect("power");
    let server = lab
        .start_movable(2, &ServerOptions::default())
        .expect("a server");
    server.wait_registered(1, LONG).expect("registered");
    lab.set_ecmp(&[2]).expect("ECMP");
    assert_eq!(held.wait_rounds(2, LONG).expect("rounds"), 20);
    let more = clients(&lab, 10);
    lab.wait_settled(30, LONG).expect("settled");
    let status = lab.homing_json(2, &["status"]).expect("status");
    assert_eq!(status["sessions"]["count"], 10);
    unbroken(&held.finish().expect("finished"));
    unbroken(&more.finish().expect("finished"));
    let counts = NetCounts::of(&lab, Node::Client(1))
        .expect("counts")
        .since(before);
    assert_eq!(counts.resets_seen(), 0, "{counts:?}");
    drop((servers, server));
    lab.down().expect("down");
}
