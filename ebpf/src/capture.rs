//! The program that takes the place of `homing_xdp` while packets are captured: it does the
//! same, by the same function, and hands over what packets were before and after.
//!
//! It is an object of its own, loaded when somebody captures, so that the other is not one
//! instruction longer for it.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![allow(missing_docs, reason = "the macros of aya do not hand comments on")]

use core::ptr::{addr_of_mut, read_volatile};

use aya_ebpf::{
    bindings::xdp_md,
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{bpf_ringbuf_output, bpf_xdp_load_bytes},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use homing_common::{
    capture::{
        CAPTURE_STATS_ENTRIES, CAPTURED_BYTES, Capture, CaptureCount, Captured, Ends, SNAP_MAX,
    },
    host::GUE_PORT,
    limit,
    net::{Address, ICMP, ICMPV6, IPIP, IPV6_IN_IP, Port, TCP, UDP},
    outcome::{Outcome, Verdict},
};
use homing_ebpf::{
    control, handle,
    packet::{
        FRAGMENT, Frame, IPV4, IPV6, Link, UPPER_FRAGMENT, UPPER_MASK, UPPER_VALID, ipv6_upper,
    },
};

/// What is to be captured. Written by the agent.
#[btf_map]
static CAPTURE: Array<Capture, 1> = Array::new();

/// What was captured: a [`Captured`] and the bytes behind it.
#[btf_map]
static CAPTURED: RingBuf<Captured, { CAPTURED_BYTES as usize }> = RingBuf::new();

/// How many records there were in the present window.
#[btf_map]
static CAPTURE_LIMIT: Array<u64, 1> = Array::new();

/// By [`CaptureCount`].
#[btf_map]
static CAPTURE_STATS: PerCpuArray<u64, { CAPTURE_STATS_ENTRIES as usize }> = PerCpuArray::new();

/// Where a record is put together.
#[btf_map]
static CAPTURE_ROOM: PerCpuArray<Record, 1> = PerCpuArray::new();

#[repr(C)]
struct Record {
    head: Captured,
    frames: [u8; 2 * SNAP_MAX],
}

/// Every packet that reaches an interface of this host, while packets are captured.
#[xdp]
pub fn homing_capture(ctx: XdpContext) -> u32 {
    let wanted = capture_before(ctx.ctx);
    let end = handle(&ctx);
    if wanted != 0 {
        capture_after(ctx.ctx, end.outcome.index(), end.ifindex);
    }
    end.count()
}

/// Keeps a packet as it came, if it may be wanted; whether it is kept.
///
/// A function of its own, like those below: the stack has room for one at a time beside
/// what decides on packets, and the verifier looks at each once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn capture_before(ctx: *mut xdp_md) -> u32 {
    keep(&XdpContext::new(ctx)).is_some() as u32
}

#[inline(always)]
fn keep(ctx: &XdpContext) -> Option<()> {
    let now_ns = control::now_ns();
    let wanted = CAPTURE.get_ptr(0)?;
    // SAFETY: the pointer is to the map's one value. It is read field by field, at any
    // time: the agent writes nothing but `until_ns` while packets are captured.
    let (until_ns, snap, flags) = unsafe {
        (
            read_volatile(&raw const (*wanted).until_ns),
            read_volatile(&raw const (*wanted).snap),
            read_volatile(&raw const (*wanted).flags),
        )
    };
    if now_ns >= until_ns || flags != 0 && !is_wanted(ctx) {
        return None;
    }
    let record = CAPTURE_ROOM.get_ptr_mut(0)?;
    let len = ctx.data_end() - ctx.data();
    let kept = bounded(len.min(snap as usize));
    // SAFETY: the room is this CPU's, and has place for as many bytes as `bounded` gives.
    unsafe {
        let frames = addr_of_mut!((*record).frames).cast::<u8>();
        if bpf_xdp_load_bytes(ctx.ctx, 0, frames.cast(), kept as u32) != 0 {
            return None;
        }
        let head = addr_of_mut!((*record).head);
        addr_of_mut!((*head).at_ns).write(now_ns);
        addr_of_mut!((*head).ifindex).write((*ctx.ctx).ingress_ifindex);
        addr_of_mut!((*head).came_len).write(len as u32);
        addr_of_mut!((*head).came).write(kept as u32);
    }
    Some(())
}

/// Hands over a packet that was kept, as it came and as it goes, if its outcome is wanted.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn capture_after(ctx: *mut xdp_md, outcome: u32, ifindex: u32) -> u32 {
    hand_over(&XdpContext::new(ctx), outcome, ifindex).is_some() as u32
}

#[inline(always)]
fn hand_over(ctx: &XdpContext, outcome: u32, ifindex: u32) -> Option<()> {
    let wanted = CAPTURE.get_ptr(0)?;
    // SAFETY: as in `keep`.
    let (word, rate, snap) = unsafe {
        let words = (&raw const (*wanted).outcomes).cast::<u64>();
        (
            read_volatile(words.add((outcome >> 6) as usize & 3)),
            read_volatile(&raw const (*wanted).rate),
            read_volatile(&raw const (*wanted).snap),
        )
    };
    if word & 1 << (outcome & 63) == 0 {
        return None;
    }
    count(CaptureCount::Wanted);
    let record = CAPTURE_ROOM.get_ptr_mut(0)?;
    // SAFETY: the room is this CPU's, and `keep` has just written to it.
    let (at_ns, came_len, came) = unsafe {
        let head = &(*record).head;
        (head.at_ns, head.came_len, head.came)
    };
    if !is_within(rate, at_ns) {
        count(CaptureCount::Limited);
        return None;
    }
    let came = bounded(came as usize);
    let len = ctx.data_end() - ctx.data();
    // What goes up at the length that it came with has not been touched.
    let is_sent =
        Outcome::of_index(outcome).is_some_and(|o| matches!(o.verdict(), Verdict::Forward));
    let mut went = 0;
    // SAFETY: behind `came` bytes, which are half of the room at most, there is place for
    // as many again; the record's head and these bytes lie within the room.
    let result = unsafe {
        if is_sent || len as u32 != came_len {
            went = bounded(len.min(snap as usize));
            let to = addr_of_mut!((*record).frames).cast::<u8>().add(came);
            if bpf_xdp_load_bytes(ctx.ctx, 0, to.cast(), went as u32) != 0 {
                return None;
            }
        }
        let head = addr_of_mut!((*record).head);
        addr_of_mut!((*head).out_ifindex).write(ifindex);
        addr_of_mut!((*head).outcome).write(outcome);
        addr_of_mut!((*head).went_len).write(len as u32);
        addr_of_mut!((*head).went).write(went as u32);
        addr_of_mut!((*head).zero).write(0);
        bpf_ringbuf_output(
            (&raw const CAPTURED).cast_mut().cast(),
            record.cast(),
            (size_of::<Captured>() + came + went) as u64,
            0,
        )
    };
    if result != 0 {
        count(CaptureCount::Full);
        return None;
    }
    Some(())
}

/// The same number, at least one and at most [`SNAP_MAX`], in a form in which the verifier
/// sees that.
#[inline(always)]
fn bounded(len: usize) -> usize {
    const { assert!(SNAP_MAX.is_power_of_two()) };
    // SAFETY: it reads a local variable. The compiler, that knows what `len` is, must not
    // take the mask away.
    let len = unsafe { read_volatile(&raw const len) };
    (len.wrapping_sub(1) & (SNAP_MAX - 1)) + 1
}

#[inline(always)]
fn count(what: CaptureCount) {
    if let Some(counter) = CAPTURE_STATS.get_ptr_mut(what as u32) {
        // SAFETY: the slot is this CPU's own.
        unsafe { *counter += 1 }
    }
}

/// Counts one more record; whether there may be so many.
#[inline(always)]
fn is_within(rate: u32, now_ns: u64) -> bool {
    let Some(counter) = CAPTURE_LIMIT.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the pointer is to a value of the map, which is read and written at once. Two
    // CPUs that meet here may count one instead of two.
    unsafe {
        let (next, within) = limit::count(counter.read_volatile(), now_ns, rate);
        counter.write_volatile(next);
        within
    }
}

/// Whether a packet, one that it carries through the tunnel, or one that it is an ICMP error
/// about, has the ends that are wanted.
#[inline(always)]
fn is_wanted(ctx: &XdpContext) -> bool {
    let frame = Frame::of(ctx);
    let Ok(link) = Link::parse(&frame) else {
        return false;
    };
    let v4 = match link.ether_type {
        IPV4 => 1,
        IPV6 => 0,
        _ => return false,
    };
    let found = capture_ends(ctx.ctx, link.len as u32, v4, 0);
    if found & (MATCHES | FURTHER) != FURTHER {
        return found & MATCHES != 0;
    }
    let (start, v4) = (found & UPPER_MASK, (found & FURTHER_V4 != 0) as u32);
    let about = (found & FURTHER_ABOUT != 0) as u32;
    let found = capture_ends(ctx.ctx, start, v4, about);
    if found & (MATCHES | FURTHER) != FURTHER {
        return found & MATCHES != 0;
    }
    // An ICMP error that came through the tunnel.
    let (start, v4) = (found & UPPER_MASK, (found & FURTHER_V4 != 0) as u32);
    capture_ends(ctx.ctx, start, v4, 1) & MATCHES != 0
}

/// In what [`capture_ends`] returns: the packet has the ends that are wanted.
const MATCHES: u32 = 1 << 31;
/// It has not, but there is another one in it, at the offset in the low bits, …
const FURTHER: u32 = 1 << 30;
/// … which is IPv4, …
const FURTHER_V4: u32 = 1 << 29;
/// … and which it is an ICMP error about.
const FURTHER_ABOUT: u32 = 1 << 28;

/// Compares the packet whose IP header is at the offset `start` with what is wanted.
/// `about`: an ICMP error is about it, so it is one that the service sent.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn capture_ends(ctx: *mut xdp_md, start: u32, v4: u32, about: u32) -> u32 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let start = (start & UPPER_MASK) as usize;
    let found = match v4 {
        0 => compare::<false>(&frame, start, about != 0),
        _ => compare::<true>(&frame, start, about != 0),
    };
    found.unwrap_or(0)
}

#[inline(always)]
fn compare<const V4: bool>(frame: &Frame, start: usize, about: bool) -> Option<u32> {
    let head = match V4 {
        true => Head::v4(frame, start)?,
        false => Head::v6(frame, start)?,
    };
    let mut ports = [0u8; 4];
    let has_ports = !head.later && (head.protocol == TCP || head.protocol == UDP);
    if has_ports {
        let at: *mut [u8; 4] = frame.at(head.upper)?;
        // SAFETY: `at` has checked that the bytes lie within the frame.
        ports = unsafe { *at };
    }
    let (mut client, mut service) = (head.source, head.destination);
    let (mut client_port, mut service_port) =
        (Port([ports[0], ports[1]]), Port([ports[2], ports[3]]));
    if about {
        core::mem::swap(&mut client, &mut service);
        core::mem::swap(&mut client_port, &mut service_port);
    }
    let ends = Ends {
        client,
        service,
        ports: has_ports,
        client_port,
        service_port,
        protocol: head.protocol,
    };
    let wanted = CAPTURE.get_ptr(0)?;
    // SAFETY: the pointer is to the map's one value, of which `matches` reads nothing that
    // changes while packets are captured.
    if unsafe { &*wanted }.matches(&ends) {
        return Some(MATCHES);
    }
    if head.later {
        return None;
    }
    let inner = |start: usize, v4: bool| {
        let v4 = if v4 { FURTHER_V4 } else { 0 };
        FURTHER | v4 | start as u32 & UPPER_MASK
    };
    match head.protocol {
        IPIP => Some(inner(head.upper, true)),
        IPV6_IN_IP => Some(inner(head.upper, false)),
        UDP if u16::from_be_bytes([ports[2], ports[3]]) == GUE_PORT => {
            let start = head.upper + 8;
            let first: *mut [u8; 2] = frame.at(start)?;
            // SAFETY: as above.
            let version = unsafe { (*first)[0] } >> 4;
            Some(inner(start, version == 4))
        }
        ICMP | ICMPV6 if !about => Some(inner(head.upper + 8, V4) | FURTHER_ABOUT),
        _ => None,
    }
}

/// What is read of an IP header, however much of the packet follows.
struct Head {
    source: Address,
    destination: Address,
    protocol: u8,
    upper: usize,
    /// A fragment behind the first.
    later: bool,
}

impl Head {
    #[inline(always)]
    fn v4(frame: &Frame, start: usize) -> Option<Self> {
        let header: *mut [u8; 20] = frame.at(start)?;
        // SAFETY: `at` has checked that the header lies within the frame.
        let header = unsafe { &*header };
        let address =
            |at: usize| Address::v4([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            upper: start + (header[0] as usize & 0xf) * 4,
            later: u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0,
        })
    }

    #[inline(always)]
    fn v6(frame: &Frame, start: usize) -> Option<Self> {
        let header: *mut [u8; 40] = frame.at(start)?;
        // SAFETY: as above.
        let header = unsafe { &*header };
        let (mut protocol, mut upper, mut later) = (header[6], start + 40, false);
        let (source, destination) = {
            let (mut source, mut destination) = ([0; 16], [0; 16]);
            source.copy_from_slice(&header[8..24]);
            destination.copy_from_slice(&header[24..40]);
            (Address(source), Address(destination))
        };
        if protocol != TCP && protocol != UDP {
            let found = ipv6_upper(frame.ctx(), upper as u32, protocol as u32);
            if found & UPPER_VALID == 0 {
                return None;
            }
            (protocol, upper) = ((found >> 16) as u8, (found & UPPER_MASK) as usize);
            // A fragment header is where the walk ends, and is not named then.
            if found & UPPER_FRAGMENT != 0 || protocol == FRAGMENT {
                let fragment: *mut [u8; 8] = frame.at(upper)?;
                // SAFETY: as above.
                let fragment = unsafe { *fragment };
                protocol = fragment[0];
                later = u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 != 0;
                upper += 8;
            }
        }
        Some(Self {
            source,
            destination,
            protocol,
            upper,
            later,
        })
    }
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
