//! Packets and the room there is for them: a fabric that becomes narrow under sessions
//! that know nothing of it, and fragments.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use homing_tests::{
    lab::{Lab, Node, node::in_namespace, wait_until},
    packet::{ICMP, ICMPV6, Ip, ethernet, icmp},
    random::Random,
    raw::{Raw, index_of},
};
use serde_json::Value;

use super::common::{PATIENCE, Pop};

/// The MTU of the clients' links: none to spare.
pub const NARROW: u16 = 1500;

/// Gives both ends of all hosts' links an MTU, and waits until the agents have noticed.
pub fn set_mtu(lab: &Lab, mtu: u16) {
    let mtu_text = mtu.to_string();
    let set = |node, port: &str| {
        let arguments = ["link", "set", port, "mtu", &mtu_text];
        lab.exec(node, "ip", &arguments).unwrap();
    };
    for host in 1..=lab.plan().hosts {
        set(Node::Host(host), "eth0");
        set(Node::Router, &format!("h{host}"));
    }
    let noticed = wait_until(PATIENCE, || {
        let mut all = true;
        for host in lab.running() {
            let hosts = lab.homing_json(host, &["hosts"])?;
            let list = hosts.pointer("/hosts").and_then(Value::as_array);
            let mtus = list.into_iter().flatten().filter_map(|entry| {
                let hop = entry.get("next_hop").filter(|hop| !hop.is_null())?;
                hop.get("mtu").and_then(Value::as_u64)
            });
            let mtus: Vec<_> = mtus.collect();
            all &= !mtus.is_empty() && mtus.iter().all(|found| *found == u64::from(mtu));
        }
        Ok(all)
    });
    assert!(noticed.unwrap(), "not all agents have noticed MTU {mtu}");
}

#[test]
fn sessions_older_than_a_narrowing_are_told_what_fits() {
    let mut pop = Pop::up("narrowed");
    let clients = pop.load(40);
    set_mtu(&pop.lab, NARROW);
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    let told = pop.lab.outcomes(&["too_big_told"]).unwrap();
    assert!(told > 0, "nothing was too large: the test shows nothing");
    pop.down();
}

/// Pings, in fragments, of which each lands on any host in any order: all are answered
/// whole, so all fragments of each have met.
#[test]
fn fragments_that_land_on_different_hosts_come_together() {
    const PINGS: u16 = 40;
    let pop = Pop::up("pieces");
    let plan = pop.lab.plan();
    let (client_v4, client_v6) = plan.client_addresses(1);
    let between: [(IpAddr, IpAddr); 2] = [
        (client_v4.into(), plan.service(443)[0].ip()),
        (client_v6.into(), plan.service(443)[1].ip()),
    ];
    let hosts = plan.hosts;
    let macs: Vec<[u8; 6]> = (1..=hosts).map(|host| mac(&plan.host_mac(host))).collect();
    let listener = in_namespace(&pop.lab.namespace(Node::Client(1)), || {
        Ok(Raw::listener(index_of("eth0")?)?)
    })
    .unwrap();
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(&pop.lab.namespace(Node::Router), || {
        let socket = Raw::sender()?;
        let mut random = Random::new(seed);
        for number in 0..PINGS {
            let (client, service) = between[usize::from(number % 2)];
            let (protocol, kind) = if client.is_ipv4() {
                (ICMP, 8)
            } else {
                (ICMPV6, 128)
            };
            let word = [0x48, 0x6d, 0, number as u8];
            let body = icmp((client, service), kind, 0, word, &[number as u8; 1000]);
            let mut ping = Ip::new(client, service, protocol, body);
            ping.frags = 0;
            let mut pieces = ping.fragments(u32::from(number) + 1, 200);
            random.shuffle(&mut pieces);
            for piece in pieces {
                let host = random.below(u64::from(hosts)) as usize;
                let (to, from) = (macs[host], [2, 0, 0, 0, 0, 0xfe]);
                let frame = ethernet(to, from, &[], client.is_ipv4(), &piece.bytes());
                socket.send(index_of(&format!("h{}", host + 1))?, &frame)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
    .unwrap();
    let mut answered = BTreeSet::new();
    let mut buffer = [0; 2048];
    while answered.len() < usize::from(PINGS)
        && let Some(frame) = listener.receive(&mut buffer, PATIENCE).unwrap()
    {
        answered.extend(answer(frame));
    }
    let outcomes = pop.outcomes();
    assert_eq!(
        answered.len(),
        usize::from(PINGS),
        "{answered:?}\n{outcomes}"
    );
    let told = |labels: &[&str]| pop.lab.outcomes(labels).unwrap();
    assert!(told(&["fragment_gathered"]) > 0, "{outcomes}");
    assert!(
        told(&["fragment_held"]) > 0,
        "none came before the first one:\n{outcomes}"
    );
    pop.down();
}

/// The number of the ping that a frame answers whole.
fn answer(frame: &[u8]) -> Option<u8> {
    let (kind, at) = match frame.get(12..14)? {
        [0x08, 0x00] => (0, 14 + 20),
        [0x86, 0xdd] => (129, 14 + 40),
        _ => return None,
    };
    let message = frame.get(at..)?;
    let [0x48, 0x6d, 0, number] = *message.get(4..8)? else {
        return None;
    };
    let body = message.get(8..1008)?;
    (message[0] == kind && body.iter().all(|byte| *byte == number)).then_some(number)
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}
