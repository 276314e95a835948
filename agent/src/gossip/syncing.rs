//! Full syncs: snapshots that this host pulls, and those that others pull from it.

use homing_common::host::HostId;

use super::{
    bulk::Bulk,
    core::Core,
    machine::{Gossip, Note},
    replica::{Apply, Phase, Pull, Replica},
    serving::{Asked, Told},
    wire::bulk::{self, Message},
};
use crate::pop::Stream;

impl Gossip {
    /// Hears a bulk message of a host in some life, for which whoever carried it vouches.
    pub fn receive_bulk(&mut self, now: u64, from: HostId, stream: Stream, body: &[u8]) {
        let core = &mut self.core;
        match bulk::decode(body) {
            // Whoever may ask may be answered: this host may hear only later of the life
            // that asks.
            Some(Message::Pull(asked)) => core.asked(from, stream, &asked),
            Some(Message::Part(part)) => {
                let Some(peer) = self.peers.get_mut(&from) else {
                    core.counters.parts_unasked += 1;
                    return;
                };
                let pull = match &mut peer.replica.phase {
                    Phase::Pulling(pull) if (pull.number, pull.stream) == (part.number, stream) => {
                        pull
                    }
                    _ => {
                        core.counters.parts_unasked += 1;
                        return;
                    }
                };
                let started_at = pull.started_at;
                if let Some((at, claims)) = pull.take(now, &part) {
                    peer.replica.incomplete = false;
                    peer.replica.phase = Phase::Applying(Apply {
                        at,
                        claims,
                        done: 0,
                        tally: Default::default(),
                        confirmed: 0,
                        started_at,
                    });
                }
                let next = core.tend(now, from, peer);
                self.agenda.plan(from, peer, next);
            }
            None => core.counters.messages_malformed += 1,
        }
    }

    /// The fate of a bulk message: the life of its receiver that has it, if that is sure.
    pub fn bulk_told(&mut self, now: u64, to: HostId, number: u64, has: Option<Stream>) {
        let core = &mut self.core;
        match core.servings.told(now, number, has, &mut core.bulks) {
            Told::Nothing => {}
            Told::Next => return,
            Told::Done => core.counters.snapshots_sent += 1,
            Told::Lost => core.counters.snapshots_lost += 1,
        }
        if let Some(peer) = self.peers.get_mut(&to)
            && let Phase::Pulling(pull) = &peer.replica.phase
            && pull.number == number
            && has != Some(pull.stream)
        {
            let next = core.pull_failed(now, to, &mut peer.replica);
            self.agenda.plan(to, peer, next);
        }
    }

    /// The next bulk message to be carried.
    pub fn poll_bulk(&mut self) -> Option<Bulk> {
        self.core.bulks.pop()
    }
}

impl Core {
    /// Asks a host for a snapshot.
    pub fn pull(&mut self, now: u64, host: HostId, replica: &mut Replica) {
        self.counters.syncs_begun += 1;
        let number = self.bulks.next();
        let (stream, have) = (replica.stream, replica.have());
        let body = bulk::Pull {
            number,
            stream,
            have,
        };
        self.bulks.push(host, body.encode());
        replica.phase = Phase::Pulling(Pull::new(now, number, stream, have));
    }

    /// A host's snapshot did not come. Says when it may be asked for again.
    pub fn pull_failed(&mut self, now: u64, host: HostId, replica: &mut Replica) -> u64 {
        self.counters.syncs_failed += 1;
        self.pulls.leave(host);
        self.note(Note::SyncFailed { host });
        replica.pull_failed(now)
    }

    /// A host asks for a snapshot.
    fn asked(&mut self, host: HostId, stream: Stream, pull: &bulk::Pull) {
        if pull.stream != self.settings.stream {
            // Meant for an earlier life, whose end the asker is about to hear of.
            return;
        }
        self.counters.snapshots_asked += 1;
        let queued = self.servings.ask(Asked {
            host,
            stream,
            number: pull.number,
            need: self.log.needed(pull.have),
        });
        self.counters.snapshots_queued += u64::from(queued);
    }

    /// Begins to send snapshots to those whose turn it is.
    pub fn serve(&mut self, now: u64) {
        self.counters.snapshots_lost += self.servings.give_up(now) as u64;
        while self.servings.begin(now, &mut self.log, &mut self.bulks) {}
    }
}

#[cfg(test)]
mod tests;
