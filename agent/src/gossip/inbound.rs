//! What gossip does with the messages of other hosts.

use homing_common::{host::HostId, session::SessionId};

use super::{
    claims::Full,
    core::{Core, Peer},
    machine::{Gossip, Note},
    replica::{Phase, REORDER_DELAY, Replica},
    wire::{self, Heartbeat, Message, PassOn, RECORD_LEN, Record, Records},
};
use crate::pop::Stream;

/// Batches sent again for one request.
const REPAIR_BATCHES: usize = 32;
/// Bytes of a snapshot's claims that are put into the table in one go: some
/// milliseconds of work.
const APPLY_LEN: usize = 4096 * RECORD_LEN;
/// Batches whose latency waits to be recorded.
const FRESH_MAX: usize = 4096;

impl Gossip {
    /// Hears a message that the seal let through.
    pub fn receive(
        &mut self,
        now: u64,
        origin: HostId,
        stream: Stream,
        multicast: bool,
        body: &[u8],
    ) {
        let core = &mut self.core;
        let Some(peer) = self
            .peers
            .get_mut(&origin)
            .filter(|peer| peer.up && peer.stream == stream)
        else {
            // Membership will tell of it, and a heartbeat show what was missed.
            core.counters.not_member += 1;
            return;
        };
        let Some(message) = wire::decode(body) else {
            core.counters.messages_malformed += 1;
            return;
        };
        if multicast {
            peer.multicast_heard_at = Some(now);
        } else {
            peer.met = true;
        }
        match message {
            Message::Batch {
                first,
                opened_us,
                pass_on,
                records,
                ..
            } => {
                if pass_on != PassOn::No && peer.domain != Some(core.settings.domain) {
                    let source = peer.source(origin);
                    self.relay
                        .take_records(now, pass_on, source, first, opened_us, records);
                }
                core.hear_batch(now, origin, peer, first, opened_us, records);
            }
            Message::Heartbeat { heartbeat, pass_on } => {
                let is_near = peer.domain == Some(core.settings.domain);
                if pass_on != PassOn::No && !is_near {
                    self.relay
                        .take_heartbeat(now, peer.source(origin), heartbeat);
                }
                let delay = if is_near {
                    REORDER_DELAY
                } else {
                    core.relay_delay
                };
                core.hear_heartbeat(now, peer, &heartbeat, delay);
                if is_near && !multicast && peer.hears_us != heartbeat.hears {
                    peer.hears_us = heartbeat.hears;
                    self.targets = None;
                }
                if heartbeat.calls {
                    peer.heartbeat_at = now;
                }
            }
            Message::Relayed(relayed) => {
                self.hear_relayed(now, relayed);
                return;
            }
            Message::Repair { stream, from, to } => core.serve_repair(origin, stream, from, to),
        }
        let next = core.tend_heard(now, origin, peer);
        self.agenda.plan(origin, peer, next);
    }
}

impl Core {
    /// Does what follows for a peer from what was just heard, and says when the
    /// next thing is.
    pub fn tend_heard(&mut self, now: u64, origin: HostId, peer: &mut Peer) -> u64 {
        match peer.replica.phase {
            Phase::Waiting { from } => from.min(peer.heartbeat_at),
            _ => self.tend(now, origin, peer),
        }
    }

    pub fn hear_batch(
        &mut self,
        now: u64,
        origin: HostId,
        peer: &mut Peer,
        first: u64,
        opened_us: u64,
        records: Records<'_>,
    ) {
        let replica = &mut peer.replica;
        let end = first + records.len() as u64;
        match replica.phase {
            Phase::Waiting { .. } | Phase::Queued => {}
            Phase::Pulling(_) | Phase::Applying(_) => {
                self.keep(replica, first, opened_us, records);
            }
            Phase::Following if end <= replica.next => self.counters.duplicates += 1,
            Phase::Following if first > replica.next => {
                self.counters.out_of_order += 1;
                self.keep(replica, first, opened_us, records);
                replica.expect(now, end, REORDER_DELAY);
            }
            Phase::Following => {
                self.apply_batch(origin, replica, first, opened_us, records);
                self.apply_pending(now, origin, replica);
            }
        }
    }

    fn keep(&mut self, replica: &mut Replica, first: u64, opened_us: u64, records: Records<'_>) {
        if !replica
            .pending
            .keep(replica.next, first, opened_us, records)
        {
            self.counters.pending_dropped += 1;
        }
    }

    /// Applies batches that were waiting for what has just been applied.
    fn apply_pending(&mut self, now: u64, origin: HostId, replica: &mut Replica) {
        while let Some((first, opened_us, bytes)) = replica.pending.take(replica.next) {
            let records = Records::from_bytes(&bytes);
            self.apply_batch(origin, replica, first, opened_us, records);
        }
        replica.settle_gap(now);
        if let Some(end) = replica.pending.end() {
            replica.expect(now, end, REORDER_DELAY);
        }
    }

    /// Applies the records of a batch that were not applied yet; the batch begins
    /// at the next of them or before.
    fn apply_batch(
        &mut self,
        origin: HostId,
        replica: &mut Replica,
        first: u64,
        opened_us: u64,
        records: Records<'_>,
    ) {
        let known = replica.next.saturating_sub(first) as usize;
        if known >= records.len() {
            return;
        }
        for record in records.iter().skip(known) {
            self.apply(origin, replica, record);
        }
        self.counters.records_applied += (records.len() - known) as u64;
        replica.next = first + records.len() as u64;
        if self.fresh.len() < FRESH_MAX {
            self.fresh.push(opened_us);
        }
    }

    fn apply(&mut self, origin: HostId, replica: &mut Replica, record: Record) {
        let Record {
            id,
            generation,
            closed,
        } = record;
        if closed {
            if self.provisional.remove(id, Some(origin)) {
                self.dirty.push_back(id);
            }
            if let Some(removed) = self.claims.remove(id, origin) {
                replica.tally.remove(id, removed.generation);
                if removed.owner_changed {
                    self.dirty.push_back(id);
                }
            }
            return;
        }
        match self.claims.insert(id, origin, generation, replica.epoch) {
            Ok(inserted) => {
                if let Some((previous, _)) = inserted.previous {
                    replica.tally.remove(id, previous);
                }
                replica.tally.add(id, generation);
                self.claimed(id, origin, generation, inserted.owner_changed);
            }
            Err(Full) => {
                self.counters.claims_full += 1;
                replica.incomplete = true;
            }
        }
    }

    /// A claim was put into the table.
    fn claimed(&mut self, id: SessionId, host: HostId, generation: u16, owner_changed: bool) {
        self.provisional.remove(id, None);
        if owner_changed {
            self.dirty.push_back(id);
        }
        if let Some(own) = self.log.generation(id) {
            self.follow_conflict(id);
            // A later one took the session over from here, or an earlier one gave it here:
            // its host, or this one, is about to close its claim.
            if own == generation {
                self.counters.conflicts += 1;
                self.note(Note::Conflict { id, host });
            }
        }
    }

    /// What it shows to be missing may be on its way for so long.
    pub fn hear_heartbeat(&mut self, now: u64, peer: &mut Peer, heartbeat: &Heartbeat, delay: u64) {
        let replica = &mut peer.replica;
        if !matches!(replica.phase, Phase::Following) {
            return;
        }
        if heartbeat.oldest > replica.next {
            // What is missing left the origin's log.
            replica.wait(now);
        } else if heartbeat.next > replica.next {
            replica.expect(now, heartbeat.next, delay);
        } else if heartbeat.next == replica.next {
            if replica.incomplete {
                if self.claims.has_room() {
                    replica.wait(now);
                }
            } else if (heartbeat.count, heartbeat.digest)
                != (replica.tally.count, replica.tally.digest)
            {
                self.counters.digest_mismatches += 1;
                replica.wait(now);
            }
        }
    }

    fn serve_repair(&mut self, asker: HostId, stream: Stream, from: u64, to: u64) {
        if stream != self.settings.stream {
            // Meant for an earlier life, whose end the asker is about to hear of.
            return;
        }
        match self.log.repair(from, to, REPAIR_BATCHES) {
            Some(batches) => {
                for batch in batches {
                    if !self.answer(asker, batch) {
                        return;
                    }
                    self.counters.repairs_sent += 1;
                }
            }
            None => {
                let body = self.log.heartbeat(false, false).encode();
                self.answer(asker, body);
            }
        }
    }

    /// Puts the next part of a complete snapshot into the table; after the last,
    /// removes what it did not confirm and goes on with the log.
    pub fn apply_slice(&mut self, now: u64, host: HostId, peer: &mut Peer) {
        let replica = &mut peer.replica;
        let Phase::Applying(apply) = &mut replica.phase else {
            return;
        };
        let end = apply.claims.len().min(apply.done + APPLY_LEN);
        for record in Records::from_bytes(&apply.claims[apply.done..end]).iter() {
            let (id, generation) = (record.id, record.generation);
            match self.claims.insert(id, host, generation, !replica.epoch) {
                Ok(inserted) => {
                    match inserted.previous {
                        Some((_, epoch)) if epoch == replica.epoch => apply.confirmed += 1,
                        Some((twice, _)) => apply.tally.remove(id, twice),
                        None => {}
                    }
                    apply.tally.add(id, generation);
                    self.provisional.remove(id, None);
                    if inserted.owner_changed {
                        self.dirty.push_back(id);
                    }
                    if let Some(own) = self.log.generation(id)
                        && inserted.previous.is_none()
                    {
                        self.counters.conflicts += u64::from(own == generation);
                        self.follow_conflict(id);
                    }
                }
                Err(Full) => {
                    self.counters.claims_full += 1;
                    replica.incomplete = true;
                }
            }
        }
        apply.done = end;
        if end < apply.claims.len() {
            return;
        }
        let unconfirmed = replica.tally.count - apply.confirmed;
        if unconfirmed > 0 {
            self.counters.swept += unconfirmed;
            self.claims.sweep(host, Some(replica.epoch), |id| {
                self.dirty.push_back(id);
            });
        }
        replica.epoch = !replica.epoch;
        replica.adopted = false;
        replica.tally = apply.tally;
        let at = apply.at;
        let note = Note::Synced {
            host,
            sessions: apply.tally.count,
            took_us: now - apply.started_at,
        };
        replica.follow(at);
        self.pulls.leave(host);
        self.counters.syncs_done += 1;
        self.note(note);
        if replica.stream == peer.stream {
            self.apply_pending(now, host, replica);
        } else {
            // Another life began meanwhile.
            replica.wait(now);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
