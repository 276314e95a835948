//! Bulk messages in the simulated POP: what their carriers take, and how many are under
//! way.

use std::cmp::Reverse;

use homing_agent::{gossip::bulk::Bulk, mux::GOSSIP, pop::Stream};
use homing_common::host::HostId;

use super::{Event, HEADERS, Pop, SECOND, Size, What};

/// Opening a carrier: so many round trips, and computing on both sides.
const OPEN_TRIPS: u64 = 6;
const OPEN_WORK: u64 = 1_000;
/// Bytes that a host sends in a microsecond.
const BYTES_PER_US: u64 = 1_000;
/// What is cut off is given up after this time.
const GIVE_UP_AFTER: u64 = 10 * SECOND;

/// Whether nothing gets from one of two hosts to the other.
pub(super) fn is_cut(cut: Option<u16>, size: Size, hosts: [u16; 2]) -> bool {
    let [one, other] = hosts.map(|host| host % size.domains);
    one != other && [Some(one), Some(other)].contains(&cut)
}

impl Pop {
    /// A host sends a bulk message.
    pub(super) fn carry(&mut self, from: u16, bulk: Bulk) {
        let host = &mut self.hosts[usize::from(from)];
        host.carried += 1;
        host.carried_max = host.carried_max.max(host.carried);
        let to = bulk.to.0 - 1;
        if is_cut(self.cut, self.size, [from, to]) {
            return self.tell(from, &bulk, None, GIVE_UP_AFTER);
        }
        let trip = self.trip(from, to);
        let idle_max = GOSSIP.idle_max.as_micros() as u64;
        let last = self.carried_at.insert((from, to), self.now);
        let open = match last {
            Some(last) if self.now < last + idle_max => 0,
            _ => OPEN_TRIPS * 2 * trip + OPEN_WORK,
        };
        let at = self.now + open + trip + bulk.body.len() as u64 / BYTES_PER_US;
        self.plan_carried(at, What::Carried { from, bulk });
    }

    pub(super) fn arrive_carried(&mut self, from: u16, bulk: Bulk) {
        let (now, to) = (self.now, bulk.to.0 - 1);
        let cut = is_cut(self.cut, self.size, [from, to]);
        let sender = self.hosts[usize::from(from)].stream;
        let host = &mut self.hosts[usize::from(to)];
        let Some(node) = host.node.as_mut().filter(|_| !cut) else {
            return self.tell(from, &bulk, None, GIVE_UP_AFTER);
        };
        self.measured.gossip_bytes += bulk.body.len() as u64 + HEADERS;
        node.receive_bulk(now, HostId(from + 1), sender, &bulk.body);
        let has = host.stream;
        self.settle(to);
        let trip = self.trip(to, from);
        self.tell(from, &bulk, Some(has), trip);
    }

    /// A host will hear of the fate of a message.
    fn tell(&mut self, from: u16, bulk: &Bulk, has: Option<Stream>, after: u64) {
        let told = What::Told {
            from,
            to: bulk.to,
            number: bulk.number,
            has,
        };
        self.plan_carried(self.now + after, told);
    }

    pub(super) fn told(&mut self, from: u16, to: HostId, number: u64, has: Option<Stream>) {
        let host = &mut self.hosts[usize::from(from)];
        host.carried = host.carried.saturating_sub(1);
        if let Some(node) = &mut host.node {
            node.bulk_told(self.now, to, number, has);
            self.settle(from);
        }
    }

    /// The most bulk messages that any host has had under way at once.
    pub fn carried_max(&self) -> usize {
        let most = self.hosts.iter().map(|host| host.carried_max);
        most.max().unwrap_or(0)
    }

    /// How long a packet takes from one host to another.
    fn trip(&mut self, from: u16, to: u16) -> u64 {
        let (base, spread) = match from % self.size.domains == to % self.size.domains {
            true => (30, 50),
            false => (60, 140),
        };
        base + self.random.below(spread)
    }

    fn plan_carried(&mut self, at: u64, what: What) {
        self.events += 1;
        self.queue.push(Reverse(Event {
            at,
            number: self.events,
            what,
        }));
    }
}
