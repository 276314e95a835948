//! Keeps `RENDEZVOUS` in step with membership: the hosts that are up and take new
//! sessions.
//!
//! A host whose agent is down is not among them: it cannot know whose a session
//! is, and would only send its packets on.

use std::{collections::BTreeSet, sync::Arc};

use homing_common::{control::Rendezvous, host::HostId};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    datapath::rendezvous::RendezvousMap, gossip::task::HostStatus, pop::membership::State,
    pop::slots::Slots,
};

/// Follows membership. What an agent before left in the table stays until the POP
/// is known (`synced`); a new table is of use from the first member on.
pub(super) async fn follow(
    me: HostId,
    mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    mut synced: watch::Receiver<bool>,
    mut draining: watch::Receiver<bool>,
    table: RendezvousMap,
) {
    let used = (0..table.slots()).any(|slot| table.get(slot) != Rendezvous::default());
    if used && synced.wait_for(|synced| *synced).await.is_err() {
        return;
    }
    let mut work = Work {
        slots: Slots::default(),
        hosts: BTreeSet::new(),
        table,
    };
    // Whatever the table holds, it is written once.
    let mut first = true;
    loop {
        let chosen = eligible(
            me,
            &hosts.borrow_and_update(),
            *draining.borrow_and_update(),
        );
        if first || chosen != work.hosts {
            first = false;
            work.hosts = chosen;
            // At a thousand hosts the first choice takes a tenth of a second.
            let Ok(done) = spawn_blocking(move || work.write()).await else {
                return;
            };
            work = done;
        }
        tokio::select! {
            changed = hosts.changed() => if changed.is_err() { return },
            changed = draining.changed() => if changed.is_err() { return },
        }
    }
}

struct Work {
    slots: Slots,
    hosts: BTreeSet<HostId>,
    table: RendezvousMap,
}

impl Work {
    fn write(mut self) -> Self {
        self.slots.set(&self.hosts);
        for (slot, hosts) in self.slots.iter() {
            if self.table.get(slot) != hosts {
                self.table.set(slot, hosts);
            }
        }
        self
    }
}

/// Whether another host takes new sessions, and its agent can say whose the old
/// ones are.
pub(super) fn takes_sessions(host: &HostStatus) -> bool {
    host.state == Some(State::Alive) && host.member.is_some_and(|member| !member.draining)
}

/// The hosts that new sessions can go to.
fn eligible(me: HostId, hosts: &[HostStatus], draining: bool) -> BTreeSet<HostId> {
    let takers = hosts.iter().filter(|host| takes_sessions(host));
    takers
        .map(|host| host.host)
        .chain((!draining).then_some(me))
        .collect()
}
