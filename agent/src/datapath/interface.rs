//! One blocking question to the kernel: what is this interface, and which XDP
//! program does it run?

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::XdpMode;

/// What the kernel says of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Interface {
    pub name: String,
    pub index: u32,
    pub mtu: u32,
    /// Its link-layer address; zeros if it has none of this length.
    pub address: [u8; 6],
    /// The XDP program it runs, if any.
    pub xdp: Option<Running>,
}

/// An XDP program that an interface runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Running {
    pub program_id: u32,
    /// None: neither of those that can be configured.
    pub mode: Option<XdpMode>,
}

/// Looks up an interface of this network namespace by name.
pub(super) fn look_up(name: &str) -> io::Result<Interface> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answer = ask(RouteNetlinkMessage::GetLink(message))?;
    let mut interface = Interface {
        name: name.to_owned(),
        index: answer.header.index,
        mtu: 0,
        address: [0; 6],
        xdp: None,
    };
    for attribute in answer.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(address) => {
                interface.address = address.try_into().unwrap_or_default();
            }
            LinkAttribute::Xdp(xdp) => interface.xdp = running(&xdp),
            _ => {}
        }
    }
    Ok(interface)
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

fn ask(question: RouteNetlinkMessage) -> io::Result<LinkMessage> {
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
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the kernel answered {other:?}"),
        )),
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
    fn what_does_not_exist_is_an_error() {
        let error = look_up("homing-none").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
