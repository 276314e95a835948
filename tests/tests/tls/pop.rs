//! Two hosts with a server each, a client's machine, and moves between them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, id},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use etherparse::{SlicedPacket, TransportSlice};
use homing_agent::{
    datapath::repair::{Frozen, Snapshot, restore},
    migration::app::{AppListener, Apps, Blob, Event, Events, Family, Limits, server::serve},
};
use homing_common::{
    net::{Port, Service, TCP},
    session::Tuple,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::program::Program;
use crate::{
    machine::Machine,
    switch::{A, Switch},
};

/// Longer than anything takes, on whatever machine.
pub const LONG: Duration = Duration::from_secs(60);
pub const NAME: &str = "movable.example";
const SERVICE: &str = "203.0.113.10:443";
const CLIENT: &str = "198.51.100.7";

/// What hosts call themselves.
pub const HOSTS: [&str; 2] = ["a", "b"];

pub struct Pop {
    pub switch: Switch,
    pub servers: [Program; 2],
    /// Where keys and certificates are, and whatever a test puts there.
    pub files: PathBuf,
    agents: [Agent; 2],
    /// The host that has the connection.
    host: usize,
    moves: u64,
}

/// An agent's end.
struct Agent {
    apps: Apps,
    task: JoinHandle<()>,
}

impl Pop {
    pub async fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let files = std::env::temp_dir().join(format!("homing-tls-{}-{number}", id()));
        fs::create_dir_all(&files).expect("a folder");
        write_certificates(&files);
        let service = service();
        let address = service.ip().to_string();
        let hosts = [0, 1].map(|_| Machine::new(&[&address], &[]));
        let switch = Switch::new(Machine::new(&[CLIENT], &[]), hosts);
        let mut agents = Vec::new();
        let mut servers = Vec::new();
        for (host, name) in HOSTS.into_iter().enumerate() {
            let socket = files.join(name).join("app.sock");
            let (agent, mut events) = Agent::start(&socket);
            let server = Program::start(
                Command::new(env!("CARGO_BIN_EXE_homing-tls"))
                    .arg(&socket)
                    .args([SERVICE, name])
                    .args(
                        ["server.pem", "server.key", "authority.pem"].map(|file| files.join(file)),
                    ),
                |command| {
                    let machine = switch.host(host);
                    machine.on(|| command.spawn()).expect("it runs")
                },
            );
            let event = tokio::time::timeout(LONG, events.recv()).await;
            match event.expect("in vain: the server registers") {
                Some(Event::Registered { protocol, .. }) => {
                    assert_eq!(protocol.name, "https-bytes");
                }
                event => panic!("not registered: {event:?}: {}", server.printed()),
            }
            agents.push(agent);
            servers.push(server);
        }
        Self {
            switch,
            servers: servers.try_into().ok().expect("two"),
            files,
            agents: agents.try_into().ok().expect("two"),
            host: A,
            moves: 0,
        }
    }

    pub fn host(&self) -> usize {
        self.host
    }

    pub fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    /// Runs a program on the client's machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Program {
        let mut command = Command::new(program);
        Program::start(command.args(arguments), |command| self.spawn(command))
    }

    /// Starts a program there.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let client = self.switch.client();
        client.on(|| command.spawn()).expect("it runs")
    }

    /// Moves the latest connection to the other host: its state, as it travelled.
    pub async fn move_on(&mut self) -> Blob {
        self.moves += 1;
        let number = self.moves;
        let (from, to) = (self.host, 1 - self.host);
        let [source, target] = [from, to].map(|host| self.agents[host].apps.clone());
        let session = self.session();
        let socket = target.import(number, session, Family::V4).await;
        let socket = socket.expect("a socket");
        let exported = source.export(number, session).await.expect("exported");
        let state = exported.state.clone();
        self.switch.freeze();
        let snapshot = self.switch.host(from).on(|| {
            let frozen = Frozen::enter(exported.descriptor).expect("frozen");
            let bytes = frozen.snapshot().expect("a snapshot").encode();
            frozen.destroy().expect("destroyed");
            bytes
        });
        target.give(number, state.clone()).await.expect("kept");
        let up = |packet: &[u8]| {
            self.switch.host(to).receive(packet);
            Ok(())
        };
        let machine = self.switch.host(to);
        let restored = machine.on(|| {
            let snapshot = Snapshot::decode(&snapshot).expect("a snapshot");
            restore(socket, snapshot, &up).expect("restored")
        });
        self.switch.release(to);
        machine.on(|| {
            let active = restored.activate(&up).expect("active");
            assert!(active.flaw.is_none(), "{:?}", active.flaw);
        });
        target.adopt(number).await.expect("adopted");
        self.switch.feed();
        source.committed(number).expect("pending");
        self.host = to;
        state
    }

    /// One that is asked for and called off again.
    pub async fn export_and_resume(&mut self) {
        self.moves += 1;
        let source = &self.agents[self.host].apps;
        let exported = source.export(self.moves, self.session()).await;
        let exported = exported.expect("exported");
        source
            .resume(self.moves, Some(exported.state))
            .expect("pending");
    }

    /// The latest connection.
    fn session(&self) -> Tuple {
        let port = *self.wire().ports.last().expect("a connection");
        let client = SocketAddr::new(CLIENT.parse().expect("an address"), port);
        Tuple::between(client, service(), TCP)
    }

    /// What the client's wire has carried.
    pub fn wire(&self) -> Wire {
        let mut wire = Wire::default();
        for seen in self.switch.seen() {
            let sliced = SlicedPacket::from_ip(&seen.packet).expect("an IP packet");
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                continue;
            };
            // (A client that has closed resets what still comes.)
            wire.resets += usize::from(tcp.rst() && !seen.from_client);
            if seen.from_client && tcp.syn() && !wire.ports.contains(&tcp.source_port()) {
                wire.ports.push(tcp.source_port());
            }
            // A handshake's record with a ClientHello (RFC 8446, 5.1 and 4).
            if let [22, 3, _, _, _, 1, ..] = tcp.payload()
                && seen.from_client
            {
                wire.hellos += 1;
            }
        }
        wire
    }
}

impl Drop for Pop {
    fn drop(&mut self) {
        for agent in &self.agents {
            agent.task.abort();
        }
        let _ = fs::remove_dir_all(&self.files);
    }
}

/// What a client's wire has carried.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Wire {
    /// The client's ports: one for each connection.
    pub ports: Vec<u16>,
    /// By hosts.
    pub resets: usize,
    pub hellos: usize,
}

impl Agent {
    fn start(socket: &Path) -> (Self, Events) {
        let socket = AppListener::bind(socket, "apps").expect("bind");
        // A machine that is busy with other tests takes its time.
        let limits = Limits {
            register_within: LONG,
            export_within: LONG,
            import_within: LONG,
            read_within: LONG,
            ..Limits::default()
        };
        let endpoint = service();
        let service = Service::new(endpoint.ip().into(), Port::new(endpoint.port()), TCP);
        let (apps, events) = Apps::new([service], limits);
        let task = tokio::spawn(serve(socket, apps.clone(), std::future::pending()));
        (Self { apps, task }, events)
    }
}

pub fn service() -> SocketAddr {
    SERVICE.parse().expect("an address")
}

/// An authority, and what it has signed for the servers and for a client.
pub fn write_certificates(files: &Path) {
    let write = |name: &str, text: String| fs::write(files.join(name), text).expect("written");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
    write("authority.pem", authority.pem());
    for (file, name) in [("server", NAME), ("client", "client.example")] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &authority).expect("signed");
        write(&format!("{file}.pem"), certificate.pem());
        let digest = Sha256::digest(certificate.der());
        write(&format!("{file}.sha256"), hex(&digest));
        write(&format!("{file}.key"), key.serialize_pem());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
