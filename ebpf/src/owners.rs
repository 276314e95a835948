//! The look-up of a session's owner: the one place on this side that knows what
//! kind of table `OWNERS` is.

use homing_common::{host::HostId, session::SessionId};

use crate::maps::OWNERS;

/// The host that owns a foreign session, as far as this host has heard.
#[inline(always)]
pub fn owner_of(id: SessionId) -> Option<HostId> {
    // SAFETY: the entry may be replaced while it is read, but its one 16-bit
    // field is read at once.
    unsafe { OWNERS.get(id.0) }.map(|owner| HostId(owner.host))
}
