//! Random headers, read by the program and by a parser that has nothing to do with it:
//! what the parser takes for a whole packet of another host's session goes to that host
//! by the tuple that the parser read, and what it takes for anything else is never sent
//! anywhere as a packet of some session.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use etherparse::{Ipv6ExtensionSlice, LenSource, NetSlice, SlicedPacket, TransportSlice};
use homing_common::{
    host::{Encapsulation, HostId},
    outcome::Outcome,
    session::Tuple,
};
use homing_tests::{
    packet::{Ip, ethernet, frame},
    program::{Action, Program, Run, host_1, in_namespace, tunnel_v6},
    random::{Random, cases},
};

use super::common::outer;

mod frames;

use frames::{
    CLIENT_PORTS, CLIENTS, FRAGMENT, SERVICE_PORTS, SERVICES, TCP, UDP, one_in, packet, tags,
};

/// The owners of all sessions of the services: host 2, host 3, or nobody known.
type Owners = HashMap<u64, u16>;

fn pop(random: &mut Random) -> (Program, Owners) {
    let mut program = host_1(tunnel_v6(), Encapsulation::Ipip).unwrap();
    let mut owners = Owners::new();
    for (clients, services) in CLIENTS.iter().zip(SERVICES) {
        let ends = |ips: &[&str], ports: &[u16]| -> Vec<SocketAddr> {
            let ips = ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap());
            ips.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)))
                .collect()
        };
        for service in ends(&services, &SERVICE_PORTS) {
            for protocol in [TCP, UDP] {
                let endpoint = service.to_string();
                program.add_service_of(&endpoint, protocol).unwrap();
                for client in ends(clients, &CLIENT_PORTS) {
                    let owner = 1 + random.below(3) as u16;
                    if owner > 1 {
                        let id = id(&program, client, service, protocol);
                        program.set_owner_of(id, owner).unwrap();
                        owners.insert(id, owner);
                    }
                }
            }
        }
    }
    (program, owners)
}

fn id(program: &Program, client: SocketAddr, service: SocketAddr, protocol: u8) -> u64 {
    let tuple = Tuple::between(client, service, protocol);
    tuple.id(&program.settings().session_key).0
}

/// What the other parser makes of a packet.
#[derive(Debug, PartialEq)]
enum Reading {
    /// A whole segment or datagram, with all that the program promises to read: its
    /// ends, its protocol, and its length.
    Whole(SocketAddr, SocketAddr, u8, usize),
    /// A fragment.
    Fragment,
    /// An ICMP message, which may be about a session.
    Icmp,
    /// Something else.
    Other,
}

fn read(sliced: &SlicedPacket<'_>) -> Reading {
    let (source, destination, len, fragment) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            if ip.extensions().auth.is_some() {
                return Reading::Other;
            }
            let header = ip.header();
            let (from, to) = (header.source_addr(), header.destination_addr());
            let len = usize::from(header.total_len());
            (from.into(), to.into(), len, ip.is_payload_fragmented())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let extensions: Vec<_> = ip.extensions().clone().into_iter().collect();
            let is = |kind: fn(&Ipv6ExtensionSlice<'_>) -> bool| extensions.iter().any(kind);
            let fragment = is(|it| matches!(it, Ipv6ExtensionSlice::Fragment(_)));
            let authentic = is(|it| matches!(it, Ipv6ExtensionSlice::Authentication(_)));
            // A route that goes on from the destination makes it a stop on the way.
            let goes_on = |it: &Ipv6ExtensionSlice<'_>| match it {
                Ipv6ExtensionSlice::Routing(header) => header.payload().get(1) != Some(&0),
                _ => false,
            };
            let unread = extensions.iter();
            let mut read = unread.take_while(|it| !matches!(it, Ipv6ExtensionSlice::Fragment(_)));
            if read.any(goes_on) {
                return Reading::Other;
            }
            // With a length of zero the parser takes all there is.
            let said = ip.payload().len_source == LenSource::Ipv6HeaderPayloadLen;
            let header = ip.header();
            let len = 40 + usize::from(header.payload_length());
            if !fragment && (authentic || !said || extensions.len() > 4) {
                return Reading::Other;
            }
            let (from, to) = (header.source_addr(), header.destination_addr());
            (IpAddr::from(from), IpAddr::from(to), len, fragment)
        }
        _ => return Reading::Other,
    };
    if fragment {
        return Reading::Fragment;
    }
    let (ports, protocol) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => ((tcp.source_port(), tcp.destination_port()), TCP),
        // A length of zero means nothing outside of jumbograms.
        Some(TransportSlice::Udp(udp)) if udp.length() > 0 => {
            ((udp.source_port(), udp.destination_port()), UDP)
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => return Reading::Icmp,
        _ => return Reading::Other,
    };
    Reading::Whole(
        SocketAddr::new(source, ports.0),
        SocketAddr::new(destination, ports.1),
        protocol,
        len,
    )
}

/// Whether a packet that cannot be read may be a fragment for all the program knows:
/// those that deceive are dropped.
fn may_be_fragment(bytes: &[u8]) -> bool {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => bytes.len() >= 8 && u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0,
        Some(6) => bytes.contains(&FRAGMENT),
        _ => false,
    }
}

/// How the way of a fragment may end.
const OF_FRAGMENTS: [Outcome; 9] = [
    Outcome::Fragment,
    Outcome::FragmentLocal,
    Outcome::FragmentForwarded,
    Outcome::FragmentHeld,
    Outcome::FragmentLimited,
    Outcome::FragmentTiny,
    Outcome::FragmentUnknown,
    Outcome::StrippedFragment,
    Outcome::TunnelNotService,
];

/// Asserts that a packet went to the session's owner, whole, by the tuple that was
/// read.
#[track_caller]
fn assert_sent(program: &Program, run: &Run, packet: &[u8], id: u64, owner: u16, what: &str) {
    assert_eq!(run.action, Action::Tx, "{what}");
    let header = &run.frame[14..54];
    let flow = u32::from_be_bytes(header[..4].try_into().unwrap()) & 0xf_ffff;
    assert_eq!(u64::from(flow), id & 0xf_ffff, "another tuple: {what}");
    let to = program.settings().tunnel.address_of(HostId(owner));
    assert_eq!(header[24..40], to.0, "{what}");
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    assert_eq!(len, packet.len(), "{what}");
    assert_eq!(run.frame[54..54 + len], *packet, "{what}");
}

#[test]
fn what_is_read_is_read_right_and_what_is_not_goes_up() {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(|| {
        let mut random = Random::new(seed);
        let (mut program, owners) = pop(&mut random);
        let (mut sent, mut up, mut unread) = (0, 0, 0);
        for _ in 0..cases(4000) {
            let (is_v4, packet) = packet(&mut random);
            let tags = tags(&mut random);
            let frame = frame(&tags, is_v4, &packet);
            let run = program.run(&frame).unwrap();
            let linked = tags.len() <= 2 && tags.iter().all(|(tpid, _)| *tpid != 0x9100);
            let reading = match SlicedPacket::from_ethernet(&frame) {
                Ok(sliced) if linked => read(&sliced),
                _ => Reading::Other,
            };
            let what = format!("{reading:?} {:?} {frame:02x?}", run.outcome);
            match reading {
                Reading::Whole(client, service, protocol, len) => {
                    let id = id(&program, client, service, protocol);
                    if let Some(owner) = owners.get(&id) {
                        assert_eq!(run.outcome, Outcome::Forwarded, "{what}");
                        assert_sent(&program, &run, &packet[..len], id, *owner, &what);
                        sent += 1;
                    } else {
                        assert_ne!(run.action, Action::Tx, "{what}");
                        assert_ne!(run.outcome, Outcome::Malformed, "{what}");
                        up += 1;
                    }
                }
                // Behind more headers than are read it goes up.
                Reading::Fragment => {
                    let ends = OF_FRAGMENTS.contains(&run.outcome);
                    assert!(ends || run.action == Action::Pass, "{what}");
                }
                // What they are about is for the tests of errors to say.
                Reading::Icmp => {}
                _ if may_be_fragment(&packet) && OF_FRAGMENTS.contains(&run.outcome) => {}
                _ => {
                    assert_eq!(run.action, Action::Pass, "{what}");
                    assert_eq!(run.frame, frame, "{what}");
                    unread += 1;
                }
            }
        }
        println!("{sent} sent to their owners, {up} of no known owner, {unread} not read");
        assert!(sent > 100 && up > 100 && unread > 100);
    });
}

#[test]
fn within_the_tunnel_what_is_not_read_is_dropped() {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(|| {
        let mut random = Random::new(seed);
        let (mut program, owners) = pop(&mut random);
        let (mut sent, mut unread) = (0, 0);
        for _ in 0..cases(2000) {
            let (is_v4, packet) = packet(&mut random);
            let tags = if one_in(&mut random, 4) {
                &[(0x8100, 7)][..]
            } else {
                &[]
            };
            let carrier = Ip::new(
                "fd77::1".parse().unwrap(),
                "fd77::1".parse().unwrap(),
                6,
                vec![],
            );
            let mut tunnel = outer(&program, 2, 1, &carrier, random.next());
            tunnel.protocol = if is_v4 { 4 } else { 41 };
            tunnel.body.clone_from(&packet);
            let frame = tunnel.frame(tags);
            let run = program.run(&frame).unwrap();
            // Behind another link layer, so that the parser knows the family.
            let bare = ethernet([0; 6], [0; 6], &[], is_v4, &packet);
            let reading = SlicedPacket::from_ethernet(&bare);
            let reading = reading.map_or(Reading::Other, |sliced| read(&sliced));
            let what = format!("{reading:?} {:?} {frame:02x?}", run.outcome);
            match reading {
                Reading::Whole(client, service, protocol, len) => {
                    let id = id(&program, client, service, protocol);
                    if owners.get(&id) == Some(&3) {
                        assert_eq!(run.outcome, Outcome::SentOn, "{what}");
                        assert_sent(&program, &run, &packet[..len], id, 3, &what);
                        sent += 1;
                    } else {
                        assert_ne!(run.action, Action::Tx, "{what}");
                        assert_ne!(run.outcome, Outcome::TunnelMalformed, "{what}");
                    }
                }
                Reading::Fragment => {
                    let ends = OF_FRAGMENTS.contains(&run.outcome);
                    assert!(ends || run.action == Action::Drop, "{what}");
                }
                Reading::Icmp => {}
                _ if may_be_fragment(&packet) && OF_FRAGMENTS.contains(&run.outcome) => {}
                _ => {
                    assert_eq!(run.action, Action::Drop, "{what}");
                    unread += 1;
                }
            }
        }
        println!("{sent} sent on, {unread} not read");
        assert!(sent > 50 && unread > 50);
    });
}
