//! `SESSIONS` against the kernel's sockets. Pure.
//!
//! Both are read while sessions come and go, `SESSIONS` first. So nothing found
//! here is certain: an entry may have lost its socket, or a socket got its entry,
//! in between. Whoever acts on it looks again, at just the one.

use std::collections::HashMap;

use homing_common::{
    net::TCP,
    session::{Session, Tuple},
};

use super::Socket;

/// A comparison that is under way.
pub struct Audit {
    /// By cookie: recorded, and no socket seen yet.
    missing: HashMap<u64, (Tuple, Session)>,
    findings: Findings,
}

/// What a comparison found.
#[derive(Default)]
pub struct Findings {
    /// Recorded, but no socket was seen.
    pub missing: Vec<(Tuple, Session)>,
    /// Sockets of services that are not recorded.
    pub unrecorded: Vec<Socket>,
    /// Sockets of sessions that were adopted before.
    pub adopted: Vec<Socket>,
}

impl Audit {
    /// Begins with what is recorded. What is not TCP has no socket of its own, and
    /// is left alone.
    pub fn new(recorded: impl IntoIterator<Item = (Tuple, Session)>) -> Self {
        let tcp = recorded
            .into_iter()
            .filter(|(tuple, _)| tuple.protocol == TCP);
        Self {
            missing: tcp
                .map(|(tuple, session)| (session.cookie, (tuple, session)))
                .collect(),
            findings: Findings::default(),
        }
    }

    /// Takes in a socket that the kernel has; `is_service`: its own end is that of a
    /// service.
    pub fn socket(&mut self, socket: Socket, is_service: bool) {
        match self.missing.get(&socket.cookie) {
            Some((tuple, session)) if *tuple == socket.tuple => {
                if session.flags & Session::ADOPTED != 0 {
                    self.findings.adopted.push(socket);
                }
                self.missing.remove(&socket.cookie);
            }
            _ if is_service => self.findings.unrecorded.push(socket),
            _ => {}
        }
    }

    /// Ends the comparison: every socket has been taken in.
    pub fn finish(mut self) -> Findings {
        self.findings.missing = self.missing.into_values().collect();
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use homing_common::{
        net::{Address, Port},
        session::SessionId,
    };
    use proptest::prelude::*;

    use super::*;

    const UDP: u8 = 17;

    fn tuple(port: u16, protocol: u8) -> Tuple {
        let any = Address::v4([10, 0, 0, 1]);
        Tuple::new(any, Port::new(port), any, Port::new(443), protocol)
    }

    fn session(cookie: u64, adopted: bool) -> Session {
        Session {
            id: SessionId(cookie),
            cookie,
            opened_ns: 0,
            seen_ns: 0,
            generation: 0,
            flags: match adopted {
                true => Session::ADOPTED,
                false => 0,
            },
        }
    }

    fn cookies<'a>(sockets: impl IntoIterator<Item = &'a Socket>) -> BTreeSet<u64> {
        sockets.into_iter().map(|socket| socket.cookie).collect()
    }

    #[test]
    fn what_is_not_tcp_is_left_alone() {
        let audit = Audit::new([(tuple(1, UDP), session(0, false))]);
        assert!(audit.finish().missing.is_empty());
    }

    proptest! {
        /// Each socket has a port of its own, and so has each entry but those that
        /// are of a former use of a tuple: they have another cookie.
        #[test]
        fn every_difference_is_found_and_nothing_else(
            ports in prop::collection::btree_map(
                0u16..40,
                (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
                0..40,
            )
        ) {
            let mut recorded = BTreeMap::new();
            let mut sockets = Vec::new();
            for (&port, &(entry, former, adopted, socket, service)) in &ports {
                let cookie = u64::from(port) + 1;
                if entry {
                    let cookie = if former { cookie + 1000 } else { cookie };
                    recorded.insert(port, (tuple(port, TCP), session(cookie, adopted)));
                }
                if socket {
                    let tuple = tuple(port, TCP);
                    sockets.push((Socket { tuple, cookie }, service));
                }
            }
            let mut audit = Audit::new(recorded.values().copied());
            for &(socket, service) in &sockets {
                audit.socket(socket, service);
            }
            let findings = audit.finish();

            let alive: BTreeSet<u64> = sockets.iter().map(|(socket, _)| socket.cookie).collect();
            let known: BTreeSet<u64> = recorded.values().map(|(_, session)| session.cookie).collect();
            let missing: BTreeSet<u64> =
                findings.missing.iter().map(|(_, session)| session.cookie).collect();
            prop_assert_eq!(missing, known.difference(&alive).copied().collect());
            let unrecorded = sockets
                .iter()
                .filter(|(socket, service)| *service && !known.contains(&socket.cookie));
            prop_assert_eq!(
                cookies(&findings.unrecorded),
                cookies(unrecorded.map(|(socket, _)| socket))
            );
            let adopted: BTreeSet<u64> = recorded
                .values()
                .filter(|(_, session)| session.flags != 0 && alive.contains(&session.cookie))
                .map(|(_, session)| session.cookie)
                .collect();
            prop_assert_eq!(cookies(&findings.adopted), adopted);
        }
    }
}
