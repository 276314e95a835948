//! The end of flows: UDP sessions that have gone idle.
//!
//! The kernel side notes in `SESSIONS` when it last saw a packet of a flow, either
//! way. The agent looks through the map, removes what is idle, and has the POP
//! told. It also keeps flows from taking all of `SESSIONS`: a sender who forges
//! many clients must not keep TCP sessions from being recorded.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homing_common::{
    flow::Flow,
    net::UDP,
    session::{Session, Tuple},
};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

use super::{clock::monotonic_ns, control::ControlMap, events::Found, sessions::Sessions};

/// The least time between two looks. After a second at most, flows that have taken
/// too much are noticed.
const EVERY: Duration = Duration::from_secs(1);
/// Looking takes at most one part in so many of a CPU.
const SHARE_OF_TIME: u32 = 50;
/// Flows may take one part in so many of `SESSIONS`.
const SHARE_OF_ROOM: u32 = 2;

/// Looks for flows that have gone idle.
pub struct Flows {
    sweep: Sweep,
    found: mpsc::Sender<Found>,
    counters: Arc<FlowCounters>,
}

/// What the search counts.
#[derive(Default, Debug)]
pub struct FlowCounters {
    /// Flows that are sessions, as of the last look.
    pub open: AtomicU64,
    /// Flows that went idle.
    pub expired: AtomicU64,
}

struct Sweep {
    sessions: Arc<Sessions>,
    control: ControlMap,
    idle: watch::Receiver<Duration>,
    room: u32,
}

impl Flows {
    /// A search for flows without a packet for `idle`, whatever that is at each look, in a
    /// `SESSIONS` of `entries`; what it ends it tells `found`.
    pub fn new(
        sessions: Arc<Sessions>,
        control: ControlMap,
        idle: watch::Receiver<Duration>,
        entries: u32,
        found: mpsc::Sender<Found>,
    ) -> Self {
        Self {
            sweep: Sweep {
                sessions,
                control,
                idle,
                room: entries / SHARE_OF_ROOM,
            },
            found,
            counters: Arc::default(),
        }
    }

    /// What the search counts, also while it runs.
    pub fn counters(&self) -> Arc<FlowCounters> {
        self.counters.clone()
    }

    /// Runs until nobody is told any more.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let begun = Instant::now();
            let (sweep, done) = spawn_blocking(move || {
                let done = self.sweep.run(monotonic_ns());
                (self.sweep, done)
            })
            .await
            .map_err(io::Error::other)?;
            self.sweep = sweep;
            let (ended, open) = done?;
            self.counters.open.store(open, Ordering::Relaxed);
            self.counters
                .expired
                .fetch_add(ended.len() as u64, Ordering::Relaxed);
            if !ended.is_empty() && self.found.send(Found::Ended(ended)).await.is_err() {
                return Ok(());
            }
            let pause = EVERY.max(begun.elapsed() * SHARE_OF_TIME);
            tokio::select! {
                () = sleep_until(begun + pause) => {}
                () = self.found.closed() => return Ok(()),
            }
        }
    }
}

impl Sweep {
    /// Ends what is idle; returns that, and how many flows are left.
    fn run(&self, now_ns: u64) -> io::Result<(Vec<(Tuple, u64)>, u64)> {
        // When a flow was last seen is noted only so often.
        let idle_ns = self.idle.borrow().as_nanos() as u64 + Flow::SEEN_EVERY_NS;
        let is_idle = |session: &Session| now_ns.saturating_sub(session.seen_ns) > idle_ns;
        let mut open = 0;
        let mut idle: Vec<(Tuple, u64)> = Vec::new();
        self.sessions.scan(|tuple, session| {
            if tuple.protocol == UDP {
                open += 1;
                if is_idle(&session) {
                    idle.push((tuple, session.cookie));
                }
            }
        })?;
        let mut ended = Vec::new();
        for (tuple, cookie) in idle {
            // The scan may have taken a while: a flow that has gone on stays. One
            // that goes on in this very moment is announced anew.
            let now = self.sessions.get(&tuple)?;
            if now.is_some_and(|session| is_idle(&session))
                && self.sessions.forget(&tuple, cookie)?.is_some()
            {
                ended.push((tuple, cookie));
            }
        }
        let open = open - ended.len() as u64;
        self.control.set_flows_full(open >= u64::from(self.room));
        Ok((ended, open))
    }
}
