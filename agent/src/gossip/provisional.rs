//! Claims that an ask brought to light and that gossip does not know yet: routes
//! until their origin's claim arrives, or it says that the session is closed, or a
//! time is over.
//!
//! They stand apart from the claims, whose digest must be that of the origin's log,
//! and any claim goes before them.

use std::collections::VecDeque;

use homing_common::{host::HostId, session::SessionId};

use super::{
    ask::Provisional,
    claims::{Claim, IdMap},
    machine::Gossip,
};
use crate::pop::SECOND;

/// How long a route stands that no claim confirms. A session in its handshake is
/// announced within moments; one in TIME_WAIT never is, and asked about again.
pub(super) const LIFETIME: u64 = 30 * SECOND;
/// Routes that stand at once; more make the oldest go.
const LIMIT: usize = 1 << 16;

/// The routes that no claim confirms yet.
#[derive(Default)]
pub(super) struct Provisionals {
    claims: IdMap<(Claim, u64)>,
    /// In the order of their ends. What stands in `claims` with another end, or no
    /// longer does, is void.
    ends: VecDeque<(u64, SessionId)>,
}

impl Provisionals {
    /// Adds a claim. Gives the session whose claim had to go for it.
    pub fn insert(&mut self, now: u64, id: SessionId, claim: Claim) -> Option<SessionId> {
        let end = now + LIFETIME;
        self.claims.insert(id, (claim, end));
        self.ends.push_back((end, id));
        if self.ends.len() <= LIMIT {
            return None;
        }
        let (end, id) = self.ends.pop_front()?;
        self.remove_at(end, id)
    }

    pub fn get(&self, id: SessionId) -> Option<Claim> {
        Some(self.claims.get(&id)?.0)
    }

    /// Removes a session's claim, if it is this host's or no host is named. Says
    /// whether there was one.
    pub fn remove(&mut self, id: SessionId, host: Option<HostId>) -> bool {
        // Nearly always there is none at all.
        if self.claims.is_empty() {
            return false;
        }
        let is_meant = self.claims.get(&id);
        if is_meant.is_some_and(|(claim, _)| host.is_none_or(|host| host == claim.host)) {
            self.claims.remove(&id);
            return true;
        }
        false
    }

    /// Removes all claims of a host, and names their sessions.
    pub fn sweep(&mut self, host: HostId, mut gone: impl FnMut(SessionId)) {
        self.claims.retain(|&id, (claim, _)| {
            let goes = claim.host == host;
            if goes {
                gone(id);
            }
            !goes
        });
    }

    /// When [`Provisionals::due`] has something, or would have.
    pub fn next_time(&self) -> u64 {
        self.ends.front().map_or(u64::MAX, |(end, _)| *end)
    }

    /// Removes a claim whose time is over, and names its session. To be called
    /// until there is none.
    pub fn due(&mut self, now: u64) -> Option<SessionId> {
        while let Some(&(end, id)) = self.ends.front()
            && end <= now
        {
            self.ends.pop_front();
            if let Some(id) = self.remove_at(end, id) {
                return Some(id);
            }
        }
        None
    }

    fn remove_at(&mut self, end: u64, id: SessionId) -> Option<SessionId> {
        if self.claims.get(&id)?.1 != end {
            return None;
        }
        self.claims.remove(&id);
        Some(id)
    }

    pub fn len(&self) -> usize {
        self.claims.len()
    }
}

impl Gossip {
    /// Another host said that it owns a session, of which gossip knows nothing: a
    /// route until a claim takes its place, or a time is over.
    pub fn provide(&mut self, now: u64, claim: Provisional) {
        let Provisional {
            id,
            host,
            generation,
        } = claim;
        let core = &mut self.core;
        let peer = self.peers.get(&host);
        let stands = peer.is_some_and(|peer| !peer.dead && !peer.voided);
        if !stands || core.log.is_live(id) || core.claims.owner(id).is_some() {
            return;
        }
        core.dirty.push_back(id);
        if let Some(gone) = core.provisional.insert(now, id, Claim { host, generation }) {
            core.dirty.push_back(gone);
        }
    }

    /// Whether a session's route is one that no claim has confirmed yet.
    pub fn is_provisional(&self, id: SessionId) -> bool {
        self.core.provisional.get(id).is_some()
    }

    /// Gives a session's route out once more.
    pub fn look_again(&mut self, id: SessionId) {
        self.core.dirty.push_back(id);
    }

    /// Sessions with a route that no claim has confirmed yet.
    pub fn provisional(&self) -> usize {
        self.core.provisional.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(host: u16) -> Claim {
        Claim {
            host: HostId(host),
            generation: 0,
        }
    }

    #[test]
    fn a_claim_ends_by_its_host_by_time_or_for_lack_of_room() {
        let mut all = Provisionals::default();
        let [one, two, three] = [1, 2, 3].map(SessionId);
        for (now, id, host) in [(0, one, 7), (1, two, 7), (2, three, 8)] {
            assert_eq!(all.insert(now, id, claim(host)), None);
        }
        assert!(!all.remove(one, Some(HostId(8))));
        assert!(all.remove(one, Some(HostId(7))));
        assert!(!all.remove(one, None));
        assert_eq!(
            all.next_time(),
            LIFETIME,
            "nothing stands, but nobody minds"
        );
        assert_eq!(all.due(LIFETIME), None);
        // Said again: it stands for longer.
        all.insert(LIFETIME, two, claim(7));
        assert_eq!(all.due(LIFETIME + 1), None);
        assert_eq!(all.due(LIFETIME + 2), Some(three));
        let mut gone = Vec::new();
        all.sweep(HostId(7), |id| gone.push(id));
        assert_eq!((gone, all.len()), (vec![two], 0));

        let mut all = Provisionals::default();
        for n in 0..LIMIT as u64 {
            assert_eq!(all.insert(n, SessionId(n), claim(1)), None);
        }
        let last = SessionId(LIMIT as u64);
        assert_eq!(all.insert(0, last, claim(1)), Some(SessionId(0)));
        assert_eq!(all.len(), LIMIT);
    }
}
