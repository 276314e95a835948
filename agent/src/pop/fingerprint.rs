//! What the hosts of one POP have configured alike.

use homing_common::{host::TunnelNetwork, net::Service};

/// What a host says of its configuration, so that others see whether it is of their
/// POP: two POPs may share a wire, and even a key, by mistake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Fingerprint {
    /// Of the tunnel network and its cut into prefixes. The encapsulation is not part
    /// of it: every host understands both kinds.
    pub network: u32,
    /// Of all services.
    pub services: u32,
    /// A bit for each of the services' addresses, chosen by a hash of it: two hosts that
    /// have no bit in common have no address in common. With a and b addresses, that is
    /// seen of those that have none with a probability of about (1 - a / 64)^b.
    pub addresses: u64,
    /// The public ids of the session keys: of the one that this host looks sessions up
    /// by, and of the one that it tells of its own by as well, or the same again.
    pub session_keys: [u8; 2],
    /// The public id of the key that chooses where fragments meet.
    pub fragments_key: u8,
}

/// How a host's configuration differs from that of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// Packets that one sends through the tunnel the other drops.
    Network,
    /// There is no address that both answer for.
    Addresses,
    /// One does not tell of its sessions by the key that the other looks them up by:
    /// what it has is found by asking alone.
    SessionKeys,
    /// Fragments of a datagram that come to both do not meet.
    FragmentsKey,
    /// There are services that only one of them answers for: a POP whose services
    /// change one host after the other is like that for a while.
    Services,
}

impl Fingerprint {
    /// The fingerprint of a host with this tunnel network, these services, and keys with
    /// these public ids: those of session ids, and that of fragments.
    pub fn of(
        network: &TunnelNetwork,
        services: &[Service],
        session_keys: [u8; 2],
        fragments_key: u8,
    ) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&network.network.0);
        hash.update(&network.base.to_be_bytes());
        hash.update(&network.shift.to_be_bytes());
        hash.update(&network.id_mask.to_be_bytes());
        let network = first_word(&hash);
        let none = Self {
            network,
            services: 0,
            addresses: 0,
            session_keys,
            fragments_key,
        };
        none.with_services(services)
    }

    /// The same of a host with these services.
    pub fn with_services(self, services: &[Service]) -> Self {
        let mut services = services.to_vec();
        services.sort();
        let (mut all, mut addresses) = (blake3::Hasher::new(), 0);
        for service in services {
            all.update(&service.address.0);
            all.update(&service.port.0);
            all.update(&[service.protocol]);
            let mut one = blake3::Hasher::new();
            one.update(&service.address.0);
            addresses |= 1 << (first_word(&one) % u64::BITS);
        }
        Self {
            services: first_word(&all),
            addresses,
            ..self
        }
    }

    /// How a host with this fingerprint differs from one with the other.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        if self.network != other.network {
            Some(Difference::Network)
        } else if self.services != other.services && self.addresses & other.addresses == 0 {
            Some(Difference::Addresses)
        } else if !(self.is_told_by(other) && other.is_told_by(self)) {
            Some(Difference::SessionKeys)
        } else if self.fragments_key != other.fragments_key {
            Some(Difference::FragmentsKey)
        } else if self.services != other.services {
            Some(Difference::Services)
        } else {
            None
        }
    }

    /// Whether another host tells of its sessions by the key that this one looks them up
    /// by.
    fn is_told_by(&self, other: &Self) -> bool {
        other.session_keys.contains(&self.session_keys[0])
    }

    /// Whether hosts with these fingerprints can be members of one POP.
    pub fn is_of_one_pop(&self, other: &Self) -> bool {
        !matches!(
            self.difference(other),
            Some(Difference::Network | Difference::Addresses)
        )
    }
}

fn first_word(hash: &blake3::Hasher) -> u32 {
    let digest = hash.finalize();
    let b = digest.as_bytes();
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

#[cfg(test)]
mod tests {
    use homing_common::net::{Port, TCP, UDP};

    use super::*;

    fn service(last: u8, port: u16, protocol: u8) -> Service {
        let address = std::net::IpAddr::from([192, 0, 2, last]);
        Service::new(address.into(), Port::new(port), protocol)
    }

    fn of(network: [u8; 4], services: &[Service]) -> Fingerprint {
        let network = TunnelNetwork {
            network: std::net::IpAddr::from(network).into(),
            base: u32::from_be_bytes(network).into(),
            shift: 4,
            id_mask: 0xfff,
        };
        Fingerprint::of(&network, services, [1, 1], 1)
    }

    #[test]
    fn what_differs_is_seen_and_what_does_not_is_not() {
        let (web, dns) = (service(1, 443, TCP), service(2, 53, UDP));
        let one = of([10, 77, 0, 0], &[web, dns]);
        let found = |other: Fingerprint| {
            assert_eq!(one.difference(&other), other.difference(&one));
            one.difference(&other)
        };
        assert_eq!(found(of([10, 77, 0, 0], &[dns, web])), None);
        let network = Some(Difference::Network);
        assert_eq!(found(of([10, 78, 0, 0], &[web, dns])), network);
        let services = Some(Difference::Services);
        assert_eq!(found(of([10, 77, 0, 0], &[web])), services);
        let other_port = service(1, 8443, TCP);
        assert_eq!(found(of([10, 77, 0, 0], &[other_port])), services);
        let other_protocol = service(1, 443, UDP);
        assert_eq!(found(of([10, 77, 0, 0], &[other_protocol, dns])), services);
        let addresses = Some(Difference::Addresses);
        let other_address = service(3, 443, TCP);
        assert_eq!(found(of([10, 77, 0, 0], &[other_address])), addresses);
    }

    #[test]
    fn hosts_with_different_keys_of_fragments_are_of_one_pop_and_differ() {
        let one = Fingerprint::default();
        let two = Fingerprint {
            fragments_key: 1,
            ..one
        };
        assert_eq!(one.difference(&two), Some(Difference::FragmentsKey));
        assert!(one.is_of_one_pop(&two));
    }

    #[test]
    fn hosts_one_step_of_a_rotation_apart_do_not_differ() {
        let with = |session_keys| Fingerprint {
            session_keys,
            ..Fingerprint::default()
        };
        let steps = [[1, 1], [1, 2], [2, 1], [2, 2]].map(with);
        for (n, one) in steps.iter().enumerate() {
            for (m, two) in steps.iter().enumerate() {
                let near = n.abs_diff(m) <= 1;
                let expected = (!near).then_some(Difference::SessionKeys);
                assert_eq!(one.difference(two), expected, "steps {n} and {m}");
                assert!(one.is_of_one_pop(two));
            }
        }
    }
}
