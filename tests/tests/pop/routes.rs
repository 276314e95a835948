//! Routers' errors: a way behind the router that carries less than both ends believe.
//!
//! The router tells the sender so, at the service's address, and its own routing
//! brings that to any host. Only the owner can act on it.

use std::{net::IpAddr, sync::atomic::AtomicU64, time::Duration};

use homing_tests::lab::{Lab, Node, unique};

use super::{
    bulk::{Bulk, exchange_all},
    common::{PATIENCE, Pop},
};

/// The host that owns all connections.
const OWNER: u16 = 2;
/// The host that the router's errors come to.
const TOLD: u16 = 1;
/// What the client's link carries once connections are open; IPv6 needs 1280.
const NARROW: u16 = 1400;
/// Connections, half of them over IPv6.
const CONNECTIONS: usize = 6;
/// How long nothing moves where nobody tells the sender. Its kernel does not find out
/// by itself (`net.ipv4.tcp_mtu_probing` is 0).
const STALLED: Duration = Duration::from_secs(3);

/// Connections of one host, an exchange on each, and then the client's link carries
/// less. All that the router itself says to the services goes to another host.
fn narrowed(pop: &mut Pop) -> Vec<Bulk> {
    for family in ["-4", "-6"] {
        let (services, via) = match family {
            "-4" => (0, IpAddr::from(pop.lab.plan().host_v4(TOLD))),
            _ => (1, pop.lab.plan().host_v6(TOLD).into()),
        };
        let service = pop.lab.plan().service(443)[services].ip();
        let rack = pop.lab.plan().rack_of(TOLD);
        // What no interface brought in is the router's own.
        ip(
            &pop.lab,
            Node::Router,
            &format!("{family} rule add iif lo to {service} table 77"),
        );
        ip(
            &pop.lab,
            Node::Router,
            &format!("{family} route add {service} via {via} dev rack{rack} table 77"),
        );
    }
    pop.lab.set_ecmp(&[OWNER]).unwrap();
    let services = pop.lab.plan().service(443);
    let mut connections: Vec<Bulk> = (0..CONNECTIONS)
        .map(|n| Bulk::open(&pop.lab, services[n % 2], n as u64).unwrap())
        .collect();
    let failed = exchange_all(&mut connections, 1, PATIENCE, &AtomicU64::new(0));
    assert!(failed.is_empty(), "{failed:?}");
    ip(
        &pop.lab,
        Node::Client(1),
        &format!("link set eth0 mtu {NARROW}"),
    );
    ip(&pop.lab, Node::Router, &format!("link set c1 mtu {NARROW}"));
    connections
}

fn ip(lab: &Lab, node: Node, arguments: &str) {
    let arguments: Vec<&str> = arguments.split_ascii_whitespace().collect();
    lab.exec(node, "ip", &arguments).unwrap();
}

/// The path MTUs of a host's sockets of the service, in no order.
fn path_mtus(lab: &Lab, host: u16) -> Vec<u16> {
    let arguments = ["-tinH", "state", "established", "sport", "=", ":443"];
    let text = lab.exec(Node::Host(host), "ss", &arguments).unwrap();
    let words = text.split_ascii_whitespace();
    let mtus = words.filter_map(|word| word.strip_prefix("pmtu:"));
    mtus.map(|mtu| mtu.parse().unwrap()).collect()
}

/// The errors of this kind that a host's own kernel has been told of, by family.
fn told(lab: &Lab, host: u16) -> [u64; 2] {
    let read = |path| lab.exec(Node::Host(host), "cat", &[path]).unwrap();
    let v4 = read("/proc/net/snmp");
    // A line of names, and one of values below it.
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut v4 = names.split(' ').zip(values.split(' '));
    let v4 = v4.find(|(name, _)| *name == "InDestUnreachs").unwrap().1;
    let v6 = read("/proc/net/snmp6");
    let mut v6 = v6.lines().filter_map(|line| line.split_once(' '));
    let v6 = v6.find(|(name, _)| *name == "Icmp6InPktTooBigs").unwrap().1;
    [v4, v6].map(|count| count.trim().parse().unwrap())
}

/// Whether it has been told of more since, by family.
fn more(lab: &Lab, host: u16, before: [u64; 2]) -> [bool; 2] {
    let now = told(lab, host);
    [now[0] > before[0], now[1] > before[1]]
}

#[test]
fn what_a_router_says_of_the_path_reaches_the_owner() {
    let mut pop = Pop::up("pathmtu");
    let mut connections = narrowed(&mut pop);
    // Before: an agent that starts may be told that others have not.
    let before = [OWNER, TOLD].map(|host| told(&pop.lab, host));
    pop.lab.wait_settled(CONNECTIONS as u64, PATIENCE).unwrap();
    assert_eq!(path_mtus(&pop.lab, OWNER), [1600; CONNECTIONS]);
    // The clients' packets, too, come to others from here on.
    pop.lab.set_ecmp(&[3, 1]).unwrap();
    let failed = exchange_all(&mut connections, 16, PATIENCE, &AtomicU64::new(0));
    assert!(failed.is_empty(), "{failed:?}\n{}", pop.outcomes());
    assert_eq!(path_mtus(&pop.lab, OWNER), [NARROW; CONNECTIONS]);
    assert_eq!(more(&pop.lab, OWNER, before[0]), [true; 2]);
    assert_eq!(more(&pop.lab, TOLD, before[1]), [false; 2]);
    let received = pop.lab.outcomes(&["stripped_icmp"]).unwrap();
    assert!(received > 0, "{}", pop.outcomes());
    drop(connections);
    pop.down();
}

/// The same without Homing, and with ECMP as it was at first: nothing moves.
#[test]
fn without_homing_what_a_router_says_is_lost() {
    let lab = Lab::builder()
        .name(&unique("pathplain"))
        .hosts(3)
        .racks(2)
        .no_homing()
        .up()
        .unwrap();
    let mut pop = Pop::from(lab);
    let mut connections = narrowed(&mut pop);
    // Before: an agent that starts may be told that others have not.
    let before = [OWNER, TOLD].map(|host| told(&pop.lab, host));
    let failed = exchange_all(&mut connections, 16, STALLED, &AtomicU64::new(0));
    assert_eq!(failed.len(), CONNECTIONS, "{failed:?}");
    assert_eq!(more(&pop.lab, OWNER, before[0]), [false; 2]);
    assert_eq!(more(&pop.lab, TOLD, before[1]), [true; 2]);
    drop(connections);
    pop.down();
}
