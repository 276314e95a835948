//! `EVENTS`: what happens to this host's own sessions, as it happens.
//!
//! The task drains the ring in batches and hands on what is news. The ring is
//! bounded; what does not fit is lost and counted by the kernel side. The task
//! notices, and finds what was lost by a scan of `SESSIONS`, as it does at its
//! start for what happened while no agent ran. If whoever receives is slow, the
//! task waits, and the ring takes up the slack.

use std::{
    io,
    mem::size_of,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::maps::{Map, MapData, RingBuf};
use homing_common::{
    event::Event,
    maps::EVENTS_BYTES,
    outcome::Hook,
    session::{Session, Tuple},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    clock::monotonic_ns,
    local::{LocalEvent, News, SessionKeys, Tracker},
    map_io,
    sessions::Sessions,
    stats::Stats,
};

/// Events that are handed on together at most.
const BATCH: usize = 1024;
/// Events that the ring holds at most; each stands behind eight bytes of its own.
const CAPACITY: usize = EVENTS_BYTES as usize / (size_of::<Event>() + 8);
/// How often the task looks for lost events when no event wakes it.
const LOOK: Duration = Duration::from_millis(500);
/// The least time between two scans, so that a flood of sessions does not turn
/// into a flood of scans.
const BETWEEN_SCANS: Duration = Duration::from_secs(1);

/// What was found out about sessions by other ways than the ring.
pub enum Found {
    /// `SESSIONS` was changed by the agent: it must be scanned.
    Changed,
    /// The agent removed these sessions from `SESSIONS`, because they have ended: their
    /// tuples and cookies.
    Ended(Vec<(Tuple, u64)>),
    /// A session came here from another host: the agent has recorded it in `SESSIONS`.
    Adopted {
        /// Its tuple.
        tuple: Tuple,
        /// What is recorded of it.
        session: Session,
        /// Told when it is announced, and no route of this host leads elsewhere.
        done: oneshot::Sender<()>,
    },
    /// A session went to another host: the agent has removed it from `SESSIONS`, or found
    /// it removed.
    Left {
        /// Its tuple.
        tuple: Tuple,
        /// The cookie of the socket that it had here.
        cookie: u64,
        /// Told when this host claims it no more, and sends its packets to whoever does.
        done: oneshot::Sender<()>,
    },
}

/// Findings that may wait.
const FOUND_WAITING: usize = 16;

/// The reader of the ring.
pub struct Events {
    found_to: mpsc::Sender<Found>,
    found: mpsc::Receiver<Found>,
    ring: RingBuf<MapData>,
    sessions: Arc<Sessions>,
    stats: Arc<Stats>,
    counters: Arc<EventCounters>,
}

/// What the reader counts.
#[derive(Default, Debug)]
pub struct EventCounters {
    /// Events read.
    pub read: AtomicU64,
    /// Events of a kind or size that this agent does not know: the programs are
    /// of another version.
    pub unknown: AtomicU64,
    /// Scans of `SESSIONS`, the first one included.
    pub scans: AtomicU64,
}

impl Events {
    pub(super) fn open(map: Map, sessions: Arc<Sessions>, stats: Arc<Stats>) -> io::Result<Self> {
        let (found_to, found) = mpsc::channel(FOUND_WAITING);
        Ok(Self {
            found_to,
            found,
            ring: RingBuf::try_from(map).map_err(map_io)?,
            sessions,
            stats,
            counters: Arc::default(),
        })
    }

    /// What the reader counts, also while it runs.
    pub fn counters(&self) -> Arc<EventCounters> {
        self.counters.clone()
    }

    /// Where to send what is found out by other ways.
    pub fn finder(&self) -> mpsc::Sender<Found> {
        self.found_to.clone()
    }

    /// Tells `to` of every session that is open now, then of each that is opened
    /// or closed, in order, by its ids under `keys`. The first message is what is open at the start, and may be
    /// empty.
    /// Returns when nobody receives any more.
    pub async fn run(mut self, keys: SessionKeys, to: mpsc::Sender<News>) -> io::Result<()> {
        // SAFETY: the ring owns its file descriptor, keeps it open, and always
        // returns that same one.
        let mut ring = unsafe { AsyncFd::register(self.ring)? };
        let mut reader = Reader {
            tracker: Tracker::new(keys),
            counters: self.counters,
            last_scan: Instant::now(),
        };
        let mut lost = self.stats.hook(Hook::EventsLost)?;
        let mut scan_due = None;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let mut news = Vec::new();
        reader.drain(ring.get_mut(), CAPACITY, &mut news);
        reader.scan(&self.sessions, &mut news).await?;
        if to.send(news.into()).await.is_err() {
            return Ok(());
        }
        loop {
            let mut news = News::default();
            tokio::select! {
                biased;
                () = until(scan_due) => {
                    // What is in the ring now was sent before the scan begins.
                    // It must be taken in before, too, or the scan's news would
                    // be undone by older events.
                    reader.drain(ring.get_mut(), CAPACITY, &mut news.events);
                    reader.scan(&self.sessions, &mut news.events).await?;
                    scan_due = None;
                }
                guard = ring.readable_mut() => {
                    let mut guard = guard?;
                    if reader.drain(guard.get_inner_mut(), BATCH, &mut news.events) < BATCH {
                        guard.clear_ready();
                    }
                }
                Some(found) = self.found.recv() => match found {
                    Found::Changed => scan_due = scan_due.or(Some(reader.last_scan + BETWEEN_SCANS)),
                    Found::Ended(sessions) => {
                        reader.tracker.ended(&sessions, monotonic_ns(), &mut news.events);
                    }
                    Found::Adopted { tuple, session, done } => {
                        // Events of the tuple's earlier life come before.
                        reader.drain(ring.get_mut(), CAPACITY, &mut news.events);
                        let ids = reader.tracker.adopted(&tuple, &session, monotonic_ns(), &mut news);
                        news.done.push((ids, done));
                    }
                    Found::Left { tuple, cookie, done } => {
                        reader.drain(ring.get_mut(), CAPACITY, &mut news.events);
                        let ids = reader.tracker.left(&tuple, cookie, monotonic_ns(), &mut news);
                        news.done.push((ids, done));
                    }
                },
                _ = look.tick() => {}
                () = to.closed() => return Ok(()),
            }
            if !news.is_empty() && to.send(news).await.is_err() {
                return Ok(());
            }
            let lost_now = self.stats.hook(Hook::EventsLost)?;
            if lost_now != lost {
                tracing::warn!(
                    events = lost_now - lost,
                    fix = "nothing at once: a scan of SESSIONS finds what they told; if it goes on, look at the load of the machine and CPUQuota= of the unit",
                    "events of sessions were lost"
                );
                lost = lost_now;
                scan_due = scan_due.or(Some(reader.last_scan + BETWEEN_SCANS));
            }
        }
    }
}

struct Reader {
    tracker: Tracker,
    counters: Arc<EventCounters>,
    last_scan: Instant,
}

impl Reader {
    /// Takes in events until there are no more, but `limit` at most.
    fn drain(
        &mut self,
        ring: &mut RingBuf<MapData>,
        limit: usize,
        news: &mut Vec<LocalEvent>,
    ) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(item) = ring.next()
        {
            count += 1;
            let known = parse(&item).is_some_and(|event| self.tracker.event(&event, news));
            if !known {
                self.counters.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.counters
            .read
            .fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    async fn scan(
        &mut self,
        sessions: &Arc<Sessions>,
        news: &mut Vec<LocalEvent>,
    ) -> io::Result<()> {
        let sessions = sessions.clone();
        let found = spawn_blocking(move || {
            let mut found = Vec::new();
            sessions.scan(|tuple, session| found.push((tuple, session)))?;
            io::Result::Ok(found)
        })
        .await
        .map_err(io::Error::other)??;
        self.counters.scans.fetch_add(1, Ordering::Relaxed);
        self.tracker.scan(found, monotonic_ns(), news);
        self.last_scan = Instant::now();
        Ok(())
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: there are as many bytes as an `Event` has, and any bytes are one.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
