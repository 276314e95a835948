//! Whom the POP hears and takes for dead; and what must hold after every event.

use super::{Counters, DEAD_AFTER, HostId, Outcome, Pop, Tuple, tuple};

impl Pop {
    pub(super) fn reaches(&self, a: u16, b: u16) -> bool {
        let is_up = |host: u16| self.hosts[&host].kernel_up;
        is_up(a) && is_up(b) && (a == b || !self.cut.contains(&(a.min(b), a.max(b))))
    }

    pub(super) fn reach(&self, host: u16) -> usize {
        let all = self.hosts.keys();
        all.filter(|&&other| self.reaches(host, other)).count()
    }

    /// Whether more than half of the POP is within reach: only then a host judges.
    pub(super) fn judges(&self, host: u16) -> bool {
        self.reach(host) * 2 > self.hosts.len()
    }

    pub(super) fn look(&mut self) {
        let hosts: Vec<_> = self.hosts.keys().copied().collect();
        for &host in &hosts {
            let mut others = hosts.iter().filter(|&&other| other != host);
            let is_heard = others.any(|&other| self.reaches(host, other) && self.judges(other));
            let nobody_judges = !hosts.iter().any(|&other| self.judges(other));
            let now = self.now;
            let mut heard = self.heard[&host];
            if is_heard || nobody_judges {
                heard.last = now;
            }
            let is_void = now >= heard.last + DEAD_AFTER;
            heard.void = is_void;
            heard.ever |= is_void;
            heard.untold |= is_void;
            // It hears what was thought of it.
            let is_told = heard.untold && !is_void && self.hosts[&host].agent.is_some();
            heard.untold &= !is_told;
            if is_void || self.reach(host) * 2 < hosts.len() {
                heard.reached = None;
            } else {
                heard.reached.get_or_insert(now);
            }
            self.heard.insert(host, heard);
            if is_void {
                for &other in &hosts {
                    if other != host && self.judges(other) {
                        self.voided(other, host);
                    }
                }
            } else if is_told {
                self.voided(host, host);
            }
        }
    }

    pub(super) fn voided(&mut self, at: u16, host: u16) {
        self.with_agent(at, |agent, now, view| agent.voided(now, view, HostId(host)));
    }

    /// Who answers for a session.
    pub(super) fn answering(&self, tuple: &Tuple) -> Vec<u16> {
        let hosts = self.hosts.iter();
        hosts
            .filter(|(_, machine)| machine.answers(tuple))
            .map(|(&host, _)| host)
            .collect()
    }

    pub(super) fn check(&mut self) {
        let tuples: Vec<_> = self.progress.keys().copied().collect();
        for tuple in tuples {
            let answering = self.answering(&tuple);
            assert!(answering.len() <= 1, "{tuple:?}: {answering:?} answer");
            let applications = self.hosts.values().filter(|h| h.serving.contains(&tuple));
            assert!(applications.count() <= 1, "{tuple:?}: two applications");
            let Some(&host) = answering.first() else {
                continue;
            };
            let progress = self.progress.get_mut(&tuple).unwrap();
            let machine = self.hosts.get_mut(&host).unwrap();
            let socket = machine.sockets.get_mut(&tuple).unwrap();
            assert_eq!(
                socket.progress, *progress,
                "host {host} serves a stale copy"
            );
            *progress += 1;
            socket.progress += 1;
        }
    }

    /// Where a session is served, by socket and application.
    pub(super) fn served_at(&self, n: u16) -> Option<u16> {
        let host = *self.answering(&tuple(n)).first()?;
        let serves = self.hosts[&host].serving.contains(&tuple(n));
        serves.then_some(host)
    }

    /// Once all is quiet: nothing is left of any move, and a session that nobody serves
    /// has died with its kernel or application, or was counted as lost.
    pub(super) fn assert_settled(&self) {
        for (host, machine) in &self.hosts {
            assert!(machine.journal.is_empty(), "host {host} has a journal");
            let agent = machine.agent.as_ref().unwrap();
            assert!(agent.is_idle(), "host {host} has moves");
            assert_eq!((agent.others().len(), agent.frozen_at()), (0, None));
            let load = agent.load();
            assert_eq!((load.bytes_from_here, load.bytes_to_here), (0, 0));
            for tuple in machine.sockets.keys() {
                assert!(machine.answers(tuple), "host {host} keeps a dead copy");
            }
        }
        for &tuple in self.progress.keys() {
            let is_served = !self.answering(&tuple).is_empty();
            let is_over = self.over.contains(&tuple) || self.is_lost(&tuple);
            assert!(is_served || is_over, "{tuple:?}: nobody serves it");
        }
    }

    pub(super) fn is_lost(&self, tuple: &Tuple) -> bool {
        self.ended.iter().any(|(_, ended)| {
            ended.tuple == *tuple && matches!(ended.outcome, Outcome::Lost(_) | Outcome::Gone(..))
        })
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        self.ended.iter().map(|(_, ended)| ended.outcome).collect()
    }

    /// What an agent counts.
    pub(super) fn times(&self, host: u16) -> Vec<crate::migration::StepTime> {
        self.hosts[&host].agent.as_ref().unwrap().times()
    }

    pub(super) fn counters(&self, host: u16) -> Counters {
        *self.hosts[&host].agent.as_ref().unwrap().counters()
    }
}
