//! A frame in a line, as far as it can be read.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, IpNumber, LaxPacketHeaders, LaxPayloadSlice, LinkHeader, NetHeaders, TcpHeader,
    TransportHeader,
};
use homing_common::{host::GUE_PORT, session::Tuple};

/// What a frame is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// In a line.
    pub text: String,
    /// The session that it, or what it carries through the tunnel, belongs to, if its ends
    /// have ports: whether or not there is such a service or session.
    pub session: Option<Tuple>,
}

/// So many packets within each other are read.
const DEPTH: usize = 2;

/// Says what a frame is.
pub fn describe(frame: &[u8]) -> Described {
    match LaxPacketHeaders::from_ethernet(frame) {
        Ok(headers) => of_headers(&headers, frame.len(), DEPTH),
        Err(_) => Described {
            text: format!("{} bytes, which are no Ethernet frame", frame.len()),
            session: None,
        },
    }
}

fn of_headers(headers: &LaxPacketHeaders<'_>, len: usize, depth: usize) -> Described {
    let only = |text: String| Described {
        text,
        session: None,
    };
    let (source, destination): (IpAddr, IpAddr) = match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => (ip.source.into(), ip.destination.into()),
        Some(NetHeaders::Ipv6(ip, _)) => (ip.source.into(), ip.destination.into()),
        Some(NetHeaders::Arp(_)) => return only(format!("ARP, {len} bytes")),
        None => return only(format!("{}, {len} bytes", link(headers))),
    };
    let ends = format!("{source} > {destination}");
    if let Some(fragment) = fragment(headers) {
        return only(format!("{ends}: {fragment}, {len} bytes"));
    }
    match (&headers.transport, &headers.payload) {
        (Some(TransportHeader::Tcp(tcp)), payload) => {
            let ports = (tcp.source_port, tcp.destination_port);
            let (client, service) = with_ports((source, destination), ports);
            let payload = payload.slice().len();
            Described {
                text: format!(
                    "{client} > {service}: TCP {}, {payload} bytes of payload",
                    flags(tcp)
                ),
                session: Some(tuple(client, service, IpNumber::TCP)),
            }
        }
        (Some(TransportHeader::Udp(udp)), payload) if udp.destination_port == GUE_PORT => {
            inner(&format!("{ends}: GUE"), payload.slice(), depth)
        }
        (Some(TransportHeader::Udp(udp)), payload) => {
            let ports = (udp.source_port, udp.destination_port);
            let (client, service) = with_ports((source, destination), ports);
            let payload = payload.slice().len();
            Described {
                text: format!("{client} > {service}: UDP, {payload} bytes of payload"),
                session: Some(tuple(client, service, IpNumber::UDP)),
            }
        }
        (Some(TransportHeader::Icmpv4(icmp)), _) => only(format!(
            "{ends}: ICMP type {}, {len} bytes",
            icmp.to_bytes()[0]
        )),
        (Some(TransportHeader::Icmpv6(icmp)), _) => only(format!(
            "{ends}: ICMPv6 type {}, {len} bytes",
            icmp.to_bytes()[0]
        )),
        (None, LaxPayloadSlice::Ip(ip)) => match ip.ip_number {
            IpNumber::IPV4 | IpNumber::IPV6 => inner(&format!("{ends}: IPIP"), ip.payload, depth),
            IpNumber(number) => only(format!("{ends}: protocol {number}, {len} bytes")),
        },
        (None, _) => only(format!("{ends}: {len} bytes")),
    }
}

/// What a tunnel packet is.
fn inner(outer: &str, packet: &[u8], depth: usize) -> Described {
    let unread = || Described {
        text: format!("{outer} of {} bytes", packet.len()),
        session: None,
    };
    if depth == 0 {
        return unread();
    }
    let Ok(headers) = LaxPacketHeaders::from_ip(packet) else {
        return unread();
    };
    let inner = of_headers(&headers, packet.len(), depth - 1);
    Described {
        text: format!("{outer} of [{}]", inner.text),
        session: inner.session,
    }
}

fn link(headers: &LaxPacketHeaders<'_>) -> String {
    match &headers.link {
        Some(LinkHeader::Ethernet2(ethernet)) => match ethernet.ether_type {
            EtherType::IPV4 | EtherType::IPV6 => "an IP packet that is cut short".to_owned(),
            EtherType(number) => format!("EtherType {number:#06x}"),
        },
        _ => "what is no IP packet".to_owned(),
    }
}

/// Which fragment a packet is; none if it is whole.
fn fragment(headers: &LaxPacketHeaders<'_>) -> Option<String> {
    let (offset, more) = match headers.net.as_ref()? {
        NetHeaders::Ipv4(ip, _) => (ip.fragment_offset, ip.more_fragments),
        NetHeaders::Ipv6(_, extensions) => {
            let fragment = extensions.fragment.as_ref()?;
            (fragment.fragment_offset, fragment.more_fragments)
        }
        NetHeaders::Arp(_) => return None,
    };
    match (offset.value(), more) {
        (0, false) => None,
        (0, true) => Some("first fragment".to_owned()),
        (units, true) => Some(format!("fragment from {} on", u32::from(units) * 8)),
        (units, false) => Some(format!("last fragment, from {} on", u32::from(units) * 8)),
    }
}

fn with_ports(
    (source, destination): (IpAddr, IpAddr),
    ports: (u16, u16),
) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(source, ports.0),
        SocketAddr::new(destination, ports.1),
    )
}

fn tuple(client: SocketAddr, service: SocketAddr, protocol: IpNumber) -> Tuple {
    Tuple::between(client, service, protocol.0)
}

fn flags(tcp: &TcpHeader) -> String {
    let all = [
        (tcp.syn, "SYN"),
        (tcp.fin, "FIN"),
        (tcp.rst, "RST"),
        (tcp.psh, "PSH"),
        (tcp.ack, "ACK"),
    ];
    let set: Vec<_> = all
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    match set.is_empty() {
        true => "without flags".to_owned(),
        false => set.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    #[test]
    fn udp_and_icmp() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .ipv6(
                "2001:db8::7"
                    .parse::<std::net::Ipv6Addr>()
                    .unwrap()
                    .octets(),
                [1; 16],
                9,
            )
            .udp(7, 53)
            .write(&mut frame, &[0; 12])
            .unwrap();
        let text =
            "[2001:db8::7]:7 > [101:101:101:101:101:101:101:101]:53: UDP, 12 bytes of payload";
        assert_eq!(describe(&frame).text, text);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .icmpv4_echo_request(1, 2)
            .write(&mut frame, &[0; 4])
            .unwrap();
        let described = describe(&frame);
        assert_eq!(described.text, "10.0.0.1 > 10.0.0.2: ICMP type 8, 46 bytes");
        assert_eq!(described.session, None);
    }

    #[test]
    fn fragments_belong_to_no_session() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(7, 53)
            .write(&mut frame, &[0; 16])
            .unwrap();
        frame[20] = 0x20;
        assert_eq!(
            describe(&frame).text,
            "10.0.0.1 > 10.0.0.2: first fragment, 58 bytes"
        );
        frame[20..22].copy_from_slice(&[0, 3]);
        let last = describe(&frame);
        assert_eq!(
            last.text,
            "10.0.0.1 > 10.0.0.2: last fragment, from 24 on, 58 bytes"
        );
        assert_eq!(last.session, None);
    }

    #[test]
    fn what_is_no_packet_is_said_to_be_none() {
        assert_eq!(
            describe(&[1, 2]).text,
            "2 bytes, which are no Ethernet frame"
        );
        let mut frame = [0; 20];
        frame[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(describe(&frame).text, "EtherType 0x88cc, 20 bytes");
    }

    proptest! {
        #[test]
        fn any_bytes_are_described(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!describe(&frame).text.is_empty());
        }
    }
}
