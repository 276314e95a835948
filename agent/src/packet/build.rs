//! A frame made of what a person says of it.

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, UdpHeader,
};
use homing_common::host::{Encapsulation, GUE_PORT};
use serde::{Deserialize, Serialize};

/// What a packet is, on the command line and in the API alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP: opens a connection
    Syn,
    /// TCP: of an open connection
    Ack,
    /// TCP: ends a connection
    Fin,
    /// TCP: resets a connection
    Rst,
    /// TCP: what only servers send
    SynAck,
    /// UDP: a datagram
    Udp,
}

/// A packet of a client to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The client.
    pub client: SocketAddr,
    /// The service, of the same family.
    pub service: SocketAddr,
    /// What it is.
    pub kind: Kind,
    /// The host that sent it through the tunnel; none: it came off the wire.
    pub from: Option<SourceHost>,
}

/// The outer header of a packet that came through the tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceHost {
    /// The sender's tunnel address.
    pub address: IpAddr,
    /// The receiver's, of the same family.
    pub to: IpAddr,
    /// How.
    pub encapsulation: Encapsulation,
    /// What its hop limit is on arrival.
    pub hop_limit: u8,
}

/// Whose Ethernet addresses do not matter.
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 65_535;
/// Sequence numbers that no connection has to know.
const SEQ: u32 = 1_000;
const ACK: u32 = 2_000;
/// Bytes of payload, where there is some.
const PAYLOAD: [u8; 8] = [0; 8];

impl Probe {
    /// The frame. None if its addresses are of different families.
    pub fn frame(&self) -> Option<Vec<u8>> {
        let ip = ip_headers((self.client.ip(), self.service.ip()), HOP_LIMIT)?;
        let packet = self.packet(ip);
        match self.from {
            None => Some(with_link(self.client.is_ipv4(), &packet)),
            Some(from) => from.wrap(&packet, self.client.is_ipv4()),
        }
    }

    fn packet(&self, ip: IpHeaders) -> Vec<u8> {
        let ports = (self.client.port(), self.service.port());
        let builder = PacketBuilder::ip(ip);
        let mut packet = Vec::new();
        let written = match self.kind {
            Kind::Udp => builder.udp(ports.0, ports.1).write(&mut packet, &PAYLOAD),
            kind => {
                let tcp = builder.tcp(ports.0, ports.1, SEQ, WINDOW);
                let (tcp, payload) = match kind {
                    Kind::Syn => (tcp.syn(), &[][..]),
                    Kind::SynAck => (tcp.syn().ack(ACK), &[][..]),
                    Kind::Fin => (tcp.fin().ack(ACK), &[][..]),
                    Kind::Rst => (tcp.rst(), &[][..]),
                    Kind::Ack | Kind::Udp => (tcp.psh().ack(ACK), &PAYLOAD[..]),
                };
                tcp.write(&mut packet, payload)
            }
        };
        // Some bytes of payload fit into every packet, and a vector takes them.
        debug_assert!(written.is_ok());
        packet
    }
}

impl SourceHost {
    fn wrap(&self, packet: &[u8], v4: bool) -> Option<Vec<u8>> {
        let udp = match self.encapsulation {
            Encapsulation::Ipip => Vec::new(),
            Encapsulation::Gue => {
                let len = u16::try_from(UdpHeader::LEN + packet.len()).ok()?;
                // The checksum is left out, as hosts do.
                let header = UdpHeader {
                    source_port: 0xc000,
                    destination_port: GUE_PORT,
                    length: len,
                    checksum: 0,
                };
                header.to_bytes().to_vec()
            }
        };
        let protocol = match (self.encapsulation, v4) {
            (Encapsulation::Gue, _) => IpNumber::UDP,
            (Encapsulation::Ipip, true) => IpNumber::IPV4,
            (Encapsulation::Ipip, false) => IpNumber::IPV6,
        };
        let mut outer = ip_headers((self.address, self.to), self.hop_limit)?;
        let len = udp.len() + packet.len();
        let outer_v4 = match &mut outer {
            IpHeaders::Ipv4(header, _) => {
                header.protocol = protocol;
                header.set_payload_len(len).ok()?;
                header.header_checksum = header.calc_header_checksum();
                true
            }
            IpHeaders::Ipv6(header, _) => {
                header.next_header = protocol;
                header.set_payload_length(len).ok()?;
                false
            }
        };
        let mut whole = Vec::new();
        outer.write(&mut whole).ok()?;
        whole.extend_from_slice(&udp);
        whole.extend_from_slice(packet);
        Some(with_link(outer_v4, &whole))
    }
}

fn ip_headers((from, to): (IpAddr, IpAddr), hop_limit: u8) -> Option<IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header =
                Ipv4Header::new(0, hop_limit, IpNumber::TCP, from.octets(), to.octets()).ok()?;
            Some(IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::TCP,
                hop_limit,
                source: from.octets(),
                destination: to.octets(),
            };
            Some(IpHeaders::Ipv6(header, Default::default()))
        }
        _ => None,
    }
}

/// An IP packet as an Ethernet frame.
fn with_link(v4: bool, packet: &[u8]) -> Vec<u8> {
    let link = Ethernet2Header {
        source: MACS.0,
        destination: MACS.1,
        ether_type: if v4 { EtherType::IPV4 } else { EtherType::IPV6 },
    };
    let mut frame = link.to_bytes().to_vec();
    frame.extend_from_slice(packet);
    frame
}

#[cfg(test)]
mod tests {
    use homing_common::session::Tuple;

    use super::*;
    use crate::packet::describe;

    fn ends(v4: bool) -> (SocketAddr, SocketAddr) {
        let (client, service) = match v4 {
            true => ("198.51.100.7:40312", "203.0.113.10:443"),
            false => ("[2001:db8::7]:40312", "[2001:db8:113::10]:443"),
        };
        (client.parse().unwrap(), service.parse().unwrap())
    }

    #[test]
    fn what_is_built_is_described_as_what_was_asked_for() {
        let kinds = [
            (Kind::Syn, "TCP SYN, 0 bytes of payload"),
            (Kind::Ack, "TCP PSH ACK, 8 bytes of payload"),
            (Kind::Fin, "TCP FIN ACK, 0 bytes of payload"),
            (Kind::Rst, "TCP RST, 0 bytes of payload"),
            (Kind::SynAck, "TCP SYN ACK, 0 bytes of payload"),
            (Kind::Udp, "UDP, 8 bytes of payload"),
        ];
        for v4 in [true, false] {
            let (client, service) = ends(v4);
            for (kind, words) in kinds {
                let probe = Probe {
                    client,
                    service,
                    kind,
                    from: None,
                };
                let described = describe(&probe.frame().unwrap());
                assert_eq!(described.text, format!("{client} > {service}: {words}"));
                let protocol = if kind == Kind::Udp { 17 } else { 6 };
                let session = Tuple::between(client, service, protocol);
                assert_eq!(described.session, Some(session));
            }
        }
    }

    #[test]
    fn through_the_tunnel_it_is_inside_of_another() {
        let outers = [
            ("10.77.0.32", "10.77.0.16"),
            ("fd77:0:0:2::1", "fd77:0:0:1::1"),
        ];
        for (address, to) in outers {
            for (encapsulation, name) in
                [(Encapsulation::Ipip, "IPIP"), (Encapsulation::Gue, "GUE")]
            {
                for v4 in [true, false] {
                    let (client, service) = ends(v4);
                    let from = SourceHost {
                        address: address.parse().unwrap(),
                        to: to.parse().unwrap(),
                        encapsulation,
                        hop_limit: 8,
                    };
                    let probe = Probe {
                        client,
                        service,
                        kind: Kind::Syn,
                        from: Some(from),
                    };
                    let described = describe(&probe.frame().unwrap());
                    let inner = format!("{client} > {service}: TCP SYN, 0 bytes of payload");
                    let text = format!("{address} > {to}: {name} of [{inner}]");
                    assert_eq!(described.text, text);
                    assert_eq!(described.session, Some(Tuple::between(client, service, 6)));
                }
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        let (client, service) = (ends(true).0, ends(false).1);
        assert_eq!(
            Probe {
                client,
                service,
                kind: Kind::Syn,
                from: None
            }
            .frame(),
            None
        );
    }
}
