//! An agent that hangs: what its kernel has for it finds no room any more.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use homing_common::outcome::Outcome;
use homing_tests::{
    lab::{Lab, Node, node::in_namespace, wait_until},
    packet::{Ip, Tcp, flags},
};

use super::common::{PATIENCE, Pop, count, exchange, exchange_more, inject, knows_others, netstat};

/// Frames of more than 256 bytes take the longest records, of which `ASK` holds fewer
/// than the limit lets through in two windows: it is full before its host is silent.
const PAYLOAD: usize = 300;
/// Packets that are sent before it is looked again: more than `ASK` has room for.
const AT_ONCE: usize = 2_400;

/// Packets of clients that nobody has heard of, each of another.
fn strangers(service: SocketAddr) -> impl Iterator<Item = Ip> + Send {
    (1..).map(move |number: u32| {
        let client = Ipv4Addr::from_bits(u32::from_be_bytes([198, 18, 0, 0]) + number);
        let client = format!("{client}:4000");
        let segment = Tcp::new(&client, &service.to_string(), flags::ACK);
        segment.payload(vec![7; PAYLOAD]).ip()
    })
}

/// Resets that the hosts' stacks have sent.
fn resets(lab: &Lab) -> u64 {
    (1..=3)
        .map(|host| netstat(lab, host, "snmp", "Tcp", "OutRsts"))
        .sum()
}

/// Stops an agent and sends its host more than it has room for. Its kernel notices
/// within a second that the agent is silent, and then sends others elsewhere: on a
/// busy machine that may be sooner than `ASK` is full.
fn stop_and_fill(pop: &Pop, host: u16, strangers: &mut (impl Iterator<Item = Ip> + Send)) -> bool {
    let before = [Outcome::AskFull, Outcome::Rendezvous].map(|end| count(pop, host, end));
    // Made beforehand: the time counts from the last beat on.
    let mut burst: Vec<Ip> = strangers.by_ref().take(AT_ONCE).collect();
    pop.lab.pause(host).unwrap();
    while count(pop, host, Outcome::AskFull) == before[0] {
        if count(pop, host, Outcome::Rendezvous) != before[1] {
            return false;
        }
        inject(&pop.lab, host, burst.drain(..));
        burst.extend(strangers.by_ref().take(AT_ONCE));
    }
    true
}

#[test]
fn what_an_agent_that_hangs_has_no_room_for_is_dropped_and_harms_nothing() {
    let mut pop = Pop::up("hangs");
    let service = pop.lab.plan().service(443)[0];
    for host in 1..=3 {
        assert!(wait_until(PATIENCE, || Ok(knows_others(&pop, host))).unwrap());
    }
    let clients = pop.load(12);
    pop.lab.set_ecmp(&[1]).unwrap();
    let resets_before = resets(&pop.lab);
    let mut strangers = strangers(service);
    let full = (1..=5).find(|_| {
        let full = stop_and_fill(&pop, 1, &mut strangers);
        if !full {
            pop.lab.resume(1).unwrap();
            pop.lab.wait_settled(12, PATIENCE).unwrap();
        }
        full
    });
    let ends = [Outcome::Asked, Outcome::AskLimited, Outcome::AskFull];
    let counts = ends.map(|end| (end.label(), count(&pop, 1, end)));
    println!("full at try {full:?}: {counts:?}");
    assert!(full.is_some(), "never full: {counts:?}");

    // A session opens elsewhere, of which this agent does not hear. Its packets that
    // land here are dropped, or once the agent is silent sent to who knows: never
    // passed to a stack that would reset it.
    pop.lab.set_ecmp(&[2]).unwrap();
    let mut unheard: TcpStream = in_namespace(&pop.lab.namespace(Node::Client(1)), || {
        Ok(TcpStream::connect(service)?)
    })
    .unwrap();
    exchange(&mut unheard);
    pop.lab.set_ecmp(&[1]).unwrap();
    exchange_more(&mut unheard);
    // Sessions that it knows do not notice.
    let live = clients.wait_rounds(3, PATIENCE).unwrap();
    assert_eq!(live, clients.total(), "{}", pop.outcomes());
    assert_eq!(count(&pop, 1, Outcome::Unknown), 0);

    // It goes on: all is as before, and there is room again.
    pop.lab.resume(1).unwrap();
    pop.lab.wait_settled(13, PATIENCE).unwrap();
    let ends = || [Outcome::Asked, Outcome::AskFull].map(|end| count(&pop, 1, end));
    let before = ends();
    inject(&pop.lab, 1, strangers.by_ref().take(1));
    assert!(wait_until(PATIENCE, || Ok(ends() != before)).unwrap());
    assert_eq!(ends(), [before[0] + 1, before[1]]);
    exchange_more(&mut unheard);
    let clients = pop.tour(clients);
    exchange_more(&mut unheard);
    assert_eq!(count(&pop, 1, Outcome::Unknown), 0);
    assert_eq!(resets(&pop.lab), resets_before, "{}", pop.outcomes());
    drop(unheard);
    pop.unbroken(clients);
    pop.down();
}
