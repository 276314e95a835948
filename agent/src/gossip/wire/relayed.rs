//! What relays pass on: records and heartbeats of several origins in one message.
//!
//! Here every byte counts. A section names its origin in 12 bits, the life of it
//! by a tag, and the sequence number of its first record by the low half: the
//! receiver, which follows that log, knows the rest.

use bytes::{Buf as _, BufMut as _};
use homing_common::host::HostId;

use super::{Heartbeat, RECORD_LEN, Records, kind};
use crate::pop::{BODY_LEN_MAX, Stream};

const HEAD_LEN: usize = 4 + 8;
const SECTION_HEAD_LEN: usize = 2 + 2;
const RECORDS_HEAD_LEN: usize = SECTION_HEAD_LEN + 4;
const DIGEST_LEN: usize = SECTION_HEAD_LEN + 4 * 8;

/// Bits of a host id.
const HOST_BITS: u32 = 12;
const _: () = assert!(homing_common::host::MAX_HOSTS == 1 << HOST_BITS);

/// The most records in one section; zero stands for a heartbeat.
const SECTION_RECORDS_MAX: u16 = (1 << (16 - HOST_BITS)) - 1;

/// Tells a life of a host from those before and after it: in one incarnation
/// 65,536 starts of the agent have different tags, and other incarnations have
/// another tag but for a chance of 2^-16.
pub fn life_tag(stream: Stream) -> u16 {
    let mixed = stream.incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    (mixed as u16).wrapping_add(stream.generation as u16)
}

/// A message of a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relayed<'a> {
    /// When the oldest event in it happened: `CLOCK_REALTIME`, µs.
    pub opened_us: u64,
    /// Well-formed sections.
    sections: &'a [u8],
}

/// What one origin has to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Section<'a> {
    /// Records of its log, in order.
    Records {
        /// The origin.
        origin: HostId,
        /// The tag of its life.
        tag: u16,
        /// The low half of the first record's sequence number.
        first: u32,
        /// The records.
        records: Records<'a>,
    },
    /// Where its log stands.
    Heartbeat {
        /// The origin.
        origin: HostId,
        /// The tag of its life.
        tag: u16,
        /// What it says.
        heartbeat: Heartbeat,
    },
}

impl<'a> Relayed<'a> {
    /// Reads so many sections, and checks them all.
    pub(super) fn take(buf: &mut &'a [u8], count: usize) -> Option<Self> {
        let opened_us = buf.try_get_u64().ok()?;
        let sections = *buf;
        for _ in 0..count {
            take_section(buf)?;
        }
        let len = sections.len() - buf.len();
        (count > 0).then_some(Self {
            opened_us,
            sections: &sections[..len],
        })
    }

    /// One section after the other.
    pub fn iter(&self) -> impl Iterator<Item = Section<'a>> + use<'a> {
        let mut rest = self.sections;
        // Checked when it was read: only the end ends it.
        std::iter::from_fn(move || take_section(&mut rest))
    }
}

fn take_section<'a>(buf: &mut &'a [u8]) -> Option<Section<'a>> {
    let head = buf.try_get_u16().ok()?;
    let origin = HostId::try_from(head & ((1 << HOST_BITS) - 1)).ok()?;
    let tag = buf.try_get_u16().ok()?;
    match usize::from(head >> HOST_BITS) {
        0 => Some(Section::Heartbeat {
            origin,
            tag,
            heartbeat: Heartbeat::take(0, buf)?,
        }),
        count => Some(Section::Records {
            origin,
            tag,
            first: buf.try_get_u32().ok()?,
            records: super::take_records(buf, count)?,
        }),
    }
}

/// Writes a message of a relay, section by section.
pub struct Writer {
    body: Vec<u8>,
    sections: u16,
    opened_us: u64,
    open: Option<Open>,
}

/// The section of records that was written last: what follows on it goes in too.
struct Open {
    origin: HostId,
    tag: u16,
    /// The number of the record that would come next.
    next: u64,
    /// Where its head stands.
    at: usize,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        let mut body = Vec::with_capacity(BODY_LEN_MAX);
        body.resize(HEAD_LEN, 0);
        Self {
            body,
            sections: 0,
            opened_us: u64::MAX,
            open: None,
        }
    }

    /// Puts in as many of these records as there is room for, and says how many.
    /// `opened_us`: when the oldest event among them happened.
    pub fn records(
        &mut self,
        origin: HostId,
        tag: u16,
        mut first: u64,
        opened_us: u64,
        records: Records<'_>,
    ) -> usize {
        let mut bytes = records.bytes();
        while !bytes.is_empty() {
            let open = self.open.as_mut().filter(|open| {
                (open.origin, open.tag, open.next) == (origin, tag, first)
                    && count_at(&self.body, open.at) < SECTION_RECORDS_MAX
            });
            let open = match open {
                Some(open) => open,
                None => {
                    if self.body.len() + RECORDS_HEAD_LEN + RECORD_LEN > BODY_LEN_MAX {
                        break;
                    }
                    self.sections += 1;
                    let at = self.body.len();
                    self.body.put_u16(origin.0);
                    self.body.put_u16(tag);
                    self.body.put_u32(first as u32);
                    self.open.insert(Open {
                        origin,
                        tag,
                        next: first,
                        at,
                    })
                }
            };
            let room = (BODY_LEN_MAX - self.body.len()) / RECORD_LEN;
            let count = usize::from(SECTION_RECORDS_MAX - count_at(&self.body, open.at))
                .min(room)
                .min(bytes.len() / RECORD_LEN);
            if count == 0 {
                break;
            }
            let (some, rest) = bytes.split_at(count * RECORD_LEN);
            self.body.put_slice(some);
            let head = origin.0 | (count_at(&self.body, open.at) + count as u16) << HOST_BITS;
            self.body[open.at..open.at + 2].copy_from_slice(&head.to_be_bytes());
            first += count as u64;
            open.next = first;
            bytes = rest;
            self.opened_us = self.opened_us.min(opened_us);
        }
        records.len() - bytes.len() / RECORD_LEN
    }

    /// Puts a heartbeat in, if there is room for it.
    pub fn heartbeat(&mut self, origin: HostId, tag: u16, heartbeat: &Heartbeat) -> bool {
        if self.body.len() + DIGEST_LEN > BODY_LEN_MAX {
            return false;
        }
        self.open = None;
        self.sections += 1;
        self.body.put_u16(origin.0);
        self.body.put_u16(tag);
        heartbeat.put(&mut self.body);
        true
    }

    /// The message; none if nothing was put in.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        if self.sections == 0 {
            return None;
        }
        let mut head = &mut self.body[..HEAD_LEN];
        head.put_u8(kind::RELAYED);
        head.put_u8(0);
        head.put_u16(self.sections);
        // Heartbeats alone tell of no event.
        head.put_u64(if self.opened_us == u64::MAX {
            0
        } else {
            self.opened_us
        });
        Some(self.body)
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// How many records the section has whose head stands there.
fn count_at(body: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([body[at], body[at + 1]]) >> HOST_BITS
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;
    use proptest::prelude::*;

    use super::{
        super::{Message, Record, decode},
        *,
    };

    fn encoded(ids: std::ops::Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for id in ids {
            let record = Record {
                id: SessionId(id),
                generation: 3,
                closed: id % 2 == 0,
            };
            record.encode(&mut bytes);
        }
        bytes
    }

    fn read(body: &[u8]) -> Relayed<'_> {
        match decode(body) {
            Some(Message::Relayed(relayed)) => relayed,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// Whatever pieces go in: all come out, in order, over as many messages as
        /// it takes, and neighbours of one origin share a section.
        #[test]
        fn pieces_survive_the_wire(
            pieces in prop::collection::vec((1u16..4, 1u64..4, 0u64..200, any::<bool>()), 1..40),
        ) {
            let mut bodies = Vec::new();
            let mut writer = Writer::new();
            let mut expected: Vec<(u16, u16, u64, Option<u64>)> = Vec::new();
            let mut next = [1u64, 1 << 32, u64::from(u32::MAX) - 5, 77];
            for (origin, tag, count, beat) in pieces {
                let (host, tag) = (HostId(origin), tag as u16);
                if beat {
                    let heartbeat = Heartbeat { hears: false, calls: false, next: count, oldest: 1, count: 2, digest: 3 };
                    if !writer.heartbeat(host, tag, &heartbeat) {
                        bodies.extend(std::mem::take(&mut writer).finish());
                        prop_assert!(writer.heartbeat(host, tag, &heartbeat));
                    }
                    expected.push((origin, tag, count, None));
                    continue;
                }
                let first = &mut next[usize::from(origin)];
                let bytes = encoded(*first..*first + count);
                let mut records = Records::from_bytes(&bytes);
                while !records.is_empty() {
                    let done = writer.records(host, tag, *first, 500 + *first, records);
                    for n in *first..*first + done as u64 {
                        expected.push((origin, tag, n & 0xffff_ffff, Some(n)));
                    }
                    *first += done as u64;
                    records = Records::from_bytes(&records.bytes()[done * RECORD_LEN..]);
                    if !records.is_empty() {
                        bodies.extend(std::mem::take(&mut writer).finish());
                    }
                }
            }
            bodies.extend(writer.finish());
            let mut got = Vec::new();
            for body in &bodies {
                prop_assert!(body.len() <= BODY_LEN_MAX);
                for len in 0..body.len() {
                    prop_assert_eq!(decode(&body[..len]), None);
                }
                for section in read(body).iter() {
                    match section {
                        Section::Heartbeat { origin, tag, heartbeat } => {
                            got.push((origin.0, tag, heartbeat.next, None));
                        }
                        Section::Records { origin, tag, first, records } => {
                            prop_assert!(records.len() <= usize::from(SECTION_RECORDS_MAX));
                            for (n, record) in records.iter().enumerate() {
                                prop_assert_eq!((record.generation, record.closed), (3, record.id.0 % 2 == 0));
                                let number = first.wrapping_add(n as u32);
                                got.push((origin.0, tag, u64::from(number), Some(record.id.0)));
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 12..200)) {
            bytes[0] = kind::RELAYED;
            if let Some(Message::Relayed(relayed)) = decode(&bytes) {
                prop_assert!(relayed.iter().count() > 0);
            }
        }
    }

    #[test]
    fn neighbours_share_a_section_and_the_oldest_time_is_kept() {
        let mut writer = Writer::new();
        let (one, two) = (encoded(1..4), encoded(4..9));
        assert_eq!(
            writer.records(HostId(9), 1, 1, 300, Records::from_bytes(&one)),
            3
        );
        assert_eq!(
            writer.records(HostId(9), 1, 4, 200, Records::from_bytes(&two)),
            5
        );
        let body = writer.finish().unwrap();
        assert_eq!(
            body.len(),
            HEAD_LEN + RECORDS_HEAD_LEN + 8 * RECORD_LEN,
            "one section"
        );
        let relayed = read(&body);
        assert_eq!((relayed.opened_us, relayed.iter().count()), (200, 1));
        assert_eq!(Writer::new().finish(), None);
    }

    #[test]
    fn lives_that_follow_each_other_have_different_tags() {
        let tag = |incarnation, generation| {
            life_tag(Stream {
                incarnation,
                generation,
            })
        };
        for n in 1_000..2_000 {
            assert_ne!(tag(5, n), tag(5, n + 1));
            assert_ne!(tag(n, 1), tag(n + 1, 1));
            assert_ne!(tag(n, 7), tag(n + 1, 1));
        }
    }
}
