//! What the agent says while it runs, and where packets go that this host may not
//! decide on.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use homing_common::{
    control::{Control, RENDEZVOUS_ENTRIES},
    host::HostId,
    session::SessionId,
};

use crate::{
    maps::{CONTROL, RENDEZVOUS},
    settings,
};

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// One field of [`Control`], read at once: the agent changes it at any time.
macro_rules! field {
    ($field:ident) => {
        match CONTROL.get_ptr(0) {
            // SAFETY: the pointer is to the map's one value.
            Some(control) => unsafe { core::ptr::read_volatile(&raw const (*control).$field) },
            None => Default::default(),
        }
    };
}

/// Whether this host takes no new sessions.
#[inline(always)]
pub fn draining() -> bool {
    let flags: u32 = field!(flags);
    flags & Control::DRAINING != 0
}

/// Whether this host knows the sessions of the whole POP, and its agent lives to
/// learn of more.
#[inline(always)]
pub fn knows(now_ns: u64) -> bool {
    let flags: u32 = field!(flags);
    let beat_ns: u64 = field!(beat_ns);
    flags & Control::SYNCED != 0 && now_ns.saturating_sub(beat_ns) <= Control::BEAT_MAX_NS
}

/// Whether a session that has no entry here is better looked for elsewhere: this host
/// takes no new ones, cannot know, or had no room for all.
#[inline(always)]
pub fn others_know_better(now_ns: u64) -> bool {
    draining() || owners_full() || !knows(now_ns)
}

/// Whether sessions of others found no room here.
#[inline(always)]
pub fn owners_full() -> bool {
    let flags: u32 = field!(flags);
    flags & Control::OWNERS_FULL != 0
}

/// Whether `MOVING` may have entries.
#[inline(always)]
pub fn moving() -> bool {
    let flags: u32 = field!(flags);
    flags & Control::MOVING != 0
}

/// Whether no more flows are to be made sessions.
#[inline(always)]
pub fn flows_full() -> bool {
    let flags: u32 = field!(flags);
    flags & Control::FLOWS_FULL != 0
}

/// This life of the host's kernel.
#[inline(always)]
pub fn incarnation() -> u64 {
    field!(incarnation)
}

/// The host that a session's packets go to when this one may not decide on them.
#[inline(always)]
pub fn rendezvous(id: SessionId) -> Option<HostId> {
    let entry = RENDEZVOUS.get_ptr(slot(id))?;
    // SAFETY: the pointer is to a value of the map. Both hosts are read at once.
    let entry = unsafe { core::ptr::read_volatile(entry) };
    let host = if entry.first == settings::host().0 {
        entry.second
    } else {
        entry.first
    };
    (host != 0 && host != settings::host().0).then_some(HostId(host))
}

/// The slot of `RENDEZVOUS` that a session has, or a tuple under another key.
#[inline(always)]
pub fn slot(id: SessionId) -> u32 {
    id.0 as u32 & (RENDEZVOUS_ENTRIES - 1)
}

/// The host where packets meet that have this slot of `RENDEZVOUS`; this one, if the
/// slot names none.
#[inline(always)]
pub fn meeting(slot: u32) -> HostId {
    let me = settings::host();
    let Some(entry) = RENDEZVOUS.get_ptr(slot) else {
        return me;
    };
    // SAFETY: the pointer is to a value of the map. Both hosts are read at once.
    let entry = unsafe { core::ptr::read_volatile(entry) };
    // The others have struck a host off whose agent is down, and all that met here
    // meets at the next one.
    let host = if entry.first == me.0 && entry.second != 0 && is_away(now_ns()) {
        entry.second
    } else {
        entry.first
    };
    if host == 0 { me } else { HostId(host) }
}

/// Whether the agent has been silent for so long that the POP takes it for down.
#[inline(always)]
fn is_away(now_ns: u64) -> bool {
    let beat_ns: u64 = field!(beat_ns);
    now_ns.saturating_sub(beat_ns) > Control::AWAY_NS
}
