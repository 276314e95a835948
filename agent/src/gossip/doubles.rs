//! Sessions that two hosts claim, and neither gives up.
//!
//! That is harmless: all hosts name the same owner, and the other one still serves
//! what reaches it. But it is nothing that should last, so an operator is told. Two
//! claims for a moment are in order: a client's port is used again before the close
//! of its last session has spread.

use homing_common::session::SessionId;

use super::core::Core;
use crate::pop::SECOND;

/// How long two claims must stand against each other to be worth telling.
const LASTING: u64 = 10 * SECOND;
/// Sessions looked at to find one that is claimed twice.
const LOOKS: usize = 64;

impl Core {
    /// Whether a session is live here and claimed by another host.
    fn is_conflict(&self, id: SessionId) -> bool {
        self.log.is_live(id) && self.claims.owner(id).is_some()
    }

    /// A session of this host is claimed by another one.
    pub fn follow_conflict(&mut self, id: SessionId) {
        if self.conflicts.len() >= LOOKS {
            self.conflicts.pop_front();
        }
        self.conflicts.push_back(id);
    }
}

/// One session that two hosts claim, followed until it is settled.
#[derive(Default)]
pub(super) struct Doubles {
    followed: Option<(SessionId, u64)>,
}

impl Doubles {
    /// Looks whether the one that is followed is settled, and for another one then.
    pub fn look(&mut self, now: u64, core: &mut Core) {
        let (log, claims) = (&core.log, &core.claims);
        core.conflicts
            .retain(|id| log.is_live(*id) && claims.owner(*id).is_some());
        let core = &*core;
        let stands = |id: &SessionId| core.is_conflict(*id) || core.claims.is_doubled(*id);
        if self.followed.is_some_and(|(id, _)| stands(&id)) {
            return;
        }
        let here = core.conflicts.front().copied().into_iter();
        let mut some = here.chain(core.claims.shared().take(LOOKS));
        self.followed = some.find(stands).map(|id| (id, now));
    }

    /// A session that two hosts have claimed for long.
    pub fn lasting(&self, now: u64) -> Option<SessionId> {
        let lasting = self.followed.filter(|(_, since)| now >= since + LASTING);
        lasting.map(|(id, _)| id)
    }
}
