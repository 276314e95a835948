//! What must hold between several values of the file.

use std::{collections::HashMap, hash::Hash, net::IpAddr, path::PathBuf};

use homing_common::{
    host::{HostId, TunnelNetwork},
    net::Service,
};

use super::{
    Prefix, Tunnel,
    check::RawPop,
    read::{At, Bad, Notes},
};

/// No host id and no address twice, and one family.
pub(super) fn seeds(notes: &Notes<'_>, own: &At<HostId>, pop: &RawPop) {
    let mut hosts = HashMap::from([(own.value, (&pop.address, "this host"))]);
    let mut addresses = HashMap::from([(pop.address.value, own)]);
    for (host, address) in &pop.seeds {
        if address.value.is_ipv4() != pop.address.value.is_ipv4() {
            let what = format!(
                "{} is of another family than pop.address, {}",
                address.value, pop.address.value
            );
            address.wrong(
                notes,
                Bad::new(what, "write the seed's address of that family"),
            );
        }
        let itself = host.value == own.value && address.value == pop.address.value;
        if itself {
            // The list may be the same on all hosts; but this host just once.
            hosts.insert(own.value, (address, "a seed"));
            continue;
        }
        if let Some((before, who)) = hosts.insert(host.value, (address, "a seed")) {
            let what = format!(
                "duplicate host id {}: {who} at {} has it (line {})",
                host.value, before.value, before.line
            );
            host.wrong(notes, Bad::new(what, "give each host an id of its own"));
        } else if let Some(before) = addresses.insert(address.value, host) {
            let what = format!(
                "{} is the address of host {} (line {})",
                address.value, before.value, before.line
            );
            address.wrong(
                notes,
                Bad::new(what, format!("write the address of host {}", host.value)),
            );
        }
    }
}

/// Every host has a prefix in the tunnel network.
pub(super) fn ids_fit(notes: &Notes<'_>, tunnel: &At<Tunnel>, own: &At<HostId>, pop: &RawPop) {
    let Tunnel {
        network,
        prefix,
        host_prefix_len: len,
        ..
    } = &tunnel.value;
    let ids = std::iter::once(own).chain(pop.seeds.iter().map(|(host, _)| host));
    for id in ids.filter(|id| u32::from(id.value.0) > network.id_mask) {
        let what = format!(
            "{} is too large for tunnel.network {prefix}, which has prefixes of /{len} for ids up to {}",
            id.value, network.id_mask
        );
        let fix =
            "use a larger tunnel.network or longer host_prefix_len on all hosts, or a smaller id";
        id.wrong(notes, Bad::new(what, fix));
    }
}

/// The tunnel network holds nothing but tunnel addresses.
pub(super) fn overlap(
    notes: &Notes<'_>,
    tunnel: &At<Tunnel>,
    services: Option<&[At<Service>]>,
    pop: Option<&RawPop>,
) {
    let prefix = tunnel.value.prefix;
    let fix = "use a network for tunnels that holds nothing else";
    for service in services.unwrap_or_default() {
        if prefix.contains(service.value.address.into()) {
            let what = format!("{prefix} holds the service {}", service.value.endpoint());
            tunnel.wrong(notes, Bad::new(what, fix));
        }
    }
    // The way to a host's tunnel prefix is its fabric address: a fabric address
    // in a tunnel prefix would be routed to itself.
    let fabric = pop.into_iter().flat_map(|pop| {
        std::iter::once(&pop.address).chain(pop.seeds.iter().map(|(_, address)| address))
    });
    for address in fabric.filter(|address| prefix.contains(address.value.ip())) {
        let what = format!("{prefix} holds the fabric address {}", address.value);
        tunnel.wrong(notes, Bad::new(what, fix));
    }
}

/// A fabric address belongs to one host, a service's to all of them.
pub(super) fn fabric_apart(notes: &Notes<'_>, services: &[At<Service>], pop: &RawPop) {
    let seeds = pop.seeds.iter().map(|(_, address)| address);
    for address in std::iter::once(&pop.address).chain(seeds) {
        let ip = address.value.ip().into();
        if services.iter().any(|service| service.value.address == ip) {
            let what = format!(
                "{} is a service's address, which all hosts have",
                address.value.ip()
            );
            address.wrong(
                notes,
                Bad::new(what, "write an address that only that host has"),
            );
        }
    }
}

/// Each socket speaks a language of its own: of `[apps]`, `[mux]` and `[admin]`, where one
/// is for reading only.
pub(super) fn sockets_apart(notes: &Notes<'_>, sockets: &[Option<&At<PathBuf>>; 4]) {
    let names = [
        "apps.socket",
        "mux.socket",
        "admin.socket",
        "admin.read_socket",
    ];
    for (first, socket) in sockets.iter().enumerate() {
        for (other, name) in sockets.iter().zip(names).skip(first + 1) {
            if let (Some(socket), Some(other)) = (socket, other)
                && socket.value == other.value
            {
                let what = format!("{} is {name}", socket.value.display());
                let fix = "give each of the two a path of its own";
                socket.wrong(notes, Bad::new(what, fix));
            }
        }
    }
}

/// Cuts the network in prefixes of `len` bits.
pub(super) fn tunnel_network(network: Prefix, len: u32) -> Result<TunnelNetwork, Bad> {
    // An IPv4 host prefix holds the per-flow entropy, at most 8 bits of it; of an
    // IPv6 address the fast path reads the upper half.
    let (base, width, longest, shortest) = match network.address {
        IpAddr::V4(first) => (u64::from(first.to_bits()), 32, 32, 24),
        IpAddr::V6(first) => ((first.to_bits() >> 64) as u64, 64, 64, 1),
    };
    let network_len = u32::from(network.len);
    let shortest = shortest.max(network_len + 1);
    if !(shortest..=longest).contains(&len) {
        let what = format!("{len} does not cut {network} into one prefix per host");
        let fix = if shortest > longest {
            format!("use a larger tunnel.network, such as /{}", longest - 12)
        } else {
            format!("write a number from {shortest} to {longest}")
        };
        return Err(Bad::new(what, fix));
    }
    let id_bits = (len - network_len).min(32);
    Ok(TunnelNetwork {
        network: network.address.into(),
        base,
        shift: width - len,
        id_mask: u32::MAX >> (32 - id_bits),
    })
}

/// Notes every value that stood before.
pub(super) fn unique<T: Eq + Hash>(
    notes: &Notes<'_>,
    values: &[At<T>],
    name: impl Fn(&T) -> String,
) {
    let mut first: HashMap<&T, &At<T>> = HashMap::new();
    for at in values {
        let before = *first.entry(&at.value).or_insert(at);
        if !std::ptr::eq(before, at) {
            let what = format!("{} stands in line {} already", name(&at.value), before.line);
            at.wrong(notes, Bad::new(what, "remove one of the two"));
        }
    }
}
