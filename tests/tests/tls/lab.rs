//! The same in a lab: two hosts with their agents, and `homing move`.

use std::{
    io::Read as _,
    net::SocketAddr,
    process::{Child, Command},
    time::Duration,
};

use homing_tests::{
    lab::{Lab, Node, plan::SERVICE_PORTS, unique, wait_until},
    movable::NetCounts,
};

use super::{
    downloads::expected,
    pop::{NAME, write_certificates},
    program::Program,
};

const CLIENT: Node = Node::Client(1);
/// The port of HTTPS.
const PORT: u16 = SERVICE_PORTS[1];
/// Longer than it takes, on whatever machine.
const LONG: Duration = Duration::from_secs(60);

struct Hosts {
    lab: Lab,
    _servers: Vec<Program>,
}

impl Hosts {
    fn new(name: &str) -> Self {
        let lab = Lab::builder().name(&unique(name)).hosts(2).racks(1).up();
        let lab = lab.expect("a lab");
        write_certificates(lab.folder());
        let file = |name| lab.folder().join(name);
        let servers = [1, 2].map(|host| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_homing-tls"));
            command
                .arg(lab.sockets(host).apps)
                .args([service(&lab).to_string(), format!("h{host}")])
                .args(["server.pem", "server.key", "authority.pem"].map(file));
            Program::start(&mut command, |command| {
                lab.spawn(Node::Host(host), command).expect("it runs")
            })
        });
        for host in [1, 2] {
            let registered = wait_until(LONG, || {
                let apps = lab.homing_json(host, &["apps"])?;
                let apps = apps["apps"].as_array().cloned().unwrap_or_default();
                Ok(apps.iter().any(|app| app["ready"] == true))
            });
            assert!(registered.expect("asked"), "h{host}: not registered");
        }
        Self {
            lab,
            _servers: servers.into(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.lab.folder().join(name).display().to_string()
    }

    fn spawn(&self, command: &mut Command) -> Child {
        self.lab.spawn(CLIENT, command).expect("it runs")
    }

    /// A client's address, with this port.
    fn client(&self, port: u16) -> SocketAddr {
        (self.lab.plan().client_addresses(1).0, port).into()
    }

    /// Moves a client's connection from the host that it is on to the other, and says to which.
    fn move_on(&self, client: SocketAddr, from: u16) -> u16 {
        let to = 3 - from;
        let [client, service] = [client, service(&self.lab)].map(|end| end.to_string());
        let arguments = ["move", &client, &service, &to.to_string()];
        let moved = self.lab.exec(Node::Host(from), "homing", &arguments);
        moved.expect("it moves");
        to
    }

    fn resets(&self) -> u64 {
        NetCounts::of(&self.lab, CLIENT).expect("counts").resets
    }
}

fn service(lab: &Lab) -> SocketAddr {
    lab.plan().service(PORT)[0]
}

/// Asks who is there: the host, and what else is said of the connection.
fn who(client: &mut Program, asked: usize) -> (u16, String) {
    client.types("GET /who HTTP/1.1\r\n\r\n");
    client.prints("\"cipher\":", asked);
    let printed = client.printed();
    let from = printed.rfind("{\"id\":\"").expect("an answer");
    let answer = &printed[from..];
    let answer = &answer[..=answer.find('}').expect("a whole one")];
    let part = |name: &str| {
        let (_, after) = answer.split_once(name).expect("named");
        after.split([',', '}']).next().expect("one").to_owned()
    };
    let host = part("\"host\":\"h").trim_end_matches('"').parse();
    let rest = [
        "\"id\":",
        "\"server_name\":",
        "\"alpn\":",
        "\"client\":",
        "\"cipher\":",
    ];
    (host.expect("a number"), rest.map(part).concat())
}

#[test]
fn homing_moves_tls_sessions_and_keys_change_before_and_after() {
    let hosts = Hosts::new("tls");
    // They stay until all is seen.
    let mut clients = Vec::new();
    for (port, version) in [(40_012, "-tls1_2"), (40_013, "-tls1_3")] {
        let from = hosts.client(port);
        let files = ["authority.pem", "client.pem", "client.key"].map(|file| hosts.file(file));
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", &service(&hosts.lab).to_string()])
            .args(["-bind", &from.to_string(), "-servername", NAME])
            .args(["-alpn", "http/1.1", "-verify_return_error", "-msg", version])
            .args(["-CAfile", &files[0], "-cert", &files[1], "-key", &files[2]]);
        let mut client = Program::start(&mut command, |command| hosts.spawn(command));
        let (mut host, facts) = who(&mut client, 1);
        for moves in 1..=4 {
            if version == "-tls1_3" {
                client.types("K\n");
                let update = "TLS 1.3, Handshake [length 0005], KeyUpdate";
                client.prints(&format!(">>> {update}"), moves);
                client.prints(&format!("<<< {update}"), moves - 1);
            }
            host = hosts.move_on(from, host);
            assert_eq!(who(&mut client, 1 + moves), (host, facts.clone()));
        }
        assert_eq!(client.printed().matches(", ClientHello").count(), 1);
        clients.push(client);
    }
    assert_eq!(hosts.resets(), 0);
}

#[test]
fn homing_moves_downloads_over_tls() {
    const PARTS: usize = 7;
    const LEN: usize = 21_000_000;
    let hosts = Hosts::new("tlsget");
    for (port, version) in [(40_012, "1.2"), (40_013, "1.3")] {
        let resolve = format!("{NAME}:{PORT}:{}", service(&hosts.lab).ip());
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--fail", "--http1.1"])
            .args(["--cacert", &hosts.file("authority.pem"), "--no-buffer"])
            .args(["--resolve", &resolve, "--tlsv1.2", "--tls-max", version])
            .args(["--local-port", &port.to_string()])
            .arg(format!("https://{NAME}/bytes/{LEN}"));
        let (client, mut output) =
            Program::start_unread(&mut command, |command| hosts.spawn(command));
        let mut part = vec![0; LEN / PARTS];
        output.read_exact(&mut part).expect("it begins");
        let mut got = part.clone();
        let ends = [hosts.client(port), service(&hosts.lab)].map(|end| end.to_string());
        let owner = ["owner", &ends[0], &ends[1]];
        let owner = hosts.lab.homing_json(1, &owner).expect("an owner");
        let mut host = owner["owner"].as_u64().expect("a number") as u16;
        for _ in 2..PARTS {
            host = hosts.move_on(hosts.client(port), host);
            output.read_exact(&mut part).expect("it goes on");
            got.extend(&part);
        }
        output.read_to_end(&mut got).expect("it goes on");
        client.ends_well();
        assert!(got == expected(LEN as u64), "other bytes");
    }
}
