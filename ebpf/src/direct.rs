//! Packets off the wire: the order of decisions for what no other host has sent
//! here.

use aya_ebpf::programs::XdpContext;
use homing_common::{
    net::{Address, Service, TCP, UDP},
    outcome::Outcome,
};

use crate::{
    Next, control, encap, flow,
    local::{self, Local},
    maps::SERVICES,
    moving, owners,
    packet::{Frame, Ip, Link, Segment},
    settings, tunnel,
    uncommon::{Uncommon, is_icmp},
    unowned::{self, From, Way},
};

/// Decides the way of a packet.
#[inline(always)]
pub fn handle<const V4: bool>(
    ctx: &XdpContext,
    frame: &Frame,
    link: Link,
) -> Result<Next, Outcome> {
    let ip = Ip::parse::<V4>(frame, link.len).ok_or(Outcome::Malformed)?;
    if is_tunnel_address::<V4>(&ip.destination) {
        return tunnel::handle::<V4>(ctx, frame, link, &ip);
    }
    if ip.fragment {
        return Ok(Next::Fragment(Uncommon::off_the_wire::<V4>(link)));
    }
    if is_icmp::<V4>(ip.protocol) {
        return Ok(Next::Icmp(Uncommon::off_the_wire::<V4>(link)));
    }
    if ip.protocol != TCP {
        return match ip.protocol {
            UDP => flow::handle::<V4>(ctx, frame, &ip).map(Next::End),
            _ => Err(Outcome::NotService),
        };
    }
    let segment = Segment::parse(frame, &ip).ok_or(Outcome::Malformed)?;

    if let Some(found) = moving::find(&segment.tuple) {
        return Ok(Next::Moving(Uncommon::off_the_wire::<V4>(link), found));
    }
    // Only sessions of services have entries, so one that is found needs no
    // look-up of its service.
    let id = segment.tuple.id(&settings::session_key());
    if let Some(owner) = owners::host_of(id)? {
        return encap::send_to(
            ctx,
            &segment.inner::<V4>(),
            id.entropy(),
            owner,
            encap::Origin::Wire,
        )
        .map(Next::End);
    }
    if !is_service(&segment.tuple.service()) {
        return Err(Outcome::NotService);
    }
    let opens = segment.flags.opens();
    if opens && !control::draining() {
        return Err(Outcome::LocalSyn);
    }
    match local::find::<V4>(ctx, frame, &segment) {
        Local::Socket => return Err(Outcome::LocalSocket),
        // A SYN to a session in TIME_WAIT opens a new one.
        Local::TimeWait if !opens => return Err(Outcome::LocalSocket),
        Local::Cookie => return Err(Outcome::LocalCookie),
        Local::TimeWait | Local::Nothing => {}
    }
    match unowned::decide(ctx, &segment, id, From::Wire) {
        Way::End(outcome) => Err(outcome),
        Way::Rendezvous(host) => encap::send(
            ctx,
            &segment.inner::<V4>(),
            id.entropy(),
            host,
            encap::Origin::Rendezvous { opens },
        )
        .map(Next::End),
    }
}

/// Whether an address is this host's tunnel address, in a packet of the family that
/// tunnels run over. One that is IPv4-mapped looks alike, and nothing at the POP's edge
/// stops it.
#[inline(always)]
fn is_tunnel_address<const V4: bool>(address: &Address) -> bool {
    let tunnel = settings::tunnel_address();
    let is_it = address.word(1) == tunnel.word(1) && address.word(0) == tunnel.word(0);
    is_it && V4 == tunnel.is_v4()
}

/// Whether the POP answers for an address, port and protocol.
#[inline(always)]
pub fn is_service(service: &Service) -> bool {
    SERVICES.get_ptr(service).is_some()
}
