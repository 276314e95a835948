//! Header templates: the outer header towards a host, computed ahead of time.
//!
//! Pure. What a template leaves zero, because it differs from packet to packet,
//! is listed at [`Template`]; the kernel side fills it in.

use std::fmt;

use homing_common::{
    host::{Encapsulation, GUE_PORT, HostId, Template, TunnelNetwork},
    net::{Address, IPIP, UDP},
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// IPv4 flags: do not fragment. With it the identification may be zero (RFC 6864).
const DONT_FRAGMENT: u16 = 0x4000;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What all templates of this host have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// How packets travel between hosts.
    pub encapsulation: Encapsulation,
    /// The POP's tunnel network.
    pub tunnel: TunnelNetwork,
    /// This host.
    pub host: HostId,
}

const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;
const UDP_LEN: u16 = 8;

/// Length of the outer IP and UDP headers: what a tunnel packet has more than the one
/// inside.
pub fn outer_len(encapsulation: Encapsulation, network: &TunnelNetwork) -> u16 {
    let ip = if network.is_v4() { IPV4_LEN } else { IPV6_LEN };
    match encapsulation {
        Encapsulation::Ipip => ip,
        Encapsulation::Gue => ip + UDP_LEN,
    }
}

/// The first link of the way to a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// The interface that frames leave by: the one below, if the way is by a
    /// VLAN device.
    pub ifindex: u32,
    /// The VLAN id, if the way is by a VLAN device.
    pub vlan: Option<u16>,
    /// This host's Ethernet address on the link.
    pub source: Mac,
    /// The next hop's Ethernet address.
    pub destination: Mac,
    /// The largest packet the link takes, in bytes from the IP header on.
    pub mtu: u16,
}

impl Outer {
    /// The template towards `target` by way of `hop`.
    pub fn template(&self, target: HostId, hop: &Hop) -> Template {
        let from = self.tunnel.address_of(self.host);
        let to = self.tunnel.address_of(target);
        let protocol = match self.encapsulation {
            Encapsulation::Ipip => IPIP,
            Encapsulation::Gue => UDP,
        };

        let mut header = Writer::default();
        header.put(&hop.destination.0);
        header.put(&hop.source.0);
        if let Some(vlan) = hop.vlan {
            header.put_u16(ETHERTYPE_VLAN);
            header.put_u16(vlan & 0x0fff);
        }
        match (from.as_v4(), to.as_v4()) {
            (Some(from), Some(to)) => {
                header.put_u16(ETHERTYPE_IPV4);
                let l2_len = header.len;
                header.put_v4(protocol, from, to);
                self.finish(header, l2_len, hop)
            }
            _ => {
                header.put_u16(ETHERTYPE_IPV6);
                let l2_len = header.len;
                header.put_v6(protocol, from, to);
                self.finish(header, l2_len, hop)
            }
        }
    }

    fn finish(&self, mut header: Writer, l2_len: usize, hop: &Hop) -> Template {
        if self.encapsulation == Encapsulation::Gue {
            header.put_u16(0); // source port: entropy
            header.put_u16(GUE_PORT);
            header.put_u16(0); // length
            header.put_u16(0); // checksum: none, as GUE allows (RFC 6935 for IPv6)
        }
        Template {
            header: header.bytes,
            ifindex: hop.ifindex,
            mtu: hop.mtu,
            l2_len: l2_len as u8,
            l3_len: (header.len - l2_len) as u8,
        }
    }
}

/// A header that grows from its front; what is not written stays zero.
struct Writer {
    bytes: [u8; 72],
    len: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            bytes: [0; 72],
            len: 0,
        }
    }
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn put_v4(&mut self, protocol: u8, from: [u8; 4], to: [u8; 4]) {
        self.put(&[0x45, 0]); // version and header length, TOS
        self.put_u16(0); // total length
        self.put_u16(0); // identification
        self.put_u16(DONT_FRAGMENT);
        self.put(&[0, protocol]); // TTL
        self.put_u16(0); // checksum
        self.put(&from);
        self.put(&to);
    }

    fn put_v6(&mut self, protocol: u8, from: Address, to: Address) {
        self.put(&[0x60, 0, 0, 0]); // version, traffic class, flow label
        self.put_u16(0); // payload length
        self.put(&[protocol, 0]); // next header, hop limit
        self.put(&from.0);
        self.put(&to.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_header_is_as_long_as_the_fast_path_makes_it() {
        let v6 = TunnelNetwork {
            network: "fd77::".parse::<std::net::IpAddr>().unwrap().into(),
            base: 0xfd77 << 48,
            shift: 0,
            id_mask: 0xffff,
        };
        assert_eq!(outer_len(Encapsulation::Ipip, &v6), 40);
        assert_eq!(outer_len(Encapsulation::Gue, &v6), 48);
    }

    const DST: Mac = Mac([0x02, 0, 0, 0, 0, 0x07]);
    const SRC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

    fn v4() -> TunnelNetwork {
        TunnelNetwork {
            network: Address::v4([10, 77, 0, 0]),
            base: 0x0a4d_0000,
            shift: 4,
            id_mask: 0xfff,
        }
    }

    fn v6() -> TunnelNetwork {
        let mut network = [0; 16];
        network[..2].copy_from_slice(&[0xfd, 0x77]);
        TunnelNetwork {
            network: Address(network),
            base: 0xfd77_0000_0000_0000,
            shift: 0,
            id_mask: 0xffff,
        }
    }

    fn hop(vlan: Option<u16>) -> Hop {
        Hop {
            ifindex: 9,
            vlan,
            source: SRC,
            destination: DST,
            mtu: 1600,
        }
    }

    fn build(encapsulation: Encapsulation, tunnel: TunnelNetwork, vlan: Option<u16>) -> Template {
        Outer {
            encapsulation,
            tunnel,
            host: HostId(1),
        }
        .template(HostId(7), &hop(vlan))
    }

    fn check(template: Template, l2: &[u8], l3: &[u8]) {
        assert_eq!(usize::from(template.l2_len), l2.len());
        assert_eq!(usize::from(template.l3_len), l3.len());
        let mut expected = [l2, l3].concat();
        expected.resize(72, 0);
        assert_eq!(template.header.as_slice(), expected);
        assert_eq!((template.ifindex, template.mtu), (9, 1600));
    }

    #[rustfmt::skip]
    const ETH_V4: [u8; 14] = [2, 0, 0, 0, 0, 7,  2, 0, 0, 0, 0, 1,  0x08, 0x00];
    #[rustfmt::skip]
    const ETH_V6: [u8; 14] = [2, 0, 0, 0, 0, 7,  2, 0, 0, 0, 0, 1,  0x86, 0xdd];
    #[rustfmt::skip]
    const VLAN_V4: [u8; 18] = [2, 0, 0, 0, 0, 7,  2, 0, 0, 0, 0, 1,  0x81, 0x00,  0x01, 0x2c,  0x08, 0x00];
    #[rustfmt::skip]
    const VLAN_V6: [u8; 18] = [2, 0, 0, 0, 0, 7,  2, 0, 0, 0, 0, 1,  0x81, 0x00,  0x01, 0x2c,  0x86, 0xdd];

    #[rustfmt::skip]
    fn ip4(protocol: u8) -> Vec<u8> {
        vec![
            0x45, 0, 0, 0,  0, 0, 0x40, 0,  0, protocol, 0, 0,
            10, 77, 0, 0x10,  10, 77, 0, 0x70,
        ]
    }

    #[rustfmt::skip]
    fn ip6(protocol: u8) -> Vec<u8> {
        vec![
            0x60, 0, 0, 0,  0, 0, protocol, 0,
            0xfd, 0x77, 0, 0, 0, 0, 0, 1,  0, 0, 0, 0, 0, 0, 0, 1,
            0xfd, 0x77, 0, 0, 0, 0, 0, 7,  0, 0, 0, 0, 0, 0, 0, 1,
        ]
    }

    /// UDP to port 6080, with source port, length and checksum zero.
    const GUE: [u8; 8] = [0, 0, 0x17, 0xc0, 0, 0, 0, 0];

    #[test]
    fn ipip_over_v4() {
        check(build(Encapsulation::Ipip, v4(), None), &ETH_V4, &ip4(4));
        check(
            build(Encapsulation::Ipip, v4(), Some(300)),
            &VLAN_V4,
            &ip4(4),
        );
    }

    #[test]
    fn ipip_over_v6() {
        check(build(Encapsulation::Ipip, v6(), None), &ETH_V6, &ip6(4));
        check(
            build(Encapsulation::Ipip, v6(), Some(300)),
            &VLAN_V6,
            &ip6(4),
        );
    }

    #[test]
    fn gue_over_v4() {
        let l3 = [ip4(17), GUE.to_vec()].concat();
        check(build(Encapsulation::Gue, v4(), None), &ETH_V4, &l3);
        check(build(Encapsulation::Gue, v4(), Some(300)), &VLAN_V4, &l3);
    }

    #[test]
    fn gue_over_v6() {
        let l3 = [ip6(17), GUE.to_vec()].concat();
        check(build(Encapsulation::Gue, v6(), None), &ETH_V6, &l3);
        check(build(Encapsulation::Gue, v6(), Some(300)), &VLAN_V6, &l3);
    }

    #[test]
    fn a_vlan_id_never_reaches_into_the_priority_bits() {
        let template = build(Encapsulation::Ipip, v4(), Some(0xffff));
        assert_eq!(template.header[14..16], [0x0f, 0xff]);
    }
}
