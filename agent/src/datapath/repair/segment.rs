//! Segments that the peer could have sent, for this host's own stack: what makes a
//! FIN, or its acknowledgement, known to a restored socket.

use std::net::{IpAddr, SocketAddr};

use homing_common::net::TCP;

pub(super) const FIN: u8 = 1;
pub(super) const ACK: u8 = 16;

const TCP_LEN: usize = 20;
const HOPS: u8 = 64;

/// An IP packet with a segment without data and options (RFC 791, RFC 8200, RFC 9293).
/// Both addresses must be of one family.
pub(super) fn segment(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut tcp = [0; TCP_LEN];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (TCP_LEN as u8 / 4) << 4;
    tcp[13] = flags;
    // No window is told: whoever restores sets the true one after it.
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let pseudo = sum(&addresses) + u32::from(TCP) + TCP_LEN as u32;
    let checksum = fold(pseudo + sum(&tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = match from.is_ipv4() {
        true => {
            let mut header = vec![
                0x45,
                0,
                0,
                20 + TCP_LEN as u8,
                0,
                0,
                0x40,
                0,
                HOPS,
                TCP,
                0,
                0,
            ];
            header.extend(addresses);
            let checksum = fold(sum(&header));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        false => {
            let mut header = vec![0x60, 0, 0, 0, 0, TCP_LEN as u8, TCP, HOPS];
            header.extend(addresses);
            header
        }
    };
    packet.extend(tcp);
    packet
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The sum of 16-bit words (RFC 1071), of an even number of bytes.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_add_up() {
        for (from, to) in [
            ("192.0.2.7:40000", "203.0.113.10:80"),
            ("[2001:db8::7]:40000", "[2001:db8:1::10]:80"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = segment(from, to, 0xfedc_ba98, 0x0123_4567, FIN | ACK);
            let ip = packet.len() - TCP_LEN;
            if from.is_ipv4() {
                assert_eq!(fold(sum(&packet[..ip])), 0);
            }
            let addresses = [octets(from.ip()), octets(to.ip())].concat();
            let whole = sum(&addresses) + sum(&packet[ip..]) + 6 + TCP_LEN as u32;
            assert_eq!(fold(whole), 0);
        }
    }
}
