//! What agents say to each other about message sockets: messages of the carriers' channel
//! [`MUX`](crate::mux::MUX).
//!
//! Most are **bundles**: records ([`homing_client::message::record`]) of one message
//! socket to message sockets of one host. A bundle is acknowledged as a whole, and what was
//! not taken of it is said in a note.

use bytes::{BufMut as _, Bytes, BytesMut};
use homing_client::message::{
    record::{self, Header, NotSent},
    wire::Refused,
};

/// Bytes of a bundle's header.
pub const HEADER_LEN: usize = 24;

/// The most records in a bundle: the longest note on it fits a carrier's.
pub const RECORDS_MAX: usize = 1024;

/// A message socket, within its host and for as long as the host's agent lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SocketId(pub u64);

const BUNDLE: u8 = 1;
const OPEN: u8 = 2;
const OPENED: u8 = 3;
const GO_ON: u8 = 4;
const CLOSED: u8 = 5;

/// What one agent says to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said<'a> {
    /// Records, each for the message socket that its `peer` names.
    Bundle {
        /// The sender's own, for when it hears of the bundle again.
        turn: u32,
        /// The message socket that they are from.
        from: SocketId,
        /// The fate of all its messages below this number is told: none of them will be
        /// sent again.
        settled: u64,
        /// The records.
        records: &'a [u8],
    },
    /// A message socket wants to be connected to a service.
    Open {
        /// The asker's own number.
        request: u32,
        /// The service.
        name: &'a str,
    },
    /// The answer.
    Opened {
        /// The asker's number.
        request: u32,
        /// The message socket of the service, and the longest message that it takes.
        result: Result<(SocketId, u32), Refused>,
    },
    /// There is room again for what one message socket sends to another.
    GoOn {
        /// The one that sends.
        to: SocketId,
        /// The one that has room.
        peer: SocketId,
    },
    /// A message socket is closed.
    Closed {
        /// Which.
        socket: SocketId,
    },
}

impl Said<'_> {
    /// As a message of a carrier.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_LEN);
        match *self {
            Self::Bundle {
                turn,
                from,
                settled,
                records,
            } => {
                out.put_slice(&bundle_header(turn, from, settled));
                out.put_slice(records);
            }
            Self::Open { request, name } => {
                out.put_slice(&[OPEN, 0, 0, 0]);
                out.put_u32(request);
                out.put_slice(name.as_bytes());
            }
            Self::Opened { request, result } => {
                let why = result.map_or_else(|why| why as u8, |_| 0);
                let (service, message_max) = result.unwrap_or_default();
                out.put_slice(&[OPENED, why, 0, 0]);
                out.put_u32(request);
                out.put_u64(service.0);
                out.put_u32(message_max);
            }
            Self::GoOn { to, peer } => {
                out.put_u64(u64::from(GO_ON) << 56);
                out.put_u64(to.0);
                out.put_u64(peer.0);
            }
            Self::Closed { socket } => {
                out.put_u64(u64::from(CLOSED) << 56);
                out.put_u64(socket.0);
            }
        }
        out.freeze()
    }
}

/// The header of a bundle.
pub fn bundle_header(turn: u32, from: SocketId, settled: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = BUNDLE;
    bytes[4..8].copy_from_slice(&turn.to_be_bytes());
    bytes[8..16].copy_from_slice(&from.0.to_be_bytes());
    bytes[16..].copy_from_slice(&settled.to_be_bytes());
    bytes
}

fn word(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u64::from_be_bytes(*word), rest))
}

fn last(bytes: &[u8]) -> Option<u64> {
    word(bytes).and_then(|(word, rest)| rest.is_empty().then_some(word))
}

/// Reads what another agent says; none where it is nonsense.
pub fn decode(bytes: &[u8]) -> Option<Said<'_>> {
    let (first, rest) = word(bytes)?;
    let [kind, a, b, c, number @ ..] = first.to_be_bytes();
    let request = u32::from_be_bytes(number);
    if [b, c] != [0, 0] || a != 0 && kind != OPENED {
        return None;
    }
    if request != 0 && !matches!(kind, BUNDLE | OPEN | OPENED) {
        return None;
    }
    if kind == OPEN {
        let name = std::str::from_utf8(rest).ok()?;
        return Some(Said::Open { request, name });
    }
    let (id, rest) = word(rest)?;
    let id = SocketId(id);
    Some(match kind {
        BUNDLE => {
            let (settled, records) = word(rest)?;
            Said::Bundle {
                turn: request,
                from: id,
                settled,
                records,
            }
        }
        OPENED => {
            let (message_max, []) = rest.split_first_chunk()? else {
                return None;
            };
            let message_max = u32::from_be_bytes(*message_max);
            let result = match a {
                0 => Ok((id, message_max)),
                why if (id, message_max) == Default::default() => Err(Refused::from_number(why)?),
                _ => return None,
            };
            Said::Opened { request, result }
        }
        GO_ON => Said::GoOn {
            to: id,
            peer: SocketId(last(rest)?),
        },
        CLOSED if bytes.len() == 16 => Said::Closed { socket: id },
        _ => return None,
    })
}

/// Why a record was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// There is no room now; [`Said::GoOn`] will say when there is.
    Wait,
    /// It is never taken.
    NotSent(NotSent),
}

/// The turn of a bundle; none if it is none.
pub fn turn_of(bundle: &[u8]) -> Option<u32> {
    let (first, _) = word(bundle)?;
    Some(first as u32)
}

/// Says of which records of a bundle were not taken, and why: 2 bytes the first's place,
/// 2 bytes how many, 1 byte why (0: wait), and so on.
#[derive(Default, Debug)]
pub struct Note(Vec<(u16, u16, Why)>);

impl Note {
    /// A record was not taken. Records are named in order.
    pub fn push(&mut self, place: usize, why: Why) {
        let place = place as u16;
        match self.0.last_mut() {
            Some((first, count, last)) if *last == why && *first + *count == place => *count += 1,
            _ => self.0.push((place, 1, why)),
        }
    }

    /// As it stands on the carrier; empty if all were taken.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 5);
        for (first, count, why) in &self.0 {
            bytes.put_u16(*first);
            bytes.put_u16(*count);
            bytes.put_u8(match why {
                Why::Wait => 0,
                Why::NotSent(why) => *why as u8,
            });
        }
        bytes
    }

    /// Reads a note; none where it is nonsense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (runs, []) = bytes.as_chunks::<5>() else {
            return None;
        };
        let runs = runs.iter().map(|&[a, b, c, d, why]| {
            let why = match why {
                0 => Why::Wait,
                why => Why::NotSent(NotSent::from_number(why)?),
            };
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), why))
        });
        runs.collect::<Option<_>>().map(Self)
    }

    /// Why the record at this place was not taken, if it was not.
    pub fn why(&self, place: usize) -> Option<Why> {
        let place = place as u32;
        let run = self.0.iter().find(|(first, count, _)| {
            let first = u32::from(*first);
            (first..first + u32::from(*count)).contains(&place)
        });
        run.map(|(.., why)| *why)
    }
}

/// The records of a bundle, in order.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || record::split(&mut bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let records = [7; 50];
        let (from, settled) = (SocketId(3), 9);
        let all = [
            Said::Bundle {
                turn: 6,
                from,
                settled,
                records: &records,
            },
            Said::Open {
                request: 5,
                name: "orders",
            },
            Said::Opened {
                request: 5,
                result: Ok((SocketId(8), 1 << 20)),
            },
            Said::Opened {
                request: 5,
                result: Err(Refused::NoService),
            },
            Said::GoOn {
                to: from,
                peer: SocketId(4),
            },
            Said::Closed { socket: from },
        ];
        for said in all {
            assert_eq!(decode(&said.encode()), Some(said));
        }
    }

    #[test]
    fn the_longest_note_fits_a_carriers() {
        let mut note = Note::default();
        for place in (0..RECORDS_MAX).step_by(2) {
            note.push(place, Why::Wait);
        }
        assert!(note.encode().len() <= crate::mux::frame::NOTE_MAX);
        assert_eq!(note.why(2), Some(Why::Wait));
        assert_eq!(note.why(3), None);
    }

    proptest! {
        #[test]
        fn any_note_comes_back(places in prop::collection::btree_map(0..RECORDS_MAX, 0..3_u8, 0..60)) {
            let mut note = Note::default();
            let why = |which: u8| match which {
                0 => Why::Wait,
                1 => Why::NotSent(NotSent::Gone),
                _ => Why::NotSent(NotSent::Full),
            };
            for (&place, &which) in &places {
                note.push(place, why(which));
            }
            let read = Note::decode(&note.encode()).unwrap();
            for place in 0..RECORDS_MAX {
                prop_assert_eq!(read.why(place), places.get(&place).map(|&which| why(which)));
            }
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0..7_u8) {
            let _ = (decode(&bytes), Note::decode(&bytes));
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            if let Some(said) = decode(&bytes) {
                prop_assert_eq!(&said.encode()[..], &bytes[..]);
            }
        }
    }
}
