//! The node driven by tokio: one task owns all state machines and the table of
//! owners, so there are no locks. The daemon talks to it through a [`Handle`].

mod carried;
mod clock;
mod sessions;
mod status;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use homing_common::{host::HostId, session::SessionId};
use tokio::sync::{mpsc, oneshot};

use self::{carried::Carried, clock::Clock, sessions::narrow};
pub use super::handle::{
    Handle, HostStatus, KernelStatus, Mind, OwnerStatus, Standing, Status, Stopped, Tunables,
};
use super::{
    Table, TableFull,
    alarm::Alarm,
    apply::Applier,
    ask::{
        FastPath,
        driver::{self, Driver},
    },
    handle::{self, Command, Ends},
    node::{Config, Node},
    report::Reports,
    socket::{SocketError, Sockets},
    vitals::{self, BEAT_INTERVAL, Sight, Vitals},
};
use crate::{
    datapath::{
        clock::monotonic_ns,
        local::{LocalEvent, News},
        owners::{Owners, OwnersFull},
        parked::Packets,
    },
    mux::{Carriers, Inbox},
    pop::{Member, SECOND, Stream, keys::Keys, membership},
};

/// Datagrams heard per socket before routes are put in force and timers looked at.
const DATAGRAMS_PER_TURN: usize = 32;
/// Messages of local events taken in one turn.
const EVENTS_PER_TURN: usize = 4;
/// Bulk messages and their fates taken in one turn: a millisecond of work.
const CARRIED_PER_TURN: usize = 4;
/// Commands done in one turn, so that they are done however much there is to hear.
const COMMANDS_PER_TURN: usize = 8;
/// Routes put in force in one turn: some ten milliseconds of work, and more than
/// the datagrams of a turn can change.
const ROUTES_PER_TURN: usize = 8192;
/// How often routes that could not be written are tried again in any case.
const RETRY_INTERVAL: u64 = SECOND;

/// Everything that gossip begins with.
pub struct Options {
    /// This host as it announces itself.
    pub me: Member,
    /// Whom to join.
    pub seeds: Vec<membership::Seed>,
    /// The POP's keys.
    pub keys: Keys,
    /// The domain's multicast group.
    pub multicast: Option<SocketAddr>,
    /// How long the claims of a host are kept whose agent is down and whose kernel
    /// cannot be asked.
    pub void_after: Duration,
    /// Within this time of a kernel's end its claims are void.
    pub kernel_dead_after: Duration,
    /// Sessions of other hosts that are remembered at most. More than the table
    /// of owners holds is of use: what does not fit is written when there is room.
    pub claims_max: usize,
    /// What the table of owners holds from the agent's life before.
    pub routes: Vec<(SessionId, HostId)>,
    /// The members that an agent before this one knew.
    pub remembered: Vec<Member>,
    /// Told how gossip is.
    pub vitals: Box<dyn Vitals>,
    /// What asks about unknown sessions need. Without it, this host neither asks
    /// nor answers.
    pub fast_path: Option<FastPath>,
}

/// Begins a new incarnation of this host above a given one, and remembers it.
pub type Raise = Box<dyn FnMut(u64) -> io::Result<Stream> + Send>;

/// Why gossip could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sockets could not be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refused something that always works.
    #[error("gossip: {0}")]
    Io(#[from] io::Error),
    /// Nobody tells of this host's sessions any more.
    #[error("gossip: the reader of session events has ended")]
    EventsEnded,
}

/// Opens the sockets and prepares gossip. `events` tells of this host's sessions,
/// first of all that are open now, in one message; `table` is where routes go;
/// `carriers`, with what comes out of them, bring snapshots from host to host.
/// Nothing is said to anyone until the task runs.
pub fn open<T: Table>(
    options: Options,
    table: T,
    events: mpsc::Receiver<News>,
    raise: Raise,
    (carriers, inbox): (Carriers, Inbox),
) -> Result<(Handle, Task<T>), Error> {
    let sockets = Sockets::open(options.me.address, options.multicast)?;
    let (handle, ends) = handle::handle();
    let task = Task {
        options,
        applier: Applier::new(table),
        events,
        raise,
        sockets,
        carried: Carried::new(carriers, inbox),
        alarm: Alarm::new()?,
        ends,
    };
    Ok((handle, task))
}

/// Gossip, ready to run.
pub struct Task<T> {
    options: Options,
    applier: Applier<T>,
    events: mpsc::Receiver<News>,
    raise: Raise,
    sockets: Sockets,
    carried: Carried,
    alarm: Alarm,
    ends: Ends,
}

impl<T: Table> Task<T> {
    /// Runs until this host has left.
    pub async fn run(mut self) -> Result<(), Error> {
        let clock = Clock::start();
        let first = self.events.recv().await.ok_or(Error::EventsEnded)?;
        let opened = first.events.into_iter().filter_map(|event| match event {
            LocalEvent::Opened {
                ids, generation, ..
            } => Some((ids, narrow(generation))),
            LocalEvent::Closed { .. } => None,
        });
        let sessions =
            opened.flat_map(|(ids, generation)| ids.each().map(move |id| (id, generation)));
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let config = Config {
            me: self.options.me,
            seeds: self.options.seeds,
            keys: self.options.keys,
            multicast: self.options.multicast.is_some(),
            void_after: self.options.void_after,
            kernel_dead_after: self.options.kernel_dead_after,
            claims_max: self.options.claims_max,
            random,
        };
        let routes = self.options.routes.into_iter();
        let has_seeds = config.seeds.iter().any(|seed| seed.host != config.me.host);
        let driver = self.options.fast_path.map(Driver::start).transpose()?;
        let mut node = Node::new(clock.now(), clock.wall(), config, sessions, routes);
        node.remember(clock.now(), self.options.remembered);
        let running = Running {
            driver,
            node,
            applier: self.applier,
            events: self.events,
            raise: self.raise,
            sockets: self.sockets,
            carried: self.carried,
            ends: self.ends,
            hosts_version: None,
            retry_at: 0,
            leaving: Vec::new(),
            reports: Reports::default(),
            vitals: self.options.vitals,
            completeness: vitals::Standing::new(clock.now(), has_seeds),
            minded: None,
            full: false,
            beat_at: 0,
            clock,
        };
        running.run(self.alarm).await
    }
}

struct Running<T> {
    node: Node,
    driver: Option<Driver>,
    applier: Applier<T>,
    events: mpsc::Receiver<News>,
    raise: Raise,
    sockets: Sockets,
    carried: Carried,
    ends: Ends,
    /// The version of the hosts that was told last.
    hosts_version: Option<u64>,
    retry_at: u64,
    leaving: Vec<oneshot::Sender<()>>,
    reports: Reports,
    vitals: Box<dyn Vitals>,
    completeness: vitals::Standing,
    /// What of liveness is minded.
    minded: Option<Mind>,
    /// What was told last of room in the tables.
    full: bool,
    beat_at: u64,
    clock: Clock,
}

impl<T: Table> Running<T> {
    async fn run(mut self, mut alarm: Alarm) -> Result<(), Error> {
        let mut commands_open = true;
        loop {
            let more = self.turn()?;
            if self.node.has_left() {
                for told in self.leaving.drain(..) {
                    // Whoever asked may have gone.
                    let _ = told.send(());
                }
                return Ok(());
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let now = self.clock.now();
            let next = self.node.next_time().min(self.next_retry());
            let next = next.min(self.beat_at);
            tokio::select! {
                command = self.ends.commands.recv(), if commands_open => match command {
                    Some(command) => self.command(command),
                    None => commands_open = false,
                },
                Ok(()) = self.ends.mind.changed() => {}
                events = self.events.recv(), if self.leaving.is_empty() => {
                    let events = events.ok_or(Error::EventsEnded)?;
                    self.local(events);
                }
                packets = parked(&mut self.driver) => {
                    driver::take_in(&mut self.node, self.clock.now(), packets);
                }
                result = self.sockets.readable() => result?,
                brought = self.carried.next() => self.carried(brought),
                result = alarm.wait(now, next) => result?,
            }
        }
    }

    /// Takes in what has come, a bounded amount of everything, and does what
    /// follows from it. Says whether there is more to do at once.
    fn turn(&mut self) -> Result<bool, Error> {
        let began = self.clock.now();
        let now = began;
        let mut more = self.sockets.receive(DATAGRAMS_PER_TURN, |from, bytes| {
            self.node.receive(now, from, bytes);
        });
        for _ in 0..EVENTS_PER_TURN {
            match self.events.try_recv() {
                Ok(events) => self.local(events),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) if self.leaving.is_empty() => {
                    return Err(Error::EventsEnded);
                }
                Err(mpsc::error::TryRecvError::Disconnected) => break,
            }
        }
        if let Some(driver) = &mut self.driver {
            for packets in driver.parked_now() {
                driver::take_in(&mut self.node, now, packets);
            }
            driver.answer(now, &mut self.node);
        }
        for _ in 0..CARRIED_PER_TURN {
            let Some(brought) = self.carried.try_next() else {
                break;
            };
            self.carried(brought);
        }
        for _ in 0..COMMANDS_PER_TURN {
            // That nobody can ask any more is seen where the task waits.
            let Ok(command) = self.ends.commands.try_recv() else {
                break;
            };
            self.command(command);
        }
        // After the datagrams: a host that was stopped for a while must not take
        // those that it has not listened to for dead.
        let now = self.clock.now();
        if self.node.next_time() <= now {
            self.node.on_time(now);
        }
        self.void(began);
        more |= self.routes(now);
        if let Some(driver) = &mut self.driver {
            driver.give_back(now, &mut self.node);
        }
        self.flush();
        self.notes(now);
        self.flush();
        self.carry();
        self.tell_hosts();
        self.beat(now);
        self.mind(now);
        self.tell_standing();
        Ok(more)
    }

    /// Tells, at intervals, that this loop runs and what it knows.
    fn beat(&mut self, now: u64) {
        if now < self.beat_at {
            return;
        }
        self.beat_at = now + BEAT_INTERVAL;
        self.sockets.tend(now);
        self.vitals.beat();
        let sight = Sight {
            alive: self.in_state(membership::State::Alive),
            down: self.in_state(membership::State::Down),
            behind: self.is_behind(),
        };
        if let Some(synced) = self.completeness.look(now, sight) {
            self.vitals.synced(synced);
        }
        let full = self.lacks_room();
        if full != self.full {
            self.full = full;
            self.vitals.full(full);
        }
    }

    /// Ends the routes to hosts that were found void in a turn that began then.
    fn void(&mut self, began: u64) {
        while let Some(host) = self.node.poll_void() {
            let entries = self.applier.void(host);
            let took_us = self.clock.now() - began;
            tracing::info!(%host, entries, took_us, "no entry leads to a void host any more");
        }
    }

    /// Puts routes in force, a bounded number. Says whether some are left.
    fn routes(&mut self, now: u64) -> bool {
        for _ in 0..ROUTES_PER_TURN {
            let Some((id, owner)) = self.node.poll_route() else {
                break;
            };
            if self.node.take_wanted(id) {
                self.applier.apply_asked(id, owner);
            } else {
                self.applier.apply(id, owner);
            }
        }
        let anyway = self.retry_at <= now;
        if anyway {
            self.retry_at = now + RETRY_INTERVAL;
        }
        let gossip = self.node.gossip();
        self.applier.retry(anyway, |id| gossip.route(id));
        let left = self.node.gossip().routes_waiting() > 0;
        if !left {
            self.node.routes_applied(self.clock.wall());
        }
        left
    }

    fn next_retry(&self) -> u64 {
        if self.applier.unplaced() > 0 {
            self.retry_at
        } else {
            u64::MAX
        }
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.node.poll_transmit() {
            self.sockets.send(transmit.to, &transmit.bytes);
        }
    }

    fn notes(&mut self, now: u64) {
        let mut above = None;
        while let Some(note) = self.node.poll_note() {
            above = above.max(self.reports.note(now, &note));
        }
        let Some(above) = above else { return };
        match (self.raise)(above) {
            Ok(stream) => self.node.restart(now, stream),
            Err(error) => self.reports.raise_failed(now, above, &error),
        }
    }

    fn tell_hosts(&mut self) {
        let version = self.node.hosts_version();
        if self.hosts_version != Some(version) {
            self.hosts_version = Some(version);
            self.ends.hosts.send_replace(Arc::new(self.host_statuses()));
        }
    }

    fn command(&mut self, command: Command) {
        // Whoever asked may have stopped waiting: then nobody needs the answer.
        match command {
            Command::Leave(hold, told) => {
                self.leaving.push(told);
                self.node.leave(self.clock.now(), hold);
            }
            Command::Rekey(keys, told) => {
                self.node.rekey(*keys);
                let _ = told.send(());
            }
            Command::Set(tunables, told) => {
                self.node.set(self.clock.now(), *tunables);
                let _ = told.send(());
            }
            Command::AddOffers(offers, told) => {
                self.node.add_offers(self.clock.now(), offers);
                let _ = told.send(());
            }
            Command::Drain(draining, told) => {
                self.node.set_draining(self.clock.now(), draining);
                let _ = told.send(());
            }
            Command::Status(answer) => {
                let _ = answer.send(Box::new(self.status()));
            }
            Command::Hosts(answer) => {
                let _ = answer.send(self.host_statuses());
            }
            Command::Owner(id, answer) => {
                let gossip = self.node.gossip();
                let _ = answer.send(OwnerStatus {
                    owner: gossip.owner(id),
                    claims: gossip.claims(id),
                });
            }
        }
    }
}

async fn parked(driver: &mut Option<Driver>) -> Packets {
    match driver {
        Some(driver) => driver.parked().await,
        None => std::future::pending().await,
    }
}

impl Table for Owners {
    fn set(&mut self, id: SessionId, owner: HostId) -> Result<(), TableFull> {
        Ok(Self::set(self, id, owner)?)
    }

    fn set_asked(&mut self, id: SessionId, owner: HostId) -> Result<bool, TableFull> {
        Ok(Self::set_asked(self, id, owner)?)
    }

    fn clear(&mut self, id: SessionId) {
        Self::clear(self, id);
    }

    fn void(&mut self, owner: HostId) -> u32 {
        Self::void(self, owner)
    }
}

impl From<OwnersFull> for TableFull {
    fn from(_: OwnersFull) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests;
