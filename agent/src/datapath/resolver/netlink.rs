//! Netlink's messages, and the machine's questions and inputs.

use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
            LinkMessage, VlanProtocol,
        },
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};

use super::model::{Input, Link, Neighbour, NextHop, NoRoute, Route};
use crate::datapath::template::Mac;

/// What to listen to. Rules change what a look-up says without a change of any
/// route. So do next-hop objects, but the kernel then notifies of the routes that
/// use them (`net.ipv4.nexthop_compat_mode`, on unless turned off).
pub(super) const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Asks for the route to an address. No route is an answer too; `None` is none.
pub(super) async fn find_route(
    handle: &Handle,
    address: IpAddr,
) -> Result<Option<Result<Route, NoRoute>>, Error> {
    let mut question = RouteMessage::default();
    (
        question.header.address_family,
        question.header.destination_prefix_length,
    ) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    question
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    match handle.route().get(question).execute().try_next().await {
        Ok(answer) => Ok(answer.map(|answer| route(&answer))),
        // ENETUNREACH and what forbidding routes say: EACCES, EINVAL, EHOSTUNREACH.
        Err(Error::NetlinkError(_)) => Ok(Some(Err(NoRoute::Unreachable))),
        Err(error) => Err(error),
    }
}

/// Asks for one entry of the neighbour table. That there is none is an answer
/// too; the outer `None` is none.
pub(super) async fn find_neighbour(
    handle: &Handle,
    (ifindex, address): NextHop,
) -> Result<Option<Option<Neighbour>>, Error> {
    let question = neighbour_message(ifindex, address);
    let question = RouteNetlinkMessage::GetNeighbour(question);
    let answer = request(handle, question, NLM_F_REQUEST).await?;
    Ok(answer.map(|answer| match answer {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(answer)) => {
            neighbour(&answer).and_then(|(_, neighbour)| neighbour)
        }
        // ENOENT.
        _ => None,
    }))
}

/// Has the kernel resolve an address, as if it had a packet for it.
pub(super) async fn probe(handle: &Handle, (ifindex, address): NextHop) -> Result<(), Error> {
    let mut entry = neighbour_message(ifindex, address);
    entry.header.flags = NeighbourFlags::Use;
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    // How it ends is told by notifications.
    let refused = request(handle, RouteNetlinkMessage::NewNeighbour(entry), flags).await?;
    match refused {
        Some(NetlinkPayload::Error(error)) => Err(Error::NetlinkError(error)),
        _ => Ok(()),
    }
}

/// Has the kernel forget an entry of the neighbour table, if there is one.
pub(super) async fn forget(handle: &Handle, (ifindex, address): NextHop) -> Result<(), Error> {
    let entry = neighbour_message(ifindex, address);
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    request(handle, RouteNetlinkMessage::DelNeighbour(entry), flags).await?;
    Ok(())
}

/// Reads all interfaces.
pub(super) async fn read_links(handle: &Handle) -> Result<Vec<(u32, Link)>, Error> {
    let links = handle.link().get().execute();
    links
        .map_ok(|message| (message.header.index, link(&message)))
        .try_collect()
        .await
}

/// The kernel's answer. A plain acknowledgement counts as none.
async fn request(
    handle: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<NetlinkPayload<RouteNetlinkMessage>>, Error> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    let mut answers = handle.clone().request(message)?;
    Ok(answers.next().await.map(|answer| answer.payload))
}

fn neighbour_message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address));
    message
}

/// What a notification means. None: nothing that matters.
pub(super) fn notification(message: Message) -> Option<Input> {
    let message = match message.payload {
        NetlinkPayload::InnerMessage(message) => message,
        // Notifications were lost.
        NetlinkPayload::Overrun(_) => return Some(Input::Refresh),
        _ => return None,
    };
    match message {
        // Bridges send some of another family about their ports, which are about
        // something else.
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => {
            let interface = message.header.interface_family == AddressFamily::Unspec;
            interface.then_some(Input::LinksChanged)
        }
        RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
            let (hop, _) = neighbour(&message)?;
            Some(Input::NeighbourChanged(hop))
        }
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            Some(prefix(&message))
        }
        _ => Some(Input::Refresh),
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut name = String::new();
    let mut mtu = 0;
    let mut mac = None;
    let mut below = None;
    let mut is_vlan = false;
    let mut vlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::Address(bytes)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                mac = self::mac(bytes);
            }
            LinkAttribute::LinkInfo(info) => {
                is_vlan = info.contains(&LinkInfo::Kind(InfoKind::Vlan));
                vlan = vlan_id(info);
            }
            _ => {}
        }
    }
    let vlan = below.zip(vlan);
    Link {
        name,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        // A VLAN device whose tag no template can hold is as good as not Ethernet.
        mac: mac.filter(|_| vlan.is_some() || !is_vlan),
        mtu,
        vlan,
    }
}

/// The VLAN id of a VLAN device, if its tag is an 802.1Q one.
fn vlan_id(info: &[LinkInfo]) -> Option<u16> {
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    let other = data.iter().any(|attribute| {
        matches!(attribute, InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q)
    });
    if other {
        return None;
    }
    data.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// What a message says of which neighbour. The inner `None`: nothing of use.
fn neighbour(message: &NeighbourMessage) -> Option<(NextHop, Option<Neighbour>)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
                address = Some(IpAddr::from(*to));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
                address = Some(IpAddr::from(*to));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = self::mac(bytes),
            _ => {}
        }
    }
    let known = |stale| mac.map(|mac| Neighbour::Known { mac, stale });
    let neighbour = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Noarp
        | NeighbourState::Permanent => known(false),
        NeighbourState::Stale => known(true),
        NeighbourState::Incomplete => Some(Neighbour::Pending),
        NeighbourState::Failed => Some(Neighbour::Failed),
        _ => None,
    };
    Some(((message.header.ifindex, address?), neighbour))
}

fn route(message: &RouteMessage) -> Result<Route, NoRoute> {
    let mut ifindex = None;
    let mut gateway = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match (message.header.kind, ifindex) {
        (RouteType::Unicast, Some(ifindex)) => Ok(Route {
            ifindex,
            gateway,
            mtu,
        }),
        (RouteType::Local, _) => Err(NoRoute::Local),
        _ => Err(NoRoute::Unreachable),
    }
}

/// The prefix that a changed route leads to. One without destination is a
/// default route.
fn prefix(message: &RouteMessage) -> Input {
    let destination = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let len = message.header.destination_prefix_length;
    match (destination, message.header.address_family) {
        (Some(destination), _) => Input::RouteChanged(destination, len),
        (None, AddressFamily::Inet) => Input::RouteChanged([0; 4].into(), len),
        (None, AddressFamily::Inet6) => Input::RouteChanged([0u16; 8].into(), len),
        (None, _) => Input::Refresh,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn link_message(info: Option<Vec<LinkInfo>>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(MAC.into()),
        ];
        if let Some(info) = info {
            message.attributes.push(LinkAttribute::Link(2));
            message.attributes.push(LinkAttribute::LinkInfo(info));
        }
        message
    }

    fn vlan_info(protocol: VlanProtocol) -> Vec<LinkInfo> {
        let data = vec![InfoVlan::Protocol(protocol), InfoVlan::Id(100)];
        vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(data)),
        ]
    }

    #[test]
    fn a_vlan_device_names_its_tag_and_the_interface_below() {
        let link = link(&link_message(Some(vlan_info(VlanProtocol::Ieee8021Q))));
        assert_eq!(link.vlan, Some((2, 100)));
        assert_eq!((link.mac, link.mtu, link.up), (Some(Mac(MAC)), 1500, true));
    }

    #[test]
    fn a_provider_vlan_device_counts_as_not_ethernet() {
        let link = link(&link_message(Some(vlan_info(VlanProtocol::Ieee8021Ad))));
        assert_eq!((link.vlan, link.mac), (None, None));
    }

    #[test]
    fn the_other_end_of_a_veth_is_not_below_it() {
        let info = vec![LinkInfo::Kind(InfoKind::Veth)];
        let link = link(&link_message(Some(info)));
        assert_eq!((link.vlan, link.mac), (None, Some(Mac(MAC))));
    }

    #[test]
    fn an_interface_without_carrier_or_of_another_kind() {
        let mut message = link_message(None);
        message.header.flags = LinkFlags::Up;
        message.header.link_layer_type = LinkLayerType::Loopback;
        let link = link(&message);
        assert_eq!((link.up, link.mac), (false, None));
    }

    #[test]
    fn an_entry_that_promises_an_address_but_has_none_is_none() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut message = neighbour_message(3, address);
        message.header.state = NeighbourState::Stale;
        assert_eq!(neighbour(&message), Some(((3, address), None)));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(MAC.into()));
        let mac = Mac(MAC);
        let known = Neighbour::Known { mac, stale: true };
        assert_eq!(neighbour(&message), Some(((3, address), Some(known))));
    }

    #[test]
    fn a_changed_default_route_concerns_every_address_of_its_family() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        let any = IpAddr::from([0u16; 8]);
        assert_eq!(prefix(&message), Input::RouteChanged(any, 0));
    }

    #[test]
    fn only_unicast_routes_lead_to_hosts() {
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::Oif(2));
        for (kind, expected) in [
            (RouteType::Local, NoRoute::Local),
            (RouteType::BlackHole, NoRoute::Unreachable),
            (RouteType::Broadcast, NoRoute::Unreachable),
        ] {
            message.header.kind = kind;
            assert_eq!(route(&message), Err(expected));
        }
        message.header.kind = RouteType::Unicast;
        let via = std::net::Ipv6Addr::LOCALHOST;
        message
            .attributes
            .push(RouteAttribute::Via(RouteVia::Inet6(via)));
        let gateway = Some(via.into());
        let expected = Route {
            ifindex: 2,
            gateway,
            mtu: None,
        };
        assert_eq!(route(&message), Ok(expected));
    }
}
