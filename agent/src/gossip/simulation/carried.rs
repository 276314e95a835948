//! Bulk messages in the simulation, as carriers bring them: whole or not at all, once at
//! most, in no order, and with a fate. Where there is no way, no agent, or one that does
//! not know the sender as a member, a message waits, for a time: so it may reach a later
//! life than it was meant for.

use homing_common::host::HostId;
use rand::RngExt;

use super::{Flight as AnyFlight, Pop, address, octets};
use crate::{
    gossip::bulk::Bulk,
    pop::{MS, SECOND, Stream, membership::State},
};

/// Opening a carrier takes up to so long.
const OPEN_MAX: u64 = 3 * MS;
/// How often a carrier is tried, and for how long.
const TRY_EVERY: u64 = 200 * MS;
const GIVE_UP_AFTER: u64 = 10 * SECOND;

/// What carriers bring to a machine.
pub(super) enum Flight {
    Message {
        from: u16,
        /// The life that sent it, and that is told its fate.
        stream: Stream,
        sent_at: u64,
        bulk: Bulk,
    },
    /// The fate of a message of this life.
    Fate {
        stream: Stream,
        to: HostId,
        number: u64,
        has: Option<Stream>,
    },
}

impl Pop {
    /// A node sends a bulk message.
    pub(super) fn carry(&mut self, from: u16, stream: Stream, bulk: Bulk) {
        self.carried += 1;
        let open = self.rng.random_range(0..=OPEN_MAX);
        let at = self.now + open + self.delay(from);
        let node = self.machines[&from].agent.as_ref().map(|(node, _)| node);
        let to = node.and_then(|node| node.membership().entry(bulk.to));
        // Where it is, if it has just been forgotten, does not matter.
        let to = to.map_or(bulk.to.0, |entry| {
            u16::from_be_bytes(octets(entry.member.address))
        });
        let flight = Flight::Message {
            from,
            stream,
            sent_at: self.now,
            bulk,
        };
        self.fly(at, to, flight);
    }

    fn fly(&mut self, at: u64, to: u16, flight: Flight) {
        self.flown += 1;
        let flight = AnyFlight::Carried(flight);
        self.flights.insert((at, self.flown), (to, flight));
    }

    pub(super) fn arrive_carried(&mut self, at: u16, flight: Flight) {
        match flight {
            Flight::Message {
                from,
                stream,
                sent_at,
                bulk,
            } => self.arrive_message(at, from, stream, sent_at, bulk),
            Flight::Fate {
                stream,
                to,
                number,
                has,
            } => {
                let machine = self.machines.get_mut(&at).unwrap();
                if let Some((node, _)) = &mut machine.agent
                    && machine.stream == stream
                {
                    node.bulk_told(self.now, to, number, has);
                    self.settle(at);
                }
            }
        }
    }

    fn arrive_message(&mut self, at: u16, from: u16, stream: Stream, sent_at: u64, bulk: Bulk) {
        let is_open = self.is_open(from, at);
        if !is_open && self.now < sent_at + GIVE_UP_AFTER {
            let flight = Flight::Message {
                from,
                stream,
                sent_at,
                bulk,
            };
            return self.fly(self.now + TRY_EVERY, at, flight);
        }
        // It breaks before the message has come, or before its fate is known.
        let breaks = self.rng.random_range(0..100) < self.faults.broken_percent;
        let arrives = is_open && (!breaks || self.rng.random());
        let sender = HostId(self.machines[&from].id);
        let machine = self.machines.get_mut(&at).unwrap();
        let mut has = None;
        if let Some((node, _)) = machine.agent.as_mut().filter(|_| arrives) {
            has = Some(machine.stream).filter(|_| !breaks);
            node.receive_bulk(self.now, sender, stream, &bulk.body);
            self.settle(at);
        }
        let flight = Flight::Fate {
            stream,
            to: bulk.to,
            number: bulk.number,
            has,
        };
        let told_at = self.now + self.delay(at);
        self.fly(told_at, from, flight);
    }

    /// Whether a machine lets another one's carriers in.
    fn is_open(&self, from: u16, to: u16) -> bool {
        let one_way = [Some((from, to)), Some((to, from))].contains(&self.faults.one_way);
        let acceptor = self.machines[&to].agent.as_ref();
        let sender = HostId(self.machines[&from].id);
        let member = acceptor.and_then(|(node, _)| node.membership().entry(sender));
        let is_member = member.is_some_and(|entry| {
            let is_had = matches!(entry.state, State::Alive | State::Down);
            is_had && entry.member.address == address(from)
        });
        is_member && !one_way && self.reaches(from, to)
    }
}
