//! Flows of UDP services: who owns them, and from when on the POP hears of them.
//!
//! A flow that is known to be another host's goes there. Any other belongs to the
//! host that it lands on, except on a host that cannot know or takes no new ones.
//! Nobody is asked: UDP has no reset to be spared, and a service that does not
//! know a packet may do with it what it likes.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    programs::XdpContext,
};
use homing_common::{
    event::EventKind,
    flow::Flow,
    host::HostId,
    limit::{Limit, Room},
    outcome::{Hook, Outcome},
    session::{Session, SessionId, Tuple},
};

use crate::{
    End, control, direct, echo, encap, limit,
    maps::{FLOWS, SESSIONS},
    owners,
    packet::{Frame, Ip, Segment},
    settings, sockops, stats,
};

/// Decides the way of a UDP packet off the wire.
#[inline(always)]
pub fn handle<const V4: bool>(ctx: &XdpContext, frame: &Frame, ip: &Ip) -> Result<End, Outcome> {
    if ip.destination == settings::fabric() {
        return Err(echo::handle(ctx, frame, ip));
    }
    let datagram = Segment::datagram(frame, ip).ok_or(Outcome::Malformed)?;
    let id = datagram.tuple.id(&settings::session_key());
    if let Some(owner) = owners::host_of(id)? {
        return encap::send_to(
            ctx,
            &datagram.inner::<V4>(),
            id.entropy(),
            owner,
            encap::Origin::Wire,
        );
    }
    if !direct::is_service(&datagram.tuple.service()) {
        return Err(Outcome::NotService);
    }
    match decide(&datagram.tuple, id, Arrival::Wire) {
        Way::Known => Err(Outcome::LocalFlow),
        Way::New | Way::Elsewhere => Err(Outcome::LocalFlowNew),
        Way::Rendezvous(host) => {
            let origin = encap::Origin::Rendezvous { opens: false };
            encap::send(ctx, &datagram.inner::<V4>(), id.entropy(), host, origin)
        }
    }
}

/// How a packet came here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Off the wire.
    Wire = 0,
    /// Through the tunnel.
    Tunnel = 1,
    /// Through the tunnel, of a flow that the table gives to another host than the
    /// one that sent it.
    TunnelForeign = 2,
}

/// Whose a flow is.
#[derive(Clone, Copy)]
pub enum Way {
    /// This host's, and the POP has been told.
    Known,
    /// This host's, as far as anybody knows.
    New,
    /// The host's that the table names.
    Elsewhere,
    /// This host cannot know, or takes no new ones: for this other one.
    Rendezvous(HostId),
}

/// Decides on a flow of a service, and counts its packet.
#[inline(always)]
pub fn decide(tuple: &Tuple, id: SessionId, arrival: Arrival) -> Way {
    match flow_arrived(&raw const *tuple, id.0, arrival as u32) {
        KNOWN => Way::Known,
        NEW => Way::New,
        ELSEWHERE => Way::Elsewhere,
        host => Way::Rendezvous(HostId(host as u16)),
    }
}

/// What [`flow_arrived`] returns, beside the id of a rendezvous host.
const KNOWN: u32 = 1 << 16;
const NEW: u32 = 2 << 16;
const ELSEWHERE: u32 = 3 << 16;

/// Takes a flow's tuple, its id, and an [`Arrival`] as a number.
///
/// A function of its own, and global: the verifier looks at it once, and not once
/// for every way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn flow_arrived(tuple: *const Tuple, id: u64, arrival: u32) -> u32 {
    if tuple.is_null() {
        return NEW;
    }
    // SAFETY: the caller's tuple; checked above because the verifier wants it.
    let tuple = unsafe { &*tuple };
    let now_ns = control::now_ns();
    if seen(tuple, now_ns) {
        return KNOWN;
    }
    if arrival == Arrival::TunnelForeign as u32 {
        return ELSEWHERE;
    }
    match FLOWS.get_ptr_mut(id) {
        Some(flow) => {
            // SAFETY: the pointer is to a value of the map. Packets of one flow that
            // meet here on two CPUs may count as one.
            let now = unsafe {
                (*flow).packets = (*flow).packets.saturating_add(1);
                *flow
            };
            if now.goes_on() {
                announce(tuple, SessionId(id), now_ns);
            }
        }
        None => {
            if arrival == Arrival::Wire as u32
                && control::others_know_better(now_ns)
                && let Some(host) = control::rendezvous(SessionId(id))
            {
                return host.0 as u32;
            }
            let first = Flow {
                packets: 1,
                answered: 0,
            };
            remember(id, first, now_ns);
        }
    }
    NEW
}

/// A packet of a service leaves: its flow is answered. Takes the flow's tuple.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn flow_answered(tuple: *const Tuple) -> u32 {
    if tuple.is_null() {
        return 0;
    }
    // SAFETY: as in `flow_arrived`.
    let tuple = unsafe { &*tuple };
    if !direct::is_service(&tuple.service()) || seen(tuple, control::now_ns()) {
        return 0;
    }
    let id = tuple.id(&settings::session_key());
    match FLOWS.get_ptr_mut(id.0) {
        // SAFETY: the pointer is to a value of the map, of which one field is
        // written at once.
        Some(flow) => unsafe { (*flow).answered = 1 },
        None => {
            // Its packets were forgotten; one at least must have come.
            let flow = Flow {
                packets: 1,
                answered: 1,
            };
            remember(id.0, flow, control::now_ns());
        }
    }
    0
}

/// Whether a flow is this host's and the POP has been told.
#[inline(always)]
pub fn is_told(tuple: &Tuple) -> bool {
    SESSIONS.get_ptr(tuple).is_some()
}

/// Whether packets of a flow have come here that the POP has not been told of.
#[inline(always)]
pub fn is_new(id: SessionId) -> bool {
    FLOWS.get_ptr(id.0).is_some()
}

/// Begins to count a flow's packets: the oldest flows make room.
#[inline(always)]
fn remember(id: u64, flow: Flow, now_ns: u64) {
    match FLOWS.insert(id, flow, BPF_ANY as u64) {
        Ok(()) => limit::entry_made(Room::Flows, now_ns),
        // No memory.
        Err(_) => limit::entry_lost(Room::Flows),
    }
}

/// Whether the POP has been told of a flow of this host. If so, notes that it is
/// not idle.
#[inline(always)]
fn seen(tuple: &Tuple, now_ns: u64) -> bool {
    let Some(session) = SESSIONS.get_ptr_mut(tuple) else {
        return false;
    };
    // SAFETY: the pointer is to a value of the map, of which one field is read and
    // written at once.
    unsafe {
        let seen_ns = (&raw const (*session).seen_ns).read_volatile();
        if now_ns.saturating_sub(seen_ns) >= Flow::SEEN_EVERY_NS {
            (&raw mut (*session).seen_ns).write_volatile(now_ns);
        }
    }
    true
}

/// Makes a flow a session, and tells the agent.
#[inline(always)]
fn announce(tuple: &Tuple, id: SessionId, now_ns: u64) {
    if control::flows_full() || !limit::take(Limit::Flows, now_ns) {
        // It stays in `FLOWS`, and its next packet tries again.
        stats::count(Hook::FlowsRefused.index());
        return;
    }
    let session = Session {
        id,
        // No socket is the flow's own. What tells it from an earlier flow of this
        // tuple is when it began.
        cookie: now_ns,
        opened_ns: now_ns,
        seen_ns: now_ns,
        generation: 0,
        flags: 0,
    };
    match SESSIONS.insert(tuple, session, BPF_NOEXIST as u64) {
        Ok(()) => {}
        // Another CPU was first.
        Err(error) if error == -EEXIST => return,
        Err(_) => {
            stats::count(Hook::SessionsFull.index());
            return;
        }
    }
    // If it stays behind, it goes with the oldest.
    let _ = FLOWS.remove(id.0);
    stats::count(Hook::Opened.index());
    sockops::tell(EventKind::Opened, *tuple, session, now_ns);
}

const EEXIST: i32 = 17;
