//! `ASK`: packets that the kernel side cannot decide on, as they come.
//!
//! The task drains the ring in batches and hands each packet to whoever decides
//! on its kind: packets of unknown sessions to those that ask the POP, fragments
//! to those that hold them until their datagram's way is known. Nothing waits: a
//! packet is soon worth nothing, because its sender sends it again, so what a
//! receiver has no room for is dropped and counted.

use std::{
    io,
    mem::size_of,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{Map, MapData, RingBuf};
use homing_common::park::{PARKED_FRAME_MAX, Parked, Why};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{clock::monotonic_ns, map_io};

/// Packets that are handed on together at most.
const BATCH: usize = 64;
/// Batches that may wait at a receiver: some eight megabytes of frames.
pub const BATCHES_WAITING: usize = 64;
/// A packet that has waited for so long is dropped: its sender has sent it again.
const AGE_MAX_NS: u64 = 1_000_000_000;

/// A packet that the kernel side handed over.
#[derive(Clone)]
pub struct Packet {
    /// What the kernel side knows of it.
    pub head: Parked,
    /// Its bytes from the Ethernet header on; none with [`Why::Decided`].
    pub frame: Vec<u8>,
}

/// Packets of one kind, in the order in which they came.
pub type Packets = Vec<Packet>;

/// The reader of the ring.
pub struct ParkedReader {
    ring: RingBuf<MapData>,
    counters: Arc<ParkedCounters>,
}

/// What the reader counts.
#[derive(Default, Debug)]
pub struct ParkedCounters {
    /// Packets of unknown sessions read.
    pub unknown: AtomicU64,
    /// Fragments, and decisions on fragmented datagrams, read.
    pub fragments: AtomicU64,
    /// Packets dropped because they had waited for too long.
    pub stale: AtomicU64,
    /// Packets dropped because their receiver had no room.
    pub behind: AtomicU64,
    /// Records of a kind or size that this agent does not know: the programs are
    /// of another version.
    pub malformed: AtomicU64,
}

impl ParkedReader {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        Ok(Self {
            ring: RingBuf::try_from(map).map_err(map_io)?,
            counters: Arc::default(),
        })
    }

    /// What the reader counts, also while it runs.
    pub fn counters(&self) -> Arc<ParkedCounters> {
        self.counters.clone()
    }

    /// Hands packets of unknown sessions to `unknown`, and fragments with the
    /// decisions on them to `fragments`. Returns when nobody receives any more.
    pub async fn run(
        self,
        unknown: mpsc::Sender<Packets>,
        fragments: mpsc::Sender<Packets>,
    ) -> io::Result<()> {
        // SAFETY: the ring owns its file descriptor, keeps it open, and always
        // returns that same one.
        let mut ring = unsafe { AsyncFd::register(self.ring)? };
        let counters = self.counters;
        loop {
            let mut news = News::default();
            tokio::select! {
                guard = ring.readable_mut() => {
                    let mut guard = guard?;
                    if drain(guard.get_inner_mut(), &counters, &mut news) < BATCH {
                        guard.clear_ready();
                    }
                }
                () = async { tokio::join!(unknown.closed(), fragments.closed()); } => return Ok(()),
            }
            deliver(&unknown, news.unknown, &counters);
            deliver(&fragments, news.fragments, &counters);
            // The ring may refill as fast as it is drained.
            tokio::task::yield_now().await;
        }
    }
}

#[derive(Default)]
struct News {
    unknown: Packets,
    fragments: Packets,
}

/// Takes in records until there are no more, or a batch is full.
fn drain(ring: &mut RingBuf<MapData>, counters: &ParkedCounters, news: &mut News) -> usize {
    let now_ns = monotonic_ns();
    let mut count = 0;
    while count < BATCH
        && let Some(record) = ring.next()
    {
        count += 1;
        let Some((packet, why)) = parse(&record) else {
            counters.malformed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        if now_ns.saturating_sub(packet.head.at_ns) > AGE_MAX_NS {
            counters.stale.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (counter, packets) = match why {
            Why::Unknown => (&counters.unknown, &mut news.unknown),
            Why::Fragment | Why::Decided => (&counters.fragments, &mut news.fragments),
            // It has a ring of its own.
            Why::Moving => {
                counters.malformed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        packets.push(packet);
    }
    count
}

fn deliver(to: &mpsc::Sender<Packets>, packets: Packets, counters: &ParkedCounters) {
    let count = packets.len() as u64;
    if count > 0 && to.try_send(packets).is_err() {
        counters.behind.fetch_add(count, Ordering::Relaxed);
    }
}

/// Reads a record. The kernel side reserves records of a few sizes, so bytes may
/// follow the frame.
pub(super) fn parse(record: &[u8]) -> Option<(Packet, Why)> {
    let (head, rest) = record.split_at_checked(size_of::<Parked>())?;
    // SAFETY: there are as many bytes as a `Parked` has, and any bytes are one.
    let head = unsafe { head.as_ptr().cast::<Parked>().read_unaligned() };
    let why = [Why::Unknown, Why::Fragment, Why::Decided, Why::Moving]
        .into_iter()
        .find(|&why| why as u16 == head.why)?;
    let captured = head.captured as usize;
    if captured > PARKED_FRAME_MAX {
        return None;
    }
    let frame = rest.get(..captured)?.to_vec();
    Some((Packet { head, frame }, why))
}

#[cfg(test)]
mod tests {
    use homing_common::{
        net::{Address, Port, TCP},
        park::Datagram,
        session::Tuple,
    };

    use super::*;

    fn record(why: u16, captured: u32, rest: &[u8]) -> Vec<u8> {
        let address = Address::v4([10, 0, 0, 1]);
        let head = Parked {
            tuple: Tuple::new(address, Port::new(1), address, Port::new(2), TCP),
            datagram: Datagram::default(),
            id: 7,
            at_ns: 9,
            ifindex: 3,
            captured,
            why,
            from: 4,
            flags: 0x10,
            zero: [0; 3],
        };
        // SAFETY: `Parked` is made of integers alone, without padding.
        let head = unsafe {
            std::slice::from_raw_parts((&raw const head).cast::<u8>(), size_of::<Parked>())
        };
        [head, rest].concat()
    }

    #[test]
    fn a_record_is_read_and_what_follows_its_frame_is_not() {
        let (packet, why) = parse(&record(1, 3, &[1, 2, 3, 0, 0])).unwrap();
        assert_eq!(why, Why::Unknown);
        assert_eq!(packet.frame, [1, 2, 3]);
        assert_eq!(
            (packet.head.id, packet.head.ifindex, packet.head.from),
            (7, 3, 4)
        );
        let (packet, why) = parse(&record(3, 0, &[])).unwrap();
        assert_eq!((why, packet.frame.len()), (Why::Decided, 0));
    }

    #[test]
    fn records_that_contradict_themselves_are_not_read() {
        let whole = record(2, 3, &[1, 2, 3]);
        assert!(parse(&whole).is_some());
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_none());
        }
        assert!(parse(&record(0, 0, &[])).is_none());
        assert!(parse(&record(5, 0, &[])).is_none());
        let long = PARKED_FRAME_MAX + 1;
        assert!(parse(&record(1, long as u32, &vec![0; long])).is_none());
    }
}
