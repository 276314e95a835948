//! Packets and the room there is for them: a fabric that becomes narrow under sessions
//! that know nothing of it, and fragments.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use homing_tests::{
    lab::{Lab, Node, node::in_namespace, unique, wait_until},
    packet::{ICMP, ICMPV6, Ip, ethernet, icmp},
    random::Random,
    raw::{Raw, index_of},
};
use serde_json::Value;

use super::common::{PATIENCE, Pop, hook, problems};

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

/// Pings to both families' services, in fragments that are put onto the hosts' wires.
struct Pings {
    between: [(IpAddr, IpAddr); 2],
    macs: Vec<[u8; 6]>,
    random: Random,
    /// The identification of the next one.
    next_id: u32,
}

impl Pings {
    fn of(pop: &Pop) -> Self {
        let plan = pop.lab.plan();
        let (client_v4, client_v6) = plan.client_addresses(1);
        let service = plan.service(443);
        let seed = Random::fresh_seed();
        println!("seed {seed}");
        Self {
            between: [
                (client_v4.into(), service[0].ip()),
                (client_v6.into(), service[1].ip()),
            ],
            macs: (1..=plan.hosts)
                .map(|host| mac(&plan.host_mac(host)))
                .collect(),
            random: Random::new(seed),
            next_id: 1,
        }
    }

    /// The pieces of a ping, in order.
    fn pieces(&mut self, number: u8) -> Vec<Ip> {
        let id = self.next_id;
        self.next_id += 1;
        let (client, service) = self.between[id as usize % 2];
        let (protocol, kind) = if client.is_ipv4() {
            (ICMP, 8)
        } else {
            (ICMPV6, 128)
        };
        let word = [0x48, 0x6d, 0, number];
        let body = icmp((client, service), kind, 0, word, &[number; 1000]);
        let mut ping = Ip::new(client, service, protocol, body);
        ping.frags = 0;
        ping.fragments(id, 200)
    }

    /// Sends a piece to any host. Must run in the router's network namespace.
    fn send(&mut self, socket: &Raw, piece: &Ip) -> std::io::Result<()> {
        let host = self.random.below(self.macs.len() as u64) as usize;
        let (to, from) = (self.macs[host], [2, 0, 0, 0, 0, 0xfe]);
        let frame = ethernet(to, from, &[], piece.source.is_ipv4(), &piece.bytes());
        socket.send(index_of(&format!("h{}", host + 1))?, &frame)
    }

    /// Sends pings whose pieces land anywhere in any order, and waits until all are
    /// answered whole: then all pieces of each have met.
    fn all_answered(&mut self, pop: &Pop) {
        const PINGS: u8 = 40;
        let listener = in_namespace(&pop.lab.namespace(Node::Client(1)), || {
            Ok(Raw::listener(index_of("eth0")?)?)
        })
        .unwrap();
        in_namespace(&pop.lab.namespace(Node::Router), || {
            let socket = Raw::sender()?;
            for number in 0..PINGS {
                let mut pieces = self.pieces(number);
                self.random.shuffle(&mut pieces);
                for piece in pieces {
                    self.send(&socket, &piece)?;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        })
        .unwrap();
        let mut answered = BTreeSet::new();
        let mut buffer = [0; 2048];
        // The client hears other things as well: silence alone would not end this.
        let until = Instant::now() + PATIENCE;
        while answered.len() < usize::from(PINGS)
            && let Some(left) = until.checked_duration_since(Instant::now())
            && let Some(frame) = listener.receive(&mut buffer, left).unwrap()
        {
            answered.extend(answer(frame));
        }
        assert_eq!(
            answered.len(),
            usize::from(PINGS),
            "{answered:?}\n{}",
            pop.outcomes()
        );
    }
}

#[test]
fn fragments_that_land_on_different_hosts_come_together() {
    let pop = Pop::up("pieces");
    Pings::of(&pop).all_answered(&pop);
    let outcomes = pop.outcomes();
    let told = |labels: &[&str]| pop.lab.outcomes(labels).unwrap();
    assert!(told(&["fragment_gathered"]) > 0, "{outcomes}");
    assert!(
        told(&["fragment_held"]) > 0,
        "none came before the first one:\n{outcomes}"
    );
    pop.down();
}

/// More datagrams are on their way at a time than the hosts have room for.
#[test]
fn more_fragmented_datagrams_than_there_is_room_for_harm_nothing_else() {
    /// Entries of each host, and datagrams: three times as many for each.
    const ROOM: u16 = 256;
    const DATAGRAMS: u16 = 3 * 3 * ROOM;
    /// A ping that nobody waits for.
    const LOST: u8 = u8::MAX;
    let builder = Lab::builder().name(&unique("crowd")).hosts(3).racks(2);
    let mut lab = builder.no_homing().up().unwrap();
    for host in 1..=3 {
        let room = format!("[limits]\nfragments = {ROOM}");
        lab.configure(host, &room).unwrap();
    }
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    let clients = pop.load(30);
    let mut pings = Pings::of(&pop);
    pings.all_answered(&pop);
    let evicted = |on| hook(&pop.lab, on, "fragments_evicted_at_least");
    assert_eq!((1..=3).map(evicted).sum::<u64>(), 0);

    // First the first pieces of all, then all others: what is left of the oldest
    // waits in vain.
    in_namespace(&pop.lab.namespace(Node::Router), || {
        let socket = Raw::sender()?;
        let mut rest = Vec::new();
        for number in 0..DATAGRAMS {
            let mut pieces = pings.pieces(LOST);
            rest.extend(pieces.split_off(1));
            // What finds no room on the wire shows nothing.
            pings.send(&socket, &pieces[0])?;
            if number % 16 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for (number, piece) in rest.iter().enumerate() {
            pings.send(&socket, piece)?;
            if number % 16 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    })
    .unwrap();

    // It is counted and named, on each host,
    for on in 1..=3 {
        assert!(evicted(on) > 0, "on {on}");
        let named = || {
            let problems = problems(&pop.lab, on);
            Ok(problems
                .iter()
                .any(|text| text.contains("raise limits.fragments")))
        };
        assert!(
            wait_until(PATIENCE, named).unwrap(),
            "{:?}",
            problems(&pop.lab, on)
        );
    }
    // the oldest have made room for those that come now,
    pings.all_answered(&pop);
    // and connections have noticed nothing.
    let clients = pop.tour(clients);
    pop.unbroken(clients);
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

/// The address that a text names.
pub(super) fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}
