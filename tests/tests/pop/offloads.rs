//! Full-size segments with the offloads of network devices: what a sender hands over
//! in one piece of many segments (TSO, GSO), and what a receiver joins to one (GRO).
//!
//! On the links of a lab such a super-packet travels whole, up to the router's ports
//! that face hosts: those cut it up, as every device does before a wire, because XDP on
//! the other end sees frames. There it is segment by segment that Homing forwards, and
//! the owner's end joins again what was stripped.

use homing_tests::lab::{
    Lab, Node,
    plan::{CLIENT_MTU, FABRIC_MTU},
};

use super::{
    bulk::Detour,
    common::{Pop, dropped},
    watch::Watch,
};

/// Connections, half of them over IPv6.
const CONNECTIONS: usize = 6;
/// Requests of each, and as many answers: 6 MiB both ways.
const REQUESTS: u64 = 96;

/// Who may hand over, and make, more than one segment in one piece.
#[derive(Clone, Copy, Debug)]
struct Offloads {
    /// The sender's and the router's devices cut up segments.
    tso: bool,
    /// Their stacks do, as late as can be.
    gso: bool,
    /// Receivers join them.
    gro: bool,
}

impl Offloads {
    /// Sets them on all machines, and checks that they are in force. The offloads of
    /// sending at the ends that face XDP are fixed: the kernel has switched TSO off
    /// there, and the lab checksums.
    fn set(self, lab: &Lab) {
        let client = [(Node::Client(1), "eth0".to_owned())];
        let router = [(Node::Router, "c1".to_owned())];
        let hosts = 1..=lab.plan().hosts;
        let ports = hosts.clone().map(|host| (Node::Router, format!("h{host}")));
        let hosts = hosts.map(|host| (Node::Host(host), "eth0".to_owned()));
        for (node, device) in client.iter().chain(&router) {
            set(lab, *node, device, "tx-checksumming", true);
            set(lab, *node, device, "tcp-segmentation-offload", self.tso);
            set(lab, *node, device, "generic-segmentation-offload", self.gso);
        }
        for (node, device) in client.into_iter().chain(router).chain(ports).chain(hosts) {
            set(lab, node, &device, "generic-receive-offload", self.gro);
        }
    }
}

/// Switches a feature of a device on or off.
fn set(lab: &Lab, node: Node, device: &str, feature: &str, on: bool) {
    let short = match feature {
        "tx-checksumming" => "tx",
        "tcp-segmentation-offload" => "tso",
        "generic-segmentation-offload" => "gso",
        "generic-receive-offload" => "gro",
        _ => unreachable!("{feature}"),
    };
    let value = if on { "on" } else { "off" };
    lab.exec(node, "ethtool", &["-K", device, short, value])
        .unwrap();
    let features = lab.exec(node, "ethtool", &["-k", device]).unwrap();
    let line = format!("{feature}: {value}");
    assert!(
        features.lines().any(|have| have.trim() == line),
        "{device} of {node} has not \"{line}\":\n{features}"
    );
}

/// What came in.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    frames: u64,
    /// … that are longer than the link's MTU allows.
    super_packets: u64,
    longest: usize,
}

/// Watches what comes in by a device of a link with this MTU.
fn watch(lab: &Lab, node: Node, device: &str, mtu: u16) -> Watch<Seen> {
    Watch::start(lab, node, device, move |seen: &mut Seen, frame| {
        seen.frames += 1;
        seen.super_packets += u64::from(frame.len() > 14 + usize::from(mtu));
        seen.longest = seen.longest.max(frame.len());
    })
}

/// What came in, on the way up and down.
#[derive(Debug)]
struct Found {
    /// From the client, at the router.
    router: Seen,
    /// At the owner, after XDP: all of it stripped.
    owner: Seen,
    /// From the router, at the client.
    client: Seen,
}

impl Found {
    /// Where super-packets were seen: at the router, the owner and the client.
    fn super_packets(&self) -> [bool; 3] {
        [self.router, self.owner, self.client].map(|seen| seen.super_packets > 0)
    }
}

/// Bulk data both ways over connections of one host, while ECMP sends them to the
/// others and changes again and again: every byte is right, and nothing was too large
/// for the way.
fn push(pop: &mut Pop, offloads: Offloads) -> Found {
    println!("{offloads:?}");
    offloads.set(&pop.lab);
    let detour = Detour::open(pop, CONNECTIONS, REQUESTS);
    let all = detour.bytes();
    let forwarded = pop.lab.outcomes(&["forwarded"]).unwrap();
    let errors = driver_errors(&pop.lab);
    let lab = &pop.lab;
    let router = watch(lab, Node::Router, "c1", CLIENT_MTU);
    let owner = watch(lab, Node::Host(Detour::OWNER), "eth0", FABRIC_MTU);
    let client = watch(lab, Node::Client(1), "eth0", CLIENT_MTU);
    detour.run(pop);
    let forwarded = pop.lab.outcomes(&["forwarded"]).unwrap() - forwarded;
    // Every byte that came up was forwarded, in segments of a full size at the most.
    assert!(forwarded >= all / u64::from(CLIENT_MTU), "{forwarded}");
    let large = pop.lab.outcomes(&["too_big", "too_big_told"]).unwrap();
    assert_eq!(large, 0, "{}", pop.outcomes());
    // A queue that a busy machine is late to empty may cost a few; a size that the
    // driver refuses costs every full segment.
    let errors = driver_errors(&pop.lab) - errors;
    assert!(errors * 100 < forwarded, "{errors} of {forwarded} frames");
    let found = Found {
        router: router.finish(),
        owner: owner.finish(),
        client: client.finish(),
    };
    println!("{found:?}");
    found
}

/// What drivers refused of XDP, on all hosts.
fn driver_errors(lab: &Lab) -> u64 {
    let all = dropped(lab).into_iter();
    let drivers = all.filter(|(_, what, _)| what.starts_with("eth0 "));
    drivers.map(|(_, _, count)| count).sum()
}

#[test]
fn super_packets_of_senders_and_receivers_come_through_reshuffles() {
    let mut pop = Pop::up("super");
    for (tso, gso, gro, seen) in [
        // The client's come whole to the router, those to the client are joined there.
        (true, true, true, [true, true, true]),
        // The client's are cut up before its wire, and joined by the router.
        (false, true, true, [true, true, true]),
        // Nobody joins anything.
        (true, true, false, [true, false, false]),
        // Every segment travels alone.
        (false, false, false, [false, false, false]),
    ] {
        let offloads = Offloads { tso, gso, gro };
        let found = push(&mut pop, offloads);
        assert_eq!(found.super_packets(), seen, "{offloads:?}");
    }
    pop.down();
}
