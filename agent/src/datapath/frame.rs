//! Frames that the kernel side has handed over, read once more: where the headers
//! stand, and what is left of a tunnel packet without its outer headers.
//!
//! The kernel side has checked what it parks. Nothing here relies on that: what
//! contradicts itself is not read.

use homing_common::net::{IPIP, IPV6_IN_IP, TCP, UDP};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];

/// As many VLAN tags and IPv6 extension headers as the kernel side reads.
const VLAN_TAGS_MAX: usize = 2;
const EXTENSIONS_MAX: usize = 4;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

const UDP_LEN: usize = 8;
const TCP_MIN_LEN: usize = 20;

/// What an answerer needs to know of a TCP segment beside its session and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentNumbers {
    /// The sequence number.
    pub seq: u32,
    /// The acknowledgement number.
    pub ack: u32,
}

/// The numbers of the TCP segment in a frame. With `tunnelled` the segment is
/// inside of a tunnel packet. None if the frame holds no such segment.
pub fn segment_numbers(frame: &[u8], tunnelled: bool) -> Option<SegmentNumbers> {
    let outer = Ip::after_link(frame)?;
    let ip = if tunnelled {
        outer.inner(frame)?
    } else {
        outer
    };
    if ip.protocol != TCP {
        return None;
    }
    let header = frame.get(ip.upper..ip.upper + TCP_MIN_LEN)?;
    Some(SegmentNumbers {
        seq: u32::from_be_bytes(header[4..8].try_into().ok()?),
        ack: u32::from_be_bytes(header[8..12].try_into().ok()?),
    })
}

/// A frame without the outer headers of its tunnel: the link layer, VLAN tags
/// included, and the inner packet. None if there is no tunnel packet in it.
pub fn without_tunnel(frame: &[u8]) -> Option<Vec<u8>> {
    let outer = Ip::after_link(frame)?;
    let inner = outer.inner(frame)?;
    let link = frame.get(..outer.start - 2)?;
    let ether_type = if inner.v4 { IPV4 } else { IPV6 };
    let packet = frame.get(inner.start..)?;
    Some([link, &ether_type.to_be_bytes(), packet].concat())
}

/// An IP header.
struct Ip {
    v4: bool,
    protocol: u8,
    start: usize,
    /// Where the upper protocol's header begins.
    upper: usize,
}

impl Ip {
    /// The header behind Ethernet and its VLAN tags.
    fn after_link(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        for _ in 0..=VLAN_TAGS_MAX {
            let ether_type = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
            match ether_type {
                IPV4 => return Self::v4(frame, at + 2),
                IPV6 => return Self::v6(frame, at + 2),
                tag if VLAN.contains(&tag) => at += 4,
                _ => return None,
            }
        }
        None
    }

    fn v4(frame: &[u8], start: usize) -> Option<Self> {
        let header = frame.get(start..start + 20)?;
        let len = usize::from(header[0] & 0xf) * 4;
        (header[0] >> 4 == 4 && len >= 20).then_some(Self {
            v4: true,
            protocol: header[9],
            start,
            upper: start + len,
        })
    }

    fn v6(frame: &[u8], start: usize) -> Option<Self> {
        let header = frame.get(start..start + 40)?;
        let (mut protocol, mut upper) = (header[6], start + 40);
        if header[0] >> 4 != 6 {
            return None;
        }
        for _ in 0..EXTENSIONS_MAX {
            if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
                break;
            }
            let extension = frame.get(upper..upper + 2)?;
            protocol = extension[0];
            upper += (usize::from(extension[1]) + 1) * 8;
        }
        Some(Self {
            v4: false,
            protocol,
            start,
            upper,
        })
    }

    /// The header of the packet in this tunnel packet.
    fn inner(&self, frame: &[u8]) -> Option<Self> {
        let start = match self.protocol {
            IPIP | IPV6_IN_IP => self.upper,
            UDP => self.upper + UDP_LEN,
            _ => return None,
        };
        match frame.get(start)? >> 4 {
            4 => Self::v4(frame, start),
            6 => Self::v6(frame, start),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: [u8; 12] = [7; 12];

    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        // One word of options.
        let mut header = vec![0; 24];
        header[0] = 0x46;
        header[9] = protocol;
        [&header, payload].concat()
    }

    fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        // A destination option header of eight bytes.
        let mut header = vec![0; 48];
        header[0] = 0x60;
        header[6] = DESTINATION_OPTIONS;
        header[40] = protocol;
        [&header, payload].concat()
    }

    fn tcp(seq: u32, ack: u32) -> Vec<u8> {
        let mut header = vec![0; 25];
        header[4..8].copy_from_slice(&seq.to_be_bytes());
        header[8..12].copy_from_slice(&ack.to_be_bytes());
        header
    }

    fn framed(tag: bool, ether_type: u16, packet: &[u8]) -> Vec<u8> {
        let tag: &[u8] = if tag { &[0x81, 0, 0, 100] } else { &[] };
        [&LINK, tag, &ether_type.to_be_bytes(), packet].concat()
    }

    #[test]
    fn numbers_are_found_behind_tags_options_and_tunnels() {
        let numbers = SegmentNumbers { seq: 5, ack: 9 };
        let segment = tcp(5, 9);
        for tag in [false, true] {
            for (ether_type, packet) in [(IPV4, v4(TCP, &segment)), (IPV6, v6(TCP, &segment))] {
                let plain = framed(tag, ether_type, &packet);
                assert_eq!(segment_numbers(&plain, false), Some(numbers));
                assert_eq!(segment_numbers(&plain, true), None);
                assert_eq!(without_tunnel(&plain), None);
                let gue = [&[0; UDP_LEN], &packet[..]].concat();
                let protocol = if ether_type == IPV4 { IPIP } else { IPV6_IN_IP };
                for outer in [
                    framed(tag, IPV4, &v4(protocol, &packet)),
                    framed(tag, IPV6, &v6(protocol, &packet)),
                    framed(tag, IPV4, &v4(UDP, &gue)),
                    framed(tag, IPV6, &v6(UDP, &gue)),
                ] {
                    assert_eq!(segment_numbers(&outer, true), Some(numbers));
                    assert_eq!(segment_numbers(&outer, false), None);
                    assert_eq!(without_tunnel(&outer), Some(plain.clone()));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), tunnelled: bool) {
            let _ = segment_numbers(&bytes, tunnelled);
            let _ = without_tunnel(&bytes);
        }

        #[test]
        fn no_cut_of_a_frame_panics(len in 0usize..130, tag: bool) {
            let frame = framed(tag, IPV6, &v6(IPV6_IN_IP, &v6(TCP, &tcp(1, 2))));
            let cut = &frame[..len.min(frame.len())];
            let whole = cut.len() == frame.len();
            prop_assert!(!whole || segment_numbers(cut, true).is_some());
            let _ = (segment_numbers(cut, true), without_tunnel(cut));
        }
    }
}
