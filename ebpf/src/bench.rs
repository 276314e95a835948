//! Programs for `cargo xtask bench`: look-ups of owners, and the fast path in a wrapper that
//! undoes what it did, so that `BPF_PROG_TEST_RUN` can repeat it, and the same
//! wrappers around nothing, whose cost is subtracted.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![allow(missing_docs, reason = "the macros of aya do not hand comments on")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use homing_common::{
    bench::{Bench, HEADER_LEN, session_id},
    session::SessionId,
};
use homing_ebpf::{
    handle,
    owners::owner_of,
    packet::Frame,
    stats,
    word::{load, store},
};

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

/// Foreign sessions' owners in a hash map, to compare with.
#[btf_map]
static OWNERS_HASH: HashMap<u64, u64, { 1 << 20 }> = HashMap::new();

/// The same where the oldest make room.
#[btf_map]
static OWNERS_LRU: LruHashMap<u64, u64, { 1 << 20 }> = LruHashMap::new();

/// Choosing a session, and nothing else.
#[xdp]
pub fn bench_session(_ctx: XdpContext) -> u32 {
    look_up(0, |_| true)
}

/// Choosing a session, and looking its owner up in the table.
#[xdp]
pub fn bench_owners(_ctx: XdpContext) -> u32 {
    look_up(0, |id| matches!(owner_of(id), Ok(Some(_))))
}

/// The same in the hash map.
#[xdp]
pub fn bench_owners_hash(_ctx: XdpContext) -> u32 {
    look_up(0, |id| OWNERS_HASH.get_ptr(id.0).is_some())
}

/// The same in the one where the oldest make room.
#[xdp]
pub fn bench_owners_lru(_ctx: XdpContext) -> u32 {
    look_up(0, |id| OWNERS_LRU.get_ptr(id.0).is_some())
}

/// Choosing a session that has no entry, and looking for one in the table.
#[xdp]
pub fn bench_absent(_ctx: XdpContext) -> u32 {
    look_up(ABSENT, |id| matches!(owner_of(id), Ok(None)))
}

/// The same in the hash map.
#[xdp]
pub fn bench_absent_hash(_ctx: XdpContext) -> u32 {
    look_up(ABSENT, |id| OWNERS_HASH.get_ptr(id.0).is_none())
}

/// The same in the one where the oldest make room.
#[xdp]
pub fn bench_absent_lru(_ctx: XdpContext) -> u32 {
    look_up(ABSENT, |id| OWNERS_LRU.get_ptr(id.0).is_none())
}

/// Numbers of sessions from here on have no entry.
const ABSENT: u64 = 1 << 32;

#[inline(always)]
fn look_up(from: u64, is_right: impl Fn(SessionId) -> bool) -> u32 {
    let right = BENCH.get_ptr_mut(0).is_some_and(|bench| {
        // SAFETY: the benchmark runs one program at a time.
        let bench = unsafe { &mut *bench };
        is_right(session_id(from + u64::from(bench.next())))
    });
    if right {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_ABORTED
    }
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
    let flow = bench.next();
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
    let (from, to) = (bench.header.as_ptr(), header.cast::<u8>());
    const WORDS: usize = HEADER_LEN / 8 * 8;
    // SAFETY: `at` has checked that it lies within the frame.
    unsafe {
        for offset in (0..WORDS).step_by(8) {
            store(to.add(offset), load::<u64>(from.add(offset)));
        }
        for offset in (WORDS..HEADER_LEN).step_by(2) {
            store(to.add(offset), load::<u16>(from.add(offset)));
        }
    }
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
