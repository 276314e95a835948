//! Keeps `SESSIONS` true to the kernel's sockets.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homing_common::{
    net::Service,
    outcome::Hook,
    session::{Session, SessionKey, Tuple},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Diag, Socket,
    audit::{Audit, Findings},
    diag::Destroyed,
};
use crate::{
    bound::Bound,
    datapath::{
        clock::monotonic_ns,
        events::Found,
        moving::MovingMap,
        sessions::{Recorded, Sessions},
        stats::Stats,
    },
};

/// What each socket could repeat.
static LOST: Bound = Bound::new();
static KEPT: Bound = Bound::new();

/// How often `SESSIONS` is compared with the sockets when nothing calls for it.
/// Reading 100,000 sockets takes a third of a second of one CPU, unoptimized.
const EVERY: Duration = Duration::from_secs(60);
/// The same while there are sessions that find no room.
const EVERY_WHILE_FULL: Duration = Duration::from_secs(5);
/// The least time between two comparisons.
const BETWEEN: Duration = Duration::from_secs(1);
/// How often the counter of sessions that found no room is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Compares, adopts and forgets; see the [module](super).
pub struct Watcher {
    auditor: Option<Auditor>,
    destroyed: AsyncFd<Destroyed>,
    listening: bool,
    /// By cookie: the sessions whose end only the kernel's notices tell.
    adopted: HashMap<u64, Tuple>,
    sessions: Arc<Sessions>,
    moving: Arc<MovingMap>,
    stats: Arc<Stats>,
    /// How often a session had found no room when the last comparison began.
    full: u64,
    found: mpsc::Sender<Found>,
    services: watch::Receiver<Arc<BTreeSet<Service>>>,
    counters: Arc<WatchCounters>,
}

/// What the watcher counts.
#[derive(Default, Debug)]
pub struct WatchCounters {
    /// Comparisons of `SESSIONS` with the kernel's sockets.
    pub audits: AtomicU64,
    /// Comparisons that failed.
    pub failed: AtomicU64,
    /// Sessions recorded because their sockets were found.
    pub adopted: AtomicU64,
    /// Sessions forgotten because their sockets were gone.
    pub forgotten: AtomicU64,
    /// Sessions that found no room, as of the last comparison.
    pub unrecorded: AtomicU64,
}

/// What a comparison changed.
#[derive(Default)]
struct Changes {
    adopted: Vec<Socket>,
    forgotten: u64,
    unrecorded: u64,
}

impl Watcher {
    /// A watcher over the sessions of `services`, also of those that come to be among them,
    /// which tells `found` what it changes, and leaves alone what is `moving`. In a runtime; the network namespace is
    /// that of this thread.
    pub fn open(
        sessions: Arc<Sessions>,
        moving: Arc<MovingMap>,
        stats: Arc<Stats>,
        key: SessionKey,
        services: watch::Receiver<Arc<BTreeSet<Service>>>,
        found: mpsc::Sender<Found>,
    ) -> io::Result<Self> {
        Ok(Self {
            auditor: Some(Auditor {
                diag: Diag::open()?,
                sessions: sessions.clone(),
                moving: moving.clone(),
                services: services.clone(),
                key,
            }),
            destroyed: register(Destroyed::open()?)?,
            listening: false,
            adopted: HashMap::new(),
            sessions,
            moving,
            stats,
            full: 0,
            found,
            services,
            counters: Arc::default(),
        })
    }

    /// What the watcher counts, also while it runs.
    pub fn counters(&self) -> Arc<WatchCounters> {
        self.counters.clone()
    }

    /// Compares now. Call it before the events are read for the first time, so that
    /// what is told first is the truth.
    pub async fn audit(&mut self) -> io::Result<()> {
        self.counters.audits.fetch_add(1, Ordering::Relaxed);
        self.full = self.stats.hook(Hook::SessionsFull)?;
        let findings = self.with_auditor(Auditor::compare).await?;
        self.adopted = by_cookie(&findings.adopted);
        // Before anything is adopted, so that the end of none goes unnoticed.
        let owned = !findings.adopted.is_empty() || !findings.unrecorded.is_empty();
        if owned && !self.listening {
            self.destroyed.get_ref().listen(true)?;
            self.listening = true;
        }
        // What was adopted before may have ended before the listening began.
        let changes = self.with_auditor(|auditor| auditor.apply(findings)).await?;
        self.adopted.extend(by_cookie(&changes.adopted));
        if self.listening && self.adopted.is_empty() {
            self.destroyed.get_ref().listen(false)?;
            self.listening = false;
        }
        let count = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        count(&self.counters.adopted, changes.adopted.len() as u64);
        count(&self.counters.forgotten, changes.forgotten);
        self.counters
            .unrecorded
            .store(changes.unrecorded, Ordering::Relaxed);
        if changes.adopted.is_empty() && changes.forgotten == 0 {
            return Ok(());
        }
        tracing::info!(
            adopted = changes.adopted.len(),
            forgotten = changes.forgotten,
            unrecorded = changes.unrecorded,
            "SESSIONS was not what the kernel's sockets are"
        );
        self.tell(Found::Changed).await;
        Ok(())
    }

    /// Compares now and then, for ever. What fails is logged, counted and tried
    /// again: packets do not depend on it.
    pub async fn run(mut self) -> io::Result<()> {
        let mut last = Instant::now();
        let mut due = last + EVERY;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                closed = next(&self.destroyed) => match closed {
                    Ok(cookies) => self.destroyed(cookies).await,
                    Err(error) => {
                        // Of what was lost, the next comparison knows.
                        if let Some(left_out) = LOST.take() {
                            tracing::warn!(
                                %error, left_out,
                                fix = "nothing: the next comparison with the kernel's sockets finds what they told",
                                "notices of destroyed sockets were lost"
                            );
                        }
                        due = due.min(last + BETWEEN);
                    }
                },
                () = sleep_until(due) => {
                    if let Err(error) = self.audit().await {
                        self.counters.failed.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(
                            %error,
                            fix = "load the modules tcp_diag and udp_diag (`modprobe -a tcp_diag udp_diag`); tried again within 60 s",
                            "cannot compare SESSIONS with the kernel's sockets"
                        );
                    }
                    last = Instant::now();
                    due = last + match self.counters.unrecorded.load(Ordering::Relaxed) {
                        0 => EVERY,
                        _ => EVERY_WHILE_FULL,
                    };
                }
                _ = look.tick() => {
                    let known = self.counters.unrecorded.load(Ordering::Relaxed) > 0;
                    if !known && self.stats.hook(Hook::SessionsFull)? != self.full {
                        due = due.min(last + BETWEEN);
                    }
                }
                // Connections of a service that is new may be there already.
                Ok(()) = self.services.changed() => due = due.min(last + BETWEEN),
                () = self.found.closed() => return Ok(()),
            }
        }
    }

    async fn destroyed(&mut self, cookies: Vec<u64>) {
        let mut ended = Vec::new();
        for cookie in cookies {
            let Some(tuple) = self.adopted.remove(&cookie) else {
                continue;
            };
            let forgotten = match self.moving.get(&tuple) {
                // Its source destroyed it. Whoever ends the move removes it.
                Ok(Some(_)) => Ok(None),
                Ok(None) => self.sessions.forget(&tuple, cookie),
                Err(error) => Err(error),
            };
            match forgotten {
                Ok(session) => ended.extend(session.map(|_| (tuple, cookie))),
                Err(error) => {
                    if let Some(left_out) = KEPT.take() {
                        tracing::warn!(
                            %error, ?tuple, left_out,
                            fix = "nothing: the next comparison with the kernel's sockets removes it",
                            "cannot remove a session that has ended from SESSIONS"
                        );
                    }
                }
            }
        }
        if !ended.is_empty() {
            self.tell(Found::Ended(ended)).await;
        }
    }

    async fn tell(&self, found: Found) {
        // Nobody listens any more: `run` notices.
        let _ = self.found.send(found).await;
    }

    /// Runs `work` where it may block.
    async fn with_auditor<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Auditor) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let lost = || io::Error::other("an earlier comparison was broken off");
        let mut auditor = self.auditor.take().ok_or_else(lost)?;
        let (auditor, result) = spawn_blocking(move || {
            let result = work(&mut auditor);
            (auditor, result)
        })
        .await
        .map_err(io::Error::other)?;
        self.auditor = Some(auditor);
        result
    }
}

fn register(destroyed: Destroyed) -> io::Result<AsyncFd<Destroyed>> {
    // SAFETY: the socket owns its file descriptor, keeps it open, and always returns
    // that same one.
    let registered = unsafe { AsyncFd::register_with_interest(destroyed, Interest::READABLE)? };
    Ok(registered)
}

async fn next(destroyed: &AsyncFd<Destroyed>) -> io::Result<Vec<u64>> {
    loop {
        let mut guard = destroyed.readable().await?;
        if let Ok(result) = guard.try_io(|destroyed| destroyed.get_ref().read()) {
            return result;
        }
    }
}

fn by_cookie(sockets: &[Socket]) -> HashMap<u64, Tuple> {
    let pairs = sockets.iter().map(|socket| (socket.cookie, socket.tuple));
    pairs.collect()
}

/// The part that blocks.
struct Auditor {
    diag: Diag,
    sessions: Arc<Sessions>,
    moving: Arc<MovingMap>,
    services: watch::Receiver<Arc<BTreeSet<Service>>>,
    key: SessionKey,
}

impl Auditor {
    fn compare(&mut self) -> io::Result<Findings> {
        let mut recorded = Vec::new();
        self.sessions
            .scan(|tuple, session| recorded.push((tuple, session)))?;
        let mut audit = Audit::new(recorded);
        let services = self.services.borrow().clone();
        self.diag.dump(|socket| {
            audit.socket(socket, services.contains(&socket.tuple.service()));
        })?;
        Ok(audit.finish())
    }

    fn apply(&mut self, findings: Findings) -> io::Result<Changes> {
        let mut changes = Changes::default();
        // First what makes room.
        for (tuple, session) in findings.missing {
            let cookie = session.cookie;
            self.forget_if_gone(&Socket { tuple, cookie }, &mut changes)?;
        }
        for socket in findings.adopted {
            self.forget_if_gone(&socket, &mut changes)?;
        }
        for socket in findings.unrecorded {
            // Restored, and not served yet. It is recorded before its move is over.
            if self.moving.get(&socket.tuple)?.is_some() {
                continue;
            }
            let session = Session {
                id: socket.tuple.id(&self.key),
                cookie: socket.cookie,
                opened_ns: monotonic_ns(),
                seen_ns: 0,
                generation: 0,
                flags: Session::ADOPTED,
            };
            match self.sessions.record(&socket.tuple, session)? {
                // It may have ended before its end was listened for.
                Recorded::New if self.diag.find(&socket)? => changes.adopted.push(socket),
                Recorded::New => {
                    self.sessions.forget(&socket.tuple, socket.cookie)?;
                }
                // The hooks were faster, or another socket has the tuple by now.
                Recorded::Present => {}
                Recorded::Full => changes.unrecorded += 1,
            }
        }
        Ok(changes)
    }

    fn forget_if_gone(&mut self, socket: &Socket, changes: &mut Changes) -> io::Result<()> {
        // What a move destroyed here is served elsewhere, and was not closed. Looked for in
        // this order: the entry of a move outlives the socket.
        if !self.diag.find(socket)? && self.moving.get(&socket.tuple)?.is_none() {
            let forgotten = self.sessions.forget(&socket.tuple, socket.cookie)?;
            changes.forgotten += u64::from(forgotten.is_some());
        }
        Ok(())
    }
}
