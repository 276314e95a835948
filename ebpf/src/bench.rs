//! Programs for `cargo xtask bench fastpath`: the fast path in a wrapper that
//! undoes what it did, so that `BPF_PROG_TEST_RUN` can repeat it, and the same
//! wrappers around nothing, whose cost is subtracted.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![allow(missing_docs, reason = "the macros of aya do not hand comments on")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use homing_common::bench::{Bench, HEADER_LEN};
use homing_ebpf::{handle, packet::Frame, stats};

/// What the wrappers need, set by the benchmark.
#[btf_map]
static BENCH: Array<Bench, 1> = Array::new();

/// The floor: a program that does nothing.
#[xdp]
pub fn bench_floor(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Choosing a flow, and nothing else.
#[xdp]
pub fn bench_choose(ctx: XdpContext) -> u32 {
    run(&ctx, |_, _| Some(()))
}

/// Choosing a flow, and moving the head of the packet there and back.
#[xdp]
pub fn bench_adjust(ctx: XdpContext) -> u32 {
    run(&ctx, |ctx, bench| {
        adjust(ctx, -bench.undo)?;
        adjust(ctx, bench.undo)
    })
}

/// Choosing a flow, the fast path, and undoing what it did to the packet.
#[xdp]
pub fn bench_fastpath(ctx: XdpContext) -> u32 {
    run(&ctx, |ctx, bench| {
        stats::count(handle(ctx).outcome.index());
        adjust(ctx, bench.undo)
    })
}

#[inline(always)]
fn run(ctx: &XdpContext, step: impl Fn(&XdpContext, &Bench) -> Option<()>) -> u32 {
    let done = BENCH.get_ptr_mut(0).and_then(|bench| {
        // SAFETY: the benchmark runs one program at a time.
        let bench = unsafe { &mut *bench };
        choose(ctx, bench)?;
        step(ctx, bench)?;
        restore(ctx, bench)
    });
    match done {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Writes the next flow's client port and the last bytes of its address.
#[inline(always)]
fn choose(ctx: &XdpContext, bench: &mut Bench) -> Option<()> {
    // A linear congruential generator: neither in order nor twice in a row.
    bench.state = bench
        .state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let flow = ((bench.state >> 32) as u32) % bench.flows.max(1);
    let frame = Frame::of(ctx);
    let address: *mut u32 = frame.at(bench.address_offset as usize & 0xff)?;
    // SAFETY: `at` has checked that it lies within the frame.
    unsafe { address.write_unaligned(flow) };
    Some(())
}

/// Gives the packet the header it had before.
#[inline(always)]
fn restore(ctx: &XdpContext, bench: &Bench) -> Option<()> {
    let header: *mut [u8; HEADER_LEN] = Frame::of(ctx).at(0)?;
    // SAFETY: `at` has checked that it lies within the frame.
    unsafe { *header = bench.header };
    Some(())
}

#[inline(always)]
fn adjust(ctx: &XdpContext, delta: i32) -> Option<()> {
    // SAFETY: no pointer into the packet is used after this.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } == 0).then_some(())
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// As in the product.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
