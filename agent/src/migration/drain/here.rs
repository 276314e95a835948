//! What there is on this host to be moved, and what hinders it.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    io,
    sync::Arc,
};

use homing_common::{
    net::{Service, UDP},
    session::{Session, Tuple},
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{Found, Look, Why};
use crate::datapath::{
    sessions::Sessions,
    sockets::{Diag, Standing, Stands},
};

/// Looks at this host.
pub trait Here: Send + Sync + 'static {
    /// All sessions of this host that are open while it looks, and what waits to be
    /// closed. How many are on their way here is not asked of it.
    fn look(&self) -> impl Future<Output = io::Result<Look>> + Send;
}

/// Whether an application here has registered a service.
pub type Registered = Arc<dyn Fn(&Service) -> bool + Send + Sync>;

/// This host as the kernel has it: `SESSIONS`, and its sockets.
#[derive(Clone)]
pub struct ThisHost {
    sessions: Arc<Sessions>,
    services: watch::Receiver<Arc<BTreeSet<Service>>>,
    registered: Registered,
}

impl ThisHost {
    /// The sessions of these services, whatever they are at each look.
    pub fn new(
        sessions: Arc<Sessions>,
        services: watch::Receiver<Arc<BTreeSet<Service>>>,
        registered: Registered,
    ) -> Self {
        Self {
            sessions,
            services,
            registered,
        }
    }
}

impl Here for ThisHost {
    async fn look(&self) -> io::Result<Look> {
        let (sessions, services) = (self.sessions.clone(), self.services.borrow().clone());
        let registered = self.registered.clone();
        // Both wait for the kernel.
        let read = spawn_blocking(move || {
            let mut recorded = Vec::new();
            sessions.scan(|tuple, session| recorded.push((tuple, session)))?;
            let mut sockets = Vec::new();
            let mut time_wait = 0;
            let dumped = Diag::open().and_then(|mut diag| {
                diag.standings(|standing| match standing.stands {
                    Stands::TimeWait => {
                        time_wait += usize::from(services.contains(&standing.tuple.service()));
                    }
                    _ => sockets.push(standing),
                })
            });
            if let Err(error) = dumped {
                // All are then taken for what can be asked for, and refused one by one.
                tracing::debug!(%error, "cannot read the kernel's sockets");
            }
            io::Result::Ok(Look {
                sessions: judge(recorded, &sockets, &*registered),
                arriving: 0,
                time_wait,
            })
        });
        read.await.map_err(io::Error::other)?
    }
}

/// What hinders each session.
fn judge(
    recorded: Vec<(Tuple, Session)>,
    sockets: &[Standing],
    registered: &(dyn Fn(&Service) -> bool + Send + Sync),
) -> Vec<Found> {
    let by_cookie: HashMap<u64, Stands> = sockets
        .iter()
        .map(|standing| (standing.cookie, standing.stands))
        .collect();
    let mut known = HashMap::new();
    let found = recorded.into_iter().map(|(tuple, session)| {
        let service = tuple.service();
        let hindrance = if tuple.protocol == UDP {
            Some(Why::Udp)
        } else {
            match by_cookie.get(&session.cookie) {
                Some(Stands::Closing) => Some(Why::Closing),
                _ if !*known.entry(service).or_insert_with(|| registered(&service)) => {
                    Some(Why::NoApplication)
                }
                Some(Stands::NotAccepted) => Some(Why::NotAccepted),
                _ => None,
            }
        };
        // Flows of UDP may share a cookie, and have no socket by which to tell apart two
        // of one tuple.
        let cookie = match tuple.protocol {
            UDP => session.opened_ns,
            _ => session.cookie,
        };
        Found {
            tuple,
            cookie,
            key: session.id.0,
            hindrance,
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use homing_common::{
        net::{Address, Port, TCP},
        session::SessionId,
    };

    use super::*;

    #[test]
    fn what_hinders_a_session_is_told() {
        let any = Address::v4([10, 0, 0, 1]);
        let of = |cookie: u64, port, protocol| {
            let tuple = Tuple::new(
                any,
                Port::new(cookie as u16),
                any,
                Port::new(port),
                protocol,
            );
            let session = Session {
                id: SessionId(cookie),
                cookie,
                opened_ns: 0,
                seen_ns: 0,
                generation: 0,
                flags: 0,
            };
            (tuple, session)
        };
        let cases = [
            (of(1, 443, TCP), Stands::Held, None),
            (of(2, 443, TCP), Stands::Closing, Some(Why::Closing)),
            (of(3, 443, TCP), Stands::NotAccepted, Some(Why::NotAccepted)),
            (of(4, 25, TCP), Stands::Held, Some(Why::NoApplication)),
            (of(5, 25, TCP), Stands::Closing, Some(Why::Closing)),
            (
                of(6, 25, TCP),
                Stands::NotAccepted,
                Some(Why::NoApplication),
            ),
            (of(7, 443, UDP), Stands::Held, Some(Why::Udp)),
        ];
        let sockets: Vec<_> = cases
            .iter()
            .map(|((tuple, session), stands, _)| Standing {
                tuple: *tuple,
                cookie: session.cookie,
                stands: *stands,
            })
            .collect();
        let recorded = cases.iter().map(|(recorded, ..)| *recorded).collect();
        let found = judge(recorded, &sockets, &|service| service.port.number() == 443);
        let hindrances: Vec<_> = found.iter().map(|found| found.hindrance).collect();
        assert_eq!(hindrances, cases.map(|(_, _, hindrance)| hindrance));
        // Where the kernel's sockets cannot be read, the application is asked.
        let recorded = vec![of(2, 443, TCP)];
        let found = judge(recorded, &[], &|_| true);
        assert_eq!(found[0].hindrance, None);
    }
}
