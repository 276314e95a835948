//! Packets of sessions that are moving here, as they wait: a lot for each session.
//!
//! Pure. What waits is bounded for each session and in all; beyond that the latest is
//! refused, because what came first is what the client's window hangs on, and it will
//! send the rest again.

use std::collections::HashMap;

use homing_common::session::Tuple;

use crate::datapath::parked::Packet;

/// Packets of one session that wait at most.
pub const SESSION_PACKETS_MAX: usize = 1024;
/// Their bytes at most: what a client at 1 Gbit/s sends in 8 ms.
pub const SESSION_BYTES_MAX: usize = 1 << 20;
/// Packets of all sessions that wait at most.
pub const PACKETS_MAX: usize = 32 << 10;
/// Their bytes at most.
pub const BYTES_MAX: usize = 32 << 20;

/// What waits.
#[derive(Default)]
pub struct Lots {
    lots: HashMap<Tuple, Lot>,
    packets: usize,
    bytes: usize,
}

#[derive(Default)]
struct Lot {
    packets: Vec<Packet>,
    bytes: usize,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It waits.
    Waits,
    /// Its session has as much waiting as it may.
    SessionFull,
    /// All sessions together have.
    Full,
}

impl Lots {
    /// Takes in a packet, behind those of its session that wait already.
    pub fn take_in(&mut self, packet: Packet) -> Taken {
        let len = packet.frame.len();
        if self.packets >= PACKETS_MAX || self.bytes + len > BYTES_MAX {
            return Taken::Full;
        }
        let lot = self.lots.entry(packet.head.tuple).or_default();
        if lot.packets.len() >= SESSION_PACKETS_MAX || lot.bytes + len > SESSION_BYTES_MAX {
            return Taken::SessionFull;
        }
        lot.packets.push(packet);
        lot.bytes += len;
        self.packets += 1;
        self.bytes += len;
        Taken::Waits
    }

    /// Gives out what waits for a session, in the order in which it came.
    pub fn take_out(&mut self, session: &Tuple) -> Vec<Packet> {
        let lot = self.lots.remove(session).unwrap_or_default();
        self.packets -= lot.packets.len();
        self.bytes -= lot.bytes;
        lot.packets
    }

    /// Packets of all sessions that wait.
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }
}

#[cfg(test)]
mod tests {
    use homing_common::{
        net::{Address, Port, TCP},
        park::{Datagram, Parked, Why},
    };
    use proptest::prelude::*;

    use super::*;

    fn session(number: u16) -> Tuple {
        let any = Address::v4([10, 0, 0, 1]);
        Tuple::new(any, Port::new(number), any, Port::new(443), TCP)
    }

    fn packet(number: u16, id: u64, len: usize) -> Packet {
        let head = Parked {
            tuple: session(number),
            datagram: Datagram::default(),
            id,
            at_ns: 0,
            ifindex: 1,
            captured: len as u32,
            why: Why::Moving as u16,
            from: 0,
            flags: 0,
            zero: [0; 3],
        };
        Packet {
            head,
            frame: vec![0; len],
        }
    }

    fn ids(packets: &[Packet]) -> Vec<u64> {
        packets.iter().map(|packet| packet.head.id).collect()
    }

    #[test]
    fn a_session_has_its_bounds_and_the_oldest_stay() {
        let mut lots = Lots::default();
        for id in 0..SESSION_PACKETS_MAX as u64 {
            assert_eq!(lots.take_in(packet(1, id, 60)), Taken::Waits);
        }
        assert_eq!(lots.take_in(packet(1, 9999, 60)), Taken::SessionFull);
        // Another one has room.
        for id in 0..SESSION_BYTES_MAX as u64 / 2048 {
            assert_eq!(lots.take_in(packet(2, id, 2048)), Taken::Waits);
        }
        assert_eq!(lots.take_in(packet(2, 9999, 1)), Taken::SessionFull);
        let first: Vec<u64> = (0..SESSION_PACKETS_MAX as u64).collect();
        assert_eq!(ids(&lots.take_out(&session(1))), first);
        assert_eq!(lots.take_in(packet(1, 7, 60)), Taken::Waits);
    }

    #[test]
    fn all_together_have_theirs() {
        let mut lots = Lots::default();
        let (mut number, mut waiting) = (0, 0);
        loop {
            match lots.take_in(packet(number, 0, 2048)) {
                Taken::Waits => waiting += 2048,
                Taken::SessionFull => number += 1,
                Taken::Full => break,
            }
        }
        assert_eq!(waiting, BYTES_MAX);
        let mut lots = Lots::default();
        for number in 0..PACKETS_MAX as u16 {
            assert_eq!(lots.take_in(packet(number, 0, 1)), Taken::Waits);
        }
        assert_eq!(lots.take_in(packet(0, 0, 1)), Taken::Full);
    }

    proptest! {
        #[test]
        fn what_is_taken_in_is_given_out_once_and_in_order(
            steps in prop::collection::vec((0u16..4, any::<bool>(), 0usize..3000), 0..200)
        ) {
            let mut lots = Lots::default();
            let mut model: HashMap<u16, Vec<u64>> = HashMap::new();
            for (id, (number, out, len)) in (0u64..).zip(steps) {
                if out {
                    let expected = model.remove(&number).unwrap_or_default();
                    prop_assert_eq!(ids(&lots.take_out(&session(number))), expected);
                } else if lots.take_in(packet(number, id, len)) == Taken::Waits {
                    model.entry(number).or_default().push(id);
                }
                prop_assert_eq!(lots.len(), model.values().map(Vec::len).sum::<usize>());
            }
            for (number, expected) in model {
                prop_assert_eq!(ids(&lots.take_out(&session(number))), expected);
            }
            prop_assert!(lots.is_empty() && lots.bytes == 0 && lots.lots.is_empty());
        }
    }
}
