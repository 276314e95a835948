//! Gossip messages byte by byte. `docs/protocol.md` has the same as tables.
//!
//! A message is the body of a sealed datagram on the channel `Gossip`; origin and
//! life are in the seal's header. [`bulk`] has those that carriers bring. All integers
//! are big-endian.

use bytes::{Buf, BufMut};
use homing_common::session::SessionId;

pub use self::relayed::{Relayed, Section, Writer, life_tag};
use crate::pop::{BODY_LEN_MAX, Stream};

pub mod bulk;
mod relayed;

/// A session's generation on the wire has 15 bits; larger ones stand as this. A
/// session would have to move 32,767 times in its life to get there.
pub const GENERATION_MAX: u16 = 0x7fff;

/// The bit that tells `Closed` from `Opened`.
const CLOSED: u16 = 0x8000;

/// Bytes of a record.
pub const RECORD_LEN: usize = 10;

const BATCH_HEAD_LEN: usize = 4 + 8 + 8;

/// The most records in a batch.
pub const BATCH_RECORDS_MAX: usize = (BODY_LEN_MAX - BATCH_HEAD_LEN) / RECORD_LEN;

/// An announcement: a claim to a session, or its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The session.
    pub id: SessionId,
    /// Its generation: how often it has moved.
    pub generation: u16,
    /// Whether the claim ends.
    pub closed: bool,
}

impl Record {
    /// The record's last 16 bits: the kind and the generation.
    pub(super) fn meta(&self) -> u16 {
        debug_assert!(self.generation <= GENERATION_MAX);
        self.generation | if self.closed { CLOSED } else { 0 }
    }

    pub(super) fn from_parts(id: u64, meta: u16) -> Self {
        Self {
            id: SessionId(id),
            generation: meta & GENERATION_MAX,
            closed: meta & CLOSED != 0,
        }
    }

    fn encode(&self, buf: &mut Vec<u8>) {
        buf.put_u64(self.id.0);
        buf.put_u16(self.meta());
    }
}

/// Records as they stand in a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Records in bytes that were taken from [`Records::bytes`].
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / RECORD_LEN
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Record> + use<'a> {
        self.0.chunks_exact(RECORD_LEN).map(|mut bytes| {
            let id = bytes.get_u64();
            Record::from_parts(id, bytes.get_u16())
        })
    }
}

/// What the receiver of a message is to do with it beyond taking it in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PassOn {
    /// Nothing.
    No,
    /// Pass it on in its domain at once.
    Now,
    /// Pass it on in its domain unless it hears another host do so.
    Unheard,
}

impl PassOn {
    fn flag(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Now => flag::PASS_ON,
            Self::Unheard => flag::PASS_ON_UNHEARD,
        }
    }

    fn from_flags(flags: u8) -> Self {
        if flags & flag::PASS_ON != 0 {
            Self::Now
        } else if flags & flag::PASS_ON_UNHEARD != 0 {
            Self::Unheard
        } else {
            Self::No
        }
    }

    /// Puts it into a message that was written without.
    pub fn put(self, body: &mut [u8]) {
        if let Some(flags) = body.get_mut(1) {
            *flags |= self.flag();
        }
    }
}

/// A gossip message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// Records of the origin's log, in order.
    Batch {
        /// The sequence number of the first.
        first: u64,
        /// When the oldest event among them happened: `CLOCK_REALTIME`, µs.
        opened_us: u64,
        /// Sent again on request.
        repair: bool,
        /// Whether the receiver is to pass it on.
        pass_on: PassOn,
        /// The records.
        records: Records<'a>,
    },
    /// Where the origin's log stands and what its live set is.
    Heartbeat {
        /// That.
        heartbeat: Heartbeat,
        /// Whether the receiver is to pass it on.
        pass_on: PassOn,
    },
    /// "Send me these records of your log again."
    Repair {
        /// The life whose log it is.
        stream: Stream,
        /// The first record wanted.
        from: u64,
        /// One more than the last record wanted.
        to: u64,
    },
    /// What a relay passes on of other origins.
    Relayed(Relayed<'a>),
}

/// Where an origin's log stands, and a digest of what it amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// The sender hears the receiver's multicast.
    pub hears: bool,
    /// The sender has not heard the receiver yet, and wants a heartbeat back.
    pub calls: bool,
    /// The sequence number that the next record will get.
    pub next: u64,
    /// The oldest record that can still be repaired.
    pub oldest: u64,
    /// Sessions in the live set.
    pub count: u64,
    /// The sum of their mixed ids and generations.
    pub digest: u64,
}

mod kind {
    pub(super) const BATCH: u8 = 1;
    pub(super) const HEARTBEAT: u8 = 2;
    pub(super) const REPAIR: u8 = 3;
    pub(super) const RELAYED: u8 = 4;
}

mod flag {
    /// A batch sent again.
    pub(super) const REPAIR: u8 = 1;
    /// A heartbeat to a host whose multicast is heard.
    pub(super) const HEARS: u8 = 1;
    pub(super) const PASS_ON: u8 = 2;
    pub(super) const PASS_ON_UNHEARD: u8 = 4;
    /// A heartbeat to a host that was not heard yet.
    pub(super) const CALLS: u8 = 8;
}

/// Writes a batch of records, of which there must be from 1 to
/// [`BATCH_RECORDS_MAX`].
pub fn encode_batch(
    first: u64,
    opened_us: u64,
    repair: bool,
    records: impl ExactSizeIterator<Item = Record>,
) -> Vec<u8> {
    debug_assert!((1..=BATCH_RECORDS_MAX).contains(&records.len()));
    let mut buf = Vec::with_capacity(BATCH_HEAD_LEN + records.len() * RECORD_LEN);
    buf.put_u8(kind::BATCH);
    buf.put_u8(if repair { flag::REPAIR } else { 0 });
    buf.put_u16(records.len() as u16);
    buf.put_u64(first);
    buf.put_u64(opened_us);
    records.for_each(|record| record.encode(&mut buf));
    buf
}

impl Heartbeat {
    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(36);
        buf.put_u8(kind::HEARTBEAT);
        let hears = if self.hears { flag::HEARS } else { 0 };
        let calls = if self.calls { flag::CALLS } else { 0 };
        buf.put_u8(hears | calls);
        buf.put_u16(0);
        self.put(&mut buf);
        buf
    }

    /// Writes its numbers.
    fn put(&self, buf: &mut Vec<u8>) {
        for number in [self.next, self.oldest, self.count, self.digest] {
            buf.put_u64(number);
        }
    }

    /// Reads its numbers; none if they are cut short.
    fn take(flags: u8, buf: &mut &[u8]) -> Option<Self> {
        let mut word = || buf.try_get_u64().ok();
        Some(Self {
            hears: flags & flag::HEARS != 0,
            calls: flags & flag::CALLS != 0,
            next: word()?,
            oldest: word()?,
            count: word()?,
            digest: word()?,
        })
    }
}

/// Writes a request for records `from..to` of a life's log.
pub fn encode_repair(stream: Stream, from: u64, to: u64) -> Vec<u8> {
    let mut buf = Vec::with_capacity(36);
    buf.put_u8(kind::REPAIR);
    buf.put_slice(&[0; 3]);
    for number in [stream.incarnation, stream.generation, from, to] {
        buf.put_u64(number);
    }
    buf
}

/// Reads a message; none if the bytes are no message.
pub fn decode(body: &[u8]) -> Option<Message<'_>> {
    let mut buf = body;
    let kind = buf.try_get_u8().ok()?;
    let flags = buf.try_get_u8().ok()?;
    let pass_on = PassOn::from_flags(flags);
    let count = usize::from(buf.try_get_u16().ok()?);
    let mut word = || buf.try_get_u64().ok();
    let message = match kind {
        kind::BATCH => {
            let (first, opened_us) = (word()?, word()?);
            // A log begins at 1, and no log gets near the end of the numbers.
            if first == 0 || first > u64::MAX / 2 || count == 0 {
                return None;
            }
            Message::Batch {
                first,
                opened_us,
                repair: flags & flag::REPAIR != 0,
                pass_on,
                records: take_records(&mut buf, count)?,
            }
        }
        kind::HEARTBEAT => Message::Heartbeat {
            heartbeat: Heartbeat::take(flags, &mut buf)?,
            pass_on,
        },
        kind::REPAIR => Message::Repair {
            stream: Stream {
                incarnation: word()?,
                generation: word()?,
            },
            from: word()?,
            to: word()?,
        },
        kind::RELAYED => Message::Relayed(Relayed::take(&mut buf, count)?),
        _ => return None,
    };
    // Bytes left over would be a message that this version half understands.
    buf.is_empty().then_some(message)
}

fn take_records<'a>(buf: &mut &'a [u8], count: usize) -> Option<Records<'a>> {
    let (records, rest) = buf.split_at_checked(count * RECORD_LEN)?;
    *buf = rest;
    Some(Records(records))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let record = (any::<u64>(), 0..=GENERATION_MAX, any::<bool>());
        let record = record.prop_map(|(id, generation, closed)| Record {
            id: SessionId(id),
            generation,
            closed,
        });
        prop::collection::vec(record, 1..=BATCH_RECORDS_MAX)
    }

    /// Every cut of a message is refused, and so is a byte too many.
    fn assert_exact(body: &[u8]) {
        for len in 0..body.len() {
            assert_eq!(decode(&body[..len]), None);
        }
        assert_eq!(decode(&[body, &[0]].concat()), None);
        assert!(body.len() <= BODY_LEN_MAX);
    }

    proptest! {
        #[test]
        fn batches_survive_the_wire(
            records in records(),
            first in 1..u64::MAX / 2,
            opened_us: u64,
            repair: bool,
        ) {
            let body = encode_batch(first, opened_us, repair, records.iter().copied());
            assert_exact(&body);
            for pass_on in [PassOn::No, PassOn::Now, PassOn::Unheard] {
                let mut body = body.clone();
                pass_on.put(&mut body);
                let Some(Message::Batch { first: f, opened_us: o, repair: r, pass_on: p, records: got }) = decode(&body) else {
                    panic!("no batch");
                };
                prop_assert_eq!((f, o, r, p), (first, opened_us, repair, pass_on));
                prop_assert_eq!(got.iter().collect::<Vec<_>>(), records.clone());
            }
        }

        #[test]
        fn requests_and_heartbeats_survive_the_wire(
            w: [u64; 4], hears: bool, calls: bool,
        ) {
            let stream = Stream { incarnation: w[0], generation: w[1] };
            let body = encode_repair(stream, w[2], w[3]);
            assert_exact(&body);
            prop_assert_eq!(decode(&body), Some(Message::Repair { stream, from: w[2], to: w[3] }));

            let [next, oldest, count, digest] = w;
            let heartbeat = Heartbeat { hears, calls, next, oldest, count, digest };
            let mut body = heartbeat.encode();
            assert_exact(&body);
            for pass_on in [PassOn::No, PassOn::Now] {
                pass_on.put(&mut body);
                prop_assert_eq!(decode(&body), Some(Message::Heartbeat { heartbeat, pass_on }));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}
