//! Fragments of datagrams while the key of session ids changes: hosts then have
//! different ids for one session, and agree on where fragments meet all the same.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use aya::maps::Array;
use homing_common::control::{RENDEZVOUS_ENTRIES, Rendezvous};
use homing_tests::{
    lab::{Lab, Node, node::in_namespace, plan::UDP_PORT, unique, wait_until},
    packet::{Ip, ethernet, udp, udp_checksum},
    random::Random,
    raw::{Raw, index_of},
    workload::{FLOW_LEN, FlowServers},
};

use super::{
    common::{PATIENCE, problems, wait_synced},
    mtu::mac,
};

/// Clients, half of them over IPv6.
const FLOWS: usize = 24;
/// Datagrams of each that are on their way at a time.
const AT_A_TIME: u64 = 3;
/// How often so many are sent.
const ROUNDS: u64 = 4;
const UDP: u8 = 17;

/// What sends datagrams in fragments that land anywhere in any order.
struct Sender {
    lab: Lab,
    servers: FlowServers,
    random: Random,
    /// The identification of the next datagram.
    next_id: u32,
}

/// A client that is heard by the servers of UDP.
struct Flow {
    socket: UdpSocket,
    client: SocketAddr,
    service: SocketAddr,
    /// Who has answered it.
    hosts: BTreeSet<u16>,
}

impl Flow {
    /// The pieces of a datagram with this number.
    fn pieces(&self, number: u64, id: u32) -> Vec<Ip> {
        let (from, to) = (self.client.ip(), self.service.ip());
        let mut payload = [0; FLOW_LEN];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        let mut body = udp(self.client.port(), self.service.port(), &payload);
        let checksum = udp_checksum(from, to, &body);
        body[6..8].copy_from_slice(&checksum);
        let mut packet = Ip::new(from, to, UDP, body);
        packet.frags = 0;
        packet.fragments(id, 24)
    }

    /// Receives what answers its datagrams; returns those of these numbers that nothing
    /// has answered when `until` has come.
    fn unanswered(&mut self, mut numbers: BTreeSet<u64>, until: Instant) -> BTreeSet<u64> {
        let mut answer = [0; FLOW_LEN];
        while !numbers.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(timeout)).unwrap();
            match self.socket.recv(&mut answer) {
                Ok(_) => {
                    let (number, rest) = answer.split_at(8);
                    numbers.remove(&u64::from_be_bytes(number.try_into().unwrap()));
                    self.hosts.insert(u16::from_be_bytes([rest[0], rest[1]]));
                }
                Err(_) => break,
            }
        }
        numbers
    }
}

impl Sender {
    fn up(name: &str) -> Self {
        let builder = Lab::builder().name(&unique(name)).hosts(3).racks(2);
        let lab = builder.up().unwrap();
        let servers = FlowServers::start(&lab, &lab.plan().service(UDP_PORT)).unwrap();
        let seed = Random::fresh_seed();
        println!("seed {seed}");
        Self {
            lab,
            servers,
            random: Random::new(seed),
            next_id: 1,
        }
    }

    /// Clients that nobody has heard of.
    fn flows(&self) -> Vec<Flow> {
        let plan = self.lab.plan();
        let (v4, v6) = plan.client_addresses(1);
        let ends = [v4.into(), v6.into()]
            .into_iter()
            .zip(plan.service(UDP_PORT));
        let ends: Vec<_> = ends.collect();
        in_namespace(&self.lab.namespace(Node::Client(1)), || {
            let flows = ends.iter().cycle().take(FLOWS).map(|&(ip, service)| {
                let socket = UdpSocket::bind(SocketAddr::new(ip, 0))?;
                Ok(Flow {
                    client: socket.local_addr()?,
                    socket,
                    service,
                    hosts: BTreeSet::new(),
                })
            });
            flows.collect()
        })
        .unwrap()
    }

    /// Sends datagrams of new flows: each must be answered, and those of a flow by one
    /// host.
    fn all_meet(&mut self, when: &str) {
        let mut flows = self.flows();
        for round in 0..ROUNDS {
            let numbers = round * AT_A_TIME..(round + 1) * AT_A_TIME;
            let mut pieces = Vec::new();
            for number in numbers.clone() {
                for flow in &flows {
                    let mut some = flow.pieces(number, self.next_id);
                    self.next_id += 1;
                    self.random.shuffle(&mut some);
                    pieces.extend(some);
                }
            }
            self.send(&pieces);
            let until = Instant::now() + PATIENCE;
            let numbers: BTreeSet<_> = numbers.collect();
            let lost = flows
                .iter_mut()
                .map(|flow| flow.unanswered(numbers.clone(), until));
            let lost: usize = lost.map(|lost| lost.len()).sum();
            let sent = FLOWS as u64 * AT_A_TIME;
            assert_eq!(lost, 0, "of {sent} datagrams {when}\n{}", self.outcomes());
        }
        let hosts: BTreeSet<_> = flows.iter().flat_map(|flow| flow.hosts.clone()).collect();
        assert_eq!(hosts.len(), 3, "{when}: all flows came to {hosts:?}");
        let split = flows.iter().filter(|flow| flow.hosts.len() > 1).count();
        assert_eq!(
            split, 0,
            "flows of {FLOWS} that came to several hosts {when}"
        );
    }

    /// Sends each piece to any host.
    fn send(&mut self, pieces: &[Ip]) {
        let macs: Vec<_> = (1..=3)
            .map(|host| mac(&self.lab.plan().host_mac(host)))
            .collect();
        let random = &mut self.random;
        in_namespace(&self.lab.namespace(Node::Router), || {
            let socket = Raw::sender()?;
            for piece in pieces {
                let host = random.below(macs.len() as u64) as usize;
                let (to, from) = (macs[host], [2, 0, 0, 0, 0, 0xfe]);
                let frame = ethernet(to, from, &[], piece.source.is_ipv4(), &piece.bytes());
                socket.send(index_of(&format!("h{}", host + 1))?, &frame)?;
            }
            Ok(())
        })
        .unwrap();
    }

    /// Restarts a host's agent, and waits until all hosts know all sessions and name the
    /// same hosts for what meets.
    fn restart(&mut self, host: u16) {
        self.lab.stop(host).unwrap();
        self.lab.start(host).unwrap();
        wait_synced(&self.lab);
        let agreed = wait_until(PATIENCE, || Ok(self.agree()));
        assert!(agreed.unwrap(), "{}", self.outcomes());
    }

    /// Whether each slot names the same host first everywhere, and each host some slot.
    fn agree(&self) -> bool {
        let firsts = |host| -> Vec<u16> {
            let map = self.lab.map(host, "RENDEZVOUS").unwrap();
            let table = Array::<_, Rendezvous>::try_from(map).unwrap();
            let first = |slot| table.get(&slot, 0).unwrap().first;
            (0..RENDEZVOUS_ENTRIES).map(first).collect()
        };
        let one = firsts(1);
        (1..=3).all(|host| one.contains(&host)) && (2..=3).all(|host| firsts(host) == one)
    }

    /// How many keys of session ids the hosts look sessions up by.
    fn session_keys(&self) -> usize {
        let key = |host| {
            let status = self.lab.homing_json(host, &["status"]).unwrap();
            status["keys"]["session"].as_str().unwrap().to_owned()
        };
        (1..=3).map(key).collect::<BTreeSet<_>>().len()
    }

    /// Whether `homing status` on a host says that fragments do not meet.
    fn is_named(&self, host: u16) -> bool {
        let named = || {
            let problems = problems(&self.lab, host);
            Ok(problems.iter().any(|text| text.contains("do not meet")))
        };
        wait_until(PATIENCE, named).unwrap()
    }

    fn outcomes(&self) -> String {
        let stats = |host| self.lab.exec(Node::Host(host), "homing", &["stats"]);
        let stats = (1..=3).map(|host| format!("h{host}:\n{}", stats(host).unwrap()));
        stats.collect::<Vec<_>>().join("\n")
    }

    fn down(self) {
        drop(self.servers);
        self.lab.down().unwrap();
    }
}

#[test]
fn fragments_meet_also_while_hosts_have_different_keys_of_session_ids() {
    let mut sender = Sender::up("meet");
    wait_synced(&sender.lab);
    assert!(wait_until(PATIENCE, || Ok(sender.agree())).unwrap());
    sender.all_meet("before all");
    rotate(&mut sender, "the first rotation");
    another_key_for_fragments_is_named(&mut sender);
    rotate(&mut sender, "the second rotation");
    sender.down();
}

/// Changes the key of session ids.
fn rotate(sender: &mut Sender, rotation: &str) {
    for step in ["begin", "promote", "finish"] {
        let key = ["key", step, "--session"];
        sender.lab.homing_json(1, &key).unwrap();
        for host in [2, 3, 1] {
            sender.restart(host);
            let apart = step == "promote" && host != 1;
            assert_eq!(sender.session_keys(), 1 + usize::from(apart));
            // There alone hosts have different keys; the ends of the steps show that what
            // they meet by is still the same.
            if apart || host == 1 {
                sender.all_meet(&format!("at h{host} in {step} of {rotation}"));
            }
        }
    }
}

/// Gives a host another key for where fragments meet than the others have, for a while.
fn another_key_for_fragments_is_named(sender: &mut Sender) {
    let file = sender.lab.folder().join("pop.key");
    let right = std::fs::read_to_string(&file).unwrap();
    // Without the line it is the key of session ids, which is a new one.
    let (wrong, _) = right.split_once("fragments ").unwrap();
    std::fs::write(&file, wrong).unwrap();
    let error = sender.lab.exec(Node::Host(1), "homing", &["reload"]);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("key of fragments"), "{error}");
    assert!(error.contains("restart this agent"), "{error}");
    sender.restart(3);
    for host in 1..=3 {
        assert!(sender.is_named(host), "{:?}", problems(&sender.lab, host));
    }
    std::fs::write(&file, &right).unwrap();
    sender.restart(3);
    sender.all_meet("with the right file again");
    for host in 1..=3 {
        let found = problems(&sender.lab, host);
        assert!(found.is_empty(), "{found:?}");
    }
}
