//! What moves, full syncs and messages stand on: the carriers to other hosts; and the
//! applications of this one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use homing_common::host::HostId;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{Parts, limits, thread::Thread};
use crate::{
    config::Config,
    gossip::task::{Handle, HostStatus},
    migration::app::{Apps, Events, server},
    mux::{
        Carriers, Count, Inbox, Limits, Options, Peer,
        sockets::{self, PeerInfo, Sockets},
    },
    pop::{Member, Stream, keys::Keys, membership::State},
    unix::AppListener,
};

/// How long a stop waits until applications and carriers have been told.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// The carriers and the applications, with what comes from them.
pub(super) struct Bases {
    pub carriers: Carriers,
    pub apps: Apps,
    pub sockets: Sockets,
    serving: [Serving; 2],
    /// Of message sockets and their carriers: however much goes over them, what the agent
    /// does for the POP is not held up.
    _thread: Thread,
}

/// Where applications come in.
pub(super) struct Doors {
    /// Those whose connections move.
    pub apps: AppListener,
    /// Those that want message sockets.
    pub mux: AppListener,
}

impl Doors {
    /// Opens both, for those whom the configuration lets in.
    ///
    /// # Errors
    ///
    /// An agent answers there, or there is no such group.
    pub fn open(config: &Config) -> Result<Self> {
        let apps = AppListener::bind(&config.apps.socket, "apps")?;
        apps.access().admit(&config.apps.group)?;
        let mux = AppListener::bind(&config.mux.socket, "mux")?;
        mux.access().admit(&config.mux.group)?;
        Ok(Self { apps, mux })
    }
}

/// What comes from other agents and from applications.
pub(super) struct Incoming {
    pub moves: Inbox,
    pub gossip: Inbox,
    pub events: Events,
}

/// A task that serves applications.
struct Serving {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Serving {
    /// Begins to serve: `serve` is told when to stop.
    fn begin<F>(
        parts: &mut Parts,
        what: &'static str,
        serve: impl FnOnce(oneshot::Receiver<()>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let serving = serve(stopped);
        parts.run(what, async move {
            serving.await;
            // Nobody may wait for it.
            let _ = end.send(());
            Ok(())
        });
        Self { stop, ended }
    }

    async fn stop(self) {
        // It may have ended by itself.
        let _ = self.stop.send(());
        let _ = self.ended.await;
    }
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
        doors: Doors,
        parts: &mut Parts,
    ) -> Result<(Self, Incoming)> {
        let mux = &config.mux;
        let thread = Thread::start("mux")?;
        let sockets = {
            let _there = thread.handle().enter();
            Sockets::new(config.host.id, limits::of_sockets(mux))?
        };
        let options = Options {
            host: config.host.id,
            stream,
            address: config.pop.address,
            keys: keys.clone(),
            limits: Limits {
                carriers_per_peer: mux.carriers.map_or(Count::UpTo(4), Count::Fixed),
                ..Limits::default()
            },
            plain: !mux.encryption,
        };
        let (carriers, inboxes) = Carriers::open(options, Some(sockets.exchange()))?;
        sockets.travel_by(carriers.clone());
        let (apps, events) = Apps::new(config.services.iter().copied(), limits::of_apps(config));
        // That nobody can stop it any more says the same as that it is to stop.
        let (served, listener) = (apps.clone(), doors.apps);
        let moves = Serving::begin(parts, "the applications' socket", |stop| {
            server::serve(listener, served, async { drop(stop.await) })
        });
        let (served, listener) = (sockets.clone(), doors.mux);
        let messages = Serving::begin(parts, "the socket for messages", |stop| {
            sockets::server::serve(listener, served, async { drop(stop.await) })
        });
        let bases = Self {
            carriers,
            apps,
            sockets,
            serving: [moves, messages],
            _thread: thread,
        };
        let incoming = Incoming {
            moves: inboxes.migration,
            gossip: inboxes.gossip,
            events,
        };
        Ok((bases, incoming))
    }

    /// Tells applications that the agent stops, and closes all message sockets and
    /// carriers.
    pub async fn stop(self) {
        let [moves, messages] = self.serving.map(Serving::stop);
        let sockets = async {
            messages.await;
            self.sockets.stop().await;
        };
        let all = async { tokio::join!(moves, sockets, self.carriers.stop()) };
        if timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!(
                waited_s = STOP_WITHIN.as_secs_f64(),
                fix = "nothing: the agent ends all the same, and what was not sent is told to its senders as uncertain",
                "not all carriers and applications have gone in time"
            );
        }
    }
}

/// Tells carriers and message sockets who the members are.
pub(super) async fn follow(
    mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    carriers: Carriers,
    sockets: Sockets,
) {
    loop {
        let now = hosts.borrow_and_update().clone();
        // Message sockets first: then nothing more is sent to who has left.
        sockets.set_peers(infos(&now));
        carriers.set_peers(&peers(&now));
        if hosts.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the POP which services message sockets offer here.
pub(super) async fn tell_offers(sockets: Sockets, gossip: Handle) {
    let mut offers = sockets.offers();
    loop {
        let now = *offers.borrow_and_update();
        if gossip.add_offers(now).await.is_err() || offers.changed().await.is_err() {
            return;
        }
    }
}

/// The hosts that message sockets can be connected to.
fn infos(hosts: &[HostStatus]) -> BTreeMap<HostId, PeerInfo> {
    let infos = members(hosts).map(|(host, member)| {
        let info = PeerInfo {
            stream: member.stream,
            offers: member.offers,
            draining: member.draining,
        };
        (host, info)
    });
    infos.collect()
}

/// The hosts that carriers are had with: members, also those whose agent is held for
/// down. It may be back, or be cut off from this host's datagrams only; and what it says
/// of a move may be what all wait for.
fn peers(hosts: &[HostStatus]) -> BTreeMap<HostId, Peer> {
    let peers = members(hosts).map(|(host, member)| {
        let peer = Peer {
            address: member.address,
            stream: member.stream,
        };
        (host, peer)
    });
    peers.collect()
}

fn members(hosts: &[HostStatus]) -> impl Iterator<Item = (HostId, Member)> {
    hosts.iter().filter_map(|host| {
        let is_member = matches!(host.state, Some(State::Alive | State::Down));
        Some((host.host, host.member.filter(|_| is_member)?))
    })
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
