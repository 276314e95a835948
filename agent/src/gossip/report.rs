//! Notes of the node as lines of the log: one per event, and no more than one in
//! ten seconds of what a fault could repeat without end.

use std::io;

use super::{TableError, machine, node::Note};
use crate::pop::{SECOND, membership::Change};

/// The least time between two lines of one repeated kind.
const QUIET: u64 = 10 * SECOND;

/// What may repeat without end.
#[derive(Clone, Copy)]
enum Kind {
    Conflict,
    InUse,
    Contested,
    OwnId,
    Table,
    Raise,
    Sync,
}

const KINDS: usize = 7;

/// Writes the log.
#[derive(Default)]
pub(super) struct Reports {
    /// When a line of each kind was last written, and how many were not since.
    last: [Option<u64>; KINDS],
    left_out: [u64; KINDS],
}

impl Reports {
    /// Writes a note down. Gives the incarnation to begin above, if the note says
    /// that this host's is outdated.
    pub fn note(&mut self, now: u64, note: &Note) -> Option<u64> {
        match *note {
            Note::Member(change) => member(&change),
            Note::Gossip(note) => self.gossip(now, &note),
            Note::Outdated { above, by } => {
                tracing::warn!(known = above, told_by = %by, "the POP knows a later incarnation of this host: beginning one above it");
                return Some(above);
            }
            Note::InUse { by } => {
                if let Some(left_out) = self.may(now, Kind::InUse) {
                    tracing::error!(told_by = %by, left_out, "this host's id is in use at another address, so the POP refuses this host; give each host an id of its own (host.id)");
                }
            }
            Note::Contested {
                host,
                holder,
                other,
            } => {
                if let Some(left_out) = self.may(now, Kind::Contested) {
                    tracing::error!(%host, kept = %holder, refused = %other, left_out, "two machines use one host id; give each an id of its own (host.id)");
                }
            }
            Note::OwnIdElsewhere { at } => {
                if let Some(left_out) = self.may(now, Kind::OwnId) {
                    tracing::error!(%at, left_out, "another machine uses this host's id; give each an id of its own (host.id)");
                }
            }
        }
        None
    }

    fn gossip(&mut self, now: u64, note: &machine::Note) {
        match *note {
            machine::Note::Conflict { id, host } => {
                if let Some(left_out) = self.may(now, Kind::Conflict) {
                    tracing::warn!(session = %id, claimed_by = %host, left_out, "another host claims a session that is live here; it stays here");
                }
            }
            machine::Note::Voided { host, claims } => {
                tracing::warn!(%host, claims, "claims voided");
            }
            machine::Note::Synced {
                host,
                sessions,
                took_us,
            } => tracing::info!(%host, sessions, took_us, "full sync done"),
            machine::Note::SyncFailed { host } => {
                if let Some(left_out) = self.may(now, Kind::Sync) {
                    tracing::warn!(%host, left_out, "full sync failed: no answer; trying again");
                }
            }
        }
    }

    /// A route could not be written.
    pub fn table_error(&mut self, now: u64, error: &TableError) {
        if let Some(left_out) = self.may(now, Kind::Table) {
            tracing::error!(%error, left_out, "cannot write a route; trying again every second");
        }
    }

    /// A new incarnation could not be remembered.
    pub fn raise_failed(&mut self, now: u64, above: u64, error: &io::Error) {
        if let Some(left_out) = self.may(now, Kind::Raise) {
            tracing::error!(above, %error, left_out, "cannot begin a new incarnation, so the POP refuses this host");
        }
    }

    /// Whether a line of this kind may be written, and how many were left out.
    fn may(&mut self, now: u64, kind: Kind) -> Option<u64> {
        let kind = kind as usize;
        if self.last[kind].is_some_and(|last| now < last + QUIET) {
            self.left_out[kind] += 1;
            return None;
        }
        self.last[kind] = Some(now);
        Some(std::mem::take(&mut self.left_out[kind]))
    }
}

fn member(change: &Change) {
    match change {
        Change::Up(m) => {
            tracing::info!(host = %m.host, address = %m.address, domain = %m.domain, incarnation = m.stream.incarnation, generation = m.stream.generation, "member up");
        }
        Change::Down(m) => {
            tracing::warn!(host = %m.host, "member down: its agent does not answer");
        }
        Change::Left(m, hold) => {
            tracing::info!(host = %m.host, hold_ms = hold.as_millis() as u64, "member left");
        }
        Change::Mismatched(m) => {
            tracing::error!(host = %m.host, address = %m.address, "member refused: its tunnel settings differ from this host's; make [tunnel] the same on all hosts");
        }
    }
}
