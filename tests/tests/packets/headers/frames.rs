//! Packets with random headers: most are right, many are wrong in some way.

use homing_tests::random::Random;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const AUTHENTICATION: u8 = 51;
pub const FRAGMENT: u8 = 44;

/// All that random headers are made of, so that whoever reads at the wrong place finds
/// something that another session has, too.
pub const CLIENTS: [[&str; 2]; 2] = [
    ["198.51.100.7", "198.51.100.8"],
    ["2001:db8:c::7", "2001:db8:c::8"],
];
pub const SERVICES: [[&str; 2]; 2] = [
    ["203.0.113.10", "203.0.113.20"],
    ["2001:db8:113::10", "2001:db8:113::20"],
];
pub const CLIENT_PORTS: [u16; 4] = [40_000, 443, 80, 6];
pub const SERVICE_PORTS: [u16; 3] = [443, 80, 40_000];

fn pick<T: Copy>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize]
}

/// True once in so many times.
pub fn one_in(random: &mut Random, times: u64) -> bool {
    random.below(times) == 0
}

/// Bytes that look like ports, addresses and header lengths.
fn filler(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match random.below(3) {
            0 => {
                bytes.extend(pick(random, &CLIENT_PORTS).to_be_bytes());
                bytes.extend(pick(random, &SERVICE_PORTS).to_be_bytes());
            }
            1 => bytes.extend([pick(random, &[TCP, UDP, FRAGMENT, 0, 60]), 0, 0x50, 0x10]),
            _ => bytes.extend((random.next() as u32).to_be_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

/// A TCP or UDP header, or something else, with some payload.
fn upper(random: &mut Random, protocol: u8) -> Vec<u8> {
    let payload_len = random.below(40) as usize;
    let payload = filler(random, payload_len);
    let mut bytes = Vec::new();
    bytes.extend(pick(random, &CLIENT_PORTS).to_be_bytes());
    bytes.extend(pick(random, &SERVICE_PORTS).to_be_bytes());
    if protocol == UDP {
        let len = match random.below(8) {
            0 => random.below(64) as u16,
            1 => 0,
            _ => 8 + payload_len as u16,
        };
        bytes.extend(len.to_be_bytes());
        bytes.extend([0, 0]);
    } else {
        bytes.extend(filler(random, 8));
        let words = 5 + if one_in(random, 2) {
            random.below(11)
        } else {
            0
        };
        let said = if one_in(random, 6) {
            random.below(16)
        } else {
            words
        };
        bytes.extend([(said << 4) as u8, random.next() as u8]);
        bytes.extend(filler(random, 6 + 4 * (words as usize - 5)));
    }
    bytes.extend(payload);
    bytes
}

fn any_protocol(random: &mut Random) -> u8 {
    match random.below(8) {
        0 => pick(random, &[1, 4, 41, 58, AUTHENTICATION, 132]),
        n if n % 2 == 0 => UDP,
        _ => TCP,
    }
}

fn v4(random: &mut Random) -> Vec<u8> {
    let protocol = any_protocol(random);
    let body = upper(random, protocol);
    let words = 5 + if one_in(random, 2) {
        random.below(11)
    } else {
        0
    } as usize;
    let said = if one_in(random, 6) {
        random.below(16) as usize
    } else {
        words
    };
    let len = words * 4 + body.len();
    let len = match random.below(8) {
        0 => len.saturating_add_signed(random.below(64) as isize - 32),
        1 => random.next() as u16 as usize & 0xff,
        _ => len,
    };
    let frags = match random.below(8) {
        0 => random.next() as u16,
        n if n % 2 == 0 => 0x4000,
        _ => 0,
    };
    let version = if one_in(random, 16) {
        random.below(16) as u8
    } else {
        4
    };
    let mut bytes = vec![version << 4 | said as u8, random.next() as u8];
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend((random.next() as u16).to_be_bytes());
    bytes.extend(frags.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    for pool in [CLIENTS[0], SERVICES[0]] {
        let ip: std::net::Ipv4Addr = pick(random, &pool).parse().unwrap();
        bytes.extend(ip.octets());
    }
    bytes.extend(filler(random, (words - 5) * 4));
    bytes.extend(body);
    bytes
}

fn v6(random: &mut Random) -> Vec<u8> {
    let protocol = any_protocol(random);
    let body = upper(random, protocol);
    let headers = if one_in(random, 2) {
        random.below(7)
    } else {
        0
    };
    let mut chain: Vec<u8> = (0..headers)
        .map(|nth| match random.below(12) {
            0 => FRAGMENT,
            1 => AUTHENTICATION,
            2 => 0,
            3..6 if nth == 0 => 0,
            n if n % 2 == 0 => 43,
            _ => 60,
        })
        .collect();
    chain.push(protocol);
    let mut extensions = Vec::new();
    for pair in chain.windows(2) {
        let (kind, next) = (pair[0], pair[1]);
        extensions.push(next);
        match kind {
            FRAGMENT => {
                extensions.push(0);
                let word = if one_in(random, 2) {
                    0
                } else {
                    random.next() as u16
                };
                extensions.extend(word.to_be_bytes());
                extensions.extend(filler(random, 4));
            }
            // Its length is in words, less two.
            AUTHENTICATION => {
                extensions.push(4);
                extensions.extend(filler(random, 22));
            }
            _ => {
                let units = random.below(4) as u8;
                let said = if one_in(random, 12) {
                    random.next() as u8
                } else {
                    units
                };
                extensions.push(said);
                extensions.extend(filler(random, 6 + 8 * usize::from(units)));
            }
        }
    }
    let len = extensions.len() + body.len();
    let len = match random.below(8) {
        0 => len.saturating_add_signed(random.below(64) as isize - 32),
        1 => random.next() as u16 as usize & 0xff,
        _ => len,
    };
    let version = if one_in(random, 16) {
        random.below(16) as u8
    } else {
        6
    };
    let mut bytes = vec![version << 4, 0, 0, 0];
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend([chain[0], 64]);
    for pool in [CLIENTS[1], SERVICES[1]] {
        let ip: std::net::Ipv6Addr = pick(random, &pool).parse().unwrap();
        bytes.extend(ip.octets());
    }
    bytes.extend(extensions);
    bytes.extend(body);
    bytes
}

/// A packet that may be wrong in some ways, and whether it says that it is IPv4.
pub fn packet(random: &mut Random) -> (bool, Vec<u8>) {
    let is_v4 = one_in(random, 2);
    let mut bytes = if is_v4 { v4(random) } else { v6(random) };
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        1 => {
            let len = 1 + random.below(40) as usize;
            bytes.extend(filler(random, len));
        }
        2 => {
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
        }
        _ => {}
    }
    (is_v4, bytes)
}

/// VLAN tags, of which more may come than are read.
pub fn tags(random: &mut Random) -> Vec<(u16, u16)> {
    let tags = if one_in(random, 2) {
        random.below(4)
    } else {
        0
    };
    (0..tags)
        .map(|_| {
            let tpid = pick(random, &[0x8100, 0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100]);
            (tpid, 1 + random.below(4000) as u16)
        })
        .collect()
}
