//! What the running task tells of itself.

use super::{Running, Table};
use crate::{
    gossip::{
        handle::{HostStatus, KernelStatus, Mind, Standing, Status},
        hosts::HostView,
        machine::Progress,
    },
    pop::{liveness::Minded, membership},
};

impl<T: Table> Running<T> {
    /// Minds what is asked for. A host that does not know the POP cannot say what half of
    /// it is.
    pub(super) fn mind(&mut self, now: u64) {
        let asked = self.ends.mind.borrow_and_update().clone();
        let mind = Mind {
            standing: asked.standing && self.completeness.is_synced(),
            ..asked
        };
        if self.minded.as_ref() != Some(&mind) {
            let minded = Minded {
                reach: mind.standing,
                frozen_at: mind.frozen_at.map(|at| self.clock.of_monotonic(at)),
                kernels: mind.hosts.clone(),
            };
            self.node.mind(now, minded);
            self.minded = Some(mind);
        }
    }

    /// Tells how this host stands, if that is news.
    pub(super) fn tell_standing(&mut self) {
        let own = self.node.liveness().own_standing();
        let to_monotonic = |moment| self.clock.to_monotonic(moment);
        let standing = Standing {
            incarnation: self.node.membership().me().stream.incarnation,
            judged: own.judged,
            reached: own
                .reached
                .map(|reached| (to_monotonic(reached.since), to_monotonic(reached.until))),
        };
        self.ends.standing.send_if_modified(|told| {
            let differs = *told != standing;
            *told = standing;
            differs
        });
    }

    pub(super) fn host_statuses(&self) -> Vec<HostStatus> {
        let clock = self.clock;
        let mine = self.node.membership().me().fingerprint;
        let status = |view: HostView| HostStatus {
            host: view.host,
            member: view.member,
            state: view.state,
            since: view.since.map(|since| clock.to_wall(since)),
            kernel: view.kernel.map(|kernel| KernelStatus {
                kernel,
                heard: kernel.heard_at().map(|at| clock.to_wall(at)),
            }),
            void: view.void,
            routed: view.is_routed(),
            void_at: view
                .origin
                .and_then(|origin| origin.void_at)
                .map(|at| clock.to_wall(at)),
            claims: view.origin.map_or(0, |origin| origin.tally.count),
            applied: view.origin.map_or(0, |origin| origin.applied),
            progress: view.origin.map(|origin| origin.progress),
            incomplete: view.origin.is_some_and(|origin| origin.incomplete),
            hears_us: view.origin.is_some_and(|origin| origin.hears_us),
            key: self.node.seal().key_of(view.host),
            difference: view
                .member
                .and_then(|member| mine.difference(&member.fingerprint)),
        };
        self.node.hosts().into_iter().map(status).collect()
    }

    /// How many other hosts are in a state.
    pub(super) fn in_state(&self, state: membership::State) -> usize {
        let entries = self.node.membership().entries();
        entries.filter(|entry| entry.state == state).count()
    }

    /// Whether claims or routes of others found no room.
    pub(super) fn lacks_room(&self) -> bool {
        let incomplete = |view: &HostView| view.origin.is_some_and(|origin| origin.incomplete);
        self.applier.unplaced() > 0 || self.node.hosts().iter().any(incomplete)
    }

    /// Whether the log of some member that is up is not followed without a gap.
    pub(super) fn is_behind(&self) -> bool {
        let is_following = |view: &HostView| {
            Some(Progress::Following) == view.origin.map(|origin| origin.progress)
        };
        let is_behind =
            |view: &HostView| view.state == Some(membership::State::Alive) && !is_following(view);
        self.node.hosts().iter().any(is_behind)
    }

    pub(super) fn status(&self) -> Status {
        let node = &self.node;
        let gossip = node.gossip();
        let in_state = |state| self.in_state(state);
        Status {
            stream: node.membership().me().stream,
            alive: in_state(membership::State::Alive),
            down: in_state(membership::State::Down),
            left: in_state(membership::State::Left),
            mismatched: in_state(membership::State::Mismatched),
            alerts: node.alerts(self.clock.now()),
            in_sync: !self.is_behind() && !self.full,
            synced: self.completeness.is_synced(),
            full: self.full,
            sessions: gossip.tally().count,
            announced: gossip.announced(),
            claimed: gossip.claimed(),
            unplaced: self.applier.unplaced(),
            latency: gossip.latency().clone(),
            socket: self.sockets.counters,
            seal: *node.seal_counters(),
            keys: (node.seal().keys().id(), node.seal().keys().other_id()),
            session_keys: node.membership().me().fingerprint.session_keys,
            wrong_keys: node.seal().wrong_keys().collect(),
            membership: *node.membership_counters(),
            liveness: node.liveness().counters,
            gossip: *gossip.counters(),
            routes: self.applier.counters,
            asks: node.asks().counters_with(self.driver.as_ref()),
            asking: node.asks().load(),
            provisional: gossip.provisional(),
        }
    }
}
