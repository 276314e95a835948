//! TCP segments as they stand in frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::packet::flags;

/// The most bytes of a frame that [`read`] looks at.
pub const HEADERS: usize = 14 + 40 + 60;

/// What a frame holds of a TCP connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who sends it.
    pub from: SocketAddr,
    /// Who is to get it.
    pub to: SocketAddr,
    /// TCP's flags.
    pub flags: u8,
    /// The number of its first byte.
    pub seq: u32,
    /// The number of the byte that is awaited of the other side.
    pub ack: u32,
    /// Bytes of payload.
    pub len: u32,
    /// The sender's clock, where it says it.
    pub clock: Option<u32>,
}

impl Header {
    /// Whether it has this flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How many numbers it takes: its payload, SYN and FIN.
    pub fn span(&self) -> u32 {
        self.len + u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN))
    }
}

/// Reads an Ethernet frame, whose end may be missing; none if it holds no TCP segment
/// that is a packet of its own.
pub fn read(frame: &[u8]) -> Option<Header> {
    let packet = frame.get(14..)?;
    let (from, to, segment, len): (IpAddr, IpAddr, &[u8], usize) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            if packet.get(9) != Some(&6) {
                return None;
            }
            let total = usize::from(word(packet, 2)?);
            (
                Ipv4Addr::from(array::<4>(packet, 12)?).into(),
                Ipv4Addr::from(array::<4>(packet, 16)?).into(),
                packet.get(header..)?,
                total.checked_sub(header)?,
            )
        }
        [0x86, 0xdd] if packet.get(6) == Some(&6) => (
            Ipv6Addr::from(array::<16>(packet, 8)?).into(),
            Ipv6Addr::from(array::<16>(packet, 24)?).into(),
            packet.get(40..)?,
            usize::from(word(packet, 4)?),
        ),
        _ => return None,
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Header {
        from: (from, word(segment, 0)?).into(),
        to: (to, word(segment, 2)?).into(),
        flags: *segment.get(13)?,
        seq: u32::from_be_bytes(array(segment, 4)?),
        ack: u32::from_be_bytes(array(segment, 8)?),
        len: u32::try_from(len.checked_sub(header)?).ok()?,
        clock: clock(segment.get(20..header)?),
    })
}

/// The value of the option for timestamps (RFC 7323, section 3).
fn clock(mut options: &[u8]) -> Option<u32> {
    const TIMESTAMPS: u8 = 8;
    loop {
        match options {
            [TIMESTAMPS, 10, rest @ ..] => return Some(u32::from_be_bytes(array(rest, 0)?)),
            [1, rest @ ..] => options = rest,
            [0, ..] | [_] | [] => return None,
            [_, len, ..] => options = options.get(usize::from(*len).max(2)..)?,
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(array(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::segment;

    #[test]
    fn what_was_built_is_read_and_what_is_cut_is_not() {
        for v4 in [true, false] {
            let mut tcp = segment(v4, flags::ACK | flags::FIN).payload(*b"twelve bytes");
            (tcp.seq, tcp.ack) = (7, 0xffff_fff0);
            tcp.options = vec![1, 1, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0];
            let frame = tcp.frame();
            let header = read(&frame).unwrap();
            assert_eq!((header.from, header.to), (tcp.source, tcp.destination));
            assert_eq!((header.seq, header.ack), (7, 0xffff_fff0));
            assert_eq!((header.len, header.span()), (12, 13));
            assert_eq!(header.clock, Some(0x10203));
            assert!(header.has(flags::FIN) && !header.has(flags::RST));
            // All that is read stands within what is captured.
            assert_eq!(read(&frame[..frame.len() - 12]), Some(header));
            for len in 0..frame.len() - 12 {
                read(&frame[..len]);
            }
        }
    }

    #[test]
    fn options_that_make_no_sense_have_no_clock() {
        assert_eq!(clock(&[0, 8, 10, 0, 0, 0, 1]), None);
        assert_eq!(clock(&[3, 0, 3, 200]), None);
        assert_eq!(clock(&[8, 10, 0]), None);
        assert_eq!(
            clock(&[2, 4, 5, 180, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0]),
            Some(9)
        );
    }
}
