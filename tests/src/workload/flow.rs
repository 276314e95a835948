//! UDP: servers that say who they are, and clients that notice when another one
//! answers, or none.
//!
//! A client sends a number and waits for it to come back with the number of the
//! host that answered. A flow has **moved** if that host is another than before, and
//! an answer is **lost** if it does not come in time.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Node, node, wait_until};

/// How long a client waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a server waits before it looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Bytes of a client's packet: eight of them its number, two the host that answers.
pub const FLOW_LEN: usize = 64;

/// A server for each address on each host; they end when this is dropped.
pub struct FlowServers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl FlowServers {
    /// Starts them, and returns when all are bound.
    pub fn start(lab: &Lab, addresses: &[SocketAddr]) -> Result<Self> {
        let mut servers = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for host in 1..=lab.plan().hosts {
            for &address in addresses {
                let socket = within(lab, Node::Host(host), move || UdpSocket::bind(address))?
                    .with_context(|| format!("cannot bind {address} on h{host}"))?;
                socket.set_read_timeout(Some(LOOK_EVERY))?;
                let stop = servers.stop.clone();
                let thread = std::thread::spawn(move || serve(&socket, host, &stop));
                servers.threads.push(thread);
            }
        }
        Ok(servers)
    }
}

impl Drop for FlowServers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn serve(socket: &UdpSocket, host: u16, stop: &AtomicBool) {
    let mut packet = [0; FLOW_LEN];
    while !stop.load(Relaxed) {
        // A timeout, or an error that tells of a client that has gone.
        let Ok((len, client)) = socket.recv_from(&mut packet) else {
            continue;
        };
        if len == FLOW_LEN {
            packet[8..10].copy_from_slice(&host.to_be_bytes());
            socket.send_to(&packet, client).ok();
        }
    }
}

/// Clients at work, each with a flow of its own.
pub struct Flows {
    records: Vec<Arc<Record>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Record {
    answers: AtomicU64,
    lost: AtomicU64,
    moved: AtomicU64,
    host: AtomicU16,
}

/// What became of the flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowReport {
    /// Answers that came.
    pub answers: u64,
    /// Answers that did not come in time.
    pub lost: u64,
    /// Answers of another host than the one before.
    pub moved: u64,
}

impl Flows {
    /// Starts so many clients on a machine; they send to `targets` in turn, every
    /// `interval`.
    pub fn start(
        lab: &Lab,
        machine: Node,
        targets: &[SocketAddr],
        count: usize,
        interval: Duration,
    ) -> Result<Self> {
        ensure!(!targets.is_empty(), "flows need a target");
        let mut flows = Self {
            records: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for &target in targets.iter().cycle().take(count) {
            let socket = within(lab, machine, move || {
                let any = if target.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(target)?;
                Ok(socket)
            })??;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            let record = Arc::new(Record::default());
            let (theirs, stop) = (record.clone(), flows.stop.clone());
            let thread = std::thread::spawn(move || exchange(&socket, &theirs, &stop, interval));
            flows.records.push(record);
            flows.threads.push(thread);
        }
        Ok(flows)
    }

    /// Waits until each flow has been answered so many times more.
    pub fn wait_rounds(&self, rounds: u64, patience: Duration) -> Result<()> {
        let answers = |record: &Arc<Record>| record.answers.load(Relaxed);
        let wanted: Vec<_> = self.records.iter().map(|r| answers(r) + rounds).collect();
        let done = wait_until(patience, || {
            let mut pairs = self.records.iter().zip(&wanted);
            Ok(pairs.all(|(record, wanted)| answers(record) >= *wanted))
        })?;
        ensure!(done, "after {patience:?}: {:?}", self.report());
        Ok(())
    }

    /// How many flows each host has answered last.
    pub fn on_host(&self, host: u16) -> usize {
        let on = self.records.iter().filter(|r| r.host.load(Relaxed) == host);
        on.count()
    }

    /// What became of them so far.
    pub fn report(&self) -> FlowReport {
        let sum = |field: fn(&Record) -> &AtomicU64| {
            self.records.iter().map(|r| field(r).load(Relaxed)).sum()
        };
        FlowReport {
            answers: sum(|r| &r.answers),
            lost: sum(|r| &r.lost),
            moved: sum(|r| &r.moved),
        }
    }

    /// Ends them.
    pub fn finish(mut self) -> Result<FlowReport> {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic")?;
        }
        Ok(self.report())
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn exchange(
    socket: &UdpSocket,
    record: &Record,
    stop: &AtomicBool,
    interval: Duration,
) -> io::Result<()> {
    let mut number = 0u64;
    while !stop.load(Relaxed) {
        number += 1;
        let mut packet = [0; FLOW_LEN];
        packet[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&packet)?;
        match answer(socket, number) {
            Ok(host) => {
                let before = record.host.swap(host, Relaxed);
                if before != 0 && before != host {
                    record.moved.fetch_add(1, Relaxed);
                }
                record.answers.fetch_add(1, Relaxed);
            }
            Err(_) => {
                record.lost.fetch_add(1, Relaxed);
            }
        }
        std::thread::sleep(interval);
    }
    Ok(())
}

/// The host that answers the packet with this number; older answers are passed by.
fn answer(socket: &UdpSocket, number: u64) -> io::Result<u16> {
    let mut packet = [0; FLOW_LEN];
    loop {
        socket.recv(&mut packet)?;
        let (head, rest) = packet.split_at(8);
        if head == number.to_be_bytes() {
            return Ok(u16::from_be_bytes([rest[0], rest[1]]));
        }
    }
}

/// Sends one UDP packet each in the name of so many forged clients, IPv4.
pub fn forge(lab: &Lab, machine: Node, target: SocketAddr, clients: u32) -> Result<()> {
    let SocketAddr::V4(target) = target else {
        anyhow::bail!("{target} is not IPv4");
    };
    within(lab, machine, move || {
        use socket2::{Domain, Protocol, Socket, Type};
        const RAW: i32 = 255;
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
        let to = SocketAddr::from(target).into();
        for client in 0..clients {
            // 198.18.0.0/15 is for tests (RFC 2544).
            let source = std::net::Ipv4Addr::from(0xc612_0000 + client / 4);
            let port = 10_000 + (client % 4) as u16;
            let mut body = crate::packet::udp(port, target.port(), &[7; FLOW_LEN]);
            body[6..8].fill(0);
            let packet = crate::packet::Ip::new(source.into(), (*target.ip()).into(), 17, body);
            loop {
                match socket.send_to(&packet.bytes(), &to) {
                    // The queue of the interface is full.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        std::thread::yield_now();
                    }
                    sent => {
                        sent?;
                        break;
                    }
                }
            }
        }
        Ok(())
    })??;
    Ok(())
}

/// Does something in the network namespace of a machine.
fn within<T: Send + 'static>(
    lab: &Lab,
    machine: Node,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<io::Result<T>> {
    let namespace = node::open_namespace(&lab.namespace(machine))?;
    let thread = std::thread::spawn(move || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    });
    Ok(thread.join().expect("no panic"))
}
