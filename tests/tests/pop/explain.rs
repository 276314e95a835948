//! `homing explain` in a running POP: it says what becomes of a packet, and nothing comes of
//! that.

use std::{
    collections::BTreeMap, fs::File, net::SocketAddr, path::Path, process::Command, time::Duration,
};

use homing_agent::admin::api::Stats;
use homing_common::net::UDP;
use homing_tests::{
    lab::Node,
    packet::{Ip, Tcp, flags, udp},
};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use serde_json::Value;

use super::common::{PATIENCE, Pop};

/// What a host says of a packet.
fn told(pop: &Pop, host: u16, args: &[&str]) -> Value {
    let args = [&["explain"], args].concat();
    let told = pop.lab.homing_json(host, &args).unwrap();
    let packets = told["packets"].as_array().unwrap();
    assert_eq!(packets.len(), 1);
    packets[0].clone()
}

#[track_caller]
fn ends(told: &Value, outcome: &str) {
    assert_eq!(told["outcome"], outcome, "{told:#}");
}

fn fact<'a>(told: &'a Value, name: &str) -> &'a str {
    let facts = told["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact["name"] == name);
    fact.and_then(|fact| fact["text"].as_str())
        .unwrap_or_default()
}

#[test]
fn each_host_says_what_becomes_of_a_sessions_packets() {
    let mut pop = Pop::up("explain");
    pop.lab.set_ecmp(&[1]).unwrap();
    let clients = pop.load(3);
    let sessions = pop.lab.homing_json(1, &["sessions"]).unwrap();
    let session = &sessions["sessions"][0];
    let [client, service] = ["client", "service"].map(|end| session[end].as_str().unwrap());
    let tuple = [client, service];
    let on = |host, more: &[&str]| told(&pop, host, &[&tuple, more].concat());

    // Where its socket is, and elsewhere.
    let here = on(1, &[]);
    ends(&here, "local_socket");
    assert!(fact(&here, "owner").starts_with("this host: "), "{here}");
    let there = on(2, &[]);
    ends(&there, "forwarded");
    assert!(fact(&there, "owner").starts_with("host 1: "), "{there}");
    assert!(fact(&there, "way").contains("by eth0"), "{there}");
    let goes = there["goes"].as_str().unwrap();
    assert!(goes.contains("10.77.0.16: IPIP of ["), "{goes}");
    ends(&on(3, &["--as", "syn"]), "forwarded");
    ends(&on(1, &["--as", "rst"]), "local_socket");

    // Through the tunnel.
    ends(&on(1, &["--from", "2"]), "stripped_socket");
    ends(&on(2, &["--from", "1"]), "tunnel_bounce");
    ends(&on(2, &["--from", "3"]), "sent_on");
    ends(&on(2, &["--from", "2"]), "tunnel_not_member");
    let stranger = on(2, &["--from", "9"]);
    ends(&stranger, "tunnel_not_member");
    assert!(stranger["advice"].is_string(), "{stranger}");

    // What nobody has, and what is no business of the POP.
    let nobody = |more: &[&str]| {
        let ends = ["198.51.100.7:40312", "203.0.113.10:443"];
        told(&pop, 1, &[&ends, more].concat())
    };
    ends(&nobody(&[]), "asked");
    ends(&nobody(&["--as", "syn"]), "local_syn");
    ends(&nobody(&["--as", "rst"]), "unknown");
    ends(&nobody(&["--as", "udp"]), "local_flow_new");
    let other = told(&pop, 1, &["198.51.100.7:1", "203.0.113.10:22"]);
    ends(&other, "not_service");
    assert!(
        fact(&other, "service").ends_with("is no service of the POP"),
        "{other}"
    );

    // As a person reads it.
    let text = pop
        .lab
        .exec(Node::Host(2), "homing", &["explain", client, service]);
    let text = text.unwrap();
    assert!(text.contains("\noutcome   forwarded (forward)\n"), "{text}");
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn nothing_comes_of_what_is_explained() {
    let pop = Pop::up("harmless");
    // A host that does not know all sessions asks about none.
    pop.lab.wait_settled(0, PATIENCE).unwrap();
    // What the fast path counted, but for what members ask each other's kernels.
    let counts = || -> BTreeMap<String, u64> {
        let stats = pop.lab.homing_json(1, &["stats", "--all"]).unwrap();
        let stats: Stats = serde_json::from_value(stats).unwrap();
        let others = ["echo_answered", "not_service", "not_ip", "fragment"];
        let outcomes = stats
            .outcomes
            .into_iter()
            .map(|outcome| (outcome.name, outcome.packets));
        let outcomes = outcomes.filter(|(name, _)| !others.contains(&name.as_str()));
        let counters = stats.hooks.into_iter().chain(stats.gossip);
        let counters = counters.map(|counter| (counter.name, counter.count));
        let counters = counters.filter(|(name, _)| {
            let of_packets = ["ask_", "sessions_opened", "sessions_closed", "flows_"];
            of_packets.iter().any(|part| name.starts_with(part)) || name.contains("evicted")
        });
        outcomes.chain(counters).collect()
    };
    let before = counts();
    assert!(before.contains_key("asked") && before.contains_key("sessions_opened"));
    let file = pop.lab.folder().join("many.pcap");
    let mut frames = Vec::new();
    for n in 0..4 {
        let client = format!("198.51.100.7:{}", 4000 + n);
        // More than make a flow a session, and than one source may have asked about.
        for _ in 0..100 {
            frames.push(flow(&client));
            frames.push(Tcp::new(&client, SERVICE, flags::ACK).frame());
            frames.push(Tcp::new(&client, SERVICE, flags::SYN).frame());
        }
    }
    for host in 1..=3 {
        for frames in frames.chunks(900) {
            write(&file, frames);
            let args = ["explain", file.to_str().unwrap()];
            let told = pop.lab.homing_json(host, &args).unwrap();
            let packets = told["packets"].as_array().unwrap();
            let of = |outcome: &str| packets.iter().filter(|p| p["outcome"] == outcome).count();
            // Among themselves they do what packets do.
            for outcome in ["asked", "local_syn", "local_flow_new", "local_flow"] {
                assert!(
                    of(outcome) > 0 || frames.len() < 900,
                    "no {outcome} on h{host}"
                );
            }
        }
    }
    for kind in ["udp", "ack", "syn"] {
        told(&pop, 1, &["198.51.100.7:4000", SERVICE, "--as", kind]);
    }
    let after = counts();
    let moved: Vec<_> = after
        .iter()
        .filter(|(name, count)| before[*name] != **count)
        .collect();
    assert_eq!(moved, []);
    let sessions = pop.lab.homing_json(1, &["sessions"]).unwrap();
    assert_eq!(sessions["total"], 0, "{sessions}");
    pop.down();
}

const SERVICE: &str = "203.0.113.10:443";

/// Writes frames to a capture file.
fn write(path: &Path, frames: &[Vec<u8>]) {
    let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for frame in frames {
        let packet = PcapPacket::new(Duration::ZERO, frame.len() as u32, frame);
        writer.write_packet(&packet).unwrap();
    }
}

/// A UDP datagram to a service.
fn datagram(port: u16, len: usize) -> Ip {
    let [client, service] = ["198.51.100.7", "203.0.113.10"].map(|end| end.parse().unwrap());
    Ip::new(client, service, UDP, udp(port, 443, &vec![7; len]))
}

/// A packet of a UDP flow.
fn flow(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    datagram(client.port(), 20).frame(&[])
}

#[test]
fn packets_of_a_file_meet_what_those_before_them_left() {
    let pop = Pop::up("file");
    // A host that does not know all sessions leaves the decision to others.
    pop.lab.wait_settled(0, PATIENCE).unwrap();
    let file = pop.lab.folder().join("fragments.pcap");
    let fragments = datagram(4711, 1200).fragments(77, 800);
    let frames = [1, 0, 1].map(|n: usize| fragments[n].frame(&[]));
    write(&file, &frames);
    // The last one waits for the first, which says where all go: twice over, because
    // nothing is left of the time before.
    let (mut met, mut gathered) = (0, 0);
    for _ in 0..2 {
        for host in 1..=3 {
            let args = ["explain", file.to_str().unwrap()];
            let told = pop.lab.homing_json(host, &args).unwrap();
            let packets = told["packets"].as_array().unwrap().iter();
            let outcomes: Vec<_> = packets
                .map(|told| told["outcome"].as_str().unwrap())
                .collect();
            match outcomes[..] {
                ["fragment_held", first, last] => {
                    assert_eq!(first, last, "h{host}");
                    assert!(
                        ["fragment_local", "fragment_forwarded"].contains(&first),
                        "{first}"
                    );
                    met += 1;
                }
                [
                    "fragment_gathered",
                    "fragment_gathered",
                    "fragment_gathered",
                ] => gathered += 1,
                _ => panic!("h{host}: {outcomes:?}"),
            }
        }
    }
    assert_eq!((met, gathered), (2, 4));
    let args = [
        "explain",
        file.to_str().unwrap(),
        "--skip",
        "1",
        "--count",
        "1",
    ];
    let told = pop.lab.homing_json(1, &args).unwrap();
    assert_eq!(told["packets"].as_array().unwrap().len(), 1, "{told}");

    let wrong = pop.lab.folder().join("wrong.pcap");
    std::fs::write(&wrong, "this is no capture file, whatever it says").unwrap();
    let mut command = Command::new("homing");
    command.arg("explain").arg(&wrong);
    pop.lab.place(Node::Host(1), &mut command).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("neither pcap nor pcapng"), "{said}");
    pop.down();
}
