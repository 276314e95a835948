//! Notes of the node as lines of the log: one per event, and no more than one in
//! ten seconds of what a fault could repeat without end.

use std::io;

use super::{machine, node::Note};
use crate::pop::{SECOND, liveness::Event, membership::Change};

/// The least time between two lines of one repeated kind, and of one that another
/// POP's faults repeat.
const QUIET: u64 = 10 * SECOND;
const QUIET_STRANGERS: u64 = 60 * SECOND;

/// What may repeat without end.
#[derive(Clone, Copy)]
enum Kind {
    Conflict,
    InUse,
    Contested,
    OwnId,
    Raise,
    Sync,
    Stranger,
    Unheard,
    Vetoed,
    Refuted,
    Minority,
    Silent,
}

const KINDS: usize = 12;

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
            Note::Liveness(event) => self.liveness(now, &event),
            Note::Stranger { from } => {
                if let Some(left_out) = self.may(now, Kind::Stranger) {
                    tracing::warn!(%from, left_out, "datagrams of another POP's key, or forged ones, are dropped: give each POP its own multicast group or port, and each host the POP's key (pop.key_file)");
                }
            }
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
            machine::Note::Voided { claims: 0, .. } => {}
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
                    tracing::warn!(%host, left_out, "full sync failed: its sessions did not come; trying again (does TCP pass between the hosts' pop.address?)");
                }
            }
        }
    }

    fn liveness(&mut self, now: u64, event: &Event) {
        match *event {
            Event::Answers { host } => tracing::debug!(%host, "kernel heard"),
            Event::Dead { host, by } => {
                tracing::error!(%host, judged_by = %by, "kernel dead: neither it nor its agent is heard");
            }
            Event::Void { host } => {
                tracing::warn!(%host, "kernel void: more than half of the POP has confirmed that it is dead, and sessions that it was moving here are taken over");
            }
            Event::Back {
                host,
                by,
                from,
                flaps,
            } => {
                let wait_ms = from.saturating_sub(now) / 1_000;
                tracing::warn!(%host, heard_by = %by, times = flaps, wait_ms, "kernel back: it was taken for dead, and its claims are asked for again");
            }
            Event::Recovered { host } => tracing::info!(%host, "kernel heard again"),
            Event::Silent { host } => {
                if let Some(left_out) = self.may(now, Kind::Silent) {
                    tracing::warn!(%host, left_out, "kernel silent: asking others whether they hear it");
                }
            }
            Event::Refuted { host, by } => {
                if let Some(left_out) = self.may(now, Kind::Refuted) {
                    tracing::warn!(%host, heard_by = %by, left_out, "kernel silent here, but not dead; look at the fabric between");
                }
            }
            Event::Vetoed { host, by } => {
                if let Some(left_out) = self.may(now, Kind::Vetoed) {
                    tracing::warn!(%host, judged_by = %by, left_out, "a host judged a kernel dead that is heard here: not carried out, and taken back");
                }
            }
            Event::Unheard { by } => {
                if let Some(left_out) = self.may(now, Kind::Unheard) {
                    tracing::warn!(by = %by, left_out, "another host does not hear this host's fast path; is XDP on the interface of pop.address (host.interfaces)?");
                }
            }
            Event::Minority { reached, of } => {
                if let Some(left_out) = self.may(now, Kind::Minority) {
                    tracing::error!(
                        reached,
                        of,
                        left_out,
                        "this host reaches under half of the POP: it voids nothing"
                    );
                }
            }
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
        let quiet = match kind {
            Kind::Stranger => QUIET_STRANGERS,
            _ => QUIET,
        };
        let index = kind as usize;
        if self.last[index].is_some_and(|last| now < last + quiet) {
            self.left_out[index] += 1;
            return None;
        }
        self.last[index] = Some(now);
        Some(std::mem::take(&mut self.left_out[index]))
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
            tracing::error!(host = %m.host, address = %m.address, "host refused: it has another tunnel network, or answers for none of this host's addresses; make tunnel.network and [[services]] the same on all hosts of the POP, and give another POP a key of its own");
        }
    }
}
