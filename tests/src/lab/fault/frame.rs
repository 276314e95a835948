//! Who sent a frame, and what it is: read from the frame alone.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use homing_common::echo::Echo;

use super::super::plan::{AGENT_PORT, GROUP_PORT, Node, Plan};

/// What a frame shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The machine that sent it. What cannot be told counts as the router's.
    pub from: Node,
    /// Whether it is between agents: an echo, which a kernel answers, is not.
    pub gossip: bool,
    /// Whether it is for more than one receiver.
    pub multicast: bool,
}

/// Knows the machines of a lab by their addresses.
pub struct Reader {
    macs: HashMap<[u8; 6], Node>,
    addresses: HashMap<IpAddr, Node>,
    tunnels: Vec<(IpAddr, u32, Node)>,
}

impl Reader {
    /// A reader of this lab's frames.
    pub fn new(plan: &Plan) -> Self {
        let mut reader = Self {
            macs: HashMap::new(),
            addresses: HashMap::new(),
            tunnels: Vec::new(),
        };
        for host in 1..=plan.hosts {
            let node = Node::Host(host);
            if let Some(mac) = parse_mac(&plan.host_mac(host)) {
                reader.macs.insert(mac, node);
            }
            reader.addresses.insert(plan.host_v4(host).into(), node);
            reader.addresses.insert(plan.host_v6(host).into(), node);
            let prefix = plan.tunnel_prefix(host);
            if let Some((network, len)) = prefix.split_once('/')
                && let (Ok(network), Ok(len)) = (network.parse(), len.parse())
            {
                reader.tunnels.push((network, len, node));
            }
        }
        for client in 1..=plan.clients {
            let (v4, v6) = plan.client_addresses(client);
            reader.addresses.insert(v4.into(), Node::Client(client));
            reader.addresses.insert(v6.into(), Node::Client(client));
        }
        reader
    }

    /// What a frame shows; one that is cut short shows less.
    pub fn read(&self, frame: &[u8]) -> Seen {
        let mut seen = Seen {
            from: Node::Router,
            gossip: false,
            multicast: frame.first().is_some_and(|byte| byte & 1 != 0),
        };
        // Within a rack frames come with their sender's own Ethernet address; through
        // the router with the router's, and then the IP source says it.
        if let Some(node) = frame.get(6..12).and_then(|mac| self.macs.get(mac)) {
            seen.from = *node;
        }
        let Some((source, udp)) = ip(frame) else {
            return seen;
        };
        if seen.from == Node::Router {
            seen.from = self.sender(source);
        }
        seen.gossip = udp.is_some_and(|(port, payload)| {
            [AGENT_PORT, GROUP_PORT].contains(&port) && !payload.starts_with(&Echo::MAGIC)
        });
        seen
    }

    fn sender(&self, source: IpAddr) -> Node {
        let tunnel = || {
            let found = self.tunnels.iter().find(|(network, len, _)| {
                bits(*network).0 == bits(source).0 && {
                    let shift = 128 - (*len + if source.is_ipv4() { 96 } else { 0 });
                    (bits(*network).1 ^ bits(source).1).checked_shr(shift) == Some(0)
                }
            });
            found.map(|(.., node)| *node)
        };
        self.addresses
            .get(&source)
            .copied()
            .or_else(tunnel)
            .unwrap_or(Node::Router)
    }
}

/// Whether it is IPv4, and an address as a number.
fn bits(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (true, u32::from(address).into()),
        IpAddr::V6(address) => (false, address.into()),
    }
}

/// The port that a UDP packet is for, and what is in it.
type Udp<'a> = (u16, &'a [u8]);

/// The source of an IP packet, and its UDP part if it has one.
fn ip(frame: &[u8]) -> Option<(IpAddr, Option<Udp<'_>>)> {
    let packet = frame.get(14..)?;
    let udp_at = |at: usize| {
        let bytes = packet.get(at + 2..at + 4)?;
        let payload = packet.get(at + 8..).unwrap_or_default();
        Some((u16::from_be_bytes([bytes[0], bytes[1]]), payload))
    };
    const UDP: u8 = 17;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let first = packet.get(6..8)? == [0x40, 0] || packet.get(6..8)? == [0, 0];
            let header = usize::from(packet[0] & 15) * 4;
            let udp = (packet[9] == UDP && first).then(|| udp_at(header));
            Some((Ipv4Addr::from(source).into(), udp.flatten()))
        }
        [0x86, 0xdd] => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let udp = (packet[6] == UDP).then(|| udp_at(40));
            Some((Ipv6Addr::from(source).into(), udp.flatten()))
        }
        _ => None,
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::{Outer, Tunnel};

    fn plan(outer: Outer) -> Plan {
        crate::lab::Lab::builder()
            .hosts(4)
            .racks(2)
            .tunnel(Tunnel::Ipip)
            .outer(outer)
            .plan
    }

    fn frame(source_mac: &str, group: bool, ip: &[u8]) -> Vec<u8> {
        let mut frame = vec![u8::from(group) | 2, 0, 0, 0, 0, 9];
        frame.extend(parse_mac(source_mac).unwrap());
        frame.extend(match ip[0] >> 4 {
            4 => [0x08, 0x00],
            _ => [0x86, 0xdd],
        });
        frame.extend(ip);
        frame
    }

    fn v4(source: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 8, protocol, 0, 0];
        packet.extend(source);
        packet.extend([10, 1, 2, 13, 1, 1]);
        packet.extend(port.to_be_bytes());
        packet.extend([0; 4]);
        packet
    }

    const ROUTER: &str = "02:68:6d:01:01:01";

    #[test]
    fn senders_are_known_by_mac_within_a_rack_and_by_address_beyond() {
        let reader = Reader::new(&plan(Outer::V4));
        let see = |mac: &str, group, ip: &[u8]| reader.read(&frame(mac, group, ip));
        // Host 2's own MAC, whatever is inside.
        let seen = see("02:68:6d:01:01:0c", true, &v4([10, 1, 1, 12], 17, 7947));
        assert_eq!(
            seen,
            Seen {
                from: Node::Host(2),
                gossip: true,
                multicast: true
            }
        );
        // By the router: fabric, tunnel, client, and an answer to a client.
        let from = |source| see(ROUTER, false, &v4(source, 6, 443)).from;
        assert_eq!(from([10, 1, 1, 11]), Node::Host(1));
        assert_eq!(from([10, 77, 0, 47]), Node::Host(2));
        assert_eq!(from([10, 77, 0, 48]), Node::Host(3));
        assert_eq!(from([10, 2, 1, 2]), Node::Client(1));
        assert_eq!(from([203, 0, 113, 10]), Node::Router);
        assert!(!see(ROUTER, false, &v4([10, 1, 1, 11], 17, 53)).gossip);
        assert!(!see(ROUTER, false, &v4([10, 1, 1, 11], 6, 7946)).gossip);
        // What kernels say to each other is no gossip.
        let mut echo = v4([10, 1, 1, 11], 17, 7946);
        assert!(see(ROUTER, false, &echo).gossip);
        echo.extend(Echo::MAGIC);
        assert!(!see(ROUTER, false, &echo).gossip);
    }

    #[test]
    fn ipv6_frames_are_read_too() {
        let reader = Reader::new(&plan(Outer::V6));
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 8];
        packet.extend("fd77:0:0:3::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend([0; 16]);
        packet.extend([1, 1, 0x1f, 0x0a, 0, 8, 0, 0]);
        let seen = reader.read(&frame(ROUTER, false, &packet));
        assert_eq!((seen.from, seen.gossip), (Node::Host(3), true));
    }

    #[test]
    fn whatever_is_cut_short_is_read_without_harm() {
        let reader = Reader::new(&plan(Outer::V4));
        let whole = frame(ROUTER, false, &v4([10, 1, 1, 11], 17, 7946));
        for len in 0..whole.len() {
            reader.read(&whole[..len]);
        }
    }
}
