//! Packets off the wire: the order of decisions for what no other host has sent
//! here.

use aya_ebpf::programs::XdpContext;
use homing_common::{
    net::{Address, Service, TCP},
    outcome::Outcome,
};

use crate::{
    End, encap,
    local::{self, Local},
    maps::SERVICES,
    owners,
    packet::{Frame, Ip, Link, Segment},
    settings, tunnel,
};

/// Decides the way of a packet.
#[inline(always)]
pub fn handle<const V4: bool>(ctx: &XdpContext, frame: &Frame, link: Link) -> Result<End, Outcome> {
    let ip = Ip::parse::<V4>(frame, link.len).ok_or(Outcome::Malformed)?;
    if is_tunnel_address(&ip.destination) {
        return tunnel::handle::<V4>(ctx, frame, link, &ip);
    }
    if ip.fragment {
        return Err(Outcome::Fragment);
    }
    if ip.protocol != TCP {
        return Err(Outcome::NotService);
    }
    let segment = Segment::parse(frame, &ip).ok_or(Outcome::Malformed)?;

    // Only sessions of services have entries, so one that is found needs no
    // look-up of its service.
    let id = segment.tuple.id(&settings::session_key());
    if let Some(owner) = owners::owner_of(id) {
        return encap::send(ctx, &segment, id, owner, encap::Origin::Wire);
    }
    if !is_service(&segment.tuple.service()) {
        return Err(Outcome::NotService);
    }
    if segment.flags.opens() {
        return Err(Outcome::LocalSyn);
    }
    Err(match local::find::<V4>(ctx, frame, &segment) {
        Local::Socket => Outcome::LocalSocket,
        Local::Cookie => Outcome::LocalCookie,
        Local::Nothing => Outcome::Unknown,
    })
}

#[inline(always)]
fn is_tunnel_address(address: &Address) -> bool {
    *address == settings::tunnel_address()
}

/// Whether the POP answers for an address, port and protocol.
#[inline(always)]
pub fn is_service(service: &Service) -> bool {
    SERVICES.get_ptr(service).is_some()
}
