//! Members: what a host says of itself to the POP, and how that is written down.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Buf, BufMut, TryGetError};
use homing_common::host::HostId;

use super::Fingerprint;

/// One life of a host's agent: datagrams, logs and claims belong to one.
///
/// Greater means later, for one host: the incarnation grows with each life of its
/// kernel, the generation with each start of its agent in one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Stream {
    /// The kernel's life.
    pub incarnation: u64,
    /// The agent's start in it.
    pub generation: u64,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.generation)
    }
}

pub use homing_common::host::DOMAIN_LEN_MAX;

/// The name of a broadcast domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain {
    bytes: [u8; DOMAIN_LEN_MAX],
    len: u8,
}

/// Why a text is no name of a domain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a domain's name has from 1 to {DOMAIN_LEN_MAX} bytes")]
pub struct NotADomain;

impl Domain {
    /// The name.
    pub fn as_str(&self) -> &str {
        // Both ways to make one check the bytes.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl TryFrom<&str> for Domain {
    type Error = NotADomain;

    fn try_from(name: &str) -> Result<Self, NotADomain> {
        if name.is_empty() || name.len() > DOMAIN_LEN_MAX {
            return Err(NotADomain);
        }
        let mut bytes = [0; DOMAIN_LEN_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self {
            bytes,
            len: name.len() as u8,
        })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A host as it announces itself to the POP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub host: HostId,
    /// The life of its agent.
    pub stream: Stream,
    /// Grows when the host takes back a false report of its end.
    pub renewal: u16,
    /// Its fabric address: where it hears membership and gossip.
    pub address: SocketAddr,
    /// Its broadcast domain.
    pub domain: Domain,
    /// What it has configured as its POP has.
    pub fingerprint: Fingerprint,
    /// It is leaving, and asks that its sessions be kept for so long.
    pub leaving: Option<Duration>,
    /// It takes no new sessions.
    pub draining: bool,
    /// A filter of the services that its message sockets have offered in this life.
    pub offers: u64,
}

/// The flag of a host that drains.
const DRAINING: u8 = 1;

/// Stands for "not leaving" where the hold stands on the wire.
const NOT_LEAVING: u32 = u32::MAX;

impl Member {
    /// This host as it announces itself when its agent starts.
    pub fn starting(
        host: HostId,
        stream: Stream,
        address: SocketAddr,
        domain: Domain,
        fingerprint: Fingerprint,
    ) -> Self {
        Self {
            host,
            stream,
            renewal: 0,
            address,
            domain,
            fingerprint,
            leaving: None,
            draining: false,
            offers: 0,
        }
    }

    /// A stand-in for a seed, of which only id and address are known: good
    /// enough to address an announcement.
    pub(super) fn seed(host: HostId, address: SocketAddr, domain: Domain) -> Self {
        Self {
            host,
            stream: Stream::default(),
            renewal: 0,
            address,
            domain,
            fingerprint: Fingerprint::default(),
            leaving: None,
            draining: false,
            offers: 0,
        }
    }

    /// Which of two accounts of one host holds. Life and renewal decide; the rest
    /// only makes the order total, so that all members decide alike.
    pub(super) fn is_later_than(&self, other: &Self) -> bool {
        let order = |m: &Self| {
            let rest = (m.domain, m.fingerprint, m.leaving, m.draining, m.offers);
            (m.stream, m.renewal, m.address, rest)
        };
        order(self) > order(other)
    }

    /// Writes the member: at most [`Member::LEN_MAX`] bytes.
    pub(super) fn encode(&self, buf: &mut impl BufMut) {
        buf.put_u16(self.host.0);
        buf.put_u64(self.stream.incarnation);
        buf.put_u64(self.stream.generation);
        buf.put_u16(self.renewal);
        buf.put_u32(self.fingerprint.network);
        buf.put_u32(self.fingerprint.services);
        buf.put_u64(self.fingerprint.addresses);
        buf.put_slice(&self.fingerprint.session_keys);
        buf.put_u8(self.fingerprint.fragments_key);
        buf.put_u32(match self.leaving {
            Some(hold) => u32::try_from(hold.as_millis())
                .unwrap_or(NOT_LEAVING)
                .min(NOT_LEAVING - 1),
            None => NOT_LEAVING,
        });
        buf.put_u8(if self.draining { DRAINING } else { 0 });
        buf.put_u64(self.offers);
        match self.address.ip() {
            IpAddr::V4(ip) => {
                buf.put_u8(4);
                buf.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                buf.put_u8(6);
                buf.put_slice(&ip.octets());
            }
        }
        buf.put_u16(self.address.port());
        buf.put_u8(self.domain.len);
        buf.put_slice(self.domain.as_str().as_bytes());
    }

    /// The longest form of a member on the wire, in bytes.
    pub(super) const LEN_MAX: usize =
        2 + 8 + 8 + 2 + 19 + 4 + 1 + 8 + 1 + 16 + 2 + 1 + DOMAIN_LEN_MAX;

    /// Bytes of this member on the wire.
    pub(super) fn encoded_len(&self) -> usize {
        let address = if self.address.is_ipv4() { 4 } else { 16 };
        Self::LEN_MAX - 16 + address - DOMAIN_LEN_MAX + usize::from(self.domain.len)
    }

    /// Reads a member.
    pub(super) fn decode(buf: &mut impl Buf) -> Result<Self, DecodeError> {
        let host = HostId::try_from(buf.try_get_u16()?).map_err(|_| DecodeError("host id"))?;
        let stream = Stream {
            incarnation: buf.try_get_u64()?,
            generation: buf.try_get_u64()?,
        };
        let renewal = buf.try_get_u16()?;
        let fingerprint = Fingerprint {
            network: buf.try_get_u32()?,
            services: buf.try_get_u32()?,
            addresses: buf.try_get_u64()?,
            session_keys: [buf.try_get_u8()?, buf.try_get_u8()?],
            fragments_key: buf.try_get_u8()?,
        };
        let leaving = match buf.try_get_u32()? {
            NOT_LEAVING => None,
            hold_ms => Some(Duration::from_millis(hold_ms.into())),
        };
        let draining = match buf.try_get_u8()? {
            0 => false,
            DRAINING => true,
            _ => return Err(DecodeError("flags")),
        };
        let offers = buf.try_get_u64()?;
        let ip: IpAddr = match buf.try_get_u8()? {
            4 => {
                let mut octets = [0; 4];
                buf.try_copy_to_slice(&mut octets)?;
                octets.into()
            }
            6 => {
                let mut octets = [0; 16];
                buf.try_copy_to_slice(&mut octets)?;
                octets.into()
            }
            _ => return Err(DecodeError("address family")),
        };
        let address = SocketAddr::new(ip, buf.try_get_u16()?);
        let len = usize::from(buf.try_get_u8()?);
        if len > DOMAIN_LEN_MAX {
            return Err(DecodeError("domain length"));
        }
        let mut name = [0; DOMAIN_LEN_MAX];
        buf.try_copy_to_slice(&mut name[..len])?;
        let domain = std::str::from_utf8(&name[..len])
            .ok()
            .and_then(|name| Domain::try_from(name).ok())
            .ok_or(DecodeError("domain"))?;
        Ok(Self {
            host,
            stream,
            renewal,
            address,
            domain,
            fingerprint,
            leaving,
            draining,
            offers,
        })
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} at {} in {}",
            self.host, self.stream, self.address, self.domain
        )?;
        if self.renewal > 0 {
            write!(f, ", renewal {}", self.renewal)?;
        }
        if let Some(hold) = self.leaving {
            write!(f, ", leaving, hold {hold:?}")?;
        }
        if self.draining {
            f.write_str(", draining")?;
        }
        Ok(())
    }
}

/// Why bytes are no member: what was wrong, or cut short.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct DecodeError(pub(super) &'static str);

impl From<TryGetError> for DecodeError {
    fn from(_: TryGetError) -> Self {
        Self("length")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn members()(
            host in 1u16..4096,
            incarnation: u64,
            generation: u64,
            renewal: u16,
            (network, services, addresses, session_keys, fragments_key) in any::<(u32, u32, u64, [u8; 2], u8)>(),
            hold_ms in prop::option::of(0..NOT_LEAVING),
            (draining, offers) in any::<(bool, u64)>(),
            ip: IpAddr,
            port: u16,
            domain in "[a-zé]{1,16}",
        ) -> Member {
            Member {
                host: HostId(host),
                stream: Stream { incarnation, generation },
                renewal,
                address: SocketAddr::new(ip, port),
                domain: Domain::try_from(domain.as_str()).unwrap(),
                fingerprint: Fingerprint { network, services, addresses, session_keys, fragments_key },
                leaving: hold_ms.map(|ms| Duration::from_millis(ms.into())),
                draining,
                offers,
            }
        }
    }

    proptest! {
        #[test]
        fn member_survives_the_wire_and_no_cut_does(member in members()) {
            let mut bytes = Vec::new();
            member.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), member.encoded_len());
            prop_assert!(bytes.len() <= Member::LEN_MAX);
            prop_assert_eq!(Member::decode(&mut &bytes[..]), Ok(member));
            for len in 0..bytes.len() {
                prop_assert!(Member::decode(&mut &bytes[..len]).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Member::decode(&mut &bytes[..]);
        }
    }

    #[test]
    fn domain_names_are_bounded() {
        assert!(Domain::try_from("").is_err());
        assert!(Domain::try_from("x".repeat(33).as_str()).is_err());
        assert_eq!(
            Domain::try_from("x".repeat(32).as_str()).unwrap().as_str(),
            "x".repeat(32)
        );
    }
}
