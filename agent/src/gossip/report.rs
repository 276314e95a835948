//! Notes of the node as lines of the log: one per event, no more than one in ten seconds of
//! what a fault could repeat without end, and no more than a hundred a second of what
//! happens to hosts.

use std::io;

use super::{machine, node::Note};
use crate::{
    bound::Bound,
    pop::{SECOND, liveness::Event, membership::Change},
};

/// The least time between two lines of one repeated kind, and of one that another
/// POP's faults repeat.
const QUIET: u64 = 10 * SECOND;
const QUIET_STRANGERS: u64 = 60 * SECOND;

/// What happens to hosts, each of which may come and go: all of a rack at once, or one of
/// them over and over.
static MEMBERS: Bound = Bound::per_second(100);
static KERNELS: Bound = Bound::per_second(100);
static CLAIMS: Bound = Bound::per_second(100);

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
                    tracing::warn!(
                        %from, left_out,
                        fix = "give each POP a multicast group or port of its own, and each of its hosts its key (pop.key_file); keep strangers from the port of pop.address",
                        "datagrams of another POP's key, or forged ones, are dropped"
                    );
                }
            }
            Note::Outdated { above, by } => {
                tracing::warn!(
                    known = above, told_by = %by,
                    fix = "nothing: this host begins an incarnation above that; set its clock right (`chronyc tracking`), for it numbers them",
                    "the POP knows a later incarnation of this host"
                );
                return Some(above);
            }
            Note::InUse { by } => {
                if let Some(left_out) = self.may(now, Kind::InUse) {
                    tracing::error!(
                        told_by = %by, left_out,
                        fix = "give each machine a host.id of its own, and restart the agent of the wrong one",
                        "this host's id is in use at another address, so the POP refuses this host"
                    );
                }
            }
            Note::Contested {
                host,
                holder,
                other,
            } => {
                if let Some(left_out) = self.may(now, Kind::Contested) {
                    tracing::error!(
                        %host, kept = %holder, refused = %other, left_out,
                        fix = "give each machine a host.id of its own, and restart the agent of the refused one",
                        "two machines use one host id"
                    );
                }
            }
            Note::OwnIdElsewhere { at } => {
                if let Some(left_out) = self.may(now, Kind::OwnId) {
                    tracing::error!(
                        %at, left_out,
                        fix = "give each machine a host.id of its own, and restart the agent of that one",
                        "another machine uses this host's id"
                    );
                }
            }
        }
        None
    }

    fn gossip(&mut self, now: u64, note: &machine::Note) {
        match *note {
            machine::Note::Conflict { id, host } => {
                if let Some(left_out) = self.may(now, Kind::Conflict) {
                    tracing::warn!(
                        session = %id, claimed_by = %host, left_out,
                        fix = "nothing: it stays here, and the other claim ends with what is left of the connection there; if it lasts (`homing status`), compare `homing owner` on both",
                        "another host claims a session that is live here"
                    );
                }
            }
            machine::Note::Voided { claims: 0, .. } => {}
            machine::Note::Voided { host, claims } => {
                if let Some(left_out) = CLAIMS.take() {
                    tracing::warn!(
                        %host, claims, left_out,
                        fix = "see why that host is dead or has left; its sessions were its own, and come back with it if it comes back in the same life",
                        "claims voided"
                    );
                }
            }
            machine::Note::Synced {
                host,
                sessions,
                took_us,
            } => {
                if let Some(left_out) = CLAIMS.take() {
                    tracing::info!(%host, sessions, took_us, left_out, "full sync done");
                }
            }
            machine::Note::SyncFailed { host } => {
                if let Some(left_out) = self.may(now, Kind::Sync) {
                    tracing::warn!(
                        %host, left_out,
                        fix = "let TCP between the hosts' pop.address through (`homing carriers` says what is wrong); tried again by itself",
                        "full sync failed: the sessions of a host did not come"
                    );
                }
            }
        }
    }

    fn liveness(&mut self, now: u64, event: &Event) {
        match *event {
            Event::Answers { host } => tracing::debug!(%host, "kernel heard"),
            Event::Dead { host, by } => {
                if let Some(left_out) = KERNELS.take() {
                    tracing::error!(
                        %host, judged_by = %by, left_out,
                        fix = "look at that machine and its links; nothing has to be done on the other hosts",
                        "kernel dead: neither it nor its agent is heard"
                    );
                }
            }
            Event::Void { host } => {
                if let Some(left_out) = KERNELS.take() {
                    tracing::warn!(
                        %host, left_out,
                        fix = "nothing: sessions that it was moving here are taken over",
                        "kernel void: more than half of the POP has confirmed that it is dead"
                    );
                }
            }
            Event::Back {
                host,
                by,
                from,
                flaps,
            } => {
                let wait_ms = from.saturating_sub(now) / 1_000;
                if let Some(left_out) = KERNELS.take() {
                    tracing::warn!(
                        %host, heard_by = %by, times = flaps, wait_ms, left_out,
                        fix = "nothing: its claims are asked for again after wait_ms; if times grows, look at its links",
                        "kernel back: it was taken for dead"
                    );
                }
            }
            Event::Recovered { host } => {
                if let Some(left_out) = KERNELS.take() {
                    tracing::info!(%host, left_out, "kernel heard again");
                }
            }
            Event::Silent { host } => {
                if let Some(left_out) = self.may(now, Kind::Silent) {
                    tracing::warn!(
                        %host, left_out,
                        fix = "nothing yet: the others are asked whether they hear it, and the next line says what came of it",
                        "kernel silent: a host's fast path does not answer"
                    );
                }
            }
            Event::Refuted { host, by } => {
                if let Some(left_out) = self.may(now, Kind::Refuted) {
                    tracing::warn!(
                        %host, heard_by = %by, left_out,
                        fix = "look at the fabric between this host and that one: route, MTU, filters for tunnel packets",
                        "kernel silent here, but others hear it"
                    );
                }
            }
            Event::Vetoed { host, by } => {
                if let Some(left_out) = self.may(now, Kind::Vetoed) {
                    tracing::warn!(
                        %host, judged_by = %by, left_out,
                        fix = "look at the fabric between those two hosts; the judgement is taken back, and nothing is void",
                        "a host judged a kernel dead that is heard here"
                    );
                }
            }
            Event::Unheard { by } => {
                if let Some(left_out) = self.may(now, Kind::Unheard) {
                    tracing::warn!(
                        %by, left_out,
                        fix = "name the interface of pop.address in host.interfaces (`homing doctor`); then look at the fabric to that host",
                        "another host does not hear this host's fast path"
                    );
                }
            }
            Event::Minority { reached, of } => {
                if let Some(left_out) = self.may(now, Kind::Minority) {
                    tracing::error!(
                        reached,
                        of,
                        left_out,
                        fix = "look at this host's links and the fabric; until more is reached it voids nothing, so that no session is given up wrongly",
                        "this host reaches under half of the POP"
                    );
                }
            }
        }
    }

    /// A new incarnation could not be remembered.
    pub fn raise_failed(&mut self, now: u64, above: u64, error: &io::Error) {
        if let Some(left_out) = self.may(now, Kind::Raise) {
            tracing::error!(
                above, %error, left_out,
                fix = "restart the agent, which begins one; if it stays, look at /sys/fs/bpf/homing (`homing doctor`)",
                "cannot begin a new incarnation, so the POP refuses this host"
            );
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
    let Some(left_out) = MEMBERS.take() else {
        return;
    };
    match change {
        Change::Up(m) => {
            tracing::info!(host = %m.host, address = %m.address, domain = %m.domain, incarnation = m.stream.incarnation, generation = m.stream.generation, left_out, "member up");
        }
        Change::Down(m) => {
            tracing::warn!(
                host = %m.host, address = %m.address, left_out,
                fix = "`homing hosts`: if its KERNEL is alive its sessions stand, and only its agent is to be looked at (`journalctl -u homing` there); else its machine and the fabric",
                "member down: its agent does not answer"
            );
        }
        Change::Left(m, hold) => {
            tracing::info!(host = %m.host, hold_ms = hold.as_millis() as u64, left_out, "member left");
        }
        Change::Mismatched(m) => {
            tracing::error!(
                host = %m.host, address = %m.address, left_out,
                fix = "make tunnel.network and [[services]] the same on all hosts of the POP, and give another POP a key of its own",
                "host refused: it has another tunnel network, or answers for none of this host's addresses"
            );
        }
    }
}
