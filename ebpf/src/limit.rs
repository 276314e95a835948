//! Limits of what is done for strangers.

use homing_common::limit::{self, Limit};

use crate::maps::LIMITS;

/// Counts one more; whether it is within the limit.
#[inline(always)]
pub fn take(limit: Limit, now_ns: u64) -> bool {
    let Some(counter) = LIMITS.get_ptr_mut(limit.index()) else {
        return false;
    };
    // SAFETY: the pointer is to a value of the map, which is read and written at
    // once. Two CPUs that meet here may count one instead of two.
    unsafe {
        let (next, within) = limit::count(counter.read_volatile(), now_ns, limit.max());
        counter.write_volatile(next);
        within
    }
}
