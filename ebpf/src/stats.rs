//! Counters.

use crate::maps::STATS;

/// Adds one to a counter, given its index in `STATS`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and programs of one kind do not
        // interrupt each other on a CPU.
        unsafe { *counter += 1 }
    }
}
