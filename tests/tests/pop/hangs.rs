//! An agent that hangs: what its kernel has for it finds no room any more.

use std::net::{SocketAddr, TcpStream};

use homing_common::outcome::Outcome;
use homing_tests::{
    lab::{Lab, Node, flood::Flood, node::in_namespace, wait_until},
    packet::{Tcp, flags},
};

use super::common::{PATIENCE, Pop, count, exchange, exchange_more, inject, netstat, wait_synced};

/// Frames of more than 256 bytes take the longest records, of which `ASK` holds fewer
/// than the limit lets through in two windows: it is full before its host is silent.
const PAYLOAD: usize = 300;
/// Packets a second: more than the limit lets through.
const RATE: u64 = 50_000;

/// Resets that the hosts' stacks have sent.
fn resets(lab: &Lab) -> u64 {
    (1..=3)
        .map(|host| netstat(lab, host, "snmp", "Tcp", "OutRsts"))
        .sum()
}

/// Waits until the carriers of the first full syncs are closed: they end in resets, too.
fn wait_no_carriers(lab: &Lab) {
    let are_gone = |host: u16| {
        let carriers = lab.homing_json(host, &["carriers"])?;
        let peers = carriers["peers"].as_array().unwrap().iter();
        let mut lines = peers.flat_map(|peer| {
            let to = peer["to"].as_array().unwrap().iter();
            to.chain([&peer["from"]])
        });
        Ok(lines.all(|line| line["carriers"] == 0))
    };
    for host in 1..=3 {
        assert!(wait_until(PATIENCE, || are_gone(host)).unwrap());
    }
}

/// Stops an agent while its host is sent more than it has room for. Its kernel notices
/// within a second that the agent is silent, and then sends others elsewhere: on a
/// busy machine that may be sooner than `ASK` is full.
fn stop_and_fill(pop: &Pop, host: u16, service: SocketAddr) -> bool {
    let before = [Outcome::AskFull, Outcome::Rendezvous].map(|end| count(pop, host, end));
    let flood = Flood::start(&pop.lab, host, service, RATE, PAYLOAD).unwrap();
    pop.lab.pause(host).unwrap();
    let ended = wait_until(PATIENCE, || {
        let full = count(pop, host, Outcome::AskFull) > before[0];
        Ok(full || count(pop, host, Outcome::Rendezvous) > before[1])
    });
    assert!(ended.unwrap(), "{:?}", flood.finish());
    count(pop, host, Outcome::AskFull) > before[0]
}

#[test]
fn what_an_agent_that_hangs_has_no_room_for_is_dropped_and_harms_nothing() {
    let mut pop = Pop::up("hangs");
    let service = pop.lab.plan().service(443)[0];
    wait_synced(&pop.lab);
    let clients = pop.load(12);
    pop.lab.set_ecmp(&[1]).unwrap();
    wait_no_carriers(&pop.lab);
    let resets_before = resets(&pop.lab);
    let full = (1..=5).find(|_| {
        let full = stop_and_fill(&pop, 1, service);
        if !full {
            pop.lab.resume(1).unwrap();
            wait_synced(&pop.lab);
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
    let stranger = Tcp::new("198.51.100.9:4000", &service.to_string(), flags::ACK);
    inject(&pop.lab, 1, [stranger.ip()].into_iter());
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
