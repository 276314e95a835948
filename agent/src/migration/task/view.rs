//! This host, as the machines see it.

use std::{collections::BTreeSet, sync::Arc};

use homing_common::{host::HostId, net::Service, session::Tuple};
use tokio::sync::watch;

use crate::{
    bound::Bound,
    datapath::sessions::Sessions,
    gossip::task::{HostStatus, Standing},
    migration::{Local, app::Apps, local::Application},
    pop::membership::State,
};

/// What each session could repeat.
static UNREAD: Bound = Bound::new();

/// What is looked up on this host.
pub(super) struct View {
    pub services: watch::Receiver<Arc<BTreeSet<Service>>>,
    pub draining: watch::Receiver<bool>,
    pub apps: Apps,
    pub sessions: Arc<Sessions>,
    /// The other members that are up, by id.
    pub members: Vec<HostId>,
    pub standing: watch::Receiver<Standing>,
}

impl View {
    /// Takes in membership.
    pub fn set_members(&mut self, hosts: &[HostStatus]) {
        let up = hosts
            .iter()
            .filter(|host| host.state == Some(State::Alive))
            .map(|host| host.host);
        self.members = up.collect();
        self.members.sort_unstable();
    }
}

impl Local for View {
    fn has_service(&self, service: &Service) -> bool {
        self.services.borrow().contains(service)
    }

    fn drains(&self) -> bool {
        *self.draining.borrow()
    }

    fn application(&self, service: &Service) -> Option<Application> {
        self.apps.registered(service).map(|protocol| Application {
            name: protocol.name,
            version: protocol.version,
        })
    }

    fn session(&self, tuple: &Tuple) -> Option<u32> {
        match self.sessions.get(tuple) {
            Ok(session) => session.map(|session| session.generation),
            Err(error) => {
                if let Some(left_out) = UNREAD.take() {
                    tracing::warn!(
                        %error, ?tuple, left_out,
                        fix = "nothing at once: the session counts as not here, and does not move; if it goes on, restart the agent, and keep this log",
                        "cannot read SESSIONS for a move"
                    );
                }
                None
            }
        }
    }

    fn members(&self) -> Vec<HostId> {
        self.members.clone()
    }

    fn reached_since(&self) -> Option<u64> {
        self.standing.borrow().reached_since()
    }
}
