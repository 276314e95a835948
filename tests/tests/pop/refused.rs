//! A client that has gone: its kernel says so of every datagram that still comes, at
//! the service's address, and ECMP brings that to any host. Only the owner's socket
//! can act on it.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use homing_tests::lab::{Lab, Node, node, plan::UDP_PORT, unique, wait_until};

use super::common::{PATIENCE, wait_synced};

/// The host that owns both flows.
const OWNER: u16 = 2;
/// The host that the client's errors come to.
const TOLD: u16 = 1;
/// How long the owner hears nothing where nobody brings it there.
const SILENT: Duration = Duration::from_secs(2);
/// Datagrams and answers before the client goes, so that the flow is told of.
const ROUNDS: usize = 4;

fn bound(lab: &Lab, machine: Node, address: SocketAddr) -> UdpSocket {
    let socket = node::in_namespace(&lab.namespace(machine), || Ok(UdpSocket::bind(address)?));
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A flow of the owner with some exchanges: its server's socket, connected to the
/// client, and the client's.
fn flow(lab: &Lab, service: SocketAddr) -> (UdpSocket, UdpSocket) {
    let server = bound(lab, Node::Host(OWNER), service);
    let (v4, v6) = lab.plan().client_addresses(1);
    let own: SocketAddr = match service {
        SocketAddr::V4(_) => (v4, 0).into(),
        SocketAddr::V6(_) => (v6, 0).into(),
    };
    let client = bound(lab, Node::Client(1), own);
    client.connect(service).unwrap();
    server.connect(client.local_addr().unwrap()).unwrap();
    for _ in 0..ROUNDS {
        exchange(&client, &server).unwrap();
    }
    (server, client)
}

fn exchange(client: &UdpSocket, server: &UdpSocket) -> io::Result<()> {
    client.send(b"question")?;
    received(server)?;
    server.send(b"answer")?;
    received(client).map(drop)
}

/// What the client's kernel said of a datagram is what the owner's socket tells of.
fn refused(server: &UdpSocket, patience: Duration) -> bool {
    server.set_read_timeout(Some(patience)).unwrap();
    match received(server) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?}"),
    }
}

/// Receives; a wait with a limit is over, too, when a signal comes.
fn received(server: &UdpSocket) -> io::Result<usize> {
    loop {
        match server.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// "Unreachable" that a host's own kernel has been told, by family.
fn told(lab: &Lab, host: u16) -> [u64; 2] {
    let args = ["-saz", "IcmpInDestUnreachs", "Icmp6InDestUnreachs"];
    let text = lab.exec(Node::Host(host), "nstat", &args).unwrap();
    ["IcmpInDestUnreachs", "Icmp6InDestUnreachs"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let count = line.and_then(|line| line.split_ascii_whitespace().next());
        count.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    })
}

fn up(name: &str, homing: bool) -> Lab {
    let lab = Lab::builder().name(&unique(name)).hosts(3).racks(2);
    let lab = if homing { lab } else { lab.no_homing() };
    let mut lab = lab.up().unwrap();
    lab.set_ecmp(&[OWNER]).unwrap();
    wait_synced(&lab);
    lab
}

/// The clients go, and their servers send on. Returns the servers' sockets.
fn go(lab: &mut Lab, flows: [(UdpSocket, UdpSocket); 2]) -> [UdpSocket; 2] {
    lab.set_ecmp(&[TOLD]).unwrap();
    flows.map(|(server, client)| {
        // No socket takes the service's datagrams any more. To close it is not enough:
        // a child that some other test forks meanwhile may hold it open.
        client.connect(client.local_addr().unwrap()).unwrap();
        server.send(b"anybody?").unwrap();
        server
    })
}

#[test]
fn what_a_client_that_has_gone_says_reaches_the_owner() {
    let mut lab = up("refused", true);
    let flows = lab.plan().service(UDP_PORT).map(|s| flow(&lab, s));
    lab.wait_settled(2, PATIENCE).unwrap();
    let before = told(&lab, TOLD);
    for server in go(&mut lab, flows) {
        let name = server.local_addr().unwrap();
        assert!(refused(&server, PATIENCE), "{name} heard nothing");
    }
    assert_eq!(told(&lab, TOLD), before);
    assert_eq!(lab.outcomes(&["stripped_icmp"]).unwrap(), 2);
    lab.down().unwrap();
}

/// The same without Homing: the server goes on sending to nobody.
#[test]
fn without_homing_what_a_client_that_has_gone_says_is_lost() {
    let mut lab = up("refplain", false);
    let flows = lab.plan().service(UDP_PORT).map(|s| flow(&lab, s));
    let before = told(&lab, TOLD);
    let servers = go(&mut lab, flows);
    let arrived = wait_until(PATIENCE, || {
        Ok(told(&lab, TOLD) == before.map(|count| count + 1))
    });
    assert!(arrived.unwrap(), "{:?}, {before:?}", told(&lab, TOLD));
    for server in servers {
        assert!(!refused(&server, SILENT), "{:?}", server.local_addr());
    }
    lab.down().unwrap();
}
