//! Packets captured, for whoever reads them.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use axum::body::Bytes;
use nix::net::if_::if_indextoname;
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};

use super::AgentView;
use crate::{
    admin::{CaptureOrder, Captured, Refusal, pcapng::Pcapng},
    datapath::{
        Error,
        beside::capture::{Capturing, Packet},
        inject::Injector,
        load::Ground,
    },
};

/// The file is handed on in pieces of some 64 KiB …
const PIECE: usize = 64 << 10;
/// … of which so many may wait to be written: 4 MiB.
const PIECES_WAITING: usize = 64;
/// As many pieces as a batch of packets makes at the most.
const PIECES_OF_BATCH: usize = 24;
/// How long whoever reads may take for what is left at the end: shorter than a graceful stop
/// of the agent waits for answers.
const LAST_WITHIN: Duration = Duration::from_millis(1_500);

/// Captures, one at a time.
pub(in crate::daemon) struct Captures {
    ground: Arc<Ground>,
    injector: Injector,
    /// The one that there is.
    present: Arc<Mutex<Option<Present>>>,
    /// How many there were.
    begun: AtomicU64,
}

/// A capture that goes on.
struct Present {
    number: u64,
    end: Arc<Notify>,
}

impl Captures {
    pub fn new(ground: Arc<Ground>, injector: Injector) -> Self {
        Self {
            ground,
            injector,
            present: Arc::default(),
            begun: AtomicU64::new(0),
        }
    }

    /// Has the present one come to its end, if it has this number; whether there is such.
    fn end(&self, number: Option<u64>) -> bool {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &&Present| number.is_none_or(|number| one.number == number);
        let present = present.as_ref().filter(is_it);
        present.inspect(|one| one.end.notify_one()).is_some()
    }

    /// The right to capture, until it is dropped.
    fn claim(&self) -> Result<Claim, Refusal> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if present.is_some() {
            let why = "somebody captures packets already: one at a time. To end that one: curl \
                       --unix-socket /run/homing/homing.sock -X POST http://homing/capture/end";
            return Err(Refusal::Conflict(why.into()));
        }
        let number = 1 + self.begun.fetch_add(1, Relaxed);
        let end = Arc::new(Notify::new());
        *present = Some(Present {
            number,
            end: end.clone(),
        });
        Ok(Claim {
            present: self.present.clone(),
            number,
            end,
        })
    }
}

/// That one captures, and nobody else.
struct Claim {
    present: Arc<Mutex<Option<Present>>>,
    number: u64,
    end: Arc<Notify>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let present = self.present.lock();
        *present.unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl AgentView {
    /// Captures until nobody reads, it is told to end, or what was ordered is there.
    pub(super) async fn captured(&self, order: CaptureOrder) -> Result<Captured, Refusal> {
        let claim = self.captures.claim()?;
        let (ground, injector) = (self.captures.ground.clone(), self.captures.injector.clone());
        let wanted = order.wanted.clone();
        // Waits for the verifier. The claim goes where the work goes: who asked may go away.
        let begun = spawn_blocking(move || {
            let capturing = Capturing::begin(&ground, injector, &wanted)?;
            Ok::<_, Error>((capturing, claim))
        });
        let begun = begun.await.context("capturing")?;
        let (capturing, claim) =
            begun.map_err(|error| anyhow!(error).context("cannot capture packets"))?;
        let file = Pcapng::begin(order.wanted.snap, name_of)?;
        let number = claim.number;
        let (to, pieces) = mpsc::channel(PIECES_WAITING);
        tracing::info!(wanted = ?order.wanted, "packets are captured");
        tokio::spawn(async move {
            let capture = Capture {
                capturing,
                file,
                to,
                left: order.count.map_or(u64::MAX, Into::into),
                behind: 0,
            };
            let until = order.duration.map(|duration| Instant::now() + duration);
            let ended = capture.run(&claim.end, until).await;
            drop(claim);
            match ended {
                Ok(packets) => tracing::info!(packets, "packets are captured no more"),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    fix = "capture again, if packets are still wanted; the file that there is lacks the last ones",
                    "capturing packets has ended early"
                ),
            }
        });
        Ok(Captured { number, pieces })
    }

    /// Has the capture of this number, or whichever there is, come to its end; whether there
    /// was one.
    pub(in crate::daemon) fn capture_ended(&self, number: Option<u64>) -> bool {
        self.captures.end(number)
    }
}

struct Capture {
    capturing: Capturing,
    file: Pcapng,
    to: mpsc::Sender<Bytes>,
    /// Packets that are still wanted.
    left: u64,
    /// Packets that there was no room for.
    behind: u64,
}

impl Capture {
    async fn run(mut self, end: &Notify, until: Option<Instant>) -> Result<u64> {
        // The file's head, so that who reads knows that it has begun.
        self.send();
        let read = loop {
            if self.left == 0 {
                break true;
            }
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                packets = self.capturing.next() => self.take(packets?)?,
                () = end.notified() => break true,
                () = over => break true,
                () = self.to.closed() => break false,
            }
        };
        self.capturing.stop().await;
        if read {
            self.end().await?;
        }
        Ok(self.file.packets())
    }

    /// Reads to the end what was captured, and sums up.
    async fn end(&mut self) -> Result<()> {
        let last = Instant::now() + LAST_WITHIN;
        while self.left > 0 && Instant::now() < last {
            let packets = self.capturing.rest();
            if packets.is_empty() {
                break;
            }
            // Nobody else's packets wait for these.
            let room = timeout_at(last, self.to.reserve_many(PIECES_OF_BATCH)).await;
            drop(room);
            self.take(packets)?;
        }
        let counts = self.capturing.counts()?;
        self.file.end(SystemTime::now(), counts, self.behind)?;
        let piece = Bytes::from(self.file.take());
        // Who does not read it does not want it.
        let _ = timeout_at(
            last.max(Instant::now() + LAST_WITHIN / 2),
            self.to.send(piece),
        )
        .await;
        Ok(())
    }

    fn take(&mut self, packets: Vec<Packet>) -> Result<()> {
        for packet in packets {
            if self.left == 0 {
                break;
            }
            if self.file.waiting() >= PIECE && !self.send() {
                self.behind += 1;
                continue;
            }
            self.file.packet(&packet)?;
            self.left -= 1;
        }
        self.send();
        Ok(())
    }

    /// Hands on what was written, if there is room; it waits otherwise.
    fn send(&mut self) -> bool {
        match self.to.try_reserve() {
            Ok(room) => {
                room.send(Bytes::from(self.file.take()));
                true
            }
            // Nobody reads any more.
            Err(mpsc::error::TrySendError::Closed(())) => {
                self.file.take();
                true
            }
            Err(mpsc::error::TrySendError::Full(())) => false,
        }
    }
}

fn name_of(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| format!("interface {index}"))
}
