//! What connects asks to the fast path: packets come in parked, the kernel answers
//! questions, and packets go back.
//!
//! Giving a packet back takes some ten microseconds, which gossip must not wait
//! for, so a thread of its own does that, in order.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use homing_common::ask::Question;
use tokio::sync::mpsc;

use super::{Counters, Frame, Release, Way};
use crate::{
    datapath::{
        answer::Answerer,
        clock::monotonic_ns,
        frame::{segment_numbers, without_tunnel},
        inject::Injector,
        parked::{Packet, Packets, ParkedCounters},
    },
    gossip::node::Node,
};

/// Packets that wait to be given back.
const RETURNS_WAITING: usize = 4096;
/// Batches of parked packets taken in in one turn.
const BATCHES_PER_TURN: usize = 8;

/// The parts of the fast path that asks need.
pub struct FastPath {
    /// Packets of unknown sessions.
    pub parked: mpsc::Receiver<Packets>,
    /// What their reader counts.
    pub reader: Arc<ParkedCounters>,
    /// Asks this host's kernel.
    pub answerer: Answerer,
    /// Gives packets back.
    pub injector: Injector,
}

/// The fast path in use by asks.
pub(in crate::gossip) struct Driver {
    parked: mpsc::Receiver<Packets>,
    reader: Arc<ParkedCounters>,
    answerer: Answerer,
    injector: Injector,
    returns: SyncSender<Release>,
    lost: Arc<AtomicU64>,
}

impl Driver {
    pub fn start(fast_path: FastPath) -> io::Result<Self> {
        let FastPath {
            parked,
            reader,
            answerer,
            injector,
        } = fast_path;
        let (returns, from) = sync_channel(RETURNS_WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let (losses, giver) = (lost.clone(), injector.clone());
        thread::Builder::new()
            .name("returns".into())
            .spawn(move || give_back(&from, &giver, &losses))?;
        Ok(Self {
            parked,
            reader,
            answerer,
            injector,
            returns,
            lost,
        })
    }

    /// Waits for parked packets. Pending for ever once there will be none.
    pub async fn parked(&mut self) -> Packets {
        match self.parked.recv().await {
            Some(packets) => packets,
            None => std::future::pending().await,
        }
    }

    /// Parked packets that are there already: a bounded number of batches.
    pub fn parked_now(&mut self) -> Vec<Packets> {
        let batches = std::iter::from_fn(|| self.parked.try_recv().ok());
        batches.take(BATCHES_PER_TURN).collect()
    }

    /// Puts what others ask to the kernel.
    pub fn answer(&mut self, now: u64, node: &mut Node) {
        while let Some(mut lookup) = node.poll_lookup() {
            match self.answerer.answer(&mut lookup.questions) {
                Ok(()) => node.looked_up(now, lookup),
                Err(error) => {
                    // Then nobody hears from this host, and nothing is reset.
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "the kernel does not answer what is asked");
                }
            }
        }
    }

    /// Gives packets back, unless routes must be put in force first.
    pub fn give_back(&mut self, now: u64, node: &mut Node) {
        while let Some(release) = node.poll_release(now) {
            if self.returns.try_send(release).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Adds what is counted here and in the fast path.
    pub fn count(&self, counters: &mut Counters) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        counters.ask_lost = read(&self.lost);
        counters.ask_refused = read(&self.injector.counters().refused);
        counters.ask_stale = read(&self.reader.stale);
        counters.ask_behind = read(&self.reader.behind);
    }
}

/// Hands parked packets to the node. `now` is the node's clock.
pub(in crate::gossip) fn take_in(node: &mut Node, now: u64, packets: Packets) {
    let monotonic = monotonic_ns();
    for Packet { head, frame } in packets {
        let age = monotonic.saturating_sub(head.at_ns) / 1_000;
        let tunnelled = head.from != 0;
        let numbers = segment_numbers(&frame, tunnelled).unwrap_or_default();
        let question = Question {
            tuple: head.tuple,
            id: head.id,
            seq: numbers.seq.to_be_bytes(),
            ack: numbers.ack.to_be_bytes(),
            flags: head.flags,
            found: 0,
            zero: [0; 6],
        };
        let frame = Frame {
            ifindex: head.ifindex,
            tunnelled,
            bytes: frame,
        };
        node.parked(now, now.saturating_sub(age), question, frame);
    }
}

/// Ends when nobody can give anything back any more.
fn give_back(from: &Receiver<Release>, injector: &Injector, lost: &AtomicU64) {
    while let Ok(Release { way, frame }) = from.recv() {
        // What the kernel refuses is counted by the injector.
        let _ = match way {
            Way::Reenter => injector.reenter(frame.ifindex, &frame.bytes),
            Way::Up if !frame.tunnelled => injector.up(frame.ifindex, &frame.bytes),
            Way::Up => match without_tunnel(&frame.bytes) {
                Some(bytes) => injector.up(frame.ifindex, &bytes),
                None => {
                    lost.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
            },
        };
    }
}
