//! Messages of gossip that carriers bring: a host's live set, asked for and given.
//! Sender and life are those that the carrier vouches for.

use bytes::{Buf, BufMut};

use super::{RECORD_LEN, Record, Records};
use crate::pop::Stream;

/// The longest of these messages.
pub const BULK_LEN_MAX: usize = 256 << 10;

const PULL_LEN: usize = 4 + 8 + 16 + 8;
const PART_HEAD_LEN: usize = 4 + 8 + 8 + 4 + 4;

/// The most records in a part of a snapshot.
pub const PART_RECORDS_MAX: usize = (BULK_LEN_MAX - PART_HEAD_LEN) / RECORD_LEN;

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// "Send me a snapshot of your live set."
    Pull(Pull),
    /// A part of a snapshot that was asked for.
    Part(Part<'a>),
}

/// A request for a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pull {
    /// Its number, which the asker gives to no other request in any of its lives.
    pub number: u64,
    /// The life whose live set it is.
    pub stream: Stream,
    /// The snapshot must hold the effect of every record below this; for zero, of
    /// every record that there is.
    pub have: u64,
}

/// A part of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// The number of the request.
    pub number: u64,
    /// The snapshot: it holds the effect of every record below this number.
    pub snapshot: u64,
    /// Which part.
    pub index: u32,
    /// How many parts there are: at least one.
    pub total: u32,
    /// Claims, in no order.
    pub records: Records<'a>,
}

mod kind {
    pub(super) const PULL: u8 = 1;
    pub(super) const PART: u8 = 2;
}

impl Pull {
    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(PULL_LEN);
        buf.put_u8(kind::PULL);
        buf.put_slice(&[0; 3]);
        buf.put_u64(self.number);
        buf.put_u64(self.stream.incarnation);
        buf.put_u64(self.stream.generation);
        buf.put_u64(self.have);
        buf
    }
}

impl Part<'_> {
    /// Writes it. It has at most [`PART_RECORDS_MAX`] records.
    pub fn encode(&self) -> Vec<u8> {
        let records = self.records.bytes();
        debug_assert!(self.records.len() <= PART_RECORDS_MAX && self.index < self.total);
        let mut buf = Vec::with_capacity(PART_HEAD_LEN + records.len());
        buf.put_u8(kind::PART);
        buf.put_slice(&[0; 3]);
        buf.put_u64(self.number);
        buf.put_u64(self.snapshot);
        buf.put_u32(self.index);
        buf.put_u32(self.total);
        buf.put_slice(records);
        buf
    }
}

/// Claims as they stand in messages.
pub fn encode_claims(claims: impl ExactSizeIterator<Item = Record>) -> Vec<u8> {
    let mut buf = Vec::with_capacity(claims.len() * RECORD_LEN);
    claims.for_each(|claim| claim.encode(&mut buf));
    buf
}

/// Reads a message; none if the bytes are no message.
pub fn decode(body: &[u8]) -> Option<Message<'_>> {
    let mut buf = body;
    let kind = buf.try_get_u8().ok()?;
    buf = buf.get(3..)?;
    let mut word = || buf.try_get_u64().ok();
    match kind {
        kind::PULL => {
            let pull = Pull {
                number: word()?,
                stream: Stream {
                    incarnation: word()?,
                    generation: word()?,
                },
                have: word()?,
            };
            buf.is_empty().then_some(Message::Pull(pull))
        }
        kind::PART => {
            let (number, snapshot) = (word()?, word()?);
            let (index, total) = (buf.try_get_u32().ok()?, buf.try_get_u32().ok()?);
            // A log begins at 1, and no log gets near the end of the numbers.
            let makes_sense = (1..=u64::MAX / 2).contains(&snapshot)
                && index < total
                && buf.len().is_multiple_of(RECORD_LEN);
            let records = Records::from_bytes(buf);
            makes_sense.then_some(Message::Part(Part {
                number,
                snapshot,
                index,
                total,
                records,
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;
    use proptest::prelude::*;

    use super::{super::GENERATION_MAX, *};

    proptest! {
        #[test]
        fn bulk_messages_survive_the_wire(
            w: [u64; 4],
            snapshot in 1..=u64::MAX / 2,
            index in 0u32..7,
            claims in prop::collection::vec((any::<u64>(), 0..=GENERATION_MAX), 0..50),
        ) {
            let stream = Stream { incarnation: w[1], generation: w[2] };
            let pull = Pull { number: w[0], stream, have: w[3] };
            let body = pull.encode();
            prop_assert_eq!(decode(&body), Some(Message::Pull(pull)));
            for len in 0..body.len() {
                prop_assert_eq!(decode(&body[..len]), None);
            }
            let longer = [&body[..], &[0]].concat();
            prop_assert_eq!(decode(&longer), None);

            let claims: Vec<_> = claims.into_iter().map(|(id, generation)| Record {
                id: SessionId(id),
                generation,
                closed: false,
            }).collect();
            let bytes = encode_claims(claims.iter().copied());
            let records = Records::from_bytes(&bytes);
            let part = Part { number: w[0], snapshot, index, total: 7, records };
            let body = part.encode();
            prop_assert_eq!(decode(&body), Some(Message::Part(part)));
            prop_assert_eq!(part.records.iter().collect::<Vec<_>>(), claims.clone());
            // Whatever was cut off, no claim is half there.
            for len in 0..body.len() {
                let whole = len >= PART_HEAD_LEN && (len - PART_HEAD_LEN).is_multiple_of(RECORD_LEN);
                prop_assert_eq!(decode(&body[..len]).is_some(), whole);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_full_part_is_within_the_limit() {
        let bytes = vec![0; PART_RECORDS_MAX * RECORD_LEN];
        let part = Part {
            number: 1,
            snapshot: 1,
            index: 0,
            total: 1,
            records: Records::from_bytes(&bytes),
        };
        let len = part.encode().len();
        assert!(len <= BULK_LEN_MAX && len + RECORD_LEN > BULK_LEN_MAX);
    }
}
