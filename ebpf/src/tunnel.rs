//! Packets through the tunnel: from a member, for this host, one layer deep.

use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use homing_common::{
    host::{GUE_PORT, HostId},
    net::{Address, IPIP, IPV6_IN_IP, TCP, UDP},
    outcome::{Outcome, Verdict},
    session::SessionId,
};

use crate::{
    Next, control, direct, encap, flow, hosts,
    local::{self, Local},
    mark::Mark,
    moving, owners,
    packet::{Frame, IPV4, IPV6, Ip, Link, Segment},
    settings,
    uncommon::{Uncommon, is_icmp},
    unowned::{self, From, Way},
    word::{load, store},
};

const UDP_LEN: usize = 8;

/// Decides the way of a packet for this host's tunnel address.
#[inline(always)]
pub fn handle<const V4: bool>(
    ctx: &XdpContext,
    frame: &Frame,
    link: Link,
    outer: &Ip,
) -> Result<Next, Outcome> {
    // What is no tunnel packet (a ping, say) is the local stack's business. The
    // agent sets how this host sends; it understands both ways, so that a POP
    // can change from one to the other host by host.
    let inner_start = match outer.protocol {
        IPIP | IPV6_IN_IP => outer.upper,
        UDP => {
            if !is_gue(frame, outer)? {
                return Err(Outcome::NotService);
            }
            outer.upper + UDP_LEN
        }
        _ => return Err(Outcome::NotService),
    };
    let from = member(outer)?;
    // Members never fragment tunnel packets: they set DF and know the path's MTU.
    if outer.fragment {
        return Err(Outcome::TunnelMalformed);
    }
    // Two bytes, because the verifier learns nothing from a check for one.
    let first: *mut [u8; 2] = frame.at(inner_start).ok_or(Outcome::TunnelMalformed)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let version = unsafe { (*first)[0] } >> 4;
    let arrival = Arrival {
        link,
        from,
        ttl: outer.ttl,
        end: outer.start + outer.len,
    };
    match (version, outer.protocol) {
        (4, IPIP | UDP) => arrival.decide::<true>(ctx, frame, inner_start),
        (6, IPV6_IN_IP | UDP) => arrival.decide::<false>(ctx, frame, inner_start),
        _ => Err(Outcome::TunnelMalformed),
    }
}

/// Whether a UDP packet is GUE: the port says so.
#[inline(always)]
fn is_gue(frame: &Frame, outer: &Ip) -> Result<bool, Outcome> {
    if outer.fragment {
        return Err(Outcome::TunnelMalformed);
    }
    let header: *mut [u8; UDP_LEN] = frame.at(outer.upper).ok_or(Outcome::TunnelMalformed)?;
    // SAFETY: `at` has checked that the header lies within the frame.
    let header = unsafe { *header };
    if u16::from_be_bytes([header[2], header[3]]) != GUE_PORT {
        return Ok(false);
    }
    let len = u16::from_be_bytes([header[4], header[5]]) as usize;
    if outer.upper + len != outer.start + outer.len {
        return Err(Outcome::TunnelMalformed);
    }
    Ok(true)
}

/// The member whose tunnel prefix a packet's source lies in.
#[inline(always)]
fn member(outer: &Ip) -> Result<HostId, Outcome> {
    let network = settings::tunnel();
    let host = network
        .host_of(bits(&outer.source))
        .ok_or(Outcome::TunnelNotMember)?;
    if host == settings::host() {
        return Err(Outcome::TunnelNotMember);
    }
    match hosts::member(host) {
        Some(_) => Ok(host),
        None => Err(Outcome::TunnelNotMember),
    }
}

/// The part of an address that [`TunnelNetwork`] reads.
///
/// [`TunnelNetwork`]: homing_common::host::TunnelNetwork
#[inline(always)]
fn bits(address: &Address) -> u64 {
    let b = &address.0;
    match address.as_v4() {
        Some(octets) => u32::from_be_bytes(octets) as u64,
        None => u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
    }
}

/// A tunnel packet that has passed all checks of its outer header.
struct Arrival {
    link: Link,
    from: HostId,
    ttl: u8,
    /// Offset in the frame at which the outer packet ends.
    end: usize,
}

impl Arrival {
    #[inline(always)]
    fn decide<const V4: bool>(
        &self,
        ctx: &XdpContext,
        frame: &Frame,
        start: usize,
    ) -> Result<Next, Outcome> {
        let ip = Ip::parse::<V4>(frame, start).ok_or(Outcome::TunnelMalformed)?;
        if ip.start + ip.len > self.end {
            return Err(Outcome::TunnelMalformed);
        }
        let uncommon = Uncommon {
            v4: V4,
            link_len: self.link.len,
            start,
            from: self.from.0,
            ttl: self.ttl,
        };
        let is_uncommon = ip.fragment || is_icmp::<V4>(ip.protocol);
        if is_uncommon && start > Uncommon::START_MAX {
            return Err(Outcome::TunnelMalformed);
        }
        if ip.fragment {
            return Ok(Next::Fragment(uncommon));
        }
        if is_nested(frame, &ip) {
            return Err(Outcome::TunnelNested);
        }
        if is_icmp::<V4>(ip.protocol) {
            return Ok(Next::Icmp(uncommon));
        }
        match ip.protocol {
            TCP => {}
            UDP => return self.datagram::<V4>(ctx, frame, &ip),
            _ => return Err(Outcome::TunnelNotService),
        }
        let segment = Segment::parse(frame, &ip).ok_or(Outcome::TunnelMalformed)?;
        if !direct::is_service(&segment.tuple.service()) {
            return Err(Outcome::TunnelNotService);
        }
        if let Some(found) = moving::find(&segment.tuple) {
            if start > Uncommon::START_MAX {
                return Err(Outcome::TunnelMalformed);
            }
            return Ok(Next::Moving(uncommon, found));
        }
        let outcome = match local::find::<V4>(ctx, frame, &segment) {
            Local::Socket | Local::TimeWait => Outcome::StrippedSocket,
            Local::Cookie => Outcome::StrippedCookie,
            Local::Nothing => {
                let id = segment.tuple.id(&settings::session_key());
                let owner = owners::owner_of(id)?;
                match owner {
                    Some(owner) if owner != self.from => {
                        return self.send_on::<V4>(ctx, &segment, id, owner);
                    }
                    _ if Mark::Diverted.is_on(frame, self.link.len) => stray(&segment, id)?,
                    _ if segment.flags.opens() => Outcome::StrippedSyn,
                    _ => self.unowned(ctx, &segment, id, owner.is_some())?,
                }
            }
        };
        strip::<V4>(ctx, frame, self.link.len, start)?;
        Err(outcome)
    }

    /// Decides on a UDP packet.
    #[inline(always)]
    fn datagram<const V4: bool>(
        &self,
        ctx: &XdpContext,
        frame: &Frame,
        ip: &Ip,
    ) -> Result<Next, Outcome> {
        let datagram = Segment::datagram(frame, ip).ok_or(Outcome::TunnelMalformed)?;
        if !direct::is_service(&datagram.tuple.service()) {
            return Err(Outcome::TunnelNotService);
        }
        let id = datagram.tuple.id(&settings::session_key());
        let owner = owners::owner_of(id)?.filter(|owner| *owner != self.from);
        let arrival = match owner {
            Some(_) => flow::Arrival::TunnelForeign,
            None => flow::Arrival::Tunnel,
        };
        let outcome = match (flow::decide(&datagram.tuple, id, arrival), owner) {
            (flow::Way::Known, _) => Outcome::StrippedFlow,
            (flow::Way::Elsewhere, Some(owner)) => {
                return self.send_on::<V4>(ctx, &datagram, id, owner);
            }
            _ => Outcome::StrippedFlowNew,
        };
        strip::<V4>(ctx, frame, self.link.len, ip.start)?;
        Err(outcome)
    }

    /// Nobody but the sender is known to own the session. Whether it goes up: if
    /// so, with which outcome.
    #[inline(always)]
    fn unowned(
        &self,
        ctx: &XdpContext,
        segment: &Segment,
        id: SessionId,
        owner: bool,
    ) -> Result<Outcome, Outcome> {
        let from = From::Tunnel {
            host: self.from,
            owner,
        };
        match unowned::decide(ctx, segment, id, from) {
            Way::End(outcome) if matches!(outcome.verdict(), Verdict::Pass) => Ok(outcome),
            Way::End(outcome) => Err(outcome),
            // A packet that came to be decided on here is sent to nobody else.
            Way::Rendezvous(_) => Err(Outcome::TunnelUnready),
        }
    }

    /// The session has moved on since the sender heard of it: one hop more, but
    /// never back to the sender and never a second time. Where it has moved twice since,
    /// the client sends again; hosts that circle a packet would not find it sooner.
    #[inline(always)]
    fn send_on<const V4: bool>(
        &self,
        ctx: &XdpContext,
        segment: &Segment,
        id: SessionId,
        owner: HostId,
    ) -> Result<Next, Outcome> {
        if Mark::SentOn.is_on(&Frame::of(ctx), self.link.len) {
            return Err(Outcome::TunnelAgain);
        }
        if self.ttl <= 1 {
            return Err(Outcome::TunnelHops);
        }
        let origin = encap::Origin::Tunnel { ttl: self.ttl - 1 };
        encap::send(ctx, &segment.inner::<V4>(), id.entropy(), owner, origin).map(Next::End)
    }
}

/// A segment that was diverted here, of a session that this host does not have. Whether
/// it goes up: only if this host has had the session, and closed it. If not, the move was
/// given up: what the local stack did with the segment it would do in the source's place.
#[inline(always)]
fn stray(segment: &Segment, id: SessionId) -> Result<Outcome, Outcome> {
    if !unowned::closed_lately(id, control::now_ns()) {
        return Err(Outcome::TunnelStray);
    }
    Ok(if segment.flags.opens() {
        Outcome::StrippedSyn
    } else {
        Outcome::StrippedClosed
    })
}

/// Whether an inner packet is itself a tunnel packet.
#[inline(always)]
fn is_nested(frame: &Frame, inner: &Ip) -> bool {
    match inner.protocol {
        IPIP | IPV6_IN_IP => true,
        UDP => match frame.at::<[u8; 4]>(inner.upper) {
            // SAFETY: `at` has checked that the bytes lie within the frame.
            Some(ports) => unsafe { u16::from_be_bytes([(*ports)[2], (*ports)[3]]) == GUE_PORT },
            None => false,
        },
        _ => false,
    }
}

/// Takes the outer headers off: the link layer, VLAN tags and all, moves to where
/// the inner packet begins.
#[inline(always)]
pub fn strip<const V4: bool>(
    ctx: &XdpContext,
    frame: &Frame,
    link_len: usize,
    inner_start: usize,
) -> Result<(), Outcome> {
    let ether_type = if V4 { IPV4 } else { IPV6 }.to_be_bytes();
    let delta = inner_start - link_len;
    match link_len {
        14 => move_link::<12>(frame, delta, ether_type)?,
        18 => move_link::<16>(frame, delta, ether_type)?,
        _ => move_link::<20>(frame, delta, ether_type)?,
    }
    // SAFETY: the frame is not touched through old pointers after this.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta as i32) } != 0 {
        return Err(Outcome::TunnelMalformed);
    }
    Ok(())
}

/// Copies the `N` bytes of link layer before its last EtherType forward by
/// `delta`, and puts another EtherType behind them.
#[inline(always)]
fn move_link<const N: usize>(
    frame: &Frame,
    delta: usize,
    ether_type: [u8; 2],
) -> Result<(), Outcome> {
    let from: *mut [u8; N] = frame.at(0).ok_or(Outcome::TunnelMalformed)?;
    let to: *mut [u8; N] = frame.at(delta).ok_or(Outcome::TunnelMalformed)?;
    let last: *mut [u8; 2] = frame.at(delta + N).ok_or(Outcome::TunnelMalformed)?;
    // SAFETY: `at` has checked that all lie within the frame, and `N` is 12, 16 or 20.
    // Source and target do not overlap: an outer header, and so `delta`, is 20 bytes at
    // least.
    unsafe {
        for offset in (0..N).step_by(4) {
            let word: u32 = load(from.cast::<u8>().add(offset));
            store(to.cast::<u8>().add(offset), word);
        }
        *last = ether_type;
    }
    Ok(())
}
