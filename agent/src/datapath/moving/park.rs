//! `PARKED`: packets of sessions that are moving here, held until the session is
//! served, then given to its socket in the order in which they came.
//!
//! **What is guaranteed.** [`Park::serve`] feeds what waits while the session's entry
//! still has the programs park what arrives, and goes on until nothing waits any more;
//! then it removes the entry, and feeds what came in between. So a packet overtakes
//! another one only if both arrive between that last look and the removal, some
//! microseconds; TCP takes that for reordering. None is lost by it: what a program still
//! had in its hands when the entry went is fed when it is read.
//!
//! Packets are fed one after the other, by [`Injector::up`], which is over when the local
//! stack has taken the packet (unless the interface spreads them over CPUs by RPS, which
//! keeps a session's on one).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::maps::{Map, MapData, RingBuf};
use homing_common::{moving::Phase, park::Why, session::Tuple};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::sleep,
};

use super::{
    MovingMap,
    lots::{Lots, Taken},
};
use crate::datapath::{
    frame::without_tunnel,
    inject::Injector,
    map_io,
    parked::{Packet, parse},
    sessions::Sessions,
};

/// Records that are read at once at most, before somebody else gets a turn.
const BATCH: usize = 128;
/// Records that are read at once by whoever needs all that there are: more than the ring
/// has room for.
const ALL: usize = 8 << 10;
/// What comes in this time after some were read is read together.
const REST: Duration = Duration::from_millis(1);
/// How often [`Park::serve`] looks for more before it removes the entry: a client that
/// sends faster than it is fed must not keep its own session from being served.
const ROUNDS_MAX: usize = 8;

/// Holds parked packets. Clones share what they hold.
#[derive(Clone)]
pub struct Park(Arc<Inner>);

struct Inner {
    waiting: Mutex<Waiting>,
    /// The ring once more, to be told when there is something in it.
    ready: OwnedFd,
    moving: Arc<MovingMap>,
    sessions: Arc<Sessions>,
    injector: Injector,
    counters: ParkCounters,
}

struct Waiting {
    ring: RingBuf<MapData>,
    lots: Lots,
}

/// What holding packets counts.
#[derive(Default, Debug)]
pub struct ParkCounters {
    /// Packets that were held.
    pub held: AtomicU64,
    /// Packets fed to the sockets of their sessions.
    pub fed: AtomicU64,
    /// Of these, those that were read after their session was served.
    pub late: AtomicU64,
    /// Packets that the kernel refused to take back.
    pub refused: AtomicU64,
    /// Packets dropped because their move was given up.
    pub dropped: AtomicU64,
    /// Packets dropped because their session had as many waiting as it may.
    pub session_full: AtomicU64,
    /// Packets dropped because all sessions together had.
    pub full: AtomicU64,
    /// Records that this agent does not understand: the programs are of another version.
    pub malformed: AtomicU64,
}

impl Park {
    pub(in crate::datapath) fn open(
        map: Map,
        moving: Arc<MovingMap>,
        sessions: Arc<Sessions>,
        injector: Injector,
    ) -> io::Result<Self> {
        let ring = RingBuf::try_from(map).map_err(map_io)?;
        // SAFETY: the ring keeps its file descriptor open.
        let ready = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
        Ok(Self(Arc::new(Inner {
            waiting: Mutex::new(Waiting {
                ring,
                lots: Lots::default(),
            }),
            ready,
            moving,
            sessions,
            injector,
            counters: ParkCounters::default(),
        })))
    }

    /// What holding packets counts.
    pub fn counters(&self) -> &ParkCounters {
        &self.0.counters
    }

    /// How many packets wait, as far as they have been read.
    pub fn waiting(&self) -> usize {
        self.0.lock().lots.len()
    }

    /// Takes in what is parked, as it comes, for ever. In a runtime.
    pub async fn run(self) -> io::Result<()> {
        let ready = self.0.ready.as_fd().try_clone_to_owned()?;
        let ready = register(ready)?;
        loop {
            // Before the ring is read, so that what comes then is told again.
            ready.readable().await?.clear_ready();
            while self.0.lock().drain(&self.0, BATCH)? {
                yield_now().await;
            }
            // Whoever serves a session looks for itself.
            sleep(REST).await;
        }
    }

    /// The session is served here now: feeds its socket what waits, removes the entry of
    /// the move, and feeds what came meanwhile. Before, `SESSIONS` must have the session
    /// and its socket must take packets. Returns how many were fed, less those that were
    /// read late. Blocks, for some ten microseconds a packet.
    pub fn serve(&self, session: &Tuple, number: u64) -> io::Result<usize> {
        let inner = &*self.0;
        let mut waiting = inner.lock();
        let mut fed = 0;
        for _ in 0..ROUNDS_MAX {
            waiting.drain_all(inner)?;
            let packets = waiting.lots.take_out(session);
            if packets.is_empty() {
                break;
            }
            fed += inner.feed(&packets);
        }
        // If it sends faster than it is fed: what it sent until now.
        fed += inner.feed(&waiting.lots.take_out(session));
        inner.moving.end(session, number)?;
        // What came in between is fed as it is read: it is late.
        waiting.drain_all(inner)?;
        Ok(fed)
    }

    /// The move is given up: removes its entry, and drops what waits. Before, the
    /// session's socket must have gone from here. Returns how many packets were dropped;
    /// their client sends them again. Those that are read later are dropped then. Blocks.
    pub fn give_up(&self, session: &Tuple, number: u64) -> io::Result<usize> {
        let inner = &*self.0;
        let mut waiting = inner.lock();
        waiting.drain_all(inner)?;
        inner.moving.end(session, number)?;
        let dropped = waiting.lots.take_out(session).len();
        count(&inner.counters.dropped, dropped);
        Ok(dropped)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives packets to the local stack; returns how many it took.
    fn feed(&self, packets: &[Packet]) -> usize {
        let mut fed = 0;
        for packet in packets {
            let plain = match packet.head.from {
                0 => None,
                _ => without_tunnel(&packet.frame),
            };
            let frame = plain.as_ref().unwrap_or(&packet.frame);
            match self.injector.up(packet.head.ifindex, frame) {
                Ok(()) => fed += 1,
                Err(error) => {
                    count(&self.counters.refused, 1);
                    tracing::debug!(%error, "a parked packet is lost");
                }
            }
        }
        count(&self.counters.fed, fed);
        fed
    }
}

impl Waiting {
    /// Takes in all that is in the ring.
    fn drain_all(&mut self, inner: &Inner) -> io::Result<()> {
        self.drain(inner, ALL).map(drop)
    }

    /// Takes in so many packets at most; returns whether there may be more.
    fn drain(&mut self, inner: &Inner, most: usize) -> io::Result<bool> {
        let counters = &inner.counters;
        for _ in 0..most {
            let Some(record) = self.ring.next() else {
                return Ok(false);
            };
            let packet = match parse(&record) {
                Some((packet, Why::Moving)) => packet,
                _ => {
                    count(&counters.malformed, 1);
                    continue;
                }
            };
            drop(record);
            let session = packet.head.tuple;
            let phase = inner
                .moving
                .get(&session)?
                .and_then(|moving| moving.phase());
            if phase.is_some_and(Phase::parks) {
                let counter = match self.lots.take_in(packet) {
                    Taken::Waits => &counters.held,
                    Taken::SessionFull => &counters.session_full,
                    Taken::Full => &counters.full,
                };
                count(counter, 1);
            } else if inner.sessions.get(&session)?.is_some() {
                count(&counters.late, 1);
                let mut packets = self.lots.take_out(&session);
                packets.push(packet);
                inner.feed(&packets);
            } else {
                count(&counters.dropped, 1 + self.lots.take_out(&session).len());
            }
        }
        Ok(true)
    }
}

fn register(ring: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor owns what it refers to, and is always the same one.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
    Ok(registered)
}

fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
