//! How a node asks and answers: what goes between [`super::ask`], gossip and the
//! driver.

use homing_common::{ask::Question, session::SessionId};

use super::{
    ask::{Frame, Lookup, Release},
    node::Node,
};
use crate::pop::SECOND;

/// For so long after its start a host that knows nobody does not take itself to be
/// alone.
pub(super) const JOINING: u64 = 5 * SECOND;
/// How often asks hear how gossip sees the POP, if nothing else happens.
const AUDIENCE_INTERVAL: u64 = SECOND;

impl Node {
    /// Tells asks how gossip sees the POP.
    pub(super) fn look_around(&mut self, now: u64) {
        self.audience_at = now + AUDIENCE_INTERVAL;
        let mut audience = self.gossip.audience();
        audience.near_blind |= audience.domains.is_empty() && now < self.joining_until;
        self.asks.set_audience(audience);
    }

    /// Packets of a session that nobody here knows were parked, at a time `at` of
    /// this clock.
    pub fn parked(&mut self, now: u64, at: u64, mut question: Question, frame: Frame) {
        // The kernel side may have had another key when it parked the packet.
        let id = self.asks.id_of(&question.tuple);
        question.id = id.0;
        let known = self.gossip.owner(id).is_some();
        if known && self.wanted.insert(id) {
            // Where its route found no room, it gets some before the packet goes back.
            self.gossip.look_again(id);
        }
        self.asks.parked(now, at, question, frame, known);
    }

    /// Whether packets of a session came here that the kernel's table does not send
    /// on: to be asked of each route that is put in force.
    pub fn take_wanted(&mut self, id: SessionId) -> bool {
        let is_parked = !self.wanted.is_empty() && self.wanted.remove(&id);
        is_parked || self.gossip.is_provisional(id)
    }

    /// The next questions of another host to put to this host's kernel.
    pub fn poll_lookup(&mut self) -> Option<Lookup> {
        self.asks.poll_lookup()
    }

    /// The kernel has answered the questions.
    pub fn looked_up(&mut self, now: u64, lookup: Lookup) {
        let gossip = &self.gossip;
        self.asks.looked_up(now, lookup, |id| gossip.known(id));
    }

    /// The next packet to give back; none while routes wait to be put in force.
    pub fn poll_release(&mut self, now: u64) -> Option<Release> {
        if self.gossip.routes_waiting() > 0 {
            return None;
        }
        self.asks.poll_release(now)
    }
}
