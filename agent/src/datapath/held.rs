//! Fragments that came before the first one of their datagram: held until the kernel
//! side has decided on that one, then given back to it.
//!
//! [`Held`] is pure: fragments, decisions and the time in, fragments to give back out.
//! [`run`] drives it. What is held is bounded in number, bytes and time; what does not
//! fit is dropped and counted, as the network drops fragments, and the sender sends its
//! datagram again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homing_common::park::{Datagram, Why};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    inject::Injector,
    parked::{Packet, Packets},
};

/// Fragments that are held at most.
const FRAGMENTS_MAX: usize = 4096;
/// Their bytes at most.
const BYTES_MAX: usize = 4 << 20;
/// Fragments of one datagram that are held at most: one of 64 KiB in packets of 1,280
/// bytes has 53.
const DATAGRAM_MAX: usize = 64;
/// For so long a fragment is held, and a decision is remembered.
const HOLD: Duration = Duration::from_secs(1);
/// Decisions that are remembered at most.
const DECIDED_MAX: usize = 4096;

/// Fragments that wait.
#[derive(Default)]
pub struct Held {
    /// Those of each datagram, and when the first of them was taken in.
    waiting: HashMap<Datagram, (Duration, Vec<Packet>)>,
    /// The same times in their order; some of what has gone meanwhile.
    since: VecDeque<(Duration, Datagram)>,
    /// Datagrams decided on lately, and when: a fragment may be read after the decision
    /// that it waits for.
    decided: HashMap<Datagram, Duration>,
    decided_since: VecDeque<(Duration, Datagram)>,
    fragments: usize,
    bytes: usize,
}

/// What became of a fragment that was taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It waits.
    Held,
    /// Its datagram is decided on: it is among those to give back.
    Ready,
    /// There was no room.
    Refused,
}

impl Held {
    /// Takes in a fragment. If its datagram is decided on, it is appended to `out`.
    pub fn fragment(&mut self, now: Duration, packet: Packet, out: &mut Vec<Packet>) -> Taken {
        let datagram = packet.head.datagram;
        if self.decided.contains_key(&datagram) {
            out.push(packet);
            return Taken::Ready;
        }
        let len = packet.frame.len();
        if self.fragments >= FRAGMENTS_MAX || self.bytes + len > BYTES_MAX {
            return Taken::Refused;
        }
        let (_, waiting) = self.waiting.entry(datagram).or_insert((now, Vec::new()));
        if waiting.len() >= DATAGRAM_MAX {
            return Taken::Refused;
        }
        if waiting.is_empty() {
            self.since.push_back((now, datagram));
        }
        waiting.push(packet);
        self.fragments += 1;
        self.bytes += len;
        Taken::Held
    }

    /// Takes in a decision. The fragments that waited for it are appended to `out`, in
    /// the order in which they came.
    pub fn decided(&mut self, now: Duration, datagram: Datagram, out: &mut Vec<Packet>) {
        if self.decided.len() < DECIDED_MAX && self.decided.insert(datagram, now).is_none() {
            self.decided_since.push_back((now, datagram));
        }
        out.append(&mut self.take(&datagram));
    }

    /// Drops what has waited for too long; returns how many fragments.
    pub fn expire(&mut self, now: Duration) -> usize {
        let mut dropped = 0;
        while let Some(&(since, datagram)) = self.since.front()
            && now >= since + HOLD
        {
            self.since.pop_front();
            // What waits under this name may have come later, and then has a place of
            // its own in the row.
            let waits = self.waiting.get(&datagram);
            if waits.is_some_and(|(first, _)| *first == since) {
                dropped += self.take(&datagram).len();
            }
        }
        while let Some(&(since, datagram)) = self.decided_since.front()
            && now >= since + HOLD
        {
            self.decided_since.pop_front();
            self.decided.remove(&datagram);
        }
        dropped
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let rows = [self.since.front(), self.decided_since.front()];
        rows.into_iter().flatten().map(|(at, _)| *at + HOLD).min()
    }

    fn take(&mut self, datagram: &Datagram) -> Vec<Packet> {
        let (_, taken) = self.waiting.remove(datagram).unwrap_or_default();
        self.fragments -= taken.len();
        self.bytes -= taken.iter().map(|packet| packet.frame.len()).sum::<usize>();
        taken
    }
}

/// What holding fragments counts.
#[derive(Default, Debug)]
pub struct HeldCounters {
    held: AtomicU64,
    released: AtomicU64,
    expired: AtomicU64,
    refused: AtomicU64,
}

impl HeldCounters {
    /// Every counter: its name, what it counts, its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let counters = [
            (
                "fragments_held",
                "Fragments held until their datagram's first one comes",
                &self.held,
            ),
            (
                "fragments_released",
                "Fragments given back once their datagram was decided on",
                &self.released,
            ),
            (
                "fragments_expired",
                "Fragments dropped because the first one did not come in time",
                &self.expired,
            ),
            (
                "fragments_refused",
                "Fragments dropped because there was no room to hold them",
                &self.refused,
            ),
        ];
        let value = |(name, help, count): (_, _, &AtomicU64)| {
            let count = count.load(Ordering::Relaxed);
            (name, help, count)
        };
        counters.map(value).into_iter()
    }
}

/// Holds the fragments that `from` brings, and gives them back when it brings the
/// decision on their datagram. Returns when nobody sends any more.
pub async fn run(
    mut from: mpsc::Receiver<Packets>,
    injector: Injector,
    counters: Arc<HeldCounters>,
) {
    let mut held = Held::default();
    let start = Instant::now();
    loop {
        let deadline = held.deadline();
        let due = async {
            match deadline {
                Some(at) => sleep_until(start + at).await,
                None => std::future::pending().await,
            }
        };
        let mut ready = Vec::new();
        tokio::select! {
            packets = from.recv() => {
                let Some(packets) = packets else { return };
                for packet in packets {
                    take_in(&mut held, start.elapsed(), packet, &mut ready, &counters);
                }
            }
            () = due => {}
        }
        let expired = held.expire(start.elapsed()) as u64;
        counters.expired.fetch_add(expired, Ordering::Relaxed);
        for packet in ready {
            counters.released.fetch_add(1, Ordering::Relaxed);
            // A refusal is counted by the injector; the sender sends it again.
            let _ = injector.reenter(packet.head.ifindex, &packet.frame);
        }
    }
}

fn take_in(
    held: &mut Held,
    now: Duration,
    packet: Packet,
    ready: &mut Vec<Packet>,
    counters: &HeldCounters,
) {
    if packet.head.why == Why::Decided as u16 {
        held.decided(now, packet.head.datagram, ready);
        return;
    }
    let counter = match held.fragment(now, packet, ready) {
        Taken::Held | Taken::Ready => &counters.held,
        Taken::Refused => &counters.refused,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use homing_common::{
        net::{Address, Port},
        park::Parked,
        session::Tuple,
    };
    use proptest::prelude::*;

    use super::*;

    fn datagram(rest: u64) -> Datagram {
        Datagram {
            source: [1; 16],
            rest,
        }
    }

    /// A fragment that is known by its number.
    fn fragment(of: u64, number: u32) -> Packet {
        let nobody = Address([0; 16]);
        Packet {
            head: Parked {
                tuple: Tuple::new(nobody, Port([0; 2]), nobody, Port([0; 2]), 0),
                datagram: datagram(of),
                id: 0,
                at_ns: 0,
                ifindex: 1,
                captured: 4,
                why: Why::Fragment as u16,
                from: 0,
                flags: 0,
                zero: [0; 3],
            },
            frame: number.to_be_bytes().to_vec(),
        }
    }

    fn numbers(packets: &[Packet]) -> Vec<u32> {
        let number = |packet: &Packet| u32::from_be_bytes(packet.frame[..].try_into().unwrap());
        packets.iter().map(number).collect()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_waits_comes_out_in_order_and_what_comes_late_at_once() {
        let (mut held, mut out) = (Held::default(), Vec::new());
        for number in 0..3 {
            let taken = held.fragment(ms(0), fragment(1, number), &mut out);
            assert_eq!(taken, Taken::Held);
        }
        held.fragment(ms(0), fragment(2, 9), &mut out);
        assert!(out.is_empty());
        held.decided(ms(5), datagram(1), &mut out);
        assert_eq!(numbers(&out), [0, 1, 2]);
        // Read after the decision that it waits for.
        let taken = held.fragment(ms(6), fragment(1, 3), &mut out);
        assert_eq!(taken, Taken::Ready);
        assert_eq!(numbers(&out), [0, 1, 2, 3]);
        assert_eq!(held.expire(ms(999)), 0);
        assert_eq!(held.deadline(), Some(ms(1000)));
        assert_eq!(held.expire(ms(1000)), 1);
        // The decision is forgotten a little later.
        assert_eq!(held.expire(ms(1005)), 0);
        assert_eq!(held.deadline(), None);
        let taken = held.fragment(ms(1006), fragment(1, 4), &mut out);
        assert_eq!(taken, Taken::Held);
    }

    #[test]
    fn everything_is_bounded() {
        let (mut held, mut out) = (Held::default(), Vec::new());
        for number in 0..DATAGRAM_MAX as u32 {
            let taken = held.fragment(ms(0), fragment(0, number), &mut out);
            assert_eq!(taken, Taken::Held);
        }
        let taken = held.fragment(ms(0), fragment(0, 0), &mut out);
        assert_eq!(taken, Taken::Refused);
        let mut taken = 0;
        for of in 1..=2 * FRAGMENTS_MAX as u64 {
            taken += usize::from(held.fragment(ms(0), fragment(of, 0), &mut out) == Taken::Held);
        }
        assert_eq!(taken, FRAGMENTS_MAX - DATAGRAM_MAX);
        for of in 0..2 * DECIDED_MAX as u64 {
            held.decided(ms(0), datagram(1_000_000 + of), &mut out);
        }
        assert_eq!(held.decided.len(), DECIDED_MAX);
        assert_eq!(held.expire(ms(1000)), FRAGMENTS_MAX);
        assert_eq!((held.fragments, held.bytes), (0, 0));
        assert!(held.waiting.is_empty() && held.since.is_empty() && held.decided.is_empty());
        let mut large = fragment(1, 0);
        large.frame = vec![0; BYTES_MAX + 1];
        assert_eq!(held.fragment(ms(1000), large, &mut out), Taken::Refused);
    }

    proptest! {
        /// Each fragment comes out once or expires, and comes out only after the
        /// decision on its own datagram.
        #[test]
        fn no_fragment_is_lost_doubled_or_early(
            steps in prop::collection::vec((0u64..4, 0u64..3, 0u64..600), 1..200),
        ) {
            let (mut held, mut out) = (Held::default(), Vec::new());
            let (mut now, mut number) = (Duration::ZERO, 0);
            let mut of: BTreeMap<u32, u64> = BTreeMap::new();
            let mut decided: BTreeSet<u64> = BTreeSet::new();
            let mut gone = 0;
            for (step, datagram_number, wait) in steps {
                now += ms(wait);
                gone += held.expire(now);
                if step == 0 {
                    decided.insert(datagram_number);
                    held.decided(now, datagram(datagram_number), &mut out);
                } else {
                    let taken = held.fragment(now, fragment(datagram_number, number), &mut out);
                    prop_assert_ne!(taken, Taken::Refused);
                    of.insert(number, datagram_number);
                    number += 1;
                }
                for number in numbers(&out) {
                    prop_assert!(decided.contains(&of[&number]));
                }
            }
            now += HOLD;
            gone += held.expire(now);
            let given = numbers(&out);
            let distinct: BTreeSet<_> = given.iter().collect();
            prop_assert_eq!(distinct.len(), given.len());
            prop_assert_eq!(given.len() + gone, of.len());
            prop_assert_eq!(held.deadline(), None);
        }
    }
}
