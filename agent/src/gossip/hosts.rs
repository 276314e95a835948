//! Other hosts, as membership, liveness and gossip know them together.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::{machine::Origin, node::Node};
use crate::pop::{
    Member,
    liveness::Kernel,
    membership::{Entry, State},
};

/// What is known of another host altogether.
#[derive(Clone, Copy, Debug)]
pub struct HostView {
    /// The host.
    pub host: HostId,
    /// As membership knows it: none while it is only known from the agent's life
    /// before.
    pub member: Option<Member>,
    /// Its state: none likewise.
    pub state: Option<State>,
    /// Since when.
    pub since: Option<u64>,
    /// As gossip knows it.
    pub origin: Option<Origin>,
    /// Its kernel: none where its address is not known either.
    pub kernel: Option<Kernel>,
    /// It is minded, its kernel is dead, and more than half of the POP knows.
    pub void: bool,
}

impl HostView {
    /// Whether packets are exchanged with the host: it is up, or its kernel is not
    /// known to be dead. While routes to its life before are being removed it is
    /// not: another machine may have its id by now.
    pub fn is_routed(&self) -> bool {
        match self.state {
            Some(State::Alive) => !self.origin.is_some_and(|origin| origin.sweeping),
            Some(State::Mismatched) => false,
            Some(State::Down | State::Left) | None => {
                self.origin.is_some_and(|origin| !origin.voided)
            }
        }
    }
}

impl Node {
    /// All other hosts ever heard of.
    pub fn hosts(&self) -> Vec<HostView> {
        let mut hosts: BTreeMap<HostId, HostView> = BTreeMap::new();
        for origin in self.gossip.origins() {
            hosts.insert(
                origin.host,
                HostView {
                    host: origin.host,
                    member: None,
                    state: None,
                    since: None,
                    origin: Some(origin),
                    kernel: self.liveness.kernel(origin.host),
                    void: self.liveness.is_void(origin.host),
                },
            );
        }
        for &Entry {
            member,
            state,
            since,
        } in self.membership.entries()
        {
            let view = hosts.entry(member.host).or_insert(HostView {
                host: member.host,
                member: None,
                state: None,
                since: None,
                origin: None,
                kernel: None,
                void: false,
            });
            view.member = Some(member);
            view.state = Some(state);
            view.since = Some(since);
            view.kernel = self.liveness.kernel(member.host);
            view.void = self.liveness.is_void(member.host);
        }
        hosts.into_values().collect()
    }
}
