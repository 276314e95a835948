//! The look-up of a session's owner.

use homing_common::{
    host::{Host, HostId},
    outcome::Outcome,
    owners::{self, Found, Memory},
    session::SessionId,
};

use crate::{
    hosts,
    maps::{OWNERS, OWNERS_HEADER},
};

/// What [`owner_in_table`] returns, beside host ids.
const NOTHING: u32 = 0;
const UNSURE: u32 = 1 << 16;

/// The host that owns a foreign session, as far as this host has heard; none if that
/// host is void.
#[inline(always)]
pub fn owner_of(id: SessionId) -> Result<Option<HostId>, Outcome> {
    Ok(found(id)?.map(|(id, _)| id))
}

/// The same, and what is known of that host.
#[inline(always)]
pub fn host_of(id: SessionId) -> Result<Option<&'static Host>, Outcome> {
    Ok(found(id)?.map(|(_, host)| host))
}

#[inline(always)]
fn found(id: SessionId) -> Result<Option<(HostId, &'static Host)>, Outcome> {
    let id = match owner_in_table(id.0) {
        NOTHING => return Ok(None),
        UNSURE => return Err(Outcome::OwnerUnsure),
        id => HostId(id as u16),
    };
    // What leads to a host that is no member any more is void, also while its entries
    // are still being removed: one write to `HOSTS` voids them all.
    Ok(hosts::member(id).map(|host| (id, host)))
}

/// The memory of the tables.
struct Maps;

impl Memory for Maps {
    type Line<'a> = *const u64;

    #[inline(always)]
    fn header(&self) -> Option<*const u64> {
        OWNERS_HEADER.get_ptr(0).map(|header| header.cast())
    }

    #[inline(always)]
    fn bucket(&self, table: u32, number: u32) -> Option<*const u64> {
        let bucket = OWNERS.get(table)?.get_ptr(number)?;
        Some(bucket.cast())
    }

    #[inline(always)]
    fn load(line: *const u64, word: usize) -> u64 {
        // SAFETY: what was found has eight words, and words are aligned. The agent may
        // write meanwhile, a word at once.
        unsafe { line.add(word).read_volatile() }
    }
}

/// Takes a session's id.
///
/// A function of its own, and global: the verifier looks at it once, and not once for
/// every way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn owner_in_table(id: u64) -> u32 {
    match owners::look_up(&Maps, SessionId(id)) {
        Found::Owner(host) => host.into(),
        Found::Nothing => NOTHING,
        Found::Unsure => UNSURE,
    }
}
