//! Which host a session goes to.

use std::collections::{BTreeSet, HashMap};

use homing_common::{host::HostId, net::Service};

use super::Why;
use crate::{
    migration::Reason,
    pop::{MS, SECOND, rendezvous::weight},
};

/// How long a host is passed over that has no application for a service, or another
/// version of it.
const UNFIT_FOR: u64 = 10 * SECOND;
/// How long one is passed over that takes no sessions: until membership says so, too.
const CLOSED_FOR: u64 = 5 * SECOND;
/// How long one is passed over that has no room; doubles as long as it has none.
const FULL_MIN: u64 = 20 * MS;
/// The longest.
const FULL_MAX: u64 = SECOND;

/// Where a session can go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// To this host.
    To(HostId),
    /// To none before then: those that would take it have no room.
    Later(u64),
    /// To none.
    None(Why),
}

/// The hosts that take sessions, and what they have said of it.
#[derive(Default)]
pub(super) struct Targets {
    hosts: BTreeSet<HostId>,
    /// Until when a host is passed over, and why; for one service, or for all.
    passed_over: HashMap<(HostId, Option<Service>), (u64, Reason)>,
    /// How long a host was last passed over for want of room.
    full: HashMap<HostId, u64>,
}

impl Targets {
    /// Who takes sessions, by membership. Says whether that is news.
    pub fn set(&mut self, hosts: BTreeSet<HostId>) -> bool {
        let changed = hosts != self.hosts;
        self.passed_over.retain(|(host, _), _| hosts.contains(host));
        self.full.retain(|host, _| hosts.contains(host));
        self.hosts = hosts;
        changed
    }

    /// The rendezvous host of a key among those that take a session of the service, out of
    /// `to` if that names any; another one than `avoid` if there is one.
    pub fn choose(
        &self,
        now: u64,
        (key, service): (u64, &Service),
        to: &BTreeSet<HostId>,
        avoid: Option<HostId>,
    ) -> Choice {
        let (mut best, mut later, mut why) = (None, u64::MAX, None);
        let mut avoided = None;
        for &host in &self.hosts {
            if !to.is_empty() && !to.contains(&host) {
                continue;
            }
            let weight = weight(key, host);
            match self.passed_over(now, host, service) {
                None if avoid == Some(host) => avoided = Some(host),
                None => best = best.max(Some(weight)),
                Some((until, Reason::Full)) => later = later.min(until),
                Some((_, reason)) => why = why.max(Some((weight, reason as u8))),
            }
        }
        match best.map(|(_, host)| host).or(avoided) {
            Some(host) => Choice::To(host),
            None if later < u64::MAX => Choice::Later(later),
            None => {
                let named = why.and_then(|(_, number)| reason(number));
                Choice::None(named.map_or(Why::NoTarget, Why::Move))
            }
        }
    }

    fn passed_over(&self, now: u64, host: HostId, service: &Service) -> Option<(u64, Reason)> {
        let all = self.passed_over.get(&(host, None));
        let one = self.passed_over.get(&(host, Some(*service)));
        let holds = |(until, _): &&(u64, Reason)| *until > now;
        // What keeps it from all services for longer says more than want of room.
        one.filter(holds).or(all.filter(holds)).copied()
    }

    /// A host has refused a session of this service. Says whether that was a matter of
    /// the host, so that the session's next try can be elsewhere at once.
    pub fn refused(&mut self, now: u64, host: HostId, service: &Service, reason: Reason) -> bool {
        let (service, until) = match reason {
            Reason::NoService | Reason::NoApplication | Reason::OtherVersion => {
                (Some(*service), now + UNFIT_FOR)
            }
            Reason::Draining | Reason::NoMember | Reason::Voided => (None, now + CLOSED_FOR),
            Reason::Full => {
                let open = self
                    .passed_over
                    .get(&(host, None))
                    .is_some_and(|(until, _)| *until > now);
                if open {
                    // It was asked before it said so.
                    return true;
                }
                let pause = self.full.entry(host).or_insert(FULL_MIN / 2);
                *pause = (*pause * 2).min(FULL_MAX);
                (None, now + *pause)
            }
            _ => return false,
        };
        self.passed_over.insert((host, service), (until, reason));
        true
    }

    /// A host has taken a session.
    pub fn took(&mut self, host: HostId) {
        self.full.remove(&host);
    }
}

/// The reason with a number.
fn reason(number: u8) -> Option<Reason> {
    Reason::ALL
        .get(usize::from(number).checked_sub(1)?)
        .copied()
}

#[cfg(test)]
mod tests {
    use homing_common::net::{Address, Port, TCP};

    use super::*;

    fn service(port: u16) -> Service {
        Service::new(Address::v4([203, 0, 113, 10]), Port::new(port), TCP)
    }

    fn targets(hosts: &[u16]) -> Targets {
        let mut targets = Targets::default();
        targets.set(hosts.iter().copied().map(HostId).collect());
        targets
    }

    #[test]
    fn a_session_goes_to_its_rendezvous_host_and_to_the_next_if_that_refuses() {
        let mut targets = targets(&[2, 3, 4]);
        let (any, web) = (BTreeSet::new(), service(443));
        for key in 0..100u64 {
            let ranked = crate::pop::rendezvous::choose(key << 40, [2, 3, 4].map(HostId), 3);
            let of = (key << 40, &web);
            assert_eq!(targets.choose(0, of, &any, None), Choice::To(ranked[0]));
            let only = BTreeSet::from([ranked[2]]);
            assert_eq!(targets.choose(0, of, &only, None), Choice::To(ranked[2]));
            let avoiding = targets.choose(0, of, &any, Some(ranked[0]));
            assert_eq!(avoiding, Choice::To(ranked[1]));
            // Better the same again than none.
            let avoiding = targets.choose(0, of, &only, Some(ranked[2]));
            assert_eq!(avoiding, Choice::To(ranked[2]));
        }
        let of = (7, &web);
        let Choice::To(first) = targets.choose(0, of, &any, None) else {
            panic!("nobody takes it");
        };
        assert!(targets.refused(0, first, &web, Reason::NoApplication));
        assert_ne!(targets.choose(1, of, &any, None), Choice::To(first));
        let mail = service(25);
        assert_eq!(targets.choose(1, (7, &mail), &any, None), Choice::To(first));
        let after = UNFIT_FOR;
        assert_eq!(targets.choose(after, of, &any, None), Choice::To(first));
    }

    #[test]
    fn who_has_no_room_is_asked_again_soon_and_who_does_not_fit_is_named() {
        let mut targets = targets(&[2, 3]);
        let (any, web) = (BTreeSet::new(), service(443));
        let of = (7, &web);
        targets.refused(0, HostId(2), &web, Reason::OtherVersion);
        targets.refused(0, HostId(3), &web, Reason::Full);
        // Of several that were asked at once.
        targets.refused(1, HostId(3), &web, Reason::Full);
        assert_eq!(targets.choose(1, of, &any, None), Choice::Later(FULL_MIN));
        targets.refused(FULL_MIN, HostId(3), &web, Reason::Full);
        let again = targets.choose(FULL_MIN, of, &any, None);
        assert_eq!(again, Choice::Later(3 * FULL_MIN));
        let two = BTreeSet::from([HostId(2)]);
        let why = Choice::None(Why::Move(Reason::OtherVersion));
        assert_eq!(targets.choose(1, of, &two, None), why);
        let nine = BTreeSet::from([HostId(9)]);
        let why = Choice::None(Why::NoTarget);
        assert_eq!(targets.choose(1, of, &nine, None), why);
    }
}
