//! What moves and full syncs stand on: the carriers to other hosts; and the applications
//! of this one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use homing_common::host::HostId;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{Parts, limits};
use crate::{
    config::Config,
    gossip::task::HostStatus,
    migration::app::{AppSocket, Apps, Events, server},
    mux::{Carriers, Inbox, Limits, Options, Peer},
    pop::{Stream, keys::Keys, membership::State},
};

/// How long a stop waits until applications and carriers have been told.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// The carriers and the applications, with what comes from them.
pub(super) struct Bases {
    pub carriers: Carriers,
    pub apps: Apps,
    serving: Serving,
}

/// What comes from other agents and from applications.
pub(super) struct Incoming {
    pub moves: Inbox,
    pub gossip: Inbox,
    pub events: Events,
}

/// The task that serves applications.
struct Serving {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Bases {
    /// Opens carriers, and lets applications in.
    ///
    /// # Errors
    ///
    /// The port is in use, most likely.
    pub fn open(
        config: &Config,
        keys: &Keys,
        stream: Stream,
        socket: AppSocket,
        parts: &mut Parts,
    ) -> Result<(Self, Incoming)> {
        let (carriers, inboxes) = Carriers::open(Options {
            host: config.host.id,
            stream,
            address: config.pop.address,
            keys: keys.clone(),
            limits: Limits::default(),
        })?;
        let (apps, events) = Apps::new(config.services.iter().copied(), limits::of_apps(config));
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let served = apps.clone();
        parts.run("the applications' socket", async move {
            // An error means that nobody can stop it any more, which says the same.
            server::serve(socket, served, async { drop(stopped.await) }).await;
            // Nobody may wait for it.
            let _ = end.send(());
            Ok(())
        });
        let bases = Self {
            carriers,
            apps,
            serving: Serving { stop, ended },
        };
        // Without an inbox for them, messages of the multiplexer are refused.
        let incoming = Incoming {
            moves: inboxes.migration,
            gossip: inboxes.gossip,
            events,
        };
        Ok((bases, incoming))
    }

    /// Tells applications that the agent stops, and closes all carriers.
    pub async fn stop(self) {
        let Serving { stop, ended } = self.serving;
        // It may have ended by itself.
        let _ = stop.send(());
        let all = async { tokio::join!(ended, self.carriers.stop()) };
        if timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!("not all carriers and applications have gone in time");
        }
    }
}

/// Tells carriers who the members are.
pub(super) async fn follow(mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>, carriers: Carriers) {
    loop {
        carriers.set_peers(&peers(&hosts.borrow_and_update()));
        if hosts.changed().await.is_err() {
            return;
        }
    }
}

/// The hosts that carriers are had with: members, also those whose agent is held for
/// down. It may be back, or be cut off from this host's datagrams only; and what it says
/// of a move may be what all wait for.
fn peers(hosts: &[HostStatus]) -> BTreeMap<HostId, Peer> {
    let members = hosts.iter().filter_map(|host| {
        let is_member = matches!(host.state, Some(State::Alive | State::Down));
        let member = host.member.filter(|_| is_member)?;
        let peer = Peer {
            address: member.address,
            stream: member.stream,
        };
        Some((host.host, peer))
    });
    members.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pop::{Domain, Fingerprint, Member};

    fn status(host: u16, state: Option<State>) -> HostStatus {
        let stream = Stream {
            incarnation: 7,
            generation: u64::from(host),
        };
        let member = Member::starting(
            HostId(host),
            stream,
            ([10, 0, 0, host as u8], 7946).into(),
            Domain::try_from("d").unwrap(),
            Fingerprint::default(),
        );
        HostStatus {
            member: state.map(|_| member),
            state,
            ..HostStatus::unheard(HostId(host))
        }
    }

    #[test]
    fn carriers_are_had_with_members_up_and_down() {
        let hosts = [
            status(2, Some(State::Alive)),
            status(3, Some(State::Down)),
            status(4, Some(State::Left)),
            status(5, Some(State::Mismatched)),
            status(6, None),
        ];
        let peers = peers(&hosts);
        let ids: Vec<u16> = peers.keys().map(|host| host.0).collect();
        assert_eq!(ids, [2, 3]);
        let peer = peers[&HostId(3)];
        assert_eq!(peer.address, ([10, 0, 0, 3], 7946).into());
        assert_eq!(peer.stream.generation, 3);
    }
}
