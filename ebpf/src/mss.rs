//! The MSS that services offer, lowered to what fits into the tunnel.
//!
//! A client's segments may land on any host and go to their owner through the
//! tunnel, whose header takes its room. TCP agrees on the largest segment in the
//! handshake: so that none is too large later, the option in a service's SYN|ACK
//! is lowered as it leaves.

use aya_ebpf::programs::TcContext;
use homing_common::outcome::Hook;

use crate::{
    direct,
    egress::{self, Leaving},
    maps::CONTROL,
    packet::Flags,
    stats,
};

/// TCP options (RFC 9293, section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// At most so many options are looked at. Linux puts the MSS first.
const MAX_OPTIONS: usize = 10;

const TCP_MIN_LEN: usize = 20;
const CHECKSUM: usize = 16;

/// Lowers the MSS of a SYN|ACK of a service. Where it has none, the client takes
/// 536 bytes (RFC 9293, section 3.7.1), and that is small enough.
#[inline(always)]
pub fn lower(ctx: &TcContext, packet: &Leaving) {
    let Some(header) = egress::at::<[u8; TCP_MIN_LEN]>(ctx, packet.upper) else {
        return;
    };
    // SAFETY: `at` has checked that the header lies within the packet.
    let (offset, flags) = unsafe { ((*header)[12], Flags((*header)[13])) };
    if !flags.accepts() || !direct::is_service(&packet.tuple.service()) {
        return;
    }
    let end = packet.upper + (offset >> 4) as usize * 4;
    if end > ctx.len() as usize {
        return;
    }
    let Some(at) = find(ctx, packet.upper + TCP_MIN_LEN, end) else {
        return;
    };
    if replace(ctx, packet, at).is_some() {
        stats::count(Hook::MssLowered.index());
    }
}

/// Offset of the value of the MSS option among the options from `at` to `end`.
#[inline(always)]
fn find(ctx: &TcContext, mut at: usize, end: usize) -> Option<usize> {
    for _ in 0..MAX_OPTIONS {
        // Fewer than four bytes are no MSS.
        if at + MSS_LEN as usize > end {
            return None;
        }
        let option: [u8; 2] = ctx.load(at).ok()?;
        match option {
            [END, _] => return None,
            [NO_OPERATION, _] => at += 1,
            [MSS, MSS_LEN] => return Some(at + 2),
            [_, len] if len >= 2 => at += len as usize,
            _ => return None,
        }
    }
    None
}

/// Writes the largest MSS allowed in the place of a larger one.
#[inline(always)]
fn replace(ctx: &TcContext, packet: &Leaving, at: usize) -> Option<()> {
    let control = CONTROL.get(0)?;
    // SAFETY: the entry is valid; the agent may change it behind the compiler's
    // back, a field at a time.
    let max = unsafe {
        if packet.tuple.service.is_v4() {
            core::ptr::read_volatile(&raw const control.mss_v4)
        } else {
            core::ptr::read_volatile(&raw const control.mss_v6)
        }
    };
    let old: [u8; 2] = ctx.load(at).ok()?;
    if max == 0 || u16::from_be_bytes(old) <= max {
        return None;
    }
    let new = max.to_be_bytes();
    // The checksum is over 16-bit words counted from the TCP header: a value at
    // an odd offset lies across two of them, its bytes in each other's place.
    let word = |bytes: [u8; 2]| {
        let [a, b] = bytes;
        let odd = (at - packet.upper) % 2 == 1;
        u16::from_ne_bytes(if odd { [b, a] } else { [a, b] }) as u64
    };
    // The helper leaves a checksum alone that the device is still to compute.
    ctx.l4_csum_replace(packet.upper + CHECKSUM, word(old), word(new), 2)
        .ok()?;
    ctx.store(at, &new, 0).ok()
}
