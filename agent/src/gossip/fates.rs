//! From the hosts as they are to what has become of them, for whoever has something
//! under way with them. Pure.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::handle::HostStatus;
use crate::pop::membership::State;

/// What has become of another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Its kernel is dead, and more than half of the POP has confirmed it; or it has begun
    /// a new life.
    Voided(HostId),
    /// It has left.
    Left(HostId),
}

/// What was last seen of each host.
#[derive(Default)]
pub struct Fates {
    seen: BTreeMap<HostId, Seen>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    incarnation: u64,
    void: bool,
    left: bool,
}

impl Fates {
    /// Looks at all hosts, as [`super::task::Handle::watch_hosts`] shows them, and says
    /// what is new. Of a host that was never seen before that is what it is, as of one
    /// that changed; which lives it had before, nobody knows.
    pub fn look(&mut self, hosts: &[HostStatus]) -> Vec<Fate> {
        let mut fates = Vec::new();
        for status in hosts {
            let Some(member) = status.member else {
                continue;
            };
            let host = status.host;
            let now = Seen {
                incarnation: member.stream.incarnation,
                void: status.void,
                left: status.state == Some(State::Left),
            };
            let before = self.seen.insert(host, now);
            let is_new_life = before.is_some_and(|before| before.incarnation != now.incarnation);
            let before = before.filter(|_| !is_new_life);
            if is_new_life || now.void && !before.is_some_and(|before| before.void) {
                fates.push(Fate::Voided(host));
            }
            if now.left && !before.is_some_and(|before| before.left) {
                fates.push(Fate::Left(host));
            }
        }
        fates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gossip::handle::KernelStatus,
        pop::{Domain, Fingerprint, Member, Stream, liveness::Kernel},
    };

    fn status(host: u16, incarnation: u64, void: bool, state: State) -> HostStatus {
        let stream = Stream {
            incarnation,
            generation: 1,
        };
        let address = "10.0.0.1:1".parse().unwrap();
        let domain = Domain::try_from("d").unwrap();
        let member = Member::starting(
            HostId(host),
            stream,
            address,
            domain,
            Fingerprint::default(),
        );
        HostStatus {
            member: Some(member),
            state: Some(state),
            kernel: Some(KernelStatus {
                kernel: Kernel::Unheard,
                heard: None,
            }),
            void,
            ..HostStatus::unheard(HostId(host))
        }
    }

    #[test]
    fn each_fate_is_told_once_and_again_when_it_comes_again() {
        let mut fates = Fates::default();
        let (voided, left) = (Fate::Voided(HostId(2)), Fate::Left(HostId(2)));
        let mut look =
            |incarnation, void, state| fates.look(&[status(2, incarnation, void, state)]);
        assert_eq!(look(7, false, State::Alive), []);
        assert_eq!(look(7, true, State::Down), [voided]);
        assert_eq!(look(7, true, State::Down), []);
        // It was only cut off, and then it was so again.
        assert_eq!(look(7, false, State::Alive), []);
        assert_eq!(look(7, true, State::Alive), [voided]);
        // A new life, once.
        assert_eq!(look(8, false, State::Alive), [voided]);
        assert_eq!(look(8, false, State::Alive), []);
        assert_eq!(look(8, false, State::Left), [left]);
        assert_eq!(look(8, false, State::Left), []);
        assert_eq!(look(9, false, State::Left), [voided, left]);
    }

    #[test]
    fn who_is_met_void_or_left_is_told_as_that() {
        let mut fates = Fates::default();
        let hosts = [
            status(2, 7, true, State::Down),
            status(3, 7, false, State::Left),
            status(4, 7, false, State::Alive),
        ];
        let told = [Fate::Voided(HostId(2)), Fate::Left(HostId(3))];
        assert_eq!(fates.look(&hosts), told);
    }
}
