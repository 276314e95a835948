//! The POP's edge: tunnel packets that a client makes up do not get in, because the
//! router takes nothing from outside that goes to the tunnel network.

use std::net::{Ipv4Addr, SocketAddr};

use homing_tests::{
    lab::{Node, node::in_namespace, wait_until},
    packet::{Ip, Tcp, flags},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::common::{PATIENCE, Pop};

/// IP in IP.
const IPIP: u8 = 4;
/// Packets sent each time.
const PACKETS: u64 = 20;

/// What becomes of them where they are believed to come from a member.
const BELIEVED: &str = "stripped_unknown";

#[test]
fn a_client_that_forges_a_tunnel_source_does_not_get_in() {
    let pop = Pop::up("edge");
    let plan = pop.lab.plan();
    let tunnel = |host| -> Ipv4Addr {
        let prefix = plan.tunnel_prefix(host);
        prefix.split_once('/').unwrap().0.parse().unwrap()
    };
    // As host 2 would forward it to host 1: a reset, which nothing answers.
    let client = SocketAddr::from((plan.client_addresses(1).0, 40_000));
    let service = plan.service(443)[0];
    let reset = Tcp::new(&client.to_string(), &service.to_string(), flags::RST);
    let inner = reset.ip().bytes();
    let forged = Ip::new(tunnel(2).into(), tunnel(1).into(), IPIP, inner).bytes();
    let to = SocketAddr::from((tunnel(1), 0));
    let socket = in_namespace(&pop.lab.namespace(Node::Client(1)), || {
        let raw = Some(Protocol::from(libc::IPPROTO_RAW));
        Ok(Socket::new(Domain::IPV4, Type::RAW, raw)?)
    })
    .unwrap();
    let send = || {
        for _ in 0..PACKETS {
            // The router may say that it takes nothing for there: that is heard here.
            let _ = socket.send_to(&forged, &to.into());
        }
    };
    let believed = |pop: &Pop| pop.lab.outcomes(&[BELIEVED]).unwrap();

    send();
    // What is let in takes the same way, and comes later.
    let (network, _) = plan.tunnel_network();
    let rule = format!("rule del iif c1 to {network} blackhole");
    let words: Vec<_> = rule.split(' ').collect();
    pop.lab.exec(Node::Router, "ip", &words).unwrap();
    assert_eq!(believed(&pop), 0, "{}", pop.outcomes());
    send();
    let arrived = wait_until(PATIENCE, || Ok(believed(&pop) >= PACKETS)).unwrap();
    assert!(
        arrived,
        "without the edge nothing comes either:\n{}",
        pop.outcomes()
    );
    assert_eq!(believed(&pop), PACKETS, "{}", pop.outcomes());
    pop.down();
}
