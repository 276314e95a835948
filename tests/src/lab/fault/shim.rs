//! What becomes of each frame: rules, chance by seed, and the frames that are held.
//! Knows neither sockets nor the clock.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    super::plan::{Node, Plan},
    Fault, Faults, Traffic,
    frame::{Reader, Seen},
};
use crate::random::Random;

/// Frames that are held at most; more are lost, and counted as such.
const HELD_MAX: usize = 1 << 17;

/// What became of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Frames that no fault concerned.
    pub untouched: u64,
    /// Frames that a fault concerned and that went on, held or not.
    pub went_on: u64,
    /// Frames that a fault lost.
    pub lost: u64,
    /// Frames that went on twice.
    pub duplicated: u64,
    /// Frames that were lost because too many were held.
    pub overflowed: u64,
}

/// The rules at work.
pub struct Shim {
    reader: Reader,
    faults: Faults,
    /// For each pair of machines a chance of its own, so that what happens to one
    /// does not depend on how much passes between others.
    chances: HashMap<(Node, Node), Random>,
    held: BinaryHeap<Reverse<Held>>,
    /// Frames taken in so far: keeps the order among those that are due together.
    count: u64,
    tally: Tally,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Duration,
    number: u64,
    to: Node,
    frame: Vec<u8>,
}

impl Shim {
    /// No faults yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            reader: Reader::new(plan),
            faults: Faults::default(),
            chances: HashMap::new(),
            held: BinaryHeap::new(),
            count: 0,
            tally: Tally::default(),
        }
    }

    /// From here on these are the faults. Chances begin anew with another seed.
    pub fn set(&mut self, faults: Faults) {
        if faults.seed != self.faults.seed {
            self.chances.clear();
        }
        self.faults = faults;
    }

    /// What became of frames so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes in a frame on its way to a machine.
    pub fn take(&mut self, now: Duration, to: Node, frame: &[u8]) {
        let seen = self.reader.read(frame);
        let concerned = |fault: &&Fault| concerns(fault, &seen, to);
        let Some(fault) = self.faults.list.iter().find(concerned) else {
            self.tally.untouched += 1;
            self.hold(now, to, frame);
            return;
        };
        let seed = self.faults.seed;
        let chance = self
            .chances
            .entry((seen.from, to))
            .or_insert_with(|| Random::new(seed ^ pair(seen.from, to)));
        // Always the same number of draws for a frame, whatever the fault.
        let [lost, twice] =
            [fault.loss_percent, fault.duplicate_percent].map(|percent| hit(chance, percent));
        let jitter_us = fault.jitter_ms * 1000;
        let mut due = || {
            let more = chance.below(jitter_us + 1);
            now + Duration::from_micros(fault.delay_ms * 1000 + more)
        };
        let (first, second) = (due(), due());
        if lost {
            self.tally.lost += 1;
            return;
        }
        self.tally.went_on += 1;
        self.hold(first, to, frame);
        if twice {
            self.tally.duplicated += 1;
            self.hold(second, to, frame);
        }
    }

    /// The next frame that is due, and where it goes.
    pub fn due(&mut self, now: Duration) -> Option<(Node, Vec<u8>)> {
        let Reverse(next) = self.held.peek()?;
        if next.due > now {
            return None;
        }
        let Reverse(held) = self.held.pop()?;
        Some((held.to, held.frame))
    }

    /// When the next frame is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    fn hold(&mut self, due: Duration, to: Node, frame: &[u8]) {
        if self.held.len() >= HELD_MAX {
            self.tally.overflowed += 1;
            return;
        }
        self.count += 1;
        self.held.push(Reverse(Held {
            due,
            number: self.count,
            to,
            frame: frame.to_vec(),
        }));
    }
}

fn concerns(fault: &Fault, seen: &Seen, to: Node) -> bool {
    let among = |nodes: &[Node], node| nodes.is_empty() || nodes.contains(&node);
    let traffic = match fault.traffic {
        Traffic::All => true,
        Traffic::Gossip => seen.gossip,
        Traffic::Multicast => seen.gossip && seen.multicast,
    };
    traffic && among(&fault.from, seen.from) && among(&fault.to, to)
}

fn hit(chance: &mut Random, percent: f64) -> bool {
    const PARTS: u64 = 1 << 40;
    (chance.below(PARTS) as f64) < percent / 100.0 * PARTS as f64
}

/// A number for a pair of machines, whose bits differ much from those of others.
fn pair(from: Node, to: Node) -> u64 {
    let number = |node| match node {
        Node::Router => 0,
        Node::Host(n) => 1 << 16 | u64::from(n),
        Node::Client(n) => 2 << 16 | u64::from(n),
    };
    Random::new(number(from) << 32 | number(to)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const H1: Node = Node::Host(1);
    const H2: Node = Node::Host(2);

    fn shim(list: Vec<Fault>, seed: u64) -> Shim {
        let plan = crate::lab::Lab::builder().hosts(2).racks(1).plan;
        let mut shim = Shim::new(&plan);
        shim.set(Faults { seed, list });
        shim
    }

    /// Gossip from host 1 with a number in it.
    fn gossip(number: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 9, 0x02, 0x68, 0x6d, 1, 1, 11, 8, 0];
        frame.extend([0x45, 0, 0, 30, 0, 0, 0x40, 0, 8, 17, 0, 0]);
        frame.extend([10, 1, 1, 11, 10, 1, 1, 12]);
        frame.extend([0x1f, 0x0a, 0x1f, 0x0a, 0, 10, 0, 0]);
        frame.extend(number.to_be_bytes());
        frame
    }

    /// Sends `count` frames, one each millisecond, and says which arrive when.
    fn arrivals(shim: &mut Shim, to: Node, count: u16) -> Vec<(u64, u16)> {
        let mut arrived = Vec::new();
        for ms in 0..u64::from(count) + 1000 {
            let now = Duration::from_millis(ms);
            if ms < count.into() {
                shim.take(now, to, &gossip(ms as u16));
            }
            while let Some((_, frame)) = shim.due(now) {
                let number = [frame[frame.len() - 2], frame[frame.len() - 1]];
                arrived.push((ms, u16::from_be_bytes(number)));
            }
        }
        assert_eq!(shim.deadline(), None);
        arrived
    }

    #[test]
    fn without_a_fault_all_arrives_at_once_and_in_order() {
        let mut shim = shim(vec![Fault::gossip().from(&[2]).cut()], 1);
        let expected: Vec<_> = (0..500).map(|n| (u64::from(n), n)).collect();
        assert_eq!(arrivals(&mut shim, H2, 500), expected);
        assert_eq!(shim.tally().untouched, 500);
    }

    #[test]
    fn a_cut_has_a_direction_and_the_first_fault_counts() {
        let cut = Fault::gossip().from(&[1]).to(&[2]).cut();
        let mut shim = shim(vec![Fault::multicast(), cut, Fault::gossip()], 1);
        assert_eq!(arrivals(&mut shim, H2, 100), []);
        assert_eq!(arrivals(&mut shim, H1, 100).len(), 100);
        assert_eq!((shim.tally().lost, shim.tally().went_on), (100, 100));
    }

    #[test]
    fn loss_duplication_and_jitter_are_as_asked_and_repeat_with_the_seed() {
        let fault = Fault::gossip().loss(30.0).duplicate(10.0).delay(200, 20);
        let run = |seed| arrivals(&mut shim(vec![fault.clone()], seed), H2, 10_000);
        let arrived = run(7);
        assert_eq!(arrived, run(7));
        assert_ne!(arrived, run(8));
        let mut numbers: Vec<u16> = arrived.iter().map(|(_, number)| *number).collect();
        assert!(!numbers.is_sorted(), "nothing was reordered");
        assert!((7400..8000).contains(&numbers.len()), "{}", numbers.len());
        numbers.sort_unstable();
        numbers.dedup();
        assert!((6800..7200).contains(&numbers.len()), "{}", numbers.len());
        for (ms, number) in arrived {
            let held = ms - u64::from(number);
            assert!((200..=221).contains(&held), "held for {held} ms");
        }
    }

    #[test]
    fn frames_of_others_do_not_change_what_happens_to_a_pair() {
        let fault = Fault::gossip().loss(50.0);
        let alone = arrivals(&mut shim(vec![fault.clone()], 3), H2, 200);
        let mut shim = shim(vec![fault], 3);
        for _ in 0..77 {
            shim.take(Duration::ZERO, H1, &gossip(0));
        }
        while shim.due(Duration::ZERO).is_some() {}
        assert_eq!(arrivals(&mut shim, H2, 200), alone);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut shim = shim(vec![Fault::gossip().delay(1000, 0)], 1);
        for _ in 0..HELD_MAX + 5 {
            shim.take(Duration::ZERO, H2, &gossip(0));
        }
        assert_eq!(shim.tally().overflowed, 5);
    }
}
