//! What the daemon talks to gossip through, and the answers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use homing_common::{host::HostId, session::SessionId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Claim, Latency,
    alerts::Alert,
    apply, ask,
    machine::{self, Owner, Progress},
    socket,
};
use crate::pop::{
    Difference, Member, Stream,
    keys::Keys,
    liveness::{self, Kernel},
    membership, seal,
};

/// Commands that may wait.
const COMMANDS_MAX: usize = 64;

/// Another host, as the daemon and the operator see it.
#[derive(Clone, Debug)]
pub struct HostStatus {
    /// The host.
    pub host: HostId,
    /// As it announced itself. None while only routes to it are known, from the
    /// agent's life before.
    pub member: Option<Member>,
    /// Its state; none likewise.
    pub state: Option<membership::State>,
    /// Since when.
    pub since: Option<SystemTime>,
    /// What this host hears of its kernel, and when it last did; none likewise.
    pub kernel: Option<KernelStatus>,
    /// Whether packets are exchanged with it: it is up, or its claims still stand.
    pub routed: bool,
    /// When its claims will be voided, if it does not come back.
    pub void_at: Option<SystemTime>,
    /// How many claims it has here.
    pub claims: u64,
    /// The last announcement of it that was applied.
    pub applied: u64,
    /// How its log is followed.
    pub progress: Option<Progress>,
    /// Its claims do not all fit into the table of claims.
    pub incomplete: bool,
    /// It hears this host's multicast.
    pub hears_us: bool,
    /// The id of the key that it signs with, once it was heard.
    pub key: Option<u8>,
    /// How what it has configured differs from what this host has.
    pub difference: Option<Difference>,
}

/// What this host hears of another's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelStatus {
    /// As liveness knows it.
    pub kernel: Kernel,
    /// When it was last heard.
    pub heard: Option<SystemTime>,
}

/// How gossip is doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// The present life of this host's agent.
    pub stream: Stream,
    /// Members that are up, other than this host.
    pub alive: usize,
    /// Members that are down.
    pub down: usize,
    /// Members that left.
    pub left: usize,
    /// Hosts that are up but of another POP.
    pub mismatched: usize,
    /// What is wrong in the POP as far as it is no state of a host.
    pub alerts: Vec<Alert>,
    /// The logs of all members that are up are followed without a gap.
    pub in_sync: bool,
    /// The sessions of the whole POP are known: what is unknown is asked about.
    pub synced: bool,
    /// Sessions of others found no room.
    pub full: bool,
    /// Sessions of this host.
    pub sessions: u64,
    /// The last announcement of this host.
    pub announced: u64,
    /// Sessions that other hosts claim.
    pub claimed: usize,
    /// Routes that wait for room in the table of owners.
    pub unplaced: usize,
    /// From a session's opening at its owner to its route's being in force here.
    pub latency: Latency,
    /// What happened at the sockets.
    pub socket: socket::Counters,
    /// What happened at the seal.
    pub seal: seal::Counters,
    /// What happened to liveness.
    pub liveness: liveness::Counters,
    /// Ids of the keys: the one that signs, and the one that is accepted as well.
    pub keys: (u8, Option<u8>),
    /// The public ids of the keys of session ids: of the one that sessions are looked up
    /// by, and of the one that they are told by as well, or the same again.
    pub session_keys: [u8; 2],
    /// Datagrams dropped because their key is not accepted, by its id.
    pub wrong_keys: Vec<(u8, u64)>,
    /// What happened to membership.
    pub membership: membership::Counters,
    /// What happened to gossip.
    pub gossip: machine::Counters,
    /// What happened to routes.
    pub routes: apply::Counters,
    /// What happened to packets of unknown sessions, and to asks.
    pub asks: ask::Counters,
    /// What is being asked.
    pub asking: ask::Load,
    /// Sessions with a route that an ask brought, and no claim has confirmed.
    pub provisional: usize,
}

impl Status {
    /// Every counter: its name, what it counts, its value. Names are unique.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.socket
            .iter()
            .chain(self.seal.iter())
            .chain(self.membership.iter())
            .chain(self.liveness.iter())
            .chain(self.gossip.iter())
            .chain(self.routes.iter())
            .chain(self.asks.iter())
    }
}

/// What is known of a session's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerStatus {
    /// The owner.
    pub owner: Option<Owner>,
    /// All claims of other hosts, the strongest first.
    pub claims: Vec<Claim>,
}

/// The task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gossip has stopped")]
pub struct Stopped;

pub(super) enum Command {
    Leave(Duration, oneshot::Sender<()>),
    Drain(bool, oneshot::Sender<()>),
    Rekey(Box<Keys>, oneshot::Sender<()>),
    Status(oneshot::Sender<Box<Status>>),
    Hosts(oneshot::Sender<Vec<HostStatus>>),
    Owner(SessionId, oneshot::Sender<OwnerStatus>),
}

/// What the daemon talks to gossip through. Clones talk to the same gossip.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
}

impl Handle {
    /// How gossip is doing.
    pub async fn status(&self) -> Result<Box<Status>, Stopped> {
        self.ask(Command::Status).await
    }

    /// All other hosts ever heard of, as of now.
    pub async fn hosts(&self) -> Result<Vec<HostStatus>, Stopped> {
        self.ask(Command::Hosts).await
    }

    /// Who owns a session.
    pub async fn owner(&self, id: SessionId) -> Result<OwnerStatus, Stopped> {
        self.ask(|answer| Command::Owner(id, answer)).await
    }

    /// Leaves the POP, which keeps this host's claims for so long. Returns when
    /// that has been said to all members; the task then ends.
    pub async fn leave(&self, hold: Duration) -> Result<(), Stopped> {
        self.ask(|answer| Command::Leave(hold, answer)).await
    }

    /// Tells the POP whether this host takes no new sessions.
    pub async fn drain(&self, draining: bool) -> Result<(), Stopped> {
        self.ask(|answer| Command::Drain(draining, answer)).await
    }

    /// Goes on with other keys.
    pub async fn rekey(&self, keys: Keys) -> Result<(), Stopped> {
        self.ask(|answer| Command::Rekey(Box::new(keys), answer))
            .await
    }

    /// All other hosts, anew whenever a state, a life, an address or `routed`
    /// changes; numbers in it are as of then.
    pub fn watch_hosts(&self) -> watch::Receiver<Arc<Vec<HostStatus>>> {
        self.hosts.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(command(answer)).await;
        sent.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

/// The task's ends of a handle's channels.
pub(super) struct Ends {
    pub commands: mpsc::Receiver<Command>,
    pub hosts: watch::Sender<Arc<Vec<HostStatus>>>,
}

/// A handle, and the ends that the task holds.
pub(super) fn handle() -> (Handle, Ends) {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (hosts_to, hosts) = watch::channel(Arc::default());
    let ends = Ends {
        commands: inbox,
        hosts: hosts_to,
    };
    (Handle { commands, hosts }, ends)
}
