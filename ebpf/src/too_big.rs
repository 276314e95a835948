//! Packets that do not fit into the tunnel: their sender is told, so that it sends
//! smaller ones (RFC 1191, RFC 8201).
//!
//! The answer is made of the packet itself, which it repeats the beginning of, and
//! goes back the way the packet came. It comes from the service's address: that is
//! where routers expect this host's packets from, and what the sender's stack
//! looks up. An IPv4 sender that allows fragments is told too: it will then make
//! them small enough itself.

use core::{mem::size_of, ptr::copy_nonoverlapping};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use homing_common::{
    limit::Limit,
    net::{ICMP, ICMPV6},
    outcome::Outcome,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum, control,
    encap::Inner,
    limit,
    packet::{FRAGMENT, Frame},
};

const IPV4_LEN: usize = size_of::<Ipv4Hdr>();
const IPV6_LEN: usize = size_of::<Ipv6Hdr>();
const ICMP_LEN: usize = 8;

/// How much of an IPv4 packet is repeated: the longest IP header, the longest TCP
/// header, and eight bytes more.
const V4_REPEATED: usize = 128;
/// How much of an IPv6 packet is repeated: all that fits into the least MTU (RFC
/// 4443, section 3.2).
const V6_REPEATED: usize = V6_LEAST_MTU - IPV6_LEN - ICMP_LEN;
const V6_LEAST_MTU: usize = 1280;
/// It is summed in parts, because kernels before 6.13 sum 512 bytes at most.
const V6_PART: usize = V6_REPEATED / V6_PARTS;
const V6_PARTS: usize = 4;

const _: () = assert!(V6_PART * V6_PARTS == V6_REPEATED && V6_PART.is_multiple_of(4));

/// The link layer and as many VLAN tags as are read.
const LINK_MAX: usize = 22;

const TTL: u8 = 64;

/// Turns a packet into the answer that packets of more than `room` bytes do not
/// fit, if its sender is to be told.
#[inline(always)]
pub fn tell(ctx: &XdpContext, inner: &Inner, room: usize) -> Outcome {
    match too_big(ctx.ctx, inner.start as u32, room as u32, inner.v4 as u32) {
        0 => Outcome::TooBig,
        _ => Outcome::TooBigTold,
    }
}

/// Returns 1 if the packet is now the answer, and 0, with the packet as it was or
/// in pieces, if nobody is to be told. The IP header begins at `start`. Where that is
/// not right behind the link layer, the packet came through the tunnel, and its sender
/// is not where the frame came from.
///
/// A function of its own, and global: the verifier looks at it once, and not once
/// for every way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn too_big(ctx: *mut xdp_md, start: u32, room: u32, v4: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let start = start as usize;
    if start > LINK_MAX {
        return 0;
    }
    let answered = if v4 != 0 {
        answer_v4(&ctx, start, room)
    } else {
        answer_v6(&ctx, start, room)
    };
    answered.is_some() as u32
}

/// An ICMP message as it lies in a frame, without the packet that it repeats.
#[repr(C)]
struct Message {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    /// IPv4: two bytes without meaning, then two of MTU. IPv6: four of MTU.
    mtu: [u8; 4],
}

#[inline(always)]
fn answer_v4(ctx: &XdpContext, start: usize, room: u32) -> Option<()> {
    let frame = Frame::of(ctx);
    frame.at::<[u8; V4_REPEATED]>(start)?;
    let ip: *const Ipv4Hdr = frame.at(start)?;
    // SAFETY: `at` has checked that the header lies within the frame.
    let (client, service, protocol, frags) =
        unsafe { ((*ip).src_addr, (*ip).dst_addr, (*ip).proto, (*ip).frags) };
    // Never about an ICMP message, a fragment but the first, or to an address that
    // is no single host's (RFC 1122, section 3.2.2).
    let later = u16::from_be_bytes(frags) & 0x1fff != 0;
    if protocol == ICMP || later || matches!(client[0], 0 | 127 | 224..) {
        return None;
    }
    if !limit::take(Limit::TooBig, control::now_ns()) {
        return None;
    }
    grow(ctx, IPV4_LEN + ICMP_LEN)?;
    let frame = Frame::of(ctx);
    turn_link(&frame, IPV4_LEN + ICMP_LEN)?;
    let len = IPV4_LEN + ICMP_LEN + V4_REPEATED;
    let header: *mut Ipv4Hdr = frame.at(start)?;
    let message: *mut Message = frame.at(start + IPV4_LEN)?;
    // Right behind the message, and summed with it.
    frame.at::<[u8; ICMP_LEN + V4_REPEATED]>(start + IPV4_LEN)?;
    // SAFETY: `at` has checked that all of them lie within the frame.
    unsafe {
        header.write(Ipv4Hdr {
            vihl: 0x45,
            tos: 0,
            tot_len: (len as u16).to_be_bytes(),
            id: [0; 2],
            frags: 0x4000u16.to_be_bytes(),
            ttl: TTL,
            proto: ICMP,
            check: [0; 2],
            src_addr: service,
            dst_addr: client,
        });
        let check = checksum::ipv4_header(header.cast::<[u32; 5]>().read_unaligned());
        (*header).check = check.to_ne_bytes();
        let [high, low] = (room as u16).to_be_bytes();
        message.write(Message {
            // Destination unreachable, fragmentation needed (RFC 1191, section 4).
            kind: 3,
            code: 4,
            checksum: [0; 2],
            mtu: [0, 0, high, low],
        });
        let sum = sum::<{ ICMP_LEN + V4_REPEATED }>(message.cast(), 0);
        (*message).checksum = checksum::of_sum(sum as u64).to_ne_bytes();
    }
    cut(ctx, start + len)
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext, start: usize, room: u32) -> Option<()> {
    let frame = Frame::of(ctx);
    frame.at::<[u8; V6_REPEATED]>(start)?;
    let ip: *const Ipv6Hdr = frame.at(start)?;
    // SAFETY: `at` has checked that the header lies within the frame.
    let (client, service, next) = unsafe { ((*ip).src_addr, (*ip).dst_addr, (*ip).next_hdr) };
    // As above (RFC 4443, section 2.4). Whether a fragment is the first stands
    // in the first header behind IPv6's, in all that is sent in earnest.
    if next == ICMPV6 || next == FRAGMENT && is_later_fragment(&frame, start)? {
        return None;
    }
    // Multicast, and neither unspecified nor loopback. Below the least MTU no
    // sender goes (RFC 8201, section 4).
    if client[0] == 0xff || client[0] == 0 || (room as usize) < V6_LEAST_MTU {
        return None;
    }
    if !limit::take(Limit::TooBig, control::now_ns()) {
        return None;
    }
    grow(ctx, IPV6_LEN + ICMP_LEN)?;
    let frame = Frame::of(ctx);
    turn_link(&frame, IPV6_LEN + ICMP_LEN)?;
    let header: *mut Ipv6Hdr = frame.at(start)?;
    let message: *mut Message = frame.at(start + IPV6_LEN)?;
    let payload_len = (ICMP_LEN + V6_REPEATED) as u16;
    let mut sum = 0;
    for part in 0..V6_PARTS {
        let at = start + IPV6_LEN + ICMP_LEN + part * V6_PART;
        let bytes: *mut [u8; V6_PART] = frame.at(at)?;
        // SAFETY: `at` has checked that they lie within the frame.
        sum = unsafe { self::sum::<V6_PART>(bytes.cast(), sum) };
    }
    // SAFETY: `at` has checked that both lie within the frame.
    unsafe {
        header.write(Ipv6Hdr {
            vcf: [0x60, 0, 0, 0],
            payload_len: payload_len.to_be_bytes(),
            next_hdr: ICMPV6,
            hop_limit: TTL,
            src_addr: service,
            dst_addr: client,
        });
        message.write(Message {
            // Packet too big (RFC 4443, section 3.2).
            kind: 2,
            code: 0,
            checksum: [0; 2],
            mtu: room.to_be_bytes(),
        });
        let sum = self::sum::<ICMP_LEN>(message.cast(), sum);
        // The pseudo-header (RFC 8200, section 8.1).
        let addresses = &raw mut (*header).src_addr;
        let sum = self::sum::<32>(addresses.cast(), sum) as u64;
        let rest = (payload_len as u32).to_be() as u64 + (ICMPV6 as u32).to_be() as u64;
        (*message).checksum = checksum::of_sum(sum + rest).to_ne_bytes();
    }
    cut(ctx, start + IPV6_LEN + payload_len as usize)
}

#[inline(always)]
fn is_later_fragment(frame: &Frame, start: usize) -> Option<bool> {
    let header: *const [u8; 4] = frame.at(start + IPV6_LEN)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [_, _, high, low] = unsafe { *header };
    Some(u16::from_be_bytes([high, low]) & 0xfff8 != 0)
}

/// Makes room for `len` bytes in front.
#[inline(always)]
fn grow(ctx: &XdpContext, len: usize) -> Option<()> {
    // SAFETY: the frame is not touched through old pointers after this.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, -(len as i32)) } == 0).then_some(())
}

/// Cuts the frame to a length.
#[inline(always)]
fn cut(ctx: &XdpContext, len: usize) -> Option<()> {
    // SAFETY: as above.
    let cut = unsafe {
        let more = bpf_xdp_get_buff_len(ctx.ctx) as i32 - len as i32;
        bpf_xdp_adjust_tail(ctx.ctx, -more)
    };
    (cut == 0).then_some(())
}

/// Moves the link layer forward by `by` bytes, which are more than it is long, and
/// swaps its addresses. What was behind it is copied along where it is short, and
/// overwritten later.
#[inline(always)]
fn turn_link(frame: &Frame, by: usize) -> Option<()> {
    const ADDRESS: usize = 6;
    const REST: usize = LINK_MAX - 2 * ADDRESS;
    let old: *const [u8; LINK_MAX] = frame.at(by)?;
    let new: *mut [u8; LINK_MAX] = frame.at(0)?;
    let (old, new) = (old.cast::<u8>(), new.cast::<u8>());
    // SAFETY: `at` has checked that both lie within the frame; they do not overlap.
    unsafe {
        copy_nonoverlapping(old, new.add(ADDRESS), ADDRESS);
        copy_nonoverlapping(old.add(ADDRESS), new, ADDRESS);
        copy_nonoverlapping(old.add(2 * ADDRESS), new.add(2 * ADDRESS), REST);
    }
    Some(())
}

/// The sum of `N` bytes, a multiple of four, and of what was summed before.
///
/// # Safety
///
/// `bytes` must point to `N` bytes.
#[inline(always)]
unsafe fn sum<const N: usize>(bytes: *mut u32, before: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, N as u32, before) as u32 }
}
