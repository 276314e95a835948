//! The programs: which function of the library each of them is.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![allow(missing_docs, reason = "the macros of aya do not hand comments on")]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{cgroup_skb, classifier, sock_ops, xdp},
    programs::{SkBuffContext, SockOpsContext, TcContext, XdpContext},
};
use homing_ebpf::{answer, egress, handle, silence, sockops};

/// Every packet that reaches an interface of this host.
#[xdp]
pub fn homing_xdp(ctx: XdpContext) -> u32 {
    handle(&ctx).count()
}

/// Every packet that leaves by an interface of this host. What is not dropped goes on to
/// other programs and the interface, whatever was done to it.
#[classifier]
pub fn homing_egress(ctx: TcContext) -> i32 {
    match egress::handle(&ctx) {
        egress::Leaves::No => TC_ACT_SHOT,
        egress::Leaves::Yes => TC_ACT_UNSPEC,
    }
}

/// Every packet that a socket under the cgroup sends, by whatever interface.
#[cgroup_skb(egress)]
pub fn homing_silence(ctx: SkBuffContext) -> i32 {
    silence::handle(&ctx)
}

/// A packet that the agent gives back to the local stack. Attached to nothing: the
/// agent runs it.
#[xdp]
pub fn homing_up(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Questions of other hosts about sessions that they do not know. Attached to
/// nothing: the agent runs it.
#[xdp]
pub fn homing_answer(ctx: XdpContext) -> u32 {
    answer::handle(&ctx);
    xdp_action::XDP_DROP
}

/// Every socket under the cgroup that is established or closes.
#[sock_ops]
pub fn homing_sockops(ctx: SockOpsContext) -> u32 {
    sockops::handle(&ctx);
    1
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// The kernel lets a program call GPL-only helpers if its licence says so.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
