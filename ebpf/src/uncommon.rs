//! What is no plain TCP segment: fragments and ICMP errors, off the wire and
//! through the tunnel.
//!
//! Both are decided on by functions of their own, and global: the verifier looks at
//! each once, and they do not weigh on the ways of packets that are many.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    host::HostId,
    net::{ICMP, ICMPV6, UDP},
    outcome::Outcome,
    session::Tuple,
};

use crate::{
    End,
    encap::{self, Inner, Origin},
    flow, fragment, local,
    packet::{Frame, Link},
    related, tunnel,
};

/// A packet that is no plain segment, as far as it has been read.
#[derive(Clone, Copy)]
pub struct Uncommon {
    /// Whether it is IPv4.
    pub v4: bool,
    /// Length of the link layer: 14, 18 or 22.
    pub link_len: usize,
    /// Offset in the frame of its IP header; behind the outer headers, if there are
    /// some.
    pub start: usize,
    /// The member that sent it here through the tunnel; zero for none.
    pub from: u16,
    /// What is left of its hops in the tunnel.
    pub ttl: u8,
}

impl Uncommon {
    /// A packet that begins behind the link layer.
    #[inline(always)]
    pub fn off_the_wire<const V4: bool>(link: Link) -> Self {
        Self {
            v4: V4,
            link_len: link.len,
            start: link.len,
            from: 0,
            ttl: 0,
        }
    }

    /// Where the packet begins at most: members put no extension headers before it.
    pub const START_MAX: usize = 0xff;

    /// Below bit 62, where others count.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        self.from as u64
            | (self.ttl as u64) << 16
            | (self.start as u64) << 24
            | (self.link_len as u64) << 32
            | (self.v4 as u64) << 40
    }

    /// What was packed.
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self {
            v4: word & 1 << 40 != 0,
            link_len: (word >> 32 & 0x1f) as usize,
            start: (word >> 24 & 0xff) as usize,
            from: word as u16,
            ttl: (word >> 16) as u8,
        }
    }
}

/// Whether a protocol is the ICMP of an IP version.
#[inline(always)]
pub fn is_icmp<const V4: bool>(protocol: u8) -> bool {
    protocol == if V4 { ICMP } else { ICMPV6 }
}

/// Decides the way of a fragment, given [`Uncommon`] and what
/// [`fragment_read`](fragment::fragment_read) returned. Returns an [`End`]. All are
/// packed.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_fragment(ctx: *mut xdp_md, packet: u64, read: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    pack(fragment::decide(&Case::new(&ctx, packet), read))
}

/// The same for an ICMP packet.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_icmp(ctx: *mut xdp_md, packet: u64, read: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    pack(related::decide(&Case::new(&ctx, packet), read))
}

#[inline(always)]
fn pack(end: Result<End, Outcome>) -> u64 {
    match end {
        Ok(end) => end.pack(),
        Err(outcome) => End::from(outcome).pack(),
    }
}

/// A packet to be decided on.
pub struct Case<'a> {
    /// The context.
    pub ctx: &'a XdpContext,
    /// The frame.
    pub frame: Frame,
    /// The packet in it.
    pub packet: Uncommon,
}

impl<'a> Case<'a> {
    /// The packet that [`Uncommon`] leads to.
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext, packet: u64) -> Self {
        Self {
            ctx,
            frame: Frame::of(ctx),
            packet: Uncommon::unpack(packet),
        }
    }

    /// Whether it came through the tunnel.
    #[inline(always)]
    pub fn tunnelled(&self) -> bool {
        self.packet.from != 0
    }

    /// What to count of a packet off the wire, or of one through the tunnel.
    #[inline(always)]
    pub fn either(&self, wire: Outcome, tunnel: Outcome) -> Outcome {
        if self.tunnelled() { tunnel } else { wire }
    }

    /// Whether this host has a socket of a session of TCP.
    #[inline(always)]
    pub fn has_socket(&self, tuple: &Tuple) -> bool {
        // The ports are read apart from the address before them: both together would
        // be written to the stack as one word where it may not lie.
        // SAFETY: they are parts of the tuple.
        let tuple = &unsafe {
            Tuple {
                client_port: read_volatile(&raw const tuple.client_port),
                service_port: read_volatile(&raw const tuple.service_port),
                ..*tuple
            }
        };
        if self.packet.v4 {
            local::is_open::<true>(self.ctx, tuple)
        } else {
            local::is_open::<false>(self.ctx, tuple)
        }
    }

    /// Whether this host knows by itself that a session is its own: it has the socket,
    /// or has told the POP of the flow.
    #[inline(always)]
    pub fn is_here(&self, tuple: &Tuple) -> bool {
        if tuple.protocol == UDP {
            flow::is_told(tuple)
        } else {
            self.has_socket(tuple)
        }
    }

    /// Up to the local stack, without the outer header if there is one.
    #[inline(always)]
    pub fn up(&self, wire: Outcome, stripped: Outcome) -> Outcome {
        if !self.tunnelled() {
            return wire;
        }
        // The verifier has not seen that the one is greater.
        let link_len = self.packet.link_len;
        let start = link_len + (self.packet.start.wrapping_sub(link_len) & 0xff);
        let done = if self.packet.v4 {
            tunnel::strip::<true>(self.ctx, &self.frame, link_len, start)
        } else {
            tunnel::strip::<false>(self.ctx, &self.frame, link_len, start)
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
            start: self.packet.start,
            len,
            tos,
            v4: self.packet.v4,
        };
        encap::send(self.ctx, &inner, entropy, host, origin)
    }
}
