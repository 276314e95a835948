//! Hooks on sockets: which sessions of the services this host has.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    },
    helpers::bpf_get_socket_cookie,
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use homing_common::{
    event::{Event, EventKind},
    limit::Room,
    net::{Address, Port, TCP},
    outcome::Hook,
    session::{Session, Tuple},
};

use crate::{
    control::now_ns,
    direct::is_service,
    limit,
    maps::{CLOSED, EVENTS, SESSIONS},
    moving, settings, stats,
};

pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
const TCP_CLOSE: u32 = 7;

/// Records what a socket of a service has done.
///
/// A connection that the host itself opens is none of the POP's, but a session
/// that was moved here and restored looks like one (`ACTIVE_ESTABLISHED`): the
/// local endpoint alone decides.
#[inline(always)]
pub fn handle(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => closed(ctx),
        _ => {}
    }
}

#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let Some(tuple) = tuple_of(ctx) else { return };
    if !is_service(&tuple.service()) {
        return;
    }
    if is_muted(&tuple) {
        // It is served later, and then its end is to be told.
        let _ = tell_of_its_end(ctx);
        return;
    }
    let now = now_ns();
    let session = Session {
        id: tuple.id(&settings::session_key()),
        cookie: cookie_of(ctx),
        opened_ns: now,
        seen_ns: 0,
        generation: 0,
        flags: 0,
    };
    // Without the flag the kernel would not tell when the socket closes; without
    // an entry nobody would know what to close. The order is such that a session
    // that is recorded is also closed.
    if tell_of_its_end(ctx).is_err() {
        return;
    }
    if SESSIONS.insert(tuple, session, BPF_ANY as u64).is_err() {
        stats::count(Hook::SessionsFull.index());
        warn!(
            ctx,
            "SESSIONS is full: a session is not recorded and other hosts will not find it; raise limits.sessions"
        );
        return;
    }
    stats::count(Hook::Opened.index());
    tell(EventKind::Opened, tuple, session, now);
}

/// Has the kernel tell when the socket changes its state.
#[inline(always)]
fn tell_of_its_end(ctx: &SockOpsContext) -> Result<(), i32> {
    ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32)
}

/// Whether a session is moving: the sockets that come and go for it here are none of a
/// client's doing, and the agent records what becomes of it.
#[inline(always)]
fn is_muted(tuple: &Tuple) -> bool {
    let muted = moving::find(tuple).is_some();
    if muted {
        stats::count(Hook::MovingMuted.index());
    }
    muted
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(tuple) = tuple_of(ctx) else { return };
    if is_muted(&tuple) {
        return;
    }
    // SAFETY: the entry is copied at once; only the hooks on this tuple's socket
    // replace it.
    let Some(session) = unsafe { SESSIONS.get(tuple) }.copied() else {
        return;
    };
    // A socket whose tuple is already another session's has nothing to close.
    if session.cookie != cookie_of(ctx) {
        return;
    }
    // Before the session goes, so that a packet of it always meets one or the
    // other.
    let now = now_ns();
    if CLOSED.insert(session.id.0, now, BPF_NOEXIST as u64).is_ok() {
        limit::entry_made(Room::Closed, now);
    } else if CLOSED.insert(session.id.0, now, BPF_ANY as u64).is_err() {
        limit::entry_lost(Room::Closed);
    }
    if SESSIONS.remove(tuple).is_err() {
        return;
    }
    stats::count(Hook::Closed.index());
    tell(EventKind::Closed, tuple, session, now);
}

/// Tells the agent what happened to a session.
#[inline(always)]
pub fn tell(kind: EventKind, tuple: Tuple, session: Session, at_ns: u64) {
    let Some(mut slot) = EVENTS.reserve(0) else {
        stats::count(Hook::EventsLost.index());
        return;
    };
    slot.write(Event {
        tuple,
        session,
        at_ns,
        kind: kind as u32,
        zero: 0,
    });
    slot.submit(0);
}

/// The tuple of a socket, seen from its own side as the service.
#[inline(always)]
fn tuple_of(ctx: &SockOpsContext) -> Option<Tuple> {
    // Read before any branch, and volatile: the compiler would otherwise turn the
    // reads of both branches into one through a computed pointer, and the verifier
    // allows only constant offsets into the context.
    let ops = ctx.ops;
    // SAFETY: the context is valid as long as the program runs, and each field
    // may be read for a socket of any family.
    let (remote4, local4, remote6, local6) = unsafe {
        (
            read_volatile(&raw const (*ops).remote_ip4),
            read_volatile(&raw const (*ops).local_ip4),
            read_volatile(&raw const (*ops).remote_ip6),
            read_volatile(&raw const (*ops).local_ip6),
        )
    };
    let (client, service) = match ctx.family() {
        AF_INET => (
            Address::v4(remote4.to_ne_bytes()),
            Address::v4(local4.to_ne_bytes()),
        ),
        AF_INET6 => (address_v6(remote6), address_v6(local6)),
        _ => return None,
    };
    // The kernel gives the remote port in network order in the upper half of a
    // little-endian word, the local one in host order.
    let client_port = Port::new(u32::from_be(ctx.remote_port()) as u16);
    let service_port = Port::new(ctx.local_port() as u16);
    Some(Tuple::new(client, client_port, service, service_port, TCP))
}

/// An IPv6 address as the kernel gives it, in four words.
#[inline(always)]
pub(crate) fn address_v6(words: [u32; 4]) -> Address {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 4 {
        let word = words[i].to_ne_bytes();
        bytes[i * 4] = word[0];
        bytes[i * 4 + 1] = word[1];
        bytes[i * 4 + 2] = word[2];
        bytes[i * 4 + 3] = word[3];
        i += 1;
    }
    Address(bytes)
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context of any sockops program.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}
