//! x
#![no_std]
#![no_main]
use aya_ebpf::{macros::xdp, programs::XdpContext, bindings::xdp_action};
#[xdp]
pub fn floor(_ctx: XdpContext) -> u32 { xdp_action::XDP_TX }
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
