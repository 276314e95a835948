//! What the command line says of sessions is what the kernels have.

use std::{collections::BTreeMap, net::SocketAddr};

use homing_tests::lab::Node;
use serde_json::Value;

use super::common::{FORGOTTEN, Pop};

/// The connections that a host's kernel has, by client: the service.
fn sockets(pop: &Pop, host: u16) -> BTreeMap<SocketAddr, SocketAddr> {
    let text = pop
        .lab
        .exec(Node::Host(host), "ss", &["-Htn", "state", "established"])
        .unwrap();
    text.lines()
        .filter_map(|line| {
            let mut ends = line
                .split_whitespace()
                .rev()
                .filter_map(|word| word.parse().ok());
            Some((ends.next()?, ends.next()?))
        })
        .filter(|(_, service): &(SocketAddr, SocketAddr)| service.port() == 443)
        .collect()
}

#[test]
fn every_host_names_the_owner_of_every_session() {
    let pop = Pop::up("owner");
    let clients = pop.load(12);
    let mut seen = 0;
    for host in 1..=3 {
        let sockets = sockets(&pop, host);
        let sessions = pop.lab.homing_json(host, &["sessions"]).unwrap();
        let listed: BTreeMap<SocketAddr, SocketAddr> = sessions["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| {
                let end = |name: &str| session[name].as_str().unwrap().parse().unwrap();
                (end("client"), end("service"))
            })
            .collect();
        assert_eq!(listed, sockets, "sessions of h{host}");
        for (client, service) in sockets {
            seen += 1;
            for asked in 1..=3 {
                let ends = [client.to_string(), service.to_string()];
                let owner = pop
                    .lab
                    .homing_json(asked, &["owner", &ends[0], &ends[1]])
                    .unwrap();
                assert_eq!(owner["owner"], Value::from(host), "{owner}");
                let answer = if asked == host {
                    "this_host"
                } else {
                    "other_host"
                };
                assert_eq!(owner["answer"], answer, "{owner}");
            }
        }
    }
    assert_eq!(seen, 12);
    pop.unbroken(clients);
    // A session that nobody has: the exit code says so.
    let unknown = pop.lab.exec(
        Node::Host(1),
        "sh",
        &[
            "-c",
            "homing owner 198.51.100.7:40312 203.0.113.10:443 >/dev/null; echo $?",
        ],
    );
    assert_eq!(unknown.unwrap().trim(), "4");
    pop.down();
}

#[test]
fn what_has_closed_is_forgotten_everywhere() {
    let pop = Pop::up("closed");
    for round in 1..=3 {
        let clients = pop.load(30);
        pop.unbroken(clients);
        pop.lab
            .wait_settled(0, FORGOTTEN)
            .unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    pop.down();
}

#[test]
fn the_agent_answers_over_its_socket() {
    let pop = Pop::up("socket");
    let curl = |path: &str| {
        let command = format!(
            "curl --silent --show-error --fail --unix-socket $HOMING_SOCKET http://homing{path}"
        );
        pop.lab
            .exec(Node::Host(1), "sh", &["-c", &command])
            .unwrap()
    };
    let status: Value = serde_json::from_str(&curl("/status")).unwrap();
    assert_eq!(status["host"], 1);
    assert_eq!(status["members"]["alive"], 3);
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
    let metrics = curl("/metrics");
    assert!(metrics.contains("homing_packets_total{"), "{metrics}");
    assert!(metrics.contains("\nhoming_sessions"), "{metrics}");
    pop.down();
}
