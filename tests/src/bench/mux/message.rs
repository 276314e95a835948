//! Messages that tell whether they arrived whole, once and in order.
//!
//! ```text
//! number u64 | sent, in nanoseconds u64 | stream u32 | kind u32 | pattern | number u64
//! ```
//!
//! All numbers are little-endian. The number stands at both ends, so that a message made
//! of parts of two does not pass; the pattern in between is the same in all messages, and
//! is compared in one of [`WHOLE_EVERY`].

use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::random;

/// The length of the shortest messages, and of those that say begin and end.
pub const SHORT: usize = 64;
/// One of so many messages is compared byte by byte.
pub const WHOLE_EVERY: u64 = 16;

const HEAD: usize = 24;
const TAIL: usize = 8;
const LONGEST: usize = 1 << 20;

/// What a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// The first of a stream: it comes back.
    Begin = 1,
    /// It is counted.
    OneWay = 2,
    /// It comes back.
    Request = 3,
    /// The last of a stream: it comes back, once all others have arrived.
    End = 4,
}

/// What a message says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    /// How many of the stream were sent before it.
    pub number: u64,
    /// When it was sent, by [`now_ns`]; 0: not said.
    pub sent_ns: u64,
    /// Which stream it is of.
    pub stream: u32,
    /// What it is for.
    pub kind: Kind,
}

impl Label {
    /// Writes it on a message that [`blank`] made.
    pub fn write(&self, message: &mut [u8]) {
        let tail = message.len() - TAIL;
        message[0..8].copy_from_slice(&self.number.to_le_bytes());
        message[8..16].copy_from_slice(&self.sent_ns.to_le_bytes());
        message[16..20].copy_from_slice(&self.stream.to_le_bytes());
        message[20..24].copy_from_slice(&(self.kind as u32).to_le_bytes());
        message[tail..].copy_from_slice(&self.number.to_le_bytes());
    }

    /// Reads it off a message, whose content must be right as far as it is looked at.
    pub fn read(message: &[u8]) -> Result<Self> {
        let len = message.len();
        ensure!(
            (SHORT..=LONGEST).contains(&len),
            "a message of {len} bytes arrived"
        );
        let u64_at = |at: usize| {
            message[at..]
                .first_chunk()
                .map_or(0, |x| u64::from_le_bytes(*x))
        };
        let u32_at = |at: usize| {
            message[at..]
                .first_chunk()
                .map_or(0, |x| u32::from_le_bytes(*x))
        };
        let number = u64_at(0);
        let tail = u64_at(len - TAIL);
        ensure!(
            number == tail,
            "a message of {len} bytes begins as number {number} and ends as number {tail}"
        );
        let kind = match u32_at(20) {
            1 => Kind::Begin,
            2 => Kind::OneWay,
            3 => Kind::Request,
            4 => Kind::End,
            other => bail!("a message of {len} bytes is of no kind: {other}"),
        };
        let inner = HEAD..len - TAIL;
        ensure!(
            !number.is_multiple_of(WHOLE_EVERY) || message[inner.clone()] == pattern()[inner],
            "the content of message {number}, {len} bytes long, is wrong"
        );
        Ok(Self {
            number,
            sent_ns: u64_at(8),
            stream: u32_at(16),
            kind,
        })
    }
}

/// A message of a length, without a label.
pub fn blank(len: usize) -> Vec<u8> {
    pattern()[..len].to_vec()
}

fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut pattern = vec![0; LONGEST];
        random::stream(1, 0, &mut pattern);
        pattern
    })
}

/// Labels the messages of one stream, one after the other.
#[derive(Clone, Debug)]
pub struct Stream {
    stream: u32,
    next: u64,
}

impl Stream {
    /// The stream of this index.
    pub fn new(stream: usize) -> Self {
        Self {
            stream: stream as u32,
            next: 0,
        }
    }

    /// How many messages were labelled.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// Makes a message the next of the stream.
    pub fn label(&mut self, message: &mut [u8], kind: Kind, sent_ns: u64) -> Label {
        let label = Label {
            number: self.next,
            sent_ns,
            stream: self.stream,
            kind,
        };
        label.write(message);
        self.next += 1;
        label
    }
}

/// The machine's monotonic clock, which all of its processes share.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize, number: u64) -> Vec<u8> {
        let mut message = blank(len);
        let label = Label {
            number,
            sent_ns: 5,
            stream: 7,
            kind: Kind::Request,
        };
        label.write(&mut message);
        message
    }

    #[test]
    fn a_label_is_read_as_it_was_written() {
        for len in [SHORT, SHORT + 1, LONGEST] {
            let mut stream = Stream::new(3);
            let mut message = blank(len);
            for kind in [Kind::Begin, Kind::OneWay, Kind::Request, Kind::End] {
                let label = stream.label(&mut message, kind, 9);
                assert_eq!(Label::read(&message).unwrap(), label);
            }
            assert_eq!(stream.count(), 4);
        }
    }

    #[test]
    fn a_message_that_is_not_whole_is_refused() {
        let good = message(SHORT, 32);
        assert!(Label::read(&good).is_ok());
        assert!(Label::read(&good[..SHORT - 1]).is_err());
        assert!(Label::read(&[]).is_err());
        // The head of one message and the tail of another.
        let other = message(SHORT, 33);
        let mixed = [&good[..HEAD], &other[HEAD..]].concat();
        assert!(Label::read(&mixed).is_err());
        // Every byte counts in one that is looked at as a whole, but when it was sent and
        // by which stream.
        for at in (0..8).chain(20..SHORT) {
            let mut spoilt = good.clone();
            spoilt[at] ^= 0x40;
            assert!(Label::read(&spoilt).is_err(), "byte {at}");
        }
    }
}
