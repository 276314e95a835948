//! The session id is SipHash-1-3 of the bytes that the documentation names,
//! checked against another implementation of it.

use std::{hash::Hasher as _, net::SocketAddr};

use homing_common::{
    net::TCP,
    session::{SessionKey, Tuple},
};
use proptest::prelude::*;
use siphasher::sip::SipHasher13;

/// The id as `docs/protocol.md` describes it.
fn reference(key: SessionKey, client: SocketAddr, service: SocketAddr) -> u64 {
    let mut bytes = Vec::new();
    for address in [client.ip(), service.ip()] {
        match address {
            std::net::IpAddr::V4(ip) => bytes.extend(ip.octets()),
            std::net::IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(service.port().to_be_bytes());
    bytes.push(TCP);
    let mut hasher = SipHasher13::new_with_keys(key.0[0], key.0[1]);
    hasher.write(&bytes);
    hasher.finish()
}

fn id(key: SessionKey, client: SocketAddr, service: SocketAddr) -> u64 {
    Tuple::between(client, service, TCP).id(&key).0
}

proptest! {
    #[test]
    fn ipv4(key: [u64; 2], client: [u8; 4], service: [u8; 4], ports: [u16; 2]) {
        let (client, service) = ((client, ports[0]).into(), (service, ports[1]).into());
        let key = SessionKey(key);
        prop_assert_eq!(id(key, client, service), reference(key, client, service));
    }

    #[test]
    fn ipv6(key: [u64; 2], mut client: [u8; 16], service: [u8; 16], ports: [u16; 2]) {
        client[0] |= 0x20; // not IPv4-mapped
        let (client, service) = ((client, ports[0]).into(), (service, ports[1]).into());
        let key = SessionKey(key);
        prop_assert_eq!(id(key, client, service), reference(key, client, service));
    }
}

#[test]
fn an_ipv4_mapped_address_is_an_ipv4_address() {
    let key = SessionKey([1, 2]);
    let plain = id(
        key,
        "198.51.100.7:40312".parse().unwrap(),
        "203.0.113.10:443".parse().unwrap(),
    );
    let mapped = id(
        key,
        "[::ffff:198.51.100.7]:40312".parse().unwrap(),
        "[::ffff:203.0.113.10]:443".parse().unwrap(),
    );
    assert_eq!(plain, mapped);
}
