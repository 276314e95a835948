//! The steps of a reload, done to the parts of this agent.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use homing_common::net::Service;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{block_in_place, spawn_blocking},
};

use super::sequence::{Put, Step, Way};
use crate::{
    admin::socket::{AdminSocket, Rights},
    config::{self, Config, Mss},
    daemon::limits,
    datapath::{control::ControlMap, services::Services},
    gossip::task::{Handle, Tunables},
    migration::{self, app::Apps},
    mux::{Carriers, sockets::Sockets},
    pop::{keys::Keys, membership::Seed},
    unix::Access,
};

/// What of the configuration is looked at when it is used: who does has the other end.
pub(in crate::daemon) struct Values {
    /// All of it.
    pub config: watch::Sender<Arc<Config>>,
    /// What the POP answers for.
    pub services: watch::Sender<Arc<BTreeSet<Service>>>,
    /// How long a flow may be idle.
    pub idle: watch::Sender<Duration>,
    /// How long a close is held back.
    pub linger: watch::Sender<Duration>,
    /// The largest MSS.
    pub mss: watch::Sender<Mss>,
    /// What bounds moves.
    pub moves: watch::Sender<migration::Limits>,
}

impl Values {
    pub fn new(config: &Config) -> Self {
        Self {
            config: watch::Sender::new(Arc::new(config.clone())),
            services: watch::Sender::new(services(config)),
            idle: watch::Sender::new(config.udp.idle_timeout),
            linger: watch::Sender::new(config.pop.close_linger),
            mss: watch::Sender::new(config.tunnel.mss),
            moves: watch::Sender::new(limits::of_moves(config)),
        }
    }

    fn set(&self, config: &Arc<Config>) {
        set(&self.services, services(config));
        set(&self.idle, config.udp.idle_timeout);
        set(&self.linger, config.pop.close_linger);
        set(&self.mss, config.tunnel.mss);
        set(&self.moves, limits::of_moves(config));
        set(&self.config, config.clone());
    }
}

/// Wakes nobody for nothing.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|present| {
        let differs = *present != value;
        *present = value;
        differs
    });
}

fn services(config: &Config) -> Arc<BTreeSet<Service>> {
    Arc::new(config.services.iter().copied().collect())
}

/// What gossip is told of a configuration.
pub(in crate::daemon) fn seeds(config: &Config) -> Vec<Seed> {
    let seeds = config.pop.seeds.iter().map(|seed| Seed {
        host: seed.host,
        address: seed.address,
    });
    seeds.collect()
}

/// The admin socket for reading is to be served, or none is; and who waits for that.
pub(in crate::daemon) type Readers = (Option<AdminSocket>, oneshot::Sender<()>);

/// The parts of the agent that a reload changes.
pub(in crate::daemon) struct Changed {
    pub values: Values,
    /// The kernel side's services. None while they are written.
    pub map: Option<Services>,
    pub control: ControlMap,
    pub gossip: Handle,
    pub carriers: Carriers,
    pub apps: Apps,
    pub messages: Sockets,
    /// Of the sockets for applications, messages and operators.
    pub doors: [Access; 3],
    /// Of the socket for reading, where there is one.
    pub read_door: Option<Access>,
    /// Who serves that.
    pub readers: mpsc::Sender<Readers>,
}

/// One reload: from what is in force to what the files say.
pub(super) struct Round<'a> {
    changed: &'a mut Changed,
    from: Arc<Config>,
    to: Arc<Config>,
    /// The keys before and after, if they differ.
    keys: Option<[&'a Keys; 2]>,
    /// The groups that sockets belonged to, of `doors` and of `read_door`: of those that were
    /// given to another.
    groups: [Option<u32>; 4],
    /// A socket for reading that is open, and not served yet.
    opened: Option<AdminSocket>,
}

impl<'a> Round<'a> {
    pub fn new(changed: &'a mut Changed, to: Arc<Config>, keys: Option<[&'a Keys; 2]>) -> Self {
        let from = changed.values.config.borrow().clone();
        Self {
            from,
            changed,
            to,
            keys,
            groups: [None; 4],
            opened: None,
        }
    }

    /// After all steps: the socket for reading that was opened is served, and the one before
    /// is closed.
    pub async fn finish(self) {
        let closes = self.changed.read_door.is_some() && self.to.admin.readers.is_none();
        if self.opened.is_none() && !closes {
            return;
        }
        self.changed.read_door = self.opened.as_ref().map(AdminSocket::access);
        let (done, is_done) = oneshot::channel();
        // Who serves it ends with the agent only.
        if self.changed.readers.send((self.opened, done)).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Gives one of the sockets to a group, or back to the one that it belonged to.
    fn give(&mut self, n: usize, way: Way, wanted: &config::Group) -> Result<()> {
        let mut doors = self.changed.doors.iter().chain(&self.changed.read_door);
        let Some(door) = doors.nth(n) else {
            return Ok(());
        };
        match (way, self.groups[n]) {
            (Way::Forth, _) => {
                let gone = "the file of a socket is gone; restart this agent";
                self.groups[n] = Some(door.group().context(gone)?);
                door.admit(wanted)
            }
            (Way::Back, Some(group)) => door.admit(&config::Group::Id(group)),
            (Way::Back, None) => Ok(()),
        }
    }

    fn readers(&mut self, way: Way) -> Result<()> {
        const READ: usize = 3;
        let to = self.to.clone();
        let stays = self.from.admin.read_socket == to.admin.read_socket;
        match (&to.admin.readers, way) {
            (Some(group), Way::Forth) if stays && self.changed.read_door.is_some() => {
                self.give(READ, way, group)
            }
            (Some(group), Way::Forth) => {
                let socket = AdminSocket::bind(&to.admin.read_socket, Rights::Read)?;
                socket.access().admit(group)?;
                self.opened = Some(socket);
                Ok(())
            }
            (Some(group), Way::Back) => {
                self.opened = None;
                self.give(READ, way, group)
            }
            // What there is is closed once all else is done.
            (None, _) => Ok(()),
        }
    }

    async fn map(&mut self, config: &Config) -> Result<()> {
        let lost = "an earlier write of SERVICES was broken off; restart this agent";
        let mut map = self.changed.map.take().context(lost)?;
        let wanted = config.services.clone();
        let (map, synced) = spawn_blocking(move || {
            let synced = map.sync(&wanted);
            (map, synced)
        })
        .await?;
        self.changed.map = Some(map);
        let synced = synced.context("cannot write SERVICES")?;
        if synced != Default::default() {
            let (added, removed) = (synced.added, synced.removed);
            tracing::info!(added, removed, "the services are in force");
        }
        Ok(())
    }

    /// The keys that are to be in force, if they change.
    fn keys(&self, way: Way) -> Option<&'a Keys> {
        let [from, to] = self.keys?;
        Some(match way {
            Way::Forth => to,
            Way::Back => from,
        })
    }

    async fn pop(&self, config: &Config, keys: Option<&Keys>) -> Result<()> {
        let gossip = &self.changed.gossip;
        let stopping = "the agent is stopping";
        if let Some(keys) = keys {
            gossip.rekey(keys.clone()).await.context(stopping)?;
        }
        let tunables = Tunables {
            services: config.services.clone(),
            seeds: seeds(config),
            void_after: config.pop.void_after,
        };
        gossip.set(tunables).await.context(stopping)
    }

    fn values(&self, config: &Arc<Config>, keys: Option<&Keys>) {
        let changed = &*self.changed;
        if let Some(keys) = keys {
            changed.control.set_echo_keys(keys.echo);
            changed.carriers.set_keys(keys);
            tracing::info!(?keys, "the POP's keys are in force");
        }
        let services = config.services.iter().copied();
        changed.apps.set(services, limits::of_apps(config));
        changed
            .messages
            .set_room(config.mux.sockets, config.mux.memory);
        changed.values.set(config);
    }
}

impl Put for Round<'_> {
    type Error = anyhow::Error;

    async fn put(&mut self, step: Step, way: Way) -> Result<()> {
        let config = match way {
            Way::Forth => self.to.clone(),
            Way::Back => self.from.clone(),
        };
        let keys = self.keys(way);
        match step {
            // Names of groups may be looked up elsewhere than in a file: nothing else waits.
            Step::AppsGroup => block_in_place(|| self.give(0, way, &config.apps.group)),
            Step::MuxGroup => block_in_place(|| self.give(1, way, &config.mux.group)),
            Step::AdminGroup => block_in_place(|| self.give(2, way, &config.admin.group)),
            Step::Readers => block_in_place(|| self.readers(way)),
            Step::Services => self.map(&config).await,
            Step::Pop => self.pop(&config, keys).await,
            Step::Values => {
                self.values(&config, keys);
                Ok(())
            }
        }
    }
}
