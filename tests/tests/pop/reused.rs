//! One client's port used again, for a new connection of the very same addresses and
//! ports.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use homing_common::outcome::Outcome;
use homing_tests::{
    lab::{Lab, Node, node::in_namespace, wait_until},
    packet::{Tcp, flags},
};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::common::{FORGOTTEN, PATIENCE, Pop, count, exchange, exchange_more, inject};

/// The client's port.
const PORT: u16 = 40_100;

/// Connects from a port that is free again at once when the connection is dropped: it
/// ends with a reset, and nothing of it is left.
fn connect(lab: &Lab, client: SocketAddr, service: SocketAddr) -> TcpStream {
    in_namespace(&lab.namespace(Node::Client(1)), || {
        let domain = Domain::for_address(client);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&client.into())?;
        socket.connect(&service.into())?;
        Ok(socket.into())
    })
    .unwrap()
}

/// Waits until one session is open, everybody knows its owner, and that is `host`.
fn owned_by(pop: &Pop, host: u16, client: SocketAddr, service: SocketAddr) {
    pop.lab.wait_settled(1, PATIENCE).unwrap();
    for on in 1..=3 {
        let ends = [client.to_string(), service.to_string()];
        let owner = pop.lab.homing_json(on, &["owner", &ends[0], &ends[1]]);
        let owner = owner.unwrap();
        assert_eq!(owner["owner"], Value::from(host), "on h{on}: {owner}");
        let own = pop.lab.tables(on).unwrap().sessions.len();
        assert_eq!(own, usize::from(on == host), "sessions of h{on}");
    }
}

#[test]
fn a_port_used_again_belongs_to_the_host_where_it_opens_once_it_has_closed() {
    let mut pop = Pop::up("reused");
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    let (v4, v6) = pop.lab.plan().client_addresses(1);
    let services = pop.lab.plan().service(443);
    for (address, service) in [IpAddr::V4(v4), IpAddr::V6(v6)].into_iter().zip(services) {
        let client = SocketAddr::new(address, PORT);
        pop.lab.set_ecmp(&[1]).unwrap();
        let mut first = connect(&pop.lab, client, service);
        exchange(&mut first);
        owned_by(&pop, 1, client, service);

        // While it is open, a SYN of the same tuple that lands elsewhere goes to it.
        // Nothing else comes to that host: the client's packets still go to the first.
        let of_interest = [
            (2, Outcome::Forwarded),
            (2, Outcome::LocalSyn),
            (1, Outcome::StrippedSocket),
        ];
        let counts = |pop: &Pop| of_interest.map(|(host, outcome)| count(pop, host, outcome));
        let before = counts(&pop);
        let syn = Tcp::new(&client.to_string(), &service.to_string(), flags::SYN);
        inject(&pop.lab, 2, [syn.ip()].into_iter());
        let arrived = wait_until(PATIENCE, || Ok(counts(&pop) != before)).unwrap();
        assert!(arrived, "{service}: {}", pop.outcomes());
        let there = wait_until(PATIENCE, || Ok(counts(&pop)[2] != before[2])).unwrap();
        let after = counts(&pop);
        let [forwarded, local, socket] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert_eq!(
            (there, forwarded, local, socket),
            (true, 1, 0, 1),
            "{service}"
        );
        owned_by(&pop, 1, client, service);
        exchange_more(&mut first);

        // It closes, by way of the other host; the same port opens a session there.
        pop.lab.set_ecmp(&[2]).unwrap();
        exchange_more(&mut first);
        drop(first);
        pop.lab.wait_settled(0, FORGOTTEN).unwrap();
        let opened = count(&pop, 2, Outcome::LocalSyn);
        let mut second = connect(&pop.lab, client, service);
        exchange(&mut second);
        assert!(count(&pop, 2, Outcome::LocalSyn) > opened, "{service}");
        owned_by(&pop, 2, client, service);
        // Also where the one before was closed a moment ago.
        for host in [1, 3, 2] {
            pop.lab.set_ecmp(&[host]).unwrap();
            exchange_more(&mut second);
        }
        owned_by(&pop, 2, client, service);
        drop(second);
        pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    }
    pop.down();
}
