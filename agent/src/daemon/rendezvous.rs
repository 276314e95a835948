//! Keeps `RENDEZVOUS` in step with membership: the hosts that are up and take new
//! sessions.
//!
//! A host whose agent is down is not among them: it cannot know whose a session
//! is, and would only send its packets on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use homing_common::{control::Rendezvous, host::HostId};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

use crate::{
    datapath::rendezvous::RendezvousMap,
    gossip::task::HostStatus,
    pop::{liveness::Kernel, membership::State, slots::Slots},
};

/// An agent that is not in sync by then goes by the members that it has heard all
/// the same.
const SYNCED_WITHIN: Duration = Duration::from_secs(10);

/// Follows membership. What an agent before left in the table stays, less those
/// that are known to be gone, until the POP is known (`synced`) or should be; a new
/// table is of use from the first member on.
pub(super) async fn follow(
    me: HostId,
    mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    mut synced: watch::Receiver<bool>,
    mut draining: watch::Receiver<bool>,
    table: RendezvousMap,
) {
    let mut found = hosts_of(&table);
    let overdue_at = Instant::now() + SYNCED_WITHIN;
    let mut work = Work {
        slots: Slots::default(),
        hosts: BTreeSet::new(),
        table,
    };
    // Whatever the table holds, it is written once.
    let mut first = true;
    loop {
        if *synced.borrow_and_update() {
            found.clear();
        }
        let overdue = Instant::now() >= overdue_at;
        let chosen = choose(
            me,
            &hosts.borrow_and_update(),
            *draining.borrow_and_update(),
            (&found, overdue),
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
            changed = synced.changed(), if !found.is_empty() => if changed.is_err() { return },
            () = sleep_until(overdue_at), if !overdue && !found.is_empty() => {}
        }
    }
}

/// The hosts that a table names.
fn hosts_of(table: &RendezvousMap) -> BTreeSet<HostId> {
    let slots = (0..table.slots()).map(|slot| table.get(slot));
    let ids = slots.flat_map(|Rendezvous { first, second }| [first, second]);
    ids.filter_map(|id| HostId::try_from(id).ok()).collect()
}

/// The hosts to choose from. `found` were in the table that an agent before left,
/// and count until the POP is known; once that is overdue, only where nobody is up
/// who takes new sessions.
fn choose(
    me: HostId,
    hosts: &[HostStatus],
    draining: bool,
    (found, overdue): (&BTreeSet<HostId>, bool),
) -> BTreeSet<HostId> {
    let eligible = eligible(me, hosts, draining);
    let others = |some: &BTreeSet<HostId>| some.iter().any(|host| *host != me);
    if !others(found) || overdue && others(&eligible) {
        return eligible;
    }
    let status = |host: &HostId| hosts.iter().find(|status| status.host == *host);
    let stays = |host: &HostId| *host != me && !status(host).is_some_and(is_gone);
    let left = found.iter().copied().filter(stays);
    // Who cannot know is better than nobody: its table may, from before.
    let (good, poor): (BTreeSet<_>, BTreeSet<_>) = left.partition(|host| {
        let status = status(host).filter(|status| status.state.is_some());
        status.is_none_or(HostStatus::takes_sessions)
    });
    let mut chosen = if good.is_empty() { poor } else { good };
    if !draining {
        chosen.insert(me);
    }
    chosen
}

/// Whether nothing that is sent to a host arrives at one that could know anything.
fn is_gone(host: &HostStatus) -> bool {
    let kernel = host.kernel.map(|kernel| kernel.kernel);
    matches!(host.state, Some(State::Left | State::Mismatched))
        || matches!(kernel, Some(Kernel::Dead { .. }))
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

/// The hosts that new sessions can go to.
fn eligible(me: HostId, hosts: &[HostStatus], draining: bool) -> BTreeSet<HostId> {
    let takers = hosts.iter().filter(|host| host.takes_sessions());
    takers
        .map(|host| host.host)
        .chain((!draining).then_some(me))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gossip::task::KernelStatus,
        pop::{Domain, Fingerprint, Member, Stream},
    };

    const ME: HostId = HostId(1);

    fn status(host: u16, state: State, kernel: Kernel) -> HostStatus {
        let member = Member::starting(
            HostId(host),
            Stream::default(),
            "10.0.0.1:7946".parse().unwrap(),
            Domain::try_from("d").unwrap(),
            Fingerprint::default(),
        );
        HostStatus {
            member: Some(member),
            state: Some(state),
            kernel: Some(KernelStatus {
                kernel,
                heard: None,
            }),
            ..HostStatus::unheard(HostId(host))
        }
    }

    const LIVES: Kernel = Kernel::Alive { heard_at: 0 };
    const DEAD: Kernel = Kernel::Dead {
        since: 0,
        heard_at: None,
    };

    fn up(host: u16) -> HostStatus {
        status(host, State::Alive, LIVES)
    }

    /// What is chosen of a table that names the hosts 1 to 5.
    fn of_five(hosts: &[HostStatus], overdue: bool) -> Vec<u16> {
        let found = (1..=5).map(HostId).collect();
        let chosen = choose(ME, hosts, false, (&found, overdue));
        chosen.into_iter().map(|host| host.0).collect()
    }

    #[test]
    fn what_was_found_stays_at_first_but_for_those_that_are_known_to_be_gone() {
        assert_eq!(of_five(&[], false), [1, 2, 3, 4, 5]);
        assert_eq!(of_five(&[up(2), up(9)], false), [1, 2, 3, 4, 5]);
        let left = status(3, State::Left, LIVES);
        let dead = status(4, State::Down, DEAD);
        let other = status(5, State::Mismatched, LIVES);
        assert_eq!(of_five(&[left, dead, other], false), [1, 2]);
        let down = status(2, State::Down, LIVES);
        assert_eq!(of_five(std::slice::from_ref(&down), false), [1, 3, 4, 5]);
        let mut drains = up(3);
        drains.member.as_mut().unwrap().draining = true;
        assert_eq!(of_five(&[down, drains], false), [1, 4, 5]);
    }

    #[test]
    fn when_sync_is_overdue_those_count_that_are_up_if_there_are_any() {
        let dead = status(4, State::Down, DEAD);
        assert_eq!(of_five(&[up(2), dead, up(9)], true), [1, 2, 9]);
        // Nobody is: who is only down may still know what its table knows.
        let down = |host| status(host, State::Down, LIVES);
        let others = [down(2), status(3, State::Down, DEAD), down(4), down(5)];
        assert_eq!(of_five(&others, true), [1, 2, 4, 5]);
        let gone = [2, 3, 4, 5].map(|host| status(host, State::Down, DEAD));
        assert_eq!(of_five(&gone, true), [1]);
    }

    #[test]
    fn a_new_table_and_one_of_a_pop_that_is_known_hold_those_that_are_up() {
        let none = BTreeSet::new();
        let chosen = choose(ME, &[up(2)], true, (&none, false));
        assert_eq!(chosen, BTreeSet::from([HostId(2)]));
    }

    /// Waits until the table names these hosts; time passes only while all wait.
    async fn names(table: &RendezvousMap, wanted: &[u16]) {
        let wanted: BTreeSet<_> = wanted.iter().copied().map(HostId).collect();
        while hosts_of(table) != wanted {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_gets_in_sync_follows_who_dies_and_who_is_up() {
        let table = RendezvousMap::anonymous();
        let before = Work {
            slots: Slots::default(),
            hosts: (1..=4).map(HostId).collect(),
            table: table.clone(),
        };
        before.write();
        let (told, hosts) = watch::channel(Arc::new(Vec::new()));
        let (_synced, synced) = watch::channel(false);
        let (_draining, draining) = watch::channel(false);
        let start = Instant::now();
        tokio::spawn(follow(ME, hosts, synced, draining, table.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        names(&table, &[1, 2, 3, 4]).await;
        let dead = status(4, State::Down, DEAD);
        told.send_replace(Arc::new(vec![dead.clone()]));
        names(&table, &[1, 2, 3]).await;
        assert!(start.elapsed() < SYNCED_WITHIN / 2);
        told.send_replace(Arc::new(vec![up(2), dead, up(7)]));
        names(&table, &[1, 2, 7]).await;
        assert!(start.elapsed() >= SYNCED_WITHIN);
    }
}
