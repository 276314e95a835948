//! Packets for the agent to hold until it is known where they belong: the ring
//! buffers `ASK` and `PARKED`.
//!
//! Limits come before a place is reserved: reserving takes a lock that all CPUs
//! share, and a flood must not fight for it.

use core::ptr::{addr_of_mut, read_volatile};

use aya_ebpf::{btf_maps::RingBuf, helpers::bpf_xdp_load_bytes, programs::XdpContext};
use homing_common::{
    limit::Limit,
    net::Address,
    outcome::Outcome,
    park::{Datagram, PARKED_FRAME_MAX, Parked, Why},
    session::Tuple,
};

use crate::{
    limit,
    maps::{ASK, PARKED},
    settings,
};

/// Frames up to this length are held in records that are this much shorter than
/// the longest: most segments of an unknown session carry no payload.
const SHORT_FRAME_MAX: usize = 256;

/// What became of a packet for the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The agent gets it.
    Whole,
    /// The agent gets its head: the frame is too long.
    Head,
    /// Its source has reached its limit.
    LimitedSource,
    /// The limit of all sources is reached.
    Limited,
    /// `ASK` is full.
    Full,
}

/// What the caller of [`park`] says of a packet; see [`Parked`].
pub struct Head<'a> {
    /// The session.
    pub tuple: &'a Tuple,
    /// The fragmented datagram.
    pub datagram: Datagram,
    /// The session id.
    pub id: u64,
    /// The member that sent it; zero for none.
    pub from: u16,
    /// TCP flags.
    pub flags: u8,
}

/// A record.
#[repr(C)]
struct Record<const N: usize> {
    head: Parked,
    frame: [u8; N],
}

/// Parks the packet that `head` describes, within the limits of its source and of
/// its kind.
#[inline(always)]
pub fn park(ctx: &XdpContext, head: &Head<'_>, source: &Address, why: Why, now_ns: u64) -> Held {
    if !limit::take(Limit::source(source, &settings::session_key()), now_ns) {
        return Held::LimitedSource;
    }
    let all = match why {
        Why::Unknown => Limit::Unknown,
        Why::Fragment | Why::Decided => Limit::Fragments,
        Why::Moving => Limit::Moving,
    };
    if !limit::take(all, now_ns) {
        return Held::Limited;
    }
    put(&ASK, ctx, head, why, now_ns)
}

/// Parks a packet of a session that is moving here. Its source has no limit: it is the
/// session's client, which sends what its window allows.
#[inline(always)]
pub fn hold(ctx: &XdpContext, head: &Head<'_>, now_ns: u64) -> Outcome {
    if !limit::take(Limit::Moving, now_ns) {
        return Outcome::ParkFull;
    }
    match put(&PARKED, ctx, head, Why::Moving, now_ns) {
        Held::Whole => Outcome::Parked,
        Held::Head => Outcome::ParkTooLong,
        Held::LimitedSource | Held::Limited | Held::Full => Outcome::ParkFull,
    }
}

/// Puts a frame into a ring, in a record of the size that it needs.
#[inline(always)]
fn put<const BYTES: usize>(
    ring: &RingBuf<Parked, BYTES>,
    ctx: &XdpContext,
    head: &Head<'_>,
    why: Why,
    now_ns: u64,
) -> Held {
    match ctx.data_end() - ctx.data() {
        len @ ..=SHORT_FRAME_MAX => {
            reserve::<SHORT_FRAME_MAX, _>(ring, ctx, head, why, now_ns, len)
        }
        len @ ..=PARKED_FRAME_MAX => {
            reserve::<PARKED_FRAME_MAX, _>(ring, ctx, head, why, now_ns, len)
        }
        _ => reserve::<0, _>(ring, ctx, head, why, now_ns, 0),
    }
}

/// Hands the agent a record without a frame, within the limit of its kind.
#[inline(always)]
pub fn tell(ctx: &XdpContext, head: &Head<'_>, why: Why, now_ns: u64) {
    if limit::take(Limit::Fragments, now_ns) {
        reserve::<0, _>(&ASK, ctx, head, why, now_ns, 0);
    }
}

/// Takes a record with room for `len` bytes of frame, which are at most `N`, and
/// fills it. With room for none, the frame is left out.
#[inline(always)]
fn reserve<const N: usize, const BYTES: usize>(
    ring: &RingBuf<Parked, BYTES>,
    ctx: &XdpContext,
    head: &Head<'_>,
    why: Why,
    now_ns: u64,
    len: usize,
) -> Held {
    const { assert!(N == 0 || N.is_power_of_two()) };
    // The same number, in a form in which the verifier sees its bounds, and which
    // the compiler, that has seen them, does not take back.
    // SAFETY: it reads a local variable.
    let len = unsafe { read_volatile(&raw const len) };
    let len = match N {
        0 => 0,
        _ => (len.wrapping_sub(1) & (N - 1)) + 1,
    };
    let Some(mut record) = ring.reserve_untyped::<Record<N>>(0) else {
        return Held::Full;
    };
    let at = record.as_mut_ptr();
    // SAFETY: the record has room for a head and `N` bytes, and `len` is at most
    // that; the context is valid as long as the program runs. The flags lie where a
    // word may lie, with three bytes of padding behind them.
    unsafe {
        // Field by field: a whole head would be put together on the stack, of which
        // there is little.
        let to = addr_of_mut!((*at).head);
        addr_of_mut!((*to).tuple).write(*head.tuple);
        addr_of_mut!((*to).datagram).write(head.datagram);
        addr_of_mut!((*to).id).write(head.id);
        addr_of_mut!((*to).at_ns).write(now_ns);
        addr_of_mut!((*to).ifindex).write((*ctx.ctx).ingress_ifindex);
        addr_of_mut!((*to).captured).write(len as u32);
        addr_of_mut!((*to).why).write(why as u16);
        addr_of_mut!((*to).from).write(head.from);
        // The flags and the padding behind them.
        addr_of_mut!((*to).flags)
            .cast::<u32>()
            .write(head.flags as u32);
        if N == 0 {
            record.submit(0);
            return Held::Head;
        }
        let frame = addr_of_mut!((*at).frame);
        if bpf_xdp_load_bytes(ctx.ctx, 0, frame.cast(), len as u32) != 0 {
            record.discard(0);
            return Held::Full;
        }
    }
    record.submit(0);
    Held::Whole
}
