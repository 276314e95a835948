//! Homing's kernel programs, one file per step a packet takes.
//!
//! A packet is read ([`packet`]), its way decided ([`direct`] for what came off
//! the wire, [`tunnel`] for what another host sent here), and it goes up to the
//! local stack, away, or into the tunnel ([`encap`]). Every step ends in an
//! [`Outcome`](homing_common::outcome::Outcome), which [`End::count`] counts and turns
//! into an XDP action.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod answer;
pub mod checksum;
pub mod control;
pub mod direct;
pub mod echo;
pub mod egress;
pub mod encap;
pub mod flow;
pub mod fragment;
pub mod hosts;
pub mod limit;
pub mod local;
pub mod maps;
pub mod mark;
pub mod moving;
pub mod mss;
pub mod owners;
pub mod packet;
pub mod park;
pub mod related;
pub mod settings;
pub mod silence;
pub mod sockops;
pub mod stats;
pub mod too_big;
pub mod tunnel;
pub mod uncommon;
pub mod unowned;
pub mod word;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_redirect,
    programs::XdpContext,
};
use homing_common::outcome::{Outcome, Verdict};

use crate::uncommon::Uncommon;

/// How a packet's way ended.
#[derive(Clone, Copy)]
pub struct End {
    /// The outcome to count.
    pub outcome: Outcome,
    /// The interface to send it by, where that is another than it came by; zero
    /// otherwise.
    pub ifindex: u32,
}

impl From<Outcome> for End {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            ifindex: 0,
        }
    }
}

/// Where a packet's way leads, once it has been read.
#[derive(Clone, Copy)]
pub enum Next {
    /// To its end.
    End(End),
    /// On: it is a fragment.
    Fragment(Uncommon),
    /// On: it is an ICMP packet.
    Icmp(Uncommon),
    /// On: it is a segment of a session that is moving.
    Moving(Uncommon, moving::Found),
}

impl Next {
    const MOVING: u64 = 1 << 61;
    const FRAGMENT: u64 = 1 << 62;
    const ICMP: u64 = 1 << 63;

    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Self::End(end) => end.pack(),
            Self::Fragment(uncommon) => Self::FRAGMENT | uncommon.pack(),
            Self::Icmp(uncommon) => Self::ICMP | uncommon.pack(),
            Self::Moving(uncommon, found) => Self::MOVING | found.pack(uncommon),
        }
    }
}

impl End {
    /// Counts the outcome, and makes it an XDP action: the one place where that is done.
    #[inline(always)]
    pub fn count(self) -> u32 {
        stats::count(self.outcome.index());
        match self.outcome.verdict() {
            Verdict::Pass => xdp_action::XDP_PASS,
            Verdict::Drop => xdp_action::XDP_DROP,
            // SAFETY: a helper without preconditions.
            Verdict::Forward if self.ifindex != 0 => unsafe {
                bpf_redirect(self.ifindex, 0) as u32
            },
            Verdict::Forward => xdp_action::XDP_TX,
        }
    }

    #[inline(always)]
    fn pack(self) -> u64 {
        self.outcome as u64 | (self.ifindex as u64) << 32
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        // The verifier has not seen that nothing but outcomes is packed.
        let outcome = Outcome::of_index(word as u32).unwrap_or(Outcome::Malformed);
        Self {
            outcome,
            ifindex: (word >> 32) as u32,
        }
    }
}

/// Takes one packet from the wire to its end.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> End {
    let next = homing_plain(ctx.ctx);
    End::unpack(
        if next & (Next::ICMP | Next::FRAGMENT | Next::MOVING) == 0 {
            next
        } else if next & Next::ICMP != 0 {
            let read = related::icmp_read(ctx.ctx, next);
            uncommon::homing_icmp(ctx.ctx, next, read)
        } else if next & Next::FRAGMENT != 0 {
            let read = fragment::fragment_read(ctx.ctx, next);
            uncommon::homing_fragment(ctx.ctx, next, read)
        } else {
            let read = moving::moving_read(ctx.ctx, next);
            moving::homing_moving(ctx.ctx, next, read)
        },
    )
}

/// Takes a packet to its end, packed, or to where it turns out to be uncommon.
///
/// A function of its own, like those that come next for what is uncommon: the stack
/// has room for one of them at a time, and the verifier looks at each once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_plain(ctx: *mut xdp_md) -> u64 {
    let ctx = &XdpContext::new(ctx);
    let frame = packet::Frame::of(ctx);
    let link = match packet::Link::parse(&frame) {
        Ok(link) => link,
        Err(outcome) => return End::from(outcome).pack(),
    };
    let next = match link.ether_type {
        packet::IPV4 => direct::handle::<true>(ctx, &frame, link),
        packet::IPV6 => direct::handle::<false>(ctx, &frame, link),
        _ => Err(Outcome::NotIp),
    };
    match next {
        Ok(next) => next.pack(),
        Err(outcome) => End::from(outcome).pack(),
    }
}
