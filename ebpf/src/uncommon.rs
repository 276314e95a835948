//! What is no plain TCP segment: fragments and ICMP errors, off the wire and
//! through the tunnel.
//!
//! Both are decided on by functions of their own, and global: the verifier looks at
//! each once, and they do not weigh on the ways of packets that are many.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    host::HostId,
    net::{ICMP, ICMPV6},
    outcome::Outcome,
    session::Tuple,
};

use crate::{
    End,
    encap::{self, Inner, Origin},
    fragment, local,
    packet::{Frame, Link},
    related, tunnel,
};

/// Where a packet came from.
#[derive(Clone, Copy)]
pub enum Source {
    /// Off the wire.
    Wire,
    /// Through the tunnel, from a member.
    Tunnel {
        /// The member.
        host: HostId,
        /// What is left of its hops.
        ttl: u8,
    },
}

/// Decides the way of a fragment.
#[inline(always)]
pub fn fragment<const V4: bool>(
    ctx: &XdpContext,
    link: Link,
    start: usize,
    source: Source,
) -> Result<End, Outcome> {
    let (start, arguments) = (start as u32, pack::<V4>(link, source));
    unpack(homing_fragment(ctx.ctx, start, arguments))
}

/// Decides the way of an ICMP packet.
#[inline(always)]
pub fn icmp<const V4: bool>(
    ctx: &XdpContext,
    link: Link,
    start: usize,
    source: Source,
) -> Result<End, Outcome> {
    let (start, arguments) = (start as u32, pack::<V4>(link, source));
    unpack(homing_icmp(ctx.ctx, start, arguments))
}

/// Whether a protocol is the ICMP of an IP version.
#[inline(always)]
pub fn is_icmp<const V4: bool>(protocol: u8) -> bool {
    protocol == if V4 { ICMP } else { ICMPV6 }
}

/// Takes a fragment whose IP header begins at `start`, and [`Arguments`]. Returns
/// an [`End`], packed.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_fragment(ctx: *mut xdp_md, start: u32, arguments: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let case = Case::new(&ctx, start, arguments);
    pack_end(fragment::decide(&case))
}

/// The same for an ICMP packet.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_icmp(ctx: *mut xdp_md, start: u32, arguments: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let case = Case::new(&ctx, start, arguments);
    pack_end(related::decide(&case))
}

// Arguments: the sending member (bits 0 to 15, zero for none), what is left of the
// packet's hops (16 to 23), the link layer's length (24 to 28), and whether the
// packet is IPv4 (bit 31).
const ARGUMENTS_V4: u32 = 1 << 31;

#[inline(always)]
fn pack<const V4: bool>(link: Link, source: Source) -> u32 {
    let (host, ttl) = match source {
        Source::Wire => (0, 0),
        Source::Tunnel { host, ttl } => (host.0 as u32, ttl as u32),
    };
    host | ttl << 16 | (link.len as u32) << 24 | if V4 { ARGUMENTS_V4 } else { 0 }
}

#[inline(always)]
fn pack_end(end: Result<End, Outcome>) -> u64 {
    let end = match end {
        Ok(end) => end,
        Err(outcome) => outcome.into(),
    };
    end.outcome as u64 | (end.ifindex as u64) << 32
}

#[inline(always)]
fn unpack(end: u64) -> Result<End, Outcome> {
    // The verifier has not seen that nothing but outcomes is returned.
    let outcome = Outcome::of_index(end as u32).ok_or(Outcome::Malformed)?;
    Ok(End {
        outcome,
        ifindex: (end >> 32) as u32,
    })
}

/// A packet to be decided on.
pub struct Case<'a> {
    /// The context.
    pub ctx: &'a XdpContext,
    /// The frame.
    pub frame: Frame,
    /// Offset of the packet's IP header in the frame.
    pub start: usize,
    /// Whether it is IPv4.
    pub v4: bool,
    /// Length of the link layer. Behind it begins the outer header, if there is one.
    pub link_len: usize,
    /// The member that sent it here; zero for none.
    pub from: u16,
    /// What is left of its hops.
    pub ttl: u8,
}

impl<'a> Case<'a> {
    #[inline(always)]
    fn new(ctx: &'a XdpContext, start: u32, arguments: u32) -> Self {
        Self {
            ctx,
            frame: Frame::of(ctx),
            // Behind link layer and tunnel header; the verifier has not seen it.
            start: (start & 0xff) as usize,
            v4: arguments & ARGUMENTS_V4 != 0,
            link_len: (arguments >> 24 & 0x1f) as usize,
            from: arguments as u16,
            ttl: (arguments >> 16) as u8,
        }
    }

    /// Whether it came through the tunnel.
    #[inline(always)]
    pub fn tunnelled(&self) -> bool {
        self.from != 0
    }

    /// What to count of a packet off the wire, or of one through the tunnel.
    #[inline(always)]
    pub fn either(&self, wire: Outcome, tunnel: Outcome) -> Outcome {
        if self.tunnelled() { tunnel } else { wire }
    }

    /// Whether this host has a socket of a session of TCP.
    #[inline(always)]
    pub fn has_socket(&self, tuple: &Tuple) -> bool {
        if self.v4 {
            local::is_open::<true>(self.ctx, tuple)
        } else {
            local::is_open::<false>(self.ctx, tuple)
        }
    }

    /// Up to the local stack, without the outer header if there is one.
    #[inline(always)]
    pub fn up(&self, wire: Outcome, stripped: Outcome) -> Outcome {
        if !self.tunnelled() {
            return wire;
        }
        let done = if self.v4 {
            tunnel::strip::<true>(self.ctx, &self.frame, self.link_len, self.start)
        } else {
            tunnel::strip::<false>(self.ctx, &self.frame, self.link_len, self.start)
        };
        match done {
            Ok(()) => stripped,
            Err(outcome) => outcome,
        }
    }

    /// Into the tunnel, towards a host.
    #[inline(always)]
    pub fn send(
        &self,
        len: usize,
        tos: u8,
        entropy: u32,
        host: HostId,
        origin: Origin,
    ) -> Result<End, Outcome> {
        let inner = Inner {
            start: self.start,
            len,
            tos,
            v4: self.v4,
        };
        encap::send(self.ctx, &inner, entropy, host, origin)
    }
}
