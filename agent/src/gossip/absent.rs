//! Members that were down before this agent started: gossip hears of them from
//! others, or from the agent before this one, and may hold claims of theirs that it
//! found in the kernel's table.

use homing_common::host::HostId;

use super::{core::Peer, machine::Gossip};
use crate::pop::Member;

impl Gossip {
    /// A member is down that may not have been up since this agent started. It may
    /// own sessions, known here or not; so until it is heard, or voided, not all
    /// who may own a session have been asked.
    pub fn introduce(&mut self, now: u64, member: &Member) {
        let void_after = self.core.settings.void_after.as_micros() as u64;
        let peer = self.peers.entry(member.host).or_insert_with(|| Peer {
            void_at: Some(now.saturating_add(void_after)),
            ..Peer::new(now)
        });
        if peer.domain.is_none() {
            peer.domain = Some(member.domain);
            peer.stream = member.stream;
        }
        self.agenda.plan(member.host, peer, now);
    }

    /// Whether anything is known of a host but its name.
    pub fn has_met(&self, host: HostId) -> bool {
        self.peers.contains_key(&host)
    }
}
