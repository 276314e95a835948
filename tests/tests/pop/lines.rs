//! Sessions that can move, in the lab: an application that answers each line with its
//! number, and clients that count along.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use homing_tests::lab::{Lab, Node, node, wait_until};
use serde_json::Value;

use super::common::PATIENCE;

/// The port of the service that the application serves, which no other server of the
/// tests does.
pub const PORT: u16 = 8080;

/// The service over IPv4.
pub fn service(lab: &Lab) -> SocketAddr {
    let all = lab.plan().service(PORT);
    *all.iter().find(|address| address.is_ipv4()).unwrap()
}

/// The application on one host. It ends with this.
pub struct Application(Child);

impl Application {
    /// Starts it, and waits until it has registered and listens.
    pub fn start(lab: &Lab, host: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homing-echo"));
        command
            .arg(lab.sockets(host).apps)
            .arg(service(lab).to_string());
        let child = lab.spawn(Node::Host(host), &mut command).unwrap();
        let listens = wait_until(PATIENCE, || {
            let filter = format!("sport = :{PORT}");
            let all = lab.exec(Node::Host(host), "ss", &["-Hltn", &filter])?;
            Ok(!all.trim().is_empty())
        });
        assert!(listens.unwrap(), "nobody listens on h{host}");
        Self(child)
    }

    /// One on each host.
    pub fn on_all(lab: &Lab) -> Vec<Self> {
        let hosts = 1..=lab.plan().hosts;
        hosts.map(|host| Self::start(lab, host)).collect()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients, each of which sends a line, reads its number, and does so again.
pub struct Lines {
    stop: Arc<AtomicBool>,
    clients: Vec<One>,
}

struct One {
    address: SocketAddr,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Lines {
    /// Connects so many.
    pub fn start(lab: &Lab, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (service, namespace) = (service(lab), lab.namespace(Node::Client(1)));
        let clients = (0..clients).map(|_| {
            let connect = || Ok(TcpStream::connect_timeout(&service, PATIENCE)?);
            let stream = node::in_namespace(&namespace, connect).unwrap();
            let address = stream.local_addr().unwrap();
            let answered = Arc::new(AtomicU64::new(0));
            let (stop, count) = (stop.clone(), answered.clone());
            let thread = std::thread::spawn(move || converse(&stream, &stop, &count));
            One {
                address,
                answered,
                thread,
            }
        });
        let lines = Self {
            clients: clients.collect(),
            stop,
        };
        lines.wait_more();
        lines
    }

    /// The clients' addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.clients.iter().map(|one| one.address)
    }

    /// Waits until each has had five more answers. None may have failed.
    pub fn wait_more(&self) {
        let counts = || self.clients.iter().map(|one| one.answered.load(Relaxed));
        let before: Vec<_> = counts().collect();
        let went_on = wait_until(PATIENCE, || {
            let failed = self.clients.iter().any(|one| one.thread.is_finished());
            Ok(failed || counts().zip(&before).all(|(now, before)| now >= before + 5))
        });
        let failed = self.clients.iter().filter(|one| one.thread.is_finished());
        assert_eq!(failed.count(), 0, "clients have failed");
        assert!(
            went_on.unwrap(),
            "clients do not go on: {before:?}, {:?}",
            counts().collect::<Vec<_>>()
        );
    }

    /// Ends them. None may have missed a line, or had one twice.
    pub fn finish(self) {
        self.stop.store(true, Relaxed);
        for one in self.clients {
            let done = one.thread.join().unwrap();
            assert_eq!(done, Ok(()), "{}", one.address);
        }
    }
}

fn converse(stream: &TcpStream, stop: &AtomicBool, answered: &AtomicU64) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut number = 0;
    while !stop.load(Relaxed) {
        number += 1;
        let line = format!(
            "line {number} of {:?}\n",
            stream.local_addr().map_err(text)?
        );
        writer.write_all(line.as_bytes()).map_err(text)?;
        let mut answer = String::new();
        reader.read_line(&mut answer).map_err(text)?;
        if answer != format!("{number}: {line}") {
            return Err(format!("after line {number} came {answer:?}"));
        }
        answered.store(number, Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A command's exit code, what it printed, and what went wrong.
pub fn homing(lab: &Lab, host: u16, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("homing");
    command.args(args);
    lab.place(Node::Host(host), &mut command).unwrap();
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A command's exit code, and the JSON that it printed.
pub fn homing_json(lab: &Lab, host: u16, args: &[&str]) -> (i32, Value) {
    let all: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    let (code, out, err) = homing(lab, host, &all);
    let json = serde_json::from_str(&out);
    (
        code,
        json.unwrap_or_else(|error| panic!("{args:?}: {error}: {out}{err}")),
    )
}

/// How many sessions of the application's service a host has.
pub fn sessions(lab: &Lab, host: u16) -> Vec<SocketAddr> {
    let sessions = lab.homing_json(host, &["sessions", "--all"]).unwrap();
    let all = sessions["sessions"].as_array().unwrap();
    let of_service = all.iter().filter(|session| {
        let service: SocketAddr = session["service"].as_str().unwrap().parse().unwrap();
        service.port() == PORT && session["protocol"] == "tcp"
    });
    let clients = of_service.map(|session| session["client"].as_str().unwrap().parse().unwrap());
    clients.collect()
}
