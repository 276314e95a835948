//! The hosts of the POP, as the agent has written them.

use homing_common::host::{Host, HostId};

use crate::maps::HOSTS;

/// A host that is a member, and in a life that has not ended.
#[inline(always)]
pub fn member(host: HostId) -> Option<&'static Host> {
    HOSTS
        .get(host.0.into())
        .filter(|entry| entry.flags & (Host::MEMBER | Host::VOID) == Host::MEMBER)
}
