//! Homing's kernel programs, one file per step a packet takes.
//!
//! A packet is read ([`packet`]), its way decided ([`direct`] for what came off
//! the wire, [`tunnel`] for what another host sent here), and it goes up to the
//! local stack, away, or into the tunnel ([`encap`]). Every step ends in an
//! [`Outcome`](homing_common::outcome::Outcome); `main.rs` counts it and turns it
//! into an XDP action, and does nothing else.

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
pub mod limit;
pub mod local;
pub mod maps;
pub mod mss;
pub mod owners;
pub mod packet;
pub mod park;
pub mod settings;
pub mod sockops;
pub mod stats;
pub mod tunnel;
pub mod unowned;

use aya_ebpf::programs::XdpContext;
use homing_common::outcome::Outcome;

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

/// Takes one packet from the wire to its end.
#[inline(always)]
pub fn handle(ctx: &XdpContext) -> End {
    let frame = packet::Frame::of(ctx);
    let link = match packet::Link::parse(&frame) {
        Ok(link) => link,
        Err(outcome) => return outcome.into(),
    };
    let end = match link.ether_type {
        packet::IPV4 => direct::handle::<true>(ctx, &frame, link),
        packet::IPV6 => direct::handle::<false>(ctx, &frame, link),
        _ => Err(Outcome::NotIp),
    };
    match end {
        Ok(end) => end,
        Err(outcome) => outcome.into(),
    }
}
