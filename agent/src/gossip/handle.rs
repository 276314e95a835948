//! What the daemon talks to gossip through, and the answers.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use homing_common::{host::HostId, net::Service, session::SessionId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Claim, Latency,
    alerts::Alert,
    apply, ask,
    machine::{self, Owner, Progress},
    socket,
};
use crate::{
    datapath::clock::monotonic_ns,
    pop::{
        Difference, MS, Member, Stream,
        keys::Keys,
        liveness::{self, Kernel},
        membership, seal,
    },
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
    /// Its kernel, in this life, is dead, and more than half of the POP has confirmed
    /// that to this host. Only of hosts that are minded ([`Handle::mind`]).
    pub void: bool,
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

impl HostStatus {
    /// Whether it takes new sessions, and its agent can say whose the old ones are.
    pub fn takes_sessions(&self) -> bool {
        self.state == Some(membership::State::Alive)
            && self.member.is_some_and(|member| !member.draining)
    }

    /// A host of which only routes are known: what tests make theirs of.
    #[cfg(test)]
    pub(crate) fn unheard(host: HostId) -> Self {
        Self {
            host,
            member: None,
            state: None,
            since: None,
            kernel: None,
            void: false,
            routed: true,
            void_at: None,
            claims: 0,
            applied: 0,
            progress: None,
            incomplete: false,
            hears_us: false,
            key: None,
            difference: None,
        }
    }
}

/// What this host hears of another's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelStatus {
    /// As liveness knows it.
    pub kernel: Kernel,
    /// When it was last heard.
    pub heard: Option<SystemTime>,
}

/// What whoever moves sessions needs to know of the POP.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mind {
    /// How this host stands itself ([`Handle::reached_since`]): while one of its sessions
    /// is in a move, from before it is frozen.
    pub standing: bool,
    /// When the first of the sessions was frozen whose move is open, in microseconds of
    /// `CLOCK_MONOTONIC`: only agents that have run since then count, for others may have
    /// forgotten what matters to it.
    pub frozen_at: Option<u64>,
    /// Whether these hosts are void ([`HostStatus::void`]): those that moves are with.
    pub hosts: BTreeSet<HostId>,
}

/// How this host stands in the POP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Its present incarnation.
    pub incarnation: u64,
    /// How often the POP has held its kernel for dead in this incarnation, as far as this
    /// agent has heard: never less than whoever it reaches has confirmed to anyone. Each
    /// time that this grows the POP has done so again.
    pub judged: u16,
    /// Since when it reaches at least half of the POP, and until when that counts without
    /// news: both in microseconds of `CLOCK_MONOTONIC`.
    pub(super) reached: Option<(u64, u64)>,
}

impl Standing {
    /// Since when, in microseconds of `CLOCK_MONOTONIC`, this host has reached at least
    /// half of the POP's agents, its own included, without a break: the beginning of the
    /// first of a chain of polls, each answered, and none of the answers saying anything
    /// new of this host's own kernel. As of a moment that lies up to a fifth of
    /// `pop.kernel_dead_after` back, by which no host acts on a judgement that this one
    /// could not have heard yet. None if it does not, if nobody minds, or if gossip does
    /// not run.
    pub fn reached_since(&self) -> Option<u64> {
        let (since, until) = self.reached?;
        (monotonic_ns() / 1_000 <= until).then_some(since)
    }
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
        every_counter(
            &self.socket,
            &self.seal,
            &self.membership,
            &self.liveness,
            &self.gossip,
            &self.routes,
            &self.asks,
        )
    }
}

/// All that [`Status::counters`] has, of gossip that has counted nothing yet.
#[cfg(test)]
pub(crate) fn no_counters() -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    every_counter(
        &socket::Counters::default(),
        &seal::Counters::default(),
        &membership::Counters::default(),
        &liveness::Counters::default(),
        &machine::Counters::default(),
        &apply::Counters::default(),
        &ask::Counters::default(),
    )
}

/// The counters of gossip and of what it stands on.
fn every_counter(
    socket: &socket::Counters,
    seal: &seal::Counters,
    membership: &membership::Counters,
    liveness: &liveness::Counters,
    gossip: &machine::Counters,
    routes: &apply::Counters,
    asks: &ask::Counters,
) -> impl Iterator<Item = (&'static str, &'static str, u64)> + use<> {
    socket
        .iter()
        .chain(seal.iter())
        .chain(membership.iter())
        .chain(liveness.iter())
        .chain(gossip.iter())
        .chain(routes.iter())
        .chain(asks.iter())
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

/// What of a host's configuration gossip takes while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// What the POP answers for.
    pub services: Vec<Service>,
    /// Whom to join.
    pub seeds: Vec<membership::Seed>,
    /// How long the claims of a host are kept whose agent is down and whose kernel cannot
    /// be asked. It counts for hosts that go down from now on.
    pub void_after: Duration,
}

pub(super) enum Command {
    Leave(Duration, oneshot::Sender<()>),
    Drain(bool, oneshot::Sender<()>),
    AddOffers(u64, oneshot::Sender<()>),
    Rekey(Box<Keys>, oneshot::Sender<()>),
    Set(Box<Tunables>, oneshot::Sender<()>),
    Status(oneshot::Sender<Box<Status>>),
    Hosts(oneshot::Sender<Vec<HostStatus>>),
    Owner(SessionId, oneshot::Sender<OwnerStatus>),
}

/// What the daemon talks to gossip through. Clones talk to the same gossip.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    mind: watch::Sender<Mind>,
    standing: watch::Receiver<Standing>,
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

    /// Tells the POP of services that message sockets offer here, see
    /// [`Membership::add_offers`](crate::pop::membership::Membership::add_offers).
    pub async fn add_offers(&self, offers: u64) -> Result<(), Stopped> {
        self.ask(|answer| Command::AddOffers(offers, answer)).await
    }

    /// Goes on with other keys.
    pub async fn rekey(&self, keys: Keys) -> Result<(), Stopped> {
        self.ask(|answer| Command::Rekey(Box::new(keys), answer))
            .await
    }

    /// Goes on with other settings.
    pub async fn set(&self, tunables: Tunables) -> Result<(), Stopped> {
        self.ask(|answer| Command::Set(Box::new(tunables), answer))
            .await
    }

    /// All other hosts, anew whenever a state, a life, an address or `routed`
    /// changes; numbers in it are as of then.
    pub fn watch_hosts(&self) -> watch::Receiver<Arc<Vec<HostStatus>>> {
        self.hosts.clone()
    }

    /// Says what is needed from now on of what costs messages to know. Replaces what was
    /// said before; one who moves sessions is expected to say it, as often as they like.
    pub fn mind(&self, mut mind: Mind) {
        self.mind.send_if_modified(|before| {
            // Many sessions are frozen one after the other. To go by an earlier one for a
            // moment is no harm, and gossip need not wake for each.
            let later = mind.frozen_at.zip(before.frozen_at);
            if later.is_some_and(|(new, old)| (old..old + 100 * MS).contains(&new)) {
                mind.frozen_at = before.frozen_at;
            }
            let differs = *before != mind;
            *before = mind;
            differs
        });
    }

    /// Since when this host has reached at least half of the POP: see
    /// [`Standing::reached_since`]. Asks nobody.
    pub fn reached_since(&self) -> Option<u64> {
        self.standing.borrow().reached_since()
    }

    /// How this host stands, anew whenever that changes: several times a second while it
    /// is minded.
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
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
    pub mind: watch::Receiver<Mind>,
    pub standing: watch::Sender<Standing>,
}

/// A handle, and the ends that the task holds.
pub(super) fn handle() -> (Handle, Ends) {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (hosts_to, hosts) = watch::channel(Arc::default());
    let (mind, minded) = watch::channel(Mind::default());
    let (standing_to, standing) = watch::channel(Standing::default());
    let ends = Ends {
        commands: inbox,
        hosts: hosts_to,
        mind: minded,
        standing: standing_to,
    };
    let handle = Handle {
        commands,
        hosts,
        mind,
        standing,
    };
    (handle, ends)
}
