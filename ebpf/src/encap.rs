//! Into the tunnel: the owner's header template before the packet, and what
//! differs from packet to packet patched into it.

use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use homing_common::{
    host::{Encapsulation, Host, HostId, MAX_HEADER_LEN, Template},
    net::{IPIP, IPV6_IN_IP},
    outcome::Outcome,
};

use crate::{
    End, checksum, hosts,
    mark::Mark,
    packet::Frame,
    settings, too_big,
    word::{load, store},
};

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
    /// Of a session that moves, or has moved, from here: to the host that it moves to.
    Diverted {
        /// The hops it has.
        ttl: u8,
        /// Whether it came from the tunnel.
        tunnelled: bool,
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

const _: () = assert!(cfg!(target_endian = "little"));

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
    let host = hosts::member(host).ok_or(Outcome::NoWay)?;
    send_to(ctx, inner, entropy, host, origin)
}

/// The same, to a host that has been looked up: a member.
#[inline(always)]
pub fn send_to(
    ctx: &XdpContext,
    inner: &Inner,
    entropy: u32,
    host: &'static Host,
    origin: Origin,
) -> Result<End, Outcome> {
    let template = template(host).ok_or(Outcome::NoWay)?;
    let (l2_len, l3_len) = (template.l2_len as usize, template.l3_len as usize);
    let outer_len = l3_len + inner.len;
    if outer_len > template.mtu as usize {
        return Err(match origin {
            // What another host sent here went through as long a header before:
            // the ways differ, and the sender is not where the frame came from.
            Origin::Tunnel { .. }
            | Origin::Diverted {
                tunnelled: true, ..
            } => Outcome::TooBig,
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
        Origin::Tunnel { ttl } | Origin::Fragment { ttl, .. } | Origin::Diverted { ttl, .. } => ttl,
    };
    // Fragments that are decided on have the last bit of their entropy set, all others
    // have it clear; only they are looked at for it.
    let (mark, entropy) = match origin {
        Origin::Fragment { decided: true, .. } => (Mark::Decided, entropy | 1),
        Origin::Fragment { decided: false, .. } => (Mark::None, entropy & !1),
        Origin::Tunnel { .. } => (Mark::SentOn, entropy),
        Origin::Diverted {
            tunnelled: true, ..
        } => (Mark::DivertedOn, entropy),
        Origin::Diverted { .. } => (Mark::Diverted, entropy),
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
        Origin::Diverted { .. } => Outcome::Diverted,
    };
    Ok(End {
        outcome,
        ifindex: if elsewhere { template.ifindex } else { 0 },
    })
}

/// The template in force for a host, if a way to it is known.
#[inline(always)]
fn template(host: &'static Host) -> Option<&'static Template> {
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

/// What differs from packet to packet in an outer header. It is put into whole words of
/// the template, which are those of a little-endian machine.
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
        if settings::tunnel_network().is_v4() {
            let start: *mut [u8; MAX_V4_HEADER_LEN] = frame.at(0)?;
            // SAFETY: all offsets stay below `MAX_V4_HEADER_LEN`, which the frame holds
            // and the template's header does too.
            unsafe {
                let (header, start) = copy_link(header, start.cast(), l2_len);
                self.write_v4(header, start);
            }
        } else {
            let start: *mut [u8; MAX_HEADER_LEN] = frame.at(0)?;
            // SAFETY: as above, with `MAX_HEADER_LEN`.
            unsafe {
                let (header, start) = copy_link(header, start.cast(), l2_len);
                self.write_v6(header, start);
            }
        }
        Some(())
    }

    /// What is patched is zero in the template, but for the protocol.
    ///
    /// # Safety
    ///
    /// Both must point to an IPv4 header and a UDP header, `ip` writable.
    #[inline(always)]
    unsafe fn write_v4(&self, template: *const u8, ip: *mut u8) {
        let is_gue = is_gue();
        // SAFETY: the caller's promise; all offsets stay below 20.
        unsafe {
            // Version, TOS, length, identification and flags; TTL, protocol, checksum
            // and source; destination.
            let mut first = load::<u64>(template)
                | (self.tos as u64) << 8
                | (self.len.swap_bytes() as u64) << 16;
            if self.mark != Mark::None {
                first |= (self.mark as u64) << (Mark::IDENTIFICATION_OFFSET * 8);
            }
            let mut second = load::<u64>(template.add(8)) | self.ttl as u64;
            let third = load::<u32>(template.add(16));
            if !is_gue {
                // The low bits of this host's tunnel prefix are the flow's.
                let mask = (1u32 << (settings::tunnel_shift() & 31)) - 1;
                let flow = (self.entropy & mask).swap_bytes();
                second = second & !0xff00 | (self.protocol as u64) << 8 | (flow as u64) << 32;
            }
            let (high, low) = ((first >> 32) as u32, first as u32);
            let words = [low, high, second as u32, (second >> 32) as u32, third];
            second |= (checksum::ipv4_header(words) as u64) << 16;
            store(ip, first);
            store(ip.add(8), second);
            store(ip.add(16), third);
            if is_gue {
                self.write_udp(template.add(IPV4_LEN), ip.add(IPV4_LEN), IPV4_LEN);
            }
        }
    }

    /// # Safety
    ///
    /// Both must point to an IPv6 header and a UDP header, `ip` writable.
    #[inline(always)]
    unsafe fn write_v6(&self, template: *const u8, ip: *mut u8) {
        let is_gue = is_gue();
        // The flow label (RFC 6438) is the flow's.
        let class_and_label = (self.tos as u32) << 20 | self.entropy & 0xf_ffff;
        let payload_len = self.len - IPV6_LEN as u16;
        // SAFETY: the caller's promise; all offsets stay below 40.
        unsafe {
            let mut first = load::<u64>(template)
                | class_and_label.swap_bytes() as u64
                | (payload_len.swap_bytes() as u64) << 32
                | (self.ttl as u64) << 56;
            if !is_gue {
                first = first & !(0xff << 48) | (self.protocol as u64) << 48;
            }
            store(ip, first);
            for offset in [8, 16, 24, 32] {
                store(ip.add(offset), load::<u64>(template.add(offset)));
            }
            if self.mark.is_in_source() {
                ip.add(Mark::SOURCE_OFFSET).write(self.mark as u8);
            }
            if is_gue {
                self.write_udp(template.add(IPV6_LEN), ip.add(IPV6_LEN), IPV6_LEN);
            }
        }
    }

    /// # Safety
    ///
    /// Both must point to 8 bytes, `udp` writable.
    #[inline(always)]
    unsafe fn write_udp(&self, template: *const u8, udp: *mut u8, ip_len: usize) {
        // The source port, from the dynamic range, is the flow's.
        let port = 0xc000 | (self.entropy as u16 & 0x3fff);
        let len = self.len - ip_len as u16;
        // SAFETY: the caller's promise.
        unsafe {
            let header =
                load::<u64>(template) | port.swap_bytes() as u64 | (len.swap_bytes() as u64) << 32;
            store(udp, header);
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
        store(to, load::<u64>(from));
        store(to.add(8), load::<u32>(from.add(8)));
        store(to.add(12), load::<u16>(from.add(12)));
        if l2_len == 14 {
            (from.add(14), to.add(14))
        } else {
            store(to.add(14), load::<u32>(from.add(14)));
            (from.add(18), to.add(18))
        }
    }
}
