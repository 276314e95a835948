//! Into the tunnel: the owner's header template before the packet, and what
//! differs from packet to packet patched into it.

use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use homing_common::{
    host::{Encapsulation, HostId, MAX_HEADER_LEN, Template},
    net::{IPIP, IPV6_IN_IP},
    outcome::Outcome,
};

use crate::{End, checksum, hosts, mark::Mark, packet::Frame, settings, too_big};

/// Where a packet that goes into the tunnel came from.
#[derive(Clone, Copy)]
pub enum Origin {
    /// From the wire, with no outer header.
    Wire,
    /// From the wire, for a host that may know whose it is.
    Rendezvous {
        /// Whether it opens a session.
        opens: bool,
    },
    /// A fragment: to the host where the fragments of its datagram meet, or from there
    /// to the one that they are for.
    Fragment {
        /// The hops it has.
        ttl: u8,
        /// Whether it is for the host that it is sent to: the outer header says so.
        decided: bool,
    },
    /// From the tunnel: its outer header is replaced by one that says so.
    Tunnel {
        /// What is left of its hops.
        ttl: u8,
    },
}

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// The longest outer header over IPv4: Ethernet, one VLAN tag, IPv4 and UDP.
const MAX_V4_HEADER_LEN: usize = 14 + 4 + IPV4_LEN + UDP_LEN;

/// DSCP without ECN: the tunnel is not ECN-capable, so that no mark is lost when
/// the outer header goes (RFC 6040, compatibility mode).
const DSCP_MASK: u8 = 0xfc;

/// The packet that goes into the tunnel.
#[derive(Clone, Copy)]
pub struct Inner {
    /// Offset of the IP header in the frame.
    pub start: usize,
    /// Length in bytes of the IP packet.
    pub len: usize,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether it is IPv4.
    pub v4: bool,
}

/// Encapsulates a packet and sends it to a host. `entropy` is the same for all
/// packets of a session.
///
/// `inner.start` may lie behind an outer header that is being replaced: the
/// frame's head moves by the difference, in either direction.
#[inline(always)]
pub fn send(
    ctx: &XdpContext,
    inner: &Inner,
    entropy: u32,
    host: HostId,
    origin: Origin,
) -> Result<End, Outcome> {
    let template = template(host).ok_or(Outcome::NoWay)?;
    let (l2_len, l3_len) = (template.l2_len as usize, template.l3_len as usize);
    let outer_len = l3_len + inner.len;
    if outer_len > template.mtu as usize {
        return Err(match origin {
            // What another host sent here went through as long a header before:
            // the ways differ, and the sender is not where the frame came from.
            Origin::Tunnel { .. } => Outcome::TooBig,
            _ => too_big::tell(ctx, inner, template.mtu as usize - l3_len),
        });
    }
    let delta = inner.start as i32 - (l2_len + l3_len) as i32;
    // SAFETY: the frame is not touched through old pointers after this.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
        return Err(Outcome::NoHeadroom);
    }
    let ttl = match origin {
        Origin::Wire | Origin::Rendezvous { .. } => settings::hop_limit(),
        Origin::Tunnel { ttl } | Origin::Fragment { ttl, .. } => ttl,
    };
    // Fragments that are decided on have the last bit of their entropy set, all others
    // have it clear; only they are looked at for it.
    let (mark, entropy) = match origin {
        Origin::Fragment { decided: true, .. } => (Mark::Decided, entropy | 1),
        Origin::Fragment { decided: false, .. } => (Mark::None, entropy & !1),
        Origin::Tunnel { .. } => (Mark::SentOn, entropy),
        Origin::Wire | Origin::Rendezvous { .. } => (Mark::None, entropy),
    };
    let outer = Outer {
        len: outer_len as u16,
        tos: inner.tos & DSCP_MASK,
        ttl,
        protocol: if inner.v4 { IPIP } else { IPV6_IN_IP },
        entropy,
        mark,
    };
    outer
        .write(&Frame::of(ctx), template, l2_len)
        .ok_or(Outcome::NoHeadroom)?;
    // SAFETY: the context is valid as long as the program runs.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    let elsewhere = template.ifindex != ingress;
    let outcome = match origin {
        Origin::Wire if elsewhere => Outcome::Redirected,
        Origin::Wire => Outcome::Forwarded,
        Origin::Rendezvous { opens: true } => Outcome::RendezvousSyn,
        Origin::Rendezvous { opens: false } => Outcome::Rendezvous,
        Origin::Fragment { decided: false, .. } => Outcome::FragmentGathered,
        Origin::Fragment { decided: true, .. } => Outcome::FragmentForwarded,
        Origin::Tunnel { .. } => Outcome::SentOn,
    };
    Ok(End {
        outcome,
        ifindex: if elsewhere { template.ifindex } else { 0 },
    })
}

/// The template in force for a host, if it is a member and a way to it is known.
#[inline(always)]
fn template(host: HostId) -> Option<&'static Template> {
    let host = hosts::member(host)?;
    // SAFETY: read once, so that a flip in between cannot mix two templates. The
    // agent waits for a grace period before it writes the one that was in force.
    let active = unsafe { core::ptr::read_volatile(&raw const host.active) };
    let template = if active == 0 {
        &host.templates[0]
    } else {
        &host.templates[1]
    };
    (template.ifindex != 0).then_some(template)
}

/// What differs from packet to packet in an outer header.
struct Outer {
    /// Length in bytes of the outer IP packet.
    len: u16,
    tos: u8,
    ttl: u8,
    /// Protocol number of the inner packet.
    protocol: u8,
    /// Bits that are the same for all packets of a session.
    entropy: u32,
    /// What it says of the packet's way.
    mark: Mark,
}

impl Outer {
    #[inline(always)]
    fn write(&self, frame: &Frame, template: &Template, l2_len: usize) -> Option<()> {
        let header = template.header.as_ptr();
        // One check for the longest header of a family: behind a shorter one lies the
        // inner packet, and a header and it are longer than that, be it the last byte
        // of an IPv4 packet in fragments.
        if settings::tunnel().is_v4() {
            let start: *mut [u8; MAX_V4_HEADER_LEN] = frame.at(0)?;
            // SAFETY: all offsets stay below `MAX_V4_HEADER_LEN`, which the frame holds
            // and the template's header does too.
            unsafe {
                let (header, start) = copy_link(header, start.cast(), l2_len);
                copy::<IPV4_LEN>(header, start);
                self.patch_v4(start);
                if is_gue() {
                    copy::<UDP_LEN>(header.add(IPV4_LEN), start.add(IPV4_LEN));
                    self.patch_udp(start.add(IPV4_LEN), IPV4_LEN);
                }
            }
        } else {
            let start: *mut [u8; MAX_HEADER_LEN] = frame.at(0)?;
            // SAFETY: as above, with `MAX_HEADER_LEN`.
            unsafe {
                let (header, start) = copy_link(header, start.cast(), l2_len);
                copy::<IPV6_LEN>(header, start);
                self.patch_v6(start);
                if is_gue() {
                    copy::<UDP_LEN>(header.add(IPV6_LEN), start.add(IPV6_LEN));
                    self.patch_udp(start.add(IPV6_LEN), IPV6_LEN);
                }
            }
        }
        Some(())
    }

    /// # Safety
    ///
    /// `ip` must point to 20 writable bytes.
    #[inline(always)]
    unsafe fn patch_v4(&self, ip: *mut u8) {
        // SAFETY: the caller's promise; all offsets stay below 20.
        unsafe {
            ip.add(1).write(self.tos);
            ip.add(2).cast::<u16>().write_unaligned(self.len.to_be());
            if self.mark != Mark::None {
                ip.add(Mark::IDENTIFICATION_OFFSET).write(self.mark as u8);
            }
            ip.add(8).write(self.ttl);
            if !is_gue() {
                ip.add(9).write(self.protocol);
                // The low bits of this host's tunnel prefix are the flow's.
                let mask = (1u32 << (settings::tunnel_shift() & 31)) - 1;
                let source = ip.add(12).cast::<u32>();
                let flow = (self.entropy & mask).to_be();
                source.write_unaligned(source.read_unaligned() | flow);
            }
            let words = ip.cast::<[u32; 5]>().read_unaligned();
            let sum = checksum::ipv4_header(words);
            ip.add(10).cast::<u16>().write_unaligned(sum);
        }
    }

    /// # Safety
    ///
    /// `ip` must point to 40 writable bytes.
    #[inline(always)]
    unsafe fn patch_v6(&self, ip: *mut u8) {
        // The flow label (RFC 6438) is the flow's.
        let word = 6 << 28 | (self.tos as u32) << 20 | self.entropy & 0xf_ffff;
        // SAFETY: the caller's promise; all offsets stay below 40.
        unsafe {
            ip.cast::<u32>().write_unaligned(word.to_be());
            let payload_len = self.len - IPV6_LEN as u16;
            ip.add(4).cast::<u16>().write_unaligned(payload_len.to_be());
            if !is_gue() {
                ip.add(6).write(self.protocol);
            }
            ip.add(7).write(self.ttl);
            if self.mark == Mark::SentOn {
                ip.add(Mark::SOURCE_OFFSET).write(self.mark as u8);
            }
        }
    }

    /// # Safety
    ///
    /// `udp` must point to 8 writable bytes.
    #[inline(always)]
    unsafe fn patch_udp(&self, udp: *mut u8, ip_len: usize) {
        // The source port, from the dynamic range, is the flow's.
        let port = 0xc000 | (self.entropy as u16 & 0x3fff);
        let len = self.len - ip_len as u16;
        // SAFETY: the caller's promise.
        unsafe {
            udp.cast::<u16>().write_unaligned(port.to_be());
            udp.add(4).cast::<u16>().write_unaligned(len.to_be());
        }
    }
}

#[inline(always)]
fn is_gue() -> bool {
    settings::encapsulation() == Encapsulation::Gue as u8
}

/// Copies the link layer, and returns where the IP header begins.
///
/// # Safety
///
/// Both must point to 18 bytes, `to` writable.
#[inline(always)]
unsafe fn copy_link(from: *const u8, to: *mut u8, l2_len: usize) -> (*const u8, *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        copy::<14>(from, to);
        if l2_len == 14 {
            (from.add(14), to.add(14))
        } else {
            copy::<4>(from.add(14), to.add(14));
            (from.add(18), to.add(18))
        }
    }
}

/// # Safety
///
/// Both must point to `N` bytes, `to` writable.
#[inline(always)]
unsafe fn copy<const N: usize>(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise; byte arrays have no alignment.
    unsafe { to.cast::<[u8; N]>().write(from.cast::<[u8; N]>().read()) }
}
