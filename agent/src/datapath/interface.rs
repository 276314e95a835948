//! Blocking questions to the kernel: what is this interface, and which XDP program does
//! it run? Is this address one of this host?

use std::{io, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::XdpMode;

/// What the kernel says of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    pub name: String,
    pub index: u32,
    pub mtu: u32,
    /// Its link-layer address; zeros if it has none of this length.
    pub address: [u8; 6],
    /// The XDP program it runs, if any.
    pub xdp: Option<Running>,
    /// The index of the interface that it is tied to: a veth's other end, or what is
    /// below. None if there is none in this network namespace.
    pub tied_to: Option<u32>,
}

/// An XDP program that an interface runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Running {
    pub program_id: u32,
    /// None: neither of those that can be configured.
    pub mode: Option<XdpMode>,
}

/// Looks up an interface of this network namespace by name.
pub(crate) fn look_up(name: &str) -> io::Result<Interface> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answer = match ask(RouteNetlinkMessage::GetLink(message))? {
        RouteNetlinkMessage::NewLink(link) => link,
        other => return Err(unexpected(other)),
    };
    let mut interface = Interface {
        name: name.to_owned(),
        index: answer.header.index,
        mtu: 0,
        address: [0; 6],
        xdp: None,
        tied_to: None,
    };
    let mut is_elsewhere = false;
    for attribute in answer.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(address) => {
                interface.address = address.try_into().unwrap_or_default();
            }
            LinkAttribute::Xdp(xdp) => interface.xdp = running(&xdp),
            LinkAttribute::Link(index) => interface.tied_to = Some(index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            _ => {}
        }
    }
    interface.tied_to = interface.tied_to.filter(|_| !is_elsewhere);
    Ok(interface)
}

/// Whether packets to an address are for this host.
pub(crate) fn is_local(address: IpAddr) -> io::Result<bool> {
    let mut message = RouteMessage::default();
    let (family, len, to) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = len;
    message.attributes.push(RouteAttribute::Destination(to));
    match ask(RouteNetlinkMessage::GetRoute(message)) {
        Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(route.header.kind == RouteType::Local),
        Ok(other) => Err(unexpected(other)),
        Err(error) => match error.raw_os_error() {
            // No route leads there, or one that refuses.
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

fn unexpected(answer: impl std::fmt::Debug) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel answered {answer:?}"),
    )
}

fn running(attributes: &[LinkXdp]) -> Option<Running> {
    let program_id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Skb),
        _ => None,
    });
    Some(Running { program_id, mode })
}

fn ask(question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(question);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(answer),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(unexpected(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_namespace_has_a_loopback_interface() {
        let lo = look_up("lo").unwrap();
        assert_eq!(lo.index, 1);
        assert!(lo.mtu > 0);
        assert_eq!(lo.xdp, None);
    }

    #[test]
    fn addresses_of_other_hosts_are_not_of_this_one() {
        // Set aside for documentation (RFC 5737, RFC 3849).
        for elsewhere in ["192.0.2.1", "2001:db8::1"] {
            assert!(
                !is_local(elsewhere.parse().unwrap()).unwrap(),
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        let error = look_up("homing-none").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
