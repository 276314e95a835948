//! The task that moves sessions: it drives [`Moves`], has their orders carried out by
//! this host's kernel ([`kernel`]) and applications, and sends their messages by carriers.
//!
//! Orders of one session are carried out one after the other ([`lanes`]). What takes the
//! kernel microseconds is done at once; what may block is done elsewhere, and so moves of
//! different sessions go on side by side.

mod applications;
mod claims;
mod commands;
mod handle;
mod hold;
mod kept;
mod kernel;
mod lanes;
mod orders;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use homing_client::Blob;
use homing_common::{
    host::HostId,
    moving::Moving,
    net::Service,
    session::{SessionKey, Tuple},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use self::{
    handle::Command, kept::Kept, kernel::Kernel, lanes::Lanes, orders::Finished, view::View,
};
use super::{
    Entry, Limits, MoveId, Moves, Order, Output, Phase, Reason,
    app::{Apps, Events},
};
use crate::{
    datapath::{
        clock::monotonic_ns,
        events::Found,
        moving::{MovingMap, park::Park},
        sessions::Sessions,
        stack::Stack,
    },
    gossip::{
        fates::{Fate, Fates},
        task::{Handle as Gossip, HostStatus, Mind, Standing},
    },
    mux::{Carriers, Inbox, MIGRATION, NotSent, Received},
    pop::Stream,
};

pub use self::handle::{Handle, Report, Status, Stopped};

/// Messages that are handled before anything else gets its turn.
const MESSAGES_AT_ONCE: usize = 64;
/// How long a message may wait for room at its carrier: it is repeated after that.
const QUEUE_WITHIN: Duration = Duration::from_millis(500);
/// What a state comes to at first, until there was one: bytes.
const STATE_GUESS: u32 = 4 << 10;

/// What the task needs of the rest of the agent.
pub struct Options {
    /// This host.
    pub host: HostId,
    /// The life of its agent.
    pub stream: Stream,
    /// What hashes sessions to ids.
    pub session_key: SessionKey,
    /// What the POP answers for.
    pub services: watch::Receiver<Arc<BTreeSet<Service>>>,
    /// What bounds moves.
    pub limits: watch::Receiver<Limits>,
    /// Where connections' states are kept, for the agent that comes after this one.
    pub folder: PathBuf,
    /// The journal.
    pub moving: Arc<MovingMap>,
    /// What holds parked packets.
    pub park: Park,
    /// This host's sessions.
    pub sessions: Arc<Sessions>,
    /// The way up to this host's own stack.
    pub stack: Stack,
    /// The applications of this host, and what they do.
    pub apps: (Apps, Events),
    /// The way to other agents, and what comes from them.
    pub carriers: (Carriers, Inbox),
    /// What knows the other hosts, and how this one stands among them.
    pub gossip: Gossip,
    /// Where it is told that sessions have come or gone.
    pub found: mpsc::Sender<Found>,
    /// Whether this host drains.
    pub draining: watch::Receiver<bool>,
}

/// Opens the task, with what an agent before this one left in the journal.
///
/// # Errors
///
/// The journal, or the folder of states, cannot be read.
pub fn open(options: Options) -> Result<(Handle, Task)> {
    let found = options.moving.list().context("cannot read MOVING")?;
    let found: Vec<Entry> = found.into_iter().filter_map(entry).collect();
    let coming = found.iter().filter(|entry| entry.phase.parks());
    let coming: Vec<_> = coming.map(|entry| entry_id(options.host, entry)).collect();
    let kept = Kept::open(&options.folder, &coming)
        .with_context(|| format!("cannot use the folder {}", options.folder.display()))?;
    let (apps, events) = options.apps;
    let (carriers, inbox) = options.carriers;
    let view = View {
        services: options.services,
        draining: options.draining,
        apps: apps.clone(),
        sessions: options.sessions.clone(),
        members: Vec::new(),
        standing: options.gossip.watch_standing(),
    };
    let mut limits = options.limits;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let moves = Moves::new(
        now(),
        options.host,
        options.stream.incarnation,
        u64::from_ne_bytes(random),
        *limits.borrow_and_update(),
        &found,
        &view,
    );
    if !found.is_empty() {
        tracing::info!(
            sessions = found.len(),
            "sessions were moving when the agent before ended; their moves are settled"
        );
    }
    let kernel = Kernel {
        moving: options.moving,
        park: options.park,
        sessions: options.sessions,
        session_key: options.session_key,
        stack: options.stack,
        kept,
    };
    let (handle, commands) = handle::handle();
    let task = Task {
        host: options.host,
        moves,
        view,
        limits,
        kernel: Arc::new(kernel),
        apps,
        events,
        carriers,
        inbox,
        hosts: options.gossip.watch_hosts(),
        standing: options.gossip.watch_standing(),
        gossip: options.gossip,
        found: options.found,
        judged: 0,
        commands,
        lanes: Lanes::default(),
        running: JoinSet::new(),
        waiters: HashMap::new(),
        fates: Fates::default(),
        state_bytes: STATE_GUESS,
        leaving: None,
    };
    Ok((handle, task))
}

/// See the module.
pub struct Task {
    host: HostId,
    moves: Moves,
    view: View,
    limits: watch::Receiver<Limits>,
    kernel: Arc<Kernel>,
    apps: Apps,
    events: Events,
    carriers: Carriers,
    inbox: Inbox,
    gossip: Gossip,
    hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
    standing: watch::Receiver<Standing>,
    found: mpsc::Sender<Found>,
    commands: mpsc::Receiver<Command>,
    lanes: Lanes,
    /// Orders that are being carried out.
    running: JoinSet<Finished>,
    /// Who waits for the end of a session's move.
    waiters: HashMap<Tuple, oneshot::Sender<Report>>,
    fates: Fates,
    /// How often the POP has held this host's kernel for dead, as far as they know.
    judged: u16,
    /// About how many bytes states come to.
    state_bytes: u32,
    /// Who waits for the end of what must end before this agent leaves.
    leaving: Option<oneshot::Sender<()>>,
}

impl Task {
    /// Runs until the agent's other parts have gone.
    ///
    /// # Errors
    ///
    /// A part that it stands on has ended.
    pub async fn run(mut self) -> Result<()> {
        self.hear_of_hosts();
        self.hear_of_standing();
        loop {
            self.pump();
            let next = self.moves.next_time();
            tokio::select! {
                received = self.inbox.next() => match received {
                    Some(received) => self.hear_some(received),
                    None => return Ok(()),
                },
                Some(finished) = self.running.join_next() => {
                    self.finished(finished.context("an order of a move was not carried out")?);
                }
                event = self.events.recv() => match event {
                    Some(event) => self.application(event),
                    None => return Ok(()),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return Ok(()),
                },
                changed = self.hosts.changed() => match changed {
                    Ok(()) => self.hear_of_hosts(),
                    Err(_) => return Ok(()),
                },
                changed = self.standing.changed() => match changed {
                    Ok(()) => self.hear_of_standing(),
                    Err(_) => return Ok(()),
                },
                Ok(()) = self.limits.changed() => {
                    let limits = *self.limits.borrow_and_update();
                    self.moves.set_limits(now(), limits, &self.view);
                }
                () = sleep_until(instant(next)), if next != u64::MAX => {
                    self.moves.on_time(now(), &self.view);
                }
            }
        }
    }

    /// Takes in a message, and what has come with it.
    fn hear_some(&mut self, first: Received) {
        self.hear(first);
        for _ in 1..MESSAGES_AT_ONCE {
            match self.inbox.try_next() {
                Some(received) => self.hear(received),
                None => return,
            }
        }
    }

    fn hear(&mut self, received: Received) {
        let Received { host, body, .. } = &received;
        self.moves.message(now(), &self.view, *host, body);
        received.wipe();
    }

    /// Takes in what membership says of other hosts.
    fn hear_of_hosts(&mut self) {
        let hosts = self.hosts.borrow_and_update().clone();
        self.view.set_members(&hosts);
        for fate in self.fates.look(&hosts) {
            match fate {
                Fate::Voided(host) => self.moves.voided(now(), &self.view, host),
                Fate::Left(host) => self.moves.left(now(), &self.view, host),
            }
        }
    }

    /// Takes in how this host stands itself.
    fn hear_of_standing(&mut self) {
        let standing = *self.standing.borrow_and_update();
        if standing.judged > self.judged {
            self.moves.voided(now(), &self.view, self.host);
        }
        self.judged = standing.judged;
    }

    /// Says what of the POP must be known for the moves that there are.
    fn mind(&self) {
        let hosts = self.moves.others();
        self.gossip.mind(Mind {
            standing: !hosts.is_empty(),
            frozen_at: self.moves.frozen_at(),
            hosts,
        });
    }

    /// Has everything done that has come out of the machines.
    fn pump(&mut self) {
        while let Some(output) = self.moves.poll() {
            match output {
                Output::Send { to, bytes } => self.send(to, bytes),
                Output::Order {
                    id,
                    tuple,
                    ticket,
                    order,
                } => self.give(id, tuple, ticket, order),
                Output::Ended(ended) => self.ended(ended),
            }
        }
        self.lanes.close(|id| !self.moves.has(id));
        self.mind();
        let load = self.moves.load();
        if load.from_here + load.to_here == 0
            && let Some(leaving) = self.leaving.take()
        {
            // Whoever asked may have stopped waiting.
            let _ = leaving.send(());
        }
    }

    /// Sends a message, at once if there is room. What is lost is repeated.
    fn send(&self, to: HostId, bytes: Blob) {
        let bytes = Bytes::from_owner(Wiped(bytes));
        match self.carriers.try_queue(to, MIGRATION, bytes.clone()) {
            Ok(_) => {}
            Err(NotSent::Full(_)) => {
                let carriers = self.carriers.clone();
                tokio::spawn(async move {
                    let queued = carriers.queue(to, MIGRATION, bytes);
                    // What came of it the carriers count.
                    let _ = timeout(QUEUE_WITHIN, queued).await;
                });
            }
            Err(error) => tracing::debug!(%to, %error, "a message about a move is not sent"),
        }
    }

    fn ended(&mut self, ended: super::Ended) {
        let id = ended.number.map(|number| MoveId {
            source: self.host,
            number,
        });
        let detail = id.and_then(|id| self.lanes.detail(id));
        let report = Report { ended, detail };
        report.log();
        if let Some(waiter) = self.waiters.remove(&ended.tuple) {
            // Whoever asked may have stopped waiting.
            let _ = waiter.send(report);
        }
    }

    /// The move of an entry that an agent before this one left, if there is one.
    fn move_of(&self, tuple: &Tuple, number: u64) -> Option<MoveId> {
        let found = self.kernel.moving.get(tuple).ok().flatten();
        let found = found.filter(|found| found.number == number)?;
        Some(entry_id(self.host, &entry((*tuple, found))?))
    }
}

/// An entry of the journal; none if a later build has written it in a phase that this one
/// does not know.
fn entry((tuple, moving): (Tuple, Moving)) -> Option<Entry> {
    let Some(phase) = moving.phase() else {
        tracing::error!(
            ?tuple,
            phase = moving.phase,
            fix = "start the later version again that began this move, and stop it once no session moves; until then the session is left as it is",
            "MOVING has a session in a phase that this agent does not know"
        );
        return None;
    };
    Some(Entry {
        tuple,
        number: moving.number,
        since: moving.since_ns / 1_000,
        generation: moving.generation,
        peer: moving.peer(),
        phase,
    })
}

fn entry_id(host: HostId, entry: &Entry) -> MoveId {
    let source = match entry.phase {
        Phase::Awaiting | Phase::Prepared => entry.peer,
        Phase::Frozen | Phase::Released => host,
    };
    MoveId {
        source,
        number: entry.number,
    }
}

/// The time, as the machines count it.
fn now() -> u64 {
    monotonic_ns() / 1_000
}

fn instant(at: u64) -> Instant {
    Instant::now() + Duration::from_micros(at.saturating_sub(now()))
}

/// Bytes that are wiped once they are sent.
struct Wiped(Blob);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
