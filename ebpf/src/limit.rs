//! Limits of what is done for strangers, and of what maps have room for.

use homing_common::{
    flow::FLOWS_ENTRIES,
    limit::{self, Limit, Room},
    outcome::Hook,
};

use crate::{maps::LIMITS, settings, stats};

/// Counts one more; whether it is within the limit.
#[inline(always)]
pub fn take(limit: Limit, now_ns: u64) -> bool {
    change(limit.index(), |counter| {
        limit::count(counter, now_ns, limit.max())
    })
}

/// An entry was made in a map in which the oldest make room: counts it, and if it must
/// have put one out that was to be kept still, that, too.
#[inline(always)]
pub fn entry_made(room: Room, now_ns: u64) {
    entry_made_in(room as u32, now_ns);
}

/// An entry could not be made in such a map: it is as good as put out.
#[inline(always)]
pub fn entry_lost(room: Room) {
    stats::count(evicted(room).index());
}

const fn evicted(room: Room) -> Hook {
    match room {
        Room::Closed => Hook::ClosedEvicted,
        Room::Fragments => Hook::FragmentsEvicted,
        Room::Flows => Hook::FlowsEvicted,
    }
}

/// Takes a [`Room`] as a number.
///
/// A function of its own, and global: the verifier looks at it once, and not once for
/// every way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn entry_made_in(room: u32, now_ns: u64) -> u32 {
    let (room, entries) = if room == Room::Closed as u32 {
        (Room::Closed, settings::closed_entries())
    } else if room == Room::Fragments as u32 {
        (Room::Fragments, settings::fragments_entries())
    } else {
        (Room::Flows, FLOWS_ENTRIES)
    };
    let fits = change(room.index(), |counter| room.count(counter, now_ns, entries));
    if !fits {
        entry_lost(room);
    }
    fits as u32
}

#[inline(always)]
fn change(index: u32, count: impl FnOnce(u64) -> (u64, bool)) -> bool {
    let Some(counter) = LIMITS.get_ptr_mut(index) else {
        return false;
    };
    // SAFETY: the pointer is to a value of the map, which is read and written at
    // once. Two CPUs that meet here may count one instead of two.
    unsafe {
        let (next, within) = count(counter.read_volatile());
        counter.write_volatile(next);
        within
    }
}
