//! Ask before reset, with real kernels: sessions that no table knows are found, and
//! those that nobody has are reset, but not by the first packet.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use homing_tests::{
    lab::{Lab, Node, node::open_namespace, unique, wait_until},
    packet::{Tcp, flags},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::common::{FORGOTTEN, PATIENCE, Pop, exchange, exchange_more, inject, netstat};

/// A thread in a machine's network namespace, for the sockets made in it.
fn at<T: Send>(lab: &Lab, machine: Node, work: impl FnOnce() -> T + Send) -> T {
    let namespace: File = open_namespace(&lab.namespace(machine)).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What a host's agent has counted, by name.
fn counted(lab: &Lab, host: u16, name: &str) -> u64 {
    let stats = lab.homing_json(host, &["stats"]).unwrap();
    let all = stats["gossip"].as_array().unwrap();
    let found = all.iter().find(|counter| counter["name"] == name);
    found.unwrap_or_else(|| panic!("no counter {name}: {all:?}"))["count"]
        .as_u64()
        .unwrap()
}

/// A connection whose client has not acknowledged the handshake yet: it does so
/// with its first data, or 200 ms later.
fn half_open(lab: &Lab, service: SocketAddr) -> Socket {
    at(lab, Node::Client(1), || {
        let domain = Domain::for_address(service);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let off: libc::c_int = 0;
        // SAFETY: the option takes an int, whose size is told.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_QUICKACK,
                (&raw const off).cast(),
                size_of_val(&off) as u32,
            )
        };
        assert_eq!(set, 0);
        socket.set_tcp_nodelay(true).unwrap();
        socket.connect(&service.into()).unwrap();
        socket
    })
}

/// Handshakes that a listener of [`narrow`] holds at once.
const BACKLOG: u16 = 8;
/// Where those come from that never complete one.
const SILENT: [&str; 2] = ["198.18.0.0/16", "2001:db8:dead::/48"];

/// A POP whose listeners have room for few handshakes at once.
fn narrow(name: &str) -> Pop {
    let builder = Lab::builder().name(&unique(name)).hosts(3).racks(2);
    let lab = builder.up().unwrap();
    let set = format!("echo {BACKLOG} >/proc/sys/net/core/somaxconn");
    for host in 1..=3 {
        lab.exec(Node::Host(host), "sh", &["-c", &set]).unwrap();
    }
    // Whom an error or a reset answers does not keep its place.
    for network in SILENT {
        let words = ["route", "add", "blackhole", network];
        lab.exec(Node::Router, "ip", &words).unwrap();
    }
    Pop::from(lab)
}

/// Begins more handshakes on a host than a listener of [`narrow`] holds, and completes
/// none of them.
fn fill_backlog(lab: &Lab, host: u16, service: SocketAddr) {
    let syns = (1..=4 * BACKLOG).map(|number| {
        let client = match service {
            SocketAddr::V4(_) => format!("198.18.7.{number}:4000"),
            SocketAddr::V6(_) => format!("[2001:db8:dead::{number:x}]:4000"),
        };
        Tcp::new(&client, &service.to_string(), flags::SYN).ip()
    });
    let before = cookies_sent(lab, host);
    inject(lab, host, syns);
    let full = wait_until(PATIENCE, || Ok(cookies_sent(lab, host) > before));
    assert!(full.unwrap(), "h{host} has room for all handshakes");
}

/// SYN|ACKs with cookies that a host has sent.
fn cookies_sent(lab: &Lab, host: u16) -> u64 {
    netstat(lab, host, "netstat", "TcpExt", "SyncookiesSent")
}

#[test]
fn the_third_ack_of_a_handshake_finds_its_host_whatever_syn_cookies_are() {
    let mut pop = narrow("ack");
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    let services = pop.lab.plan().service(443);
    for (cookies, overflow) in [(0, false), (1, false), (1, true), (2, false)] {
        for host in 1..=3 {
            let set = format!("echo {cookies} >/proc/sys/net/ipv4/tcp_syncookies");
            pop.lab.exec(Node::Host(host), "sh", &["-c", &set]).unwrap();
        }
        // All hosts of a lab share one kernel and so its cookies' secret: a listener
        // that has sent some would take those of another. So no host is both.
        for (service, from, to) in [(services[0], 1, 2), (services[1], 2, 3)] {
            let what =
                format!("{service}, SYN cookies {cookies}, overflow: {overflow}, h{from} to h{to}");
            let found = |pop: &Pop| {
                let names = ["ask_answered", "ask_late"];
                names
                    .map(|name| counted(&pop.lab, to, name))
                    .iter()
                    .sum::<u64>()
            };
            let before = found(&pop);
            // The client's acknowledgement may go out before ECMP has changed.
            println!("{what}");
            let mut tries = 0;
            while found(&pop) == before {
                assert!(tries < 10, "{what}: never asked about");
                tries += 1;
                pop.lab.set_ecmp(&[from]).unwrap();
                if overflow {
                    fill_backlog(&pop.lab, from, service);
                }
                let sent = cookies_sent(&pop.lab, from);
                let socket = half_open(&pop.lab, service);
                let sent = cookies_sent(&pop.lab, from) - sent;
                assert_eq!(sent > 0, overflow || cookies == 2, "{what}: {sent} sent");
                pop.lab.set_ecmp(&[to]).unwrap();
                let mut stream = TcpStream::from(socket);
                exchange(&mut stream);
                let client = stream.local_addr().unwrap();
                let ends = [client.to_string(), service.to_string()];
                let owned = wait_until(PATIENCE, || {
                    let owner = pop.lab.homing_json(to, &["owner", &ends[0], &ends[1]])?;
                    Ok(owner["owner"] == from)
                });
                assert!(owned.unwrap(), "{what}: h{to} does not know the owner");
                exchange_more(&mut stream);
            }
        }
    }
    pop.down();
}

/// Sends packets that no socket of the client's made, and hears what comes back.
struct Raw {
    send: Socket,
    hear: Socket,
    client: SocketAddr,
    service: SocketAddr,
}

impl Raw {
    fn new(lab: &Lab, client_port: u16) -> Self {
        let service = lab.plan().service(443)[0];
        let client = lab.plan().client_addresses(1).0;
        let raw = |protocol: i32| {
            let protocol = Some(Protocol::from(protocol));
            let socket = Socket::new(Domain::IPV4, Type::RAW, protocol).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            socket
        };
        let (send, hear) = at(lab, Node::Client(1), || {
            (raw(libc::IPPROTO_RAW), raw(libc::IPPROTO_TCP))
        });
        Self {
            send,
            hear,
            client: SocketAddr::new(IpAddr::V4(client), client_port),
            service,
        }
    }

    fn send(&self, seq: u32) {
        let mut segment = Tcp::new(
            &self.client.to_string(),
            &self.service.to_string(),
            flags::ACK,
        )
        .payload("hello");
        segment.seq = seq;
        segment.ack = 77;
        let bytes = segment.ip().bytes();
        self.send.send_to(&bytes, &self.service.into()).unwrap();
    }

    /// Whether a reset comes within so long.
    fn reset_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut buffer = [0; 2048];
        while Instant::now() < until {
            let len = match self.hear.read(&mut buffer) {
                Ok(len) => len,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let tcp = &buffer[20..len];
            let to_us = tcp[2..4] == self.client.port().to_be_bytes();
            if to_us && tcp[13] & flags::RST != 0 {
                return true;
            }
        }
        false
    }
}

#[test]
fn a_session_that_nobody_has_is_reset_but_not_by_its_first_packet() {
    let mut pop = Pop::up("nobody");
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    pop.lab.set_ecmp(&[1]).unwrap();
    for port in 40_001..=40_005 {
        let mut raw = Raw::new(&pop.lab, port);
        raw.send(1);
        assert!(!raw.reset_within(Duration::from_millis(250)), "port {port}");
        // As a client's kernel would send again. On a busy machine an ask may end
        // before everyone was heard.
        let sent = (1..=6).find(|_| {
            raw.send(1);
            raw.reset_within(Duration::from_millis(300))
        });
        println!("port {port}: reset by retransmission {sent:?}");
        assert!(sent.is_some(), "port {port}: never reset");
    }
    let nobody = counted(&pop.lab, 1, "ask_nobody");
    assert_eq!(nobody, 5);
    pop.down();
}

#[test]
fn what_this_host_closed_a_moment_ago_is_not_asked_about() {
    let mut pop = Pop::up("lately");
    pop.lab.set_ecmp(&[1]).unwrap();
    let clients = pop.load(6);
    let sessions = pop.lab.homing_json(1, &["sessions"]).unwrap();
    let ports: Vec<u16> = sessions["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|session| session["client"].as_str()?.parse::<SocketAddr>().ok())
        .filter(SocketAddr::is_ipv4)
        .map(|client| client.port())
        .collect();
    assert!(!ports.is_empty());
    pop.unbroken(clients);
    let asked = counted(&pop.lab, 1, "ask_parked");
    for port in ports {
        let mut raw = Raw::new(&pop.lab, port);
        raw.send(1);
        assert!(raw.reset_within(PATIENCE), "port {port}");
    }
    assert_eq!(counted(&pop.lab, 1, "ask_parked"), asked);
    pop.down();
}
