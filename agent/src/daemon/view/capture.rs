//! Packets captured, for whoever reads them.

use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use anyhow::{Context as _, Result, anyhow};
use axum::body::Bytes;
use nix::net::if_::if_indextoname;
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::AgentView;
use crate::{
    admin::{CaptureOrder, Refusal, pcapng::Pcapng},
    datapath::{
        Error,
        beside::capture::{Capturing, Packet},
        inject::Injector,
        load::Ground,
    },
};

/// Pieces of the file that may wait to be written: of some hundred packets each.
const PIECES_WAITING: usize = 64;
/// How long whoever reads may take for the last piece.
const LAST_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Captures, one at a time.
pub(in crate::daemon) struct Captures {
    ground: Arc<Ground>,
    injector: Injector,
    /// Ends the one that there is.
    present: Arc<Mutex<Option<Arc<Notify>>>>,
}

impl Captures {
    pub fn new(ground: Arc<Ground>, injector: Injector) -> Self {
        Self {
            ground,
            injector,
            present: Arc::default(),
        }
    }

    /// Has the present one come to its end; whether there is one.
    fn end(&self) -> bool {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.as_ref().inspect(|end| end.notify_one()).is_some()
    }

    /// The right to capture, until it is dropped.
    fn claim(&self) -> Result<Claim, Refusal> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if present.is_some() {
            let why =
                "somebody captures packets already: one at a time; `POST /capture/end` ends it";
            return Err(Refusal::Conflict(why.into()));
        }
        let end = Arc::new(Notify::new());
        *present = Some(end.clone());
        Ok(Claim {
            present: self.present.clone(),
            end,
        })
    }
}

/// That one captures, and nobody else.
struct Claim {
    present: Arc<Mutex<Option<Arc<Notify>>>>,
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
    pub(super) async fn captured(
        &self,
        order: CaptureOrder,
    ) -> Result<mpsc::Receiver<Bytes>, Refusal> {
        let claim = self.captures.claim()?;
        let (ground, injector) = (self.captures.ground.clone(), self.captures.injector.clone());
        let wanted = order.wanted.clone();
        // Waits for the verifier.
        let begun = spawn_blocking(move || Capturing::begin(&ground, injector, &wanted));
        let begun: Result<Capturing, Error> = begun.await.context("capturing")?;
        let capturing = begun.map_err(|error| anyhow!(error).context("cannot capture packets"))?;
        let file = Pcapng::begin(order.wanted.snap, name_of)?;
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
            match capture.run(&claim.end, until).await {
                Ok(packets) => tracing::info!(packets, "packets are captured no more"),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    fix = "capture again, if packets are still wanted; the file that there is lacks the last ones",
                    "capturing packets has ended early"
                ),
            }
        });
        Ok(pieces)
    }

    /// Has capturing come to its end; whether somebody captures.
    pub(super) fn capture_ended(&self) -> bool {
        self.captures.end()
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
        self.send()?;
        while self.left > 0 {
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                packets = self.capturing.next() => self.take(&packets?)?,
                () = end.notified() => break,
                () = over => break,
                () = self.to.closed() => return Ok(self.file.packets()),
            }
        }
        self.capturing.stop();
        while self.left > 0 {
            let packets = self.capturing.rest();
            if packets.is_empty() {
                break;
            }
            self.take(&packets)?;
        }
        let counts = self.capturing.counts()?;
        self.file.end(SystemTime::now(), counts, self.behind)?;
        let last = Bytes::from(self.file.take());
        // Who does not read it does not want it.
        let _ = timeout(LAST_WITHIN, self.to.send(last)).await;
        Ok(self.file.packets())
    }

    fn take(&mut self, packets: &[Packet]) -> Result<()> {
        if packets.is_empty() {
            return Ok(());
        }
        if self.to.capacity() == 0 {
            self.behind += packets.len() as u64;
            return Ok(());
        }
        for packet in packets
            .iter()
            .take(usize::try_from(self.left).unwrap_or(usize::MAX))
        {
            self.file.packet(packet)?;
            self.left -= 1;
        }
        self.send()
    }

    /// Hands on what was written. There is room, or nobody reads any more.
    fn send(&mut self) -> Result<()> {
        let piece = Bytes::from(self.file.take());
        match self.to.try_send(piece) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(anyhow!("a piece found no room")),
        }
    }
}

fn name_of(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| format!("interface {index}"))
}
