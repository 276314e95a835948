//! What only the agent needs: text forms, and leave to cross the map border.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use crate::{
    ask::Question,
    bench::Bench,
    capture::{Capture, Captured},
    control::{Control, Rendezvous},
    event::Event,
    flow::Flow,
    host::{Host, HostId, MAX_HOSTS},
    maps::{Identity, KnownMember},
    moving::Moving,
    net::{Address, Port, Service},
    owners::{Bucket, Header},
    park::{Course, Datagram, Parked},
    session::{Session, SessionId, SessionKey, Tuple},
    settings::Settings,
};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` or `repr(transparent)`, made of integers alone,
            // and its asserted size leaves no room for padding.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

pod!(
    Bench,
    Capture,
    Captured,
    Control,
    Course,
    Datagram,
    Event,
    Flow,
    Host,
    Identity,
    KnownMember,
    Moving,
    Bucket,
    Header,
    Parked,
    Question,
    Rendezvous,
    Service,
    Session,
    SessionId,
    Settings,
    Tuple
);

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip.octets()),
            IpAddr::V6(ip) => Self(ip.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(octets) => Ipv4Addr::from(octets).into(),
            None => Ipv6Addr::from(address.0).into(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Service {
    /// The service's address and port.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address.into(), self.port.number())
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} protocol {}", self.endpoint(), self.protocol)
    }
}

impl Tuple {
    /// The tuple of a session between two endpoints. An IPv4-mapped address
    /// counts as IPv4.
    pub fn between(client: SocketAddr, service: SocketAddr, protocol: u8) -> Self {
        Self::new(
            client.ip().into(),
            Port::new(client.port()),
            service.ip().into(),
            Port::new(service.port()),
            protocol,
        )
    }

    /// The client's endpoint.
    pub fn client_endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.client.into(), self.client_port.number())
    }

    /// The service's endpoint.
    pub fn service_endpoint(&self) -> SocketAddr {
        self.service().endpoint()
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {} protocol {}",
            self.client_endpoint(),
            self.service_endpoint(),
            self.protocol
        )
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, flags {:02x}", self.tuple, self.flags)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.0)
    }
}

/// Why a number is no host id.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAHostId;

impl fmt::Display for NotAHostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a host id is a number from 1 to {}", MAX_HOSTS - 1)
    }
}

impl std::error::Error for NotAHostId {}

impl TryFrom<u16> for HostId {
    type Error = NotAHostId;

    fn try_from(id: u16) -> Result<Self, NotAHostId> {
        if id == 0 || u32::from(id) >= MAX_HOSTS {
            return Err(NotAHostId);
        }
        Ok(Self(id))
    }
}

impl FromStr for HostId {
    type Err = NotAHostId;

    fn from_str(text: &str) -> Result<Self, NotAHostId> {
        text.parse::<u16>().map_err(|_| NotAHostId)?.try_into()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SessionKey {
    /// Hides the key: whoever knows it can aim at session ids.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}
