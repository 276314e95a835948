//! An outer address names its host, and no address outside of the network does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use homing_common::{
    host::{HostId, MAX_HOSTS, TunnelNetwork},
    net::Address,
};
use proptest::prelude::*;

fn v4(base: u32, len: u32, host_len: u32) -> TunnelNetwork {
    let base = base & (u32::MAX << (32 - len));
    TunnelNetwork {
        network: Address::v4(base.to_be_bytes()),
        base: base.into(),
        shift: 32 - host_len,
        id_mask: (1 << (host_len - len)) - 1,
    }
}

fn v6(base: u64, len: u32, host_len: u32) -> TunnelNetwork {
    let base = (base | 0x2000 << 48) & (u64::MAX << (64 - len));
    let network = Ipv6Addr::from(u128::from(base) << 64);
    TunnelNetwork {
        network: IpAddr::from(network).into(),
        base,
        shift: 64 - host_len,
        id_mask: (1 << (host_len - len)) - 1,
    }
}

fn bits(address: Address) -> u64 {
    match IpAddr::from(address) {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
    }
}

proptest! {
    #[test]
    fn ipv4_addresses_name_their_host(base: u32, entropy: u32, host in 1u16..256, other: u32) {
        let network = v4(base, 16, 28);
        let host = HostId(host);
        let address = bits(network.address_of(host)) | u64::from(entropy & 0xf);
        prop_assert_eq!(network.host_of(address), Some(host));
        let is_inside = Ipv4Addr::from(other).octets()[..2] == Ipv4Addr::from(base).octets()[..2];
        prop_assert_eq!(network.host_of(other.into()).is_some(), is_inside);
    }

    #[test]
    fn ipv6_addresses_name_their_host(base: u64, host in 1u16..MAX_HOSTS as u16, other: u64) {
        let network = v6(base, 48, 64);
        let host = HostId(host);
        let address = network.address_of(host);
        prop_assert_eq!(network.host_of(bits(address)), Some(host));
        prop_assert_eq!(address.0[15], 1);
        if let Some(found) = network.host_of(other) {
            prop_assert_eq!(other >> 16, network.base >> 16);
            prop_assert_eq!(u64::from(found.0), other & 0xffff);
        }
    }
}
