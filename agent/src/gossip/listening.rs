//! What a node makes of membership and liveness: whose claims stand, and what an
//! operator should know.

use homing_common::host::HostId;

use super::{
    alerts::Alert,
    node::{Node, Note},
};
use crate::pop::{
    Member,
    liveness::{Event, Kernel},
    membership::{Change, Contest, State},
};

impl Node {
    /// These were members when an agent before this one ran here: their kernels are
    /// asked at once, and their agents called.
    pub fn remember(&mut self, now: u64, members: Vec<Member>) {
        for member in &members {
            self.gossip.introduce(now, member);
            self.liveness.peer_down(now, member);
        }
        self.membership.remember(now, members);
    }

    /// What is wrong in the POP as far as it is no state of a host.
    pub fn alerts(&self, now: u64) -> Vec<Alert> {
        let minority = self.liveness.minority(now);
        let minority = minority.map(|(reached, of)| Alert::Minority { reached, of });
        let doubled = self.gossip.doubled(now);
        let doubled = doubled.map(|session| Alert::DoubleClaim { session });
        let recent = self.alerts.recent(now);
        recent.chain(minority).chain(doubled).collect()
    }

    /// Datagrams of others than members.
    pub(super) fn strangers(&self) -> u64 {
        self.seal.counters.wrong_key + self.seal.counters.forged
    }

    /// Tells the others what membership says.
    pub(super) fn changed(&mut self, now: u64, change: Change) {
        let (Change::Up(member)
        | Change::Down(member)
        | Change::Left(member, _)
        | Change::Mismatched(member)) = change;
        match change {
            Change::Up(member) => {
                self.gossip.member_up(now, &member);
                self.liveness.peer_up(now, &member);
            }
            Change::Down(member) => {
                let can_be_asked = self.liveness.can_be_asked(member.host);
                self.gossip.introduce(now, &member);
                self.gossip.member_down(now, member.host, can_be_asked);
                self.liveness.peer_down(now, &member);
            }
            Change::Left(member, hold) => {
                self.gossip.member_left(now, member.host, hold);
                if self.gossip.has_met(member.host) {
                    self.liveness.peer_down(now, &member);
                } else {
                    // Others told of it. Its kernel stands for nothing here.
                    self.liveness.peer_gone(now, member.host);
                }
            }
            Change::Mismatched(member) => {
                self.gossip.member_down(now, member.host, false);
                self.liveness.peer_gone(now, member.host);
            }
        }
        if matches!(change, Change::Down(_) | Change::Left(..)) && !self.kernel_stands(member.host)
        {
            self.membership.release(now, member.host);
        }
        let holder = self.membership.holder(member.host);
        self.seal.set_holder(member.host, holder);
        self.hosts_version += 1;
        self.audience_at = now;
        self.notes.push_back(Note::Member(change));
    }

    /// Whether a kernel has been heard in its present life and is not dead.
    fn kernel_stands(&self, host: HostId) -> bool {
        let kernel = self.liveness.kernel(host);
        kernel.is_some_and(|kernel| {
            !matches!(kernel, Kernel::Dead { .. }) && kernel.heard_at().is_some()
        })
    }

    /// Two machines use one id.
    pub(super) fn contested(&mut self, now: u64, contest: Contest) {
        let Contest {
            host,
            holder,
            other,
        } = contest;
        let one = holder;
        self.alerts
            .raise(now, Alert::TwoMachines { host, one, other });
        self.notes.push_back(Note::Contested {
            host,
            holder,
            other,
        });
    }

    /// Tells the others what liveness has found out.
    pub(super) fn heard(&mut self, now: u64, event: Event) {
        let in_state = |host, state| {
            let entry = self.membership.entry(host);
            entry.is_some_and(|entry| entry.state == state)
        };
        match event {
            // Nobody has said yet how an agent is that is remembered from before.
            Event::Answers { host }
                if in_state(host, State::Down) || self.membership.entry(host).is_none() =>
            {
                self.gossip.kernel_answers(host);
                self.membership.keep(host);
                let holder = self.membership.holder(host);
                self.seal.set_holder(host, holder);
            }
            Event::Dead { host, .. } => {
                self.gossip.kernel_dead(now, host);
                self.hosts_version += 1;
            }
            Event::Void { .. } => self.hosts_version += 1,
            Event::Back { host, from, .. } => {
                self.gossip.kernel_back(now, host, from);
                self.membership.call(now, host);
                self.hosts_version += 1;
            }
            Event::Recovered { host } => self.membership.call(now, host),
            Event::Unheard { by } => self.alerts.raise(now, Alert::Unheard { by }),
            _ => {}
        }
        self.notes.push_back(Note::Liveness(event));
    }

    /// A host's claims were voided. If it had left, it is gone for good now, and
    /// its kernel may be switched off.
    pub(super) fn voided(&mut self, now: u64, host: HostId) {
        let state = self.membership.entry(host).map(|entry| entry.state);
        if state == Some(State::Left) {
            self.liveness.peer_gone(now, host);
        }
        if matches!(state, Some(State::Left | State::Down)) {
            self.membership.release(now, host);
            self.seal.set_holder(host, None);
        }
    }
}
