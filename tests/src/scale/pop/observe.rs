//! What is seen of a simulated POP from outside.

use homing_agent::pop::{MS, SECOND};

use super::{LOOK, Measured, Pop};

impl Pop {
    /// What was counted since this was last called.
    pub fn measure(&mut self) -> Measured {
        let mut measured = std::mem::take(&mut self.measured);
        let time = self.now - self.measured_at;
        self.measured_at = self.now;
        for host in &mut self.hosts {
            let sent = std::mem::take(&mut host.sent_lately);
            if host.node.is_some() {
                measured.rates.add(sent * SECOND / time.max(1));
            }
        }
        measured
    }

    /// Pairs of hosts of which the first does not hold exactly the sessions of the
    /// second.
    pub fn differing(&self) -> u64 {
        let mut differing = 0;
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(node) = &host.node else { continue };
            let mut known = 0;
            for origin in node.gossip().origins() {
                let other = self.hosts[usize::from(origin.host.0) - 1].node.as_ref();
                if let Some(other) = other {
                    known += 1;
                    differing += u64::from(other.gossip().tally() != origin.tally);
                }
            }
            let others = self.hosts.iter().filter(|host| host.node.is_some());
            let others = others.count() as u64 - 1;
            debug_assert!(known <= others, "host {index} knows itself");
            differing += others - known;
        }
        differing
    }

    /// Hosts that some running host does not count as alive, over all pairs.
    pub fn not_alive(&self) -> u64 {
        use homing_agent::pop::membership::State;
        let running = self.hosts.iter().filter(|host| host.node.is_some()).count() as u64;
        let mut missing = 0;
        for node in self.hosts.iter().filter_map(|host| host.node.as_ref()) {
            let alive = node.membership().entries().filter(|entry| {
                entry.state == State::Alive
                    && self.hosts[usize::from(entry.member.host.0) - 1]
                        .node
                        .is_some()
            });
            missing += running - 1 - alive.count() as u64;
        }
        missing
    }

    /// The most datagrams that any host has sent in any second so far.
    pub fn datagrams_max(&self) -> u64 {
        self.sent_max
    }

    /// Sees who has applied what since the last look.
    pub(super) fn look(&mut self) {
        self.look_at = self.now + LOOK;
        if !self.churn {
            return;
        }
        let hosts = usize::from(self.size.hosts);
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(node) = &host.node else { continue };
            for origin in node.gossip().origins() {
                let other = usize::from(origin.host.0) - 1;
                let of = &self.hosts[other];
                if of.stream != origin.stream || of.node.is_none() {
                    continue;
                }
                let applied = &mut self.applied[index * hosts + other];
                if origin.applied <= *applied {
                    continue;
                }
                let [mine, its] = [index, other].map(|i| i as u16 % self.size.domains);
                let crossed = mine != its && [Some(mine), Some(its)].contains(&self.was_cut);
                let from = if crossed { self.healed_at } else { 0 };
                let range = *applied as usize..(origin.applied as usize).min(of.announced.len());
                for &at in of.announced.get(range).into_iter().flatten() {
                    self.measured.delays.add((self.now - at.max(from)) / MS);
                }
                self.measured.learned += origin.applied - *applied;
                *applied = origin.applied;
            }
        }
    }

    pub(super) fn second(&mut self) {
        self.second_at = self.now + SECOND;
        for host in self.hosts.iter_mut().filter(|host| host.node.is_some()) {
            self.sent_max = self.sent_max.max(host.sent);
            host.sent = 0;
        }
    }
}
