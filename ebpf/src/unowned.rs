//! Segments of a service that neither the table nor a socket places: the rest of
//! the order of decisions.
//!
//! Nothing is guessed. What this host closed itself goes up, what it cannot know
//! goes to where it can be known, and about the rest the POP is asked; no packet
//! of a session that may live elsewhere reaches the local stack, which would reset
//! it.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    control::CLOSED_NS,
    host::HostId,
    outcome::Outcome,
    park::{Datagram, Why},
    session::{SessionId, Tuple},
};

use crate::{
    control,
    maps::CLOSED,
    packet::{Flags, Segment},
    park::{self, Head, Held},
};

/// Where a segment came from.
#[derive(Clone, Copy)]
pub enum From {
    /// Off the wire.
    Wire,
    /// Through the tunnel, from a member.
    Tunnel {
        /// The member.
        host: HostId,
        /// Whether the table calls this member the session's owner.
        owner: bool,
    },
}

/// What to do with it.
#[derive(Clone, Copy)]
pub enum Way {
    /// Its way ends here.
    End(Outcome),
    /// To another host, which may know more.
    Rendezvous(HostId),
}

/// Decides on a segment that nobody is known to own. One that opens a session
/// comes here only on a host that takes none.
#[inline(always)]
pub fn decide(ctx: &XdpContext, segment: &Segment, id: SessionId, from: From) -> Way {
    let (host, owner) = match from {
        From::Wire => (0, 0),
        From::Tunnel { host, owner } => (host.0 as u32, owner as u32),
    };
    let arguments = segment.flags.0 as u32 | owner << 8 | host << 16;
    // A copy that is made here and nowhere else: of a tuple whose address is taken
    // the compiler keeps all bytes in memory from the start, and computes the id
    // from there, for every packet of a known session, too. Made of its fields: the
    // padding of a tuple that is copied whole is written when that one is made.
    let Tuple {
        client,
        service,
        client_port,
        service_port,
        protocol,
        zero: _,
    } = segment.tuple;
    let tuple = Tuple::new(client, client_port, service, service_port, protocol);
    let way = unowned(ctx.ctx, &raw const tuple, id.0, arguments);
    if way & RENDEZVOUS != 0 {
        return Way::Rendezvous(HostId(way as u16));
    }
    match Outcome::of_index(way) {
        Some(outcome) => Way::End(outcome),
        // The verifier has not seen that `unowned` returns nothing else.
        None => Way::End(Outcome::AskFull),
    }
}

/// In what [`unowned`] returns: a host's id follows, and no outcome's number.
const RENDEZVOUS: u32 = 1 << 31;

/// Takes a tuple, its id, and packed TCP flags (bits 0 to 7), "the table calls the
/// sender the owner" (bit 8) and the sending member (bits 16 to 31, zero for none).
///
/// A function of its own, and global: the verifier looks at it once, and not once
/// for every way that leads to it. It is off the ways of sessions that are known.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn unowned(ctx: *mut xdp_md, tuple: *const Tuple, id: u64, arguments: u32) -> u32 {
    if tuple.is_null() {
        return Outcome::AskFull as u32;
    }
    // SAFETY: the caller's tuple; checked above because the verifier wants it.
    let tuple = unsafe { &*tuple };
    let unowned = Unowned {
        tuple,
        id: SessionId(id),
        flags: Flags(arguments as u8),
        from: (arguments >> 16) as u16,
        now_ns: control::now_ns(),
    };
    let ctx = XdpContext::new(ctx);
    let way = if unowned.from == 0 {
        unowned.off_the_wire(&ctx)
    } else {
        unowned.through_the_tunnel(&ctx, arguments & 1 << 8 != 0)
    };
    match way {
        Way::End(outcome) => outcome as u32,
        Way::Rendezvous(host) => RENDEZVOUS | host.0 as u32,
    }
}

struct Unowned<'a> {
    tuple: &'a Tuple,
    id: SessionId,
    flags: Flags,
    /// The member that sent it here; zero for none.
    from: u16,
    now_ns: u64,
}

impl Unowned<'_> {
    #[inline(always)]
    fn off_the_wire(&self, ctx: &XdpContext) -> Way {
        let opens = self.flags.opens();
        if !opens && closed_lately(self.id, self.now_ns) {
            return Way::End(Outcome::LocalClosed);
        }
        let knows = control::knows(self.now_ns);
        if control::others_know_better(self.now_ns)
            && let Some(host) = control::rendezvous(self.id)
        {
            return Way::Rendezvous(host);
        }
        if opens {
            // Nobody takes new sessions: this host does as well as any.
            return Way::End(Outcome::LocalSyn);
        }
        if !knows {
            return Way::End(Outcome::RendezvousNone);
        }
        if !self.flags.may_belong() {
            return Way::End(Outcome::Unknown);
        }
        Way::End(self.ask(ctx))
    }

    #[inline(always)]
    fn through_the_tunnel(&self, ctx: &XdpContext, from_owner: bool) -> Way {
        Way::End(if closed_lately(self.id, self.now_ns) {
            Outcome::StrippedClosed
        } else if from_owner {
            Outcome::TunnelBounce
        } else if !self.flags.may_belong() {
            Outcome::StrippedUnknown
        } else if !control::knows(self.now_ns) {
            Outcome::TunnelUnready
        } else {
            self.ask(ctx)
        })
    }

    #[inline(always)]
    fn ask(&self, ctx: &XdpContext) -> Outcome {
        let head = Head {
            tuple: self.tuple,
            datagram: Datagram {
                source: [0; 16],
                rest: 0,
            },
            id: self.id.0,
            from: self.from,
            flags: self.flags.0,
        };
        match park::park(ctx, &head, &self.tuple.client, Why::Unknown, self.now_ns) {
            Held::Whole => Outcome::Asked,
            Held::Head => Outcome::AskTooLong,
            Held::LimitedSource => Outcome::AskLimitedSource,
            Held::Limited => Outcome::AskLimited,
            Held::Full => Outcome::AskFull,
        }
    }
}

/// Whether this host closed a session a moment ago.
#[inline(always)]
pub fn closed_lately(id: SessionId, now_ns: u64) -> bool {
    // SAFETY: the entry may be replaced while it is read, but its one 64-bit number
    // is read at once.
    match unsafe { CLOSED.get(id.0) } {
        Some(at_ns) => now_ns.saturating_sub(*at_ns) < CLOSED_NS,
        None => false,
    }
}
