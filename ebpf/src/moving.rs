//! Sessions that are moving between this host and another. They come before everything
//! else, a local socket included: at the target a restored socket must not see a packet
//! before it is served, and at the source the one that is left behind must see none.
//!
//! Where no session moves, none of this costs more than a look at one flag.

use core::num::NonZeroU32;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    host::HostId,
    moving::Phase,
    outcome::Outcome,
    park::{Datagram, Parked},
    session::{SessionId, Tuple},
};

use crate::{
    End, control,
    encap::Origin,
    maps::{MOVING, SCRATCH},
    mark::Mark,
    packet::{Frame, Ip, Segment},
    park::{self, Head},
    settings,
    uncommon::{Case, Uncommon},
};

/// What `MOVING` says of a session: the other host and the phase, which is not zero. An
/// `Option` of it is one word, and all of that word has a value: of what has none, the
/// verifier allows no copies.
#[derive(Clone, Copy)]
pub struct Found(NonZeroU32);

impl Found {
    const PEER: u32 = 0xffff;
    const PHASE_SHIFT: u32 = 16;
    /// Bits of host and phase.
    const MASK: u32 = 0x7_ffff;
    /// Where they stand in [`Next`](crate::Next): above what [`Uncommon`] has there.
    const SHIFT: u32 = 41;

    /// The other host of the move.
    #[inline(always)]
    pub fn peer(self) -> HostId {
        HostId((self.0.get() & Self::PEER) as u16)
    }

    /// Whether this host is the target.
    #[inline(always)]
    pub fn parks(self) -> bool {
        let phase = (self.0.get() >> Self::PHASE_SHIFT) as u8;
        Phase::of(phase & 7).is_some_and(Phase::parks)
    }

    /// With a packet, for [`homing_moving`].
    #[inline(always)]
    pub fn pack(self, packet: Uncommon) -> u64 {
        packet.pack() | ((self.0.get() & Self::MASK) as u64) << Self::SHIFT
    }

    #[inline(always)]
    fn unpack(word: u64) -> Option<Self> {
        NonZeroU32::new((word >> Self::SHIFT) as u32 & Self::MASK).map(Self)
    }
}

/// What `MOVING` says of the session with a tuple that a program has put together.
#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<Found> {
    if !control::moving() {
        return None;
    }
    // A copy that is made here and nowhere else; see `unowned::decide`.
    let Tuple {
        client,
        service,
        client_port,
        service_port,
        protocol,
        zero: _,
    } = *tuple;
    let tuple = Aligned(Tuple::new(
        client,
        client_port,
        service,
        service_port,
        protocol,
    ));
    NonZeroU32::new(moving_of(&raw const tuple.0)).map(Found)
}

/// A tuple is made of bytes, and may lie anywhere on the stack; the compiler writes it in
/// words, which the verifier wants to lie where words may lie.
#[repr(C, align(8))]
struct Aligned(Tuple);

/// The same for a tuple that lies in a map, or in what a program was given.
#[inline(always)]
pub fn find_at(tuple: &Tuple) -> Option<Found> {
    if !control::moving() {
        return None;
    }
    NonZeroU32::new(moving_of(&raw const *tuple)).map(Found)
}

/// Takes a tuple; returns the host (bits 0 to 15) and the phase (bits 16 to 23) of its
/// move, or zero.
///
/// A function of its own, and global: the verifier looks at it once, and not once for
/// every way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "without the borrow the key is copied to the stack"
)]
pub extern "C" fn moving_of(tuple: *const Tuple) -> u32 {
    if tuple.is_null() {
        return 0;
    }
    // SAFETY: the caller's tuple; checked above because the verifier wants it.
    let Some(entry) = MOVING.get_ptr(unsafe { &*tuple }) else {
        return 0;
    };
    // SAFETY: the pointer is to a value of the map. Host and phase are one aligned word
    // and read at once, so that they are of one entry.
    unsafe { (&raw const (*entry).peer).cast::<u32>().read_volatile() }
}

/// Takes a segment of a moving session to its end, given what [`Found::pack`] and
/// [`moving_read`] returned.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn homing_moving(ctx: *mut xdp_md, packet: u64, read: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    let case = Case::new(&ctx, packet);
    let malformed = case.either(Outcome::Malformed, Outcome::TunnelMalformed);
    // SAFETY: a place of this CPU's own, where no other program runs meanwhile.
    let head = SCRATCH.get_ptr_mut(0).map(|head| unsafe { &*head });
    let end = match (head, Found::unpack(packet)) {
        (Some(head), Some(found)) if read != 0 => {
            let (len, tos) = (read as u16 as usize, (read >> 16) as u8);
            decide(&case, head, len, tos, found)
        }
        _ => Err(malformed),
    };
    match end {
        Ok(end) => end.pack(),
        Err(outcome) => End::from(outcome).pack(),
    }
}

/// Reads a segment, given [`Uncommon`]: session, id and flags go to `SCRATCH`. Returns
/// TOS (bits 16 to 23) and length (below); zero if it cannot be read.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn moving_read(ctx: *mut xdp_md, packet: u64) -> u64 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let Uncommon { start, v4, .. } = Uncommon::unpack(packet);
    // SAFETY: as above.
    let Some(head) = SCRATCH.get_ptr_mut(0).map(|head| unsafe { &mut *head }) else {
        return 0;
    };
    let read = if v4 {
        read::<true>(&frame, start, head)
    } else {
        read::<false>(&frame, start, head)
    };
    read.unwrap_or(0)
}

#[inline(always)]
fn read<const V4: bool>(frame: &Frame, start: usize, head: &mut Parked) -> Option<u64> {
    let ip = Ip::parse::<V4>(frame, start)?;
    let segment = Segment::parse(frame, &ip)?;
    head.tuple = segment.tuple;
    head.id = segment.tuple.id(&settings::session_key()).0;
    head.flags = segment.flags.0;
    Some((ip.tos as u64) << 16 | ip.len as u64)
}

/// Decides on a packet of a moving session, of which `head` says tuple, id and flags.
///
/// What is diverted says so in its outer header: the other host takes it for its session
/// or drops it, and does not ask about it. A packet that came through the tunnel is
/// diverted once at most, and never to where it came from.
#[inline(always)]
pub fn decide(
    case: &Case<'_>,
    head: &Parked,
    len: usize,
    tos: u8,
    found: Found,
) -> Result<End, Outcome> {
    if found.parks() {
        let head = Head {
            tuple: &head.tuple,
            datagram: Datagram {
                source: [0; 16],
                rest: 0,
            },
            id: head.id,
            from: case.packet.from,
            flags: head.flags,
        };
        return Err(park::hold(case.ctx, &head, control::now_ns()));
    }
    let mut ttl = settings::hop_limit();
    if case.tunnelled() {
        if found.peer().0 == case.packet.from {
            return Err(Outcome::TunnelBounce);
        }
        if Mark::SentOn.is_on(&case.frame, case.packet.link_len) {
            return Err(Outcome::TunnelAgain);
        }
        if case.packet.ttl <= 1 {
            return Err(Outcome::TunnelHops);
        }
        ttl = case.packet.ttl - 1;
    }
    let origin = Origin::Diverted {
        ttl,
        tunnelled: case.tunnelled(),
    };
    let entropy = SessionId(head.id).entropy();
    case.send(len, tos, entropy, found.peer(), origin)
}
