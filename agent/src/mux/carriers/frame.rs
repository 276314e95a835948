//! Frames: how messages are cut out of a carrier's bytes.
//!
//! A carrier begins with a handshake ([`super::preamble`]), which agrees on version and
//! channel; all that follows are frames, a header of 16 bytes and, for a message, its
//! body. Decoding is total: any bytes are either frames or [`Garbage`], wherever they
//! are cut.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A message: its body follows. From the dialer.
    Message = 1,
    /// A message that is too long to be sent unasked: is there room? From the dialer.
    Offer = 2,
    /// All messages up to this number have arrived. From the acceptor.
    Ack = 3,
    /// There is room for the message that was offered. From the acceptor.
    Go = 4,
    /// Nothing to say, but alive. From both.
    Ping = 5,
    /// Send no more here: use another carrier. From the acceptor.
    Retire = 6,
    /// What is to be said of a message, before it is acknowledged: its note follows. From
    /// the acceptor.
    Note = 7,
    /// There is no room for the message that was offered, and none is waited for. From the
    /// acceptor.
    Decline = 8,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Message,
            2 => Self::Offer,
            3 => Self::Ack,
            4 => Self::Go,
            5 => Self::Ping,
            6 => Self::Retire,
            7 => Self::Note,
            8 => Self::Decline,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The carrier's channel.
    pub channel: u8,
    /// Bytes of the message or note that follows, or of the message that is offered;
    /// else 0.
    pub len: u32,
    /// The message's number in this carrier, from 1 on; 0 where none is meant.
    pub number: u64,
}

impl Header {
    /// Writes the header.
    pub fn encode(&self, into: &mut impl BufMut) {
        into.put_u8(self.kind as u8);
        into.put_u8(self.channel);
        into.put_u16(0);
        into.put_u32(self.len);
        into.put_u64(self.number);
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, Garbage> {
        let from = &mut &bytes[..];
        let kind = Kind::from_number(from.get_u8()).ok_or(Garbage("a frame of no known kind"))?;
        let channel = from.get_u8();
        if from.get_u16() != 0 {
            return Err(Garbage("bytes of a header that must be zero"));
        }
        Ok(Self {
            kind,
            channel,
            len: from.get_u32(),
            number: from.get_u64(),
        })
    }
}

impl Header {
    /// Bytes that follow.
    fn body_len(&self) -> usize {
        match self.kind {
            Kind::Message | Kind::Note => self.len as usize,
            Kind::Offer => HINT_LEN,
            Kind::Ack | Kind::Go | Kind::Ping | Kind::Retire | Kind::Decline => 0,
        }
    }
}

/// Bytes that say for whom a message is that is offered.
pub const HINT_LEN: usize = 16;

/// For whom a message is that is offered: the channel's own; zero if it has no such thing.
pub type Hint = [u8; HINT_LEN];

/// The longest note, in bytes.
pub const NOTE_MAX: usize = 4096;

/// A frame, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// The message, the note or the hint; empty for other frames.
    pub body: Bytes,
}

/// Why bytes are no frames: the carrier is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nonsense on a carrier: {0}")]
pub struct Garbage(pub &'static str);

/// Puts frames together from bytes that come in pieces.
#[derive(Default)]
pub struct Decoder {
    /// The header, as far as it is there.
    head: [u8; HEADER_LEN],
    head_len: usize,
    /// The message that is arriving.
    body: Option<(Header, BytesMut)>,
}

impl Decoder {
    /// Reads from `bytes` what belongs to one frame. Whether a header makes sense here,
    /// `judge` says before any memory is taken for its message.
    ///
    /// Returns a frame once it is whole; none when `bytes` are used up.
    ///
    /// # Errors
    ///
    /// The bytes are no frame, or `judge` refused it. Nothing can be read after that.
    pub fn next(
        &mut self,
        bytes: &mut &[u8],
        judge: impl FnOnce(&Header) -> Result<(), Garbage>,
    ) -> Result<Option<Frame>, Garbage> {
        if self.body.is_none() {
            let missing = &mut self.head[self.head_len..];
            let some = missing.len().min(bytes.len());
            bytes.copy_to_slice(&mut missing[..some]);
            self.head_len += some;
            if self.head_len < HEADER_LEN {
                return Ok(None);
            }
            let header = Header::decode(&self.head)?;
            judge(&header)?;
            self.head_len = 0;
            let body = BytesMut::with_capacity(header.body_len());
            self.body = Some((header, body));
        }
        let Some((header, body)) = &mut self.body else {
            return Ok(None);
        };
        let some = (header.body_len() - body.len()).min(bytes.len());
        body.put_slice(&bytes[..some]);
        bytes.advance(some);
        if body.len() < header.body_len() {
            return Ok(None);
        }
        Ok(self.body.take().map(|(header, body)| Frame {
            header,
            body: body.freeze(),
        }))
    }

    /// Whether the bytes so far end within a frame.
    pub fn is_within(&self) -> bool {
        self.head_len > 0 || self.body.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(bodies: &[Vec<u8>]) -> (Vec<Frame>, Vec<u8>) {
        let mut bytes = Vec::new();
        let frames = bodies.iter().zip(1..).map(|(body, number)| {
            let header = Header {
                kind: Kind::Message,
                channel: 1,
                len: body.len() as u32,
                number,
            };
            header.encode(&mut bytes);
            bytes.put_slice(body);
            Frame {
                header,
                body: body.clone().into(),
            }
        });
        (frames.collect(), bytes)
    }

    fn decode(decoder: &mut Decoder, mut bytes: &[u8]) -> Result<Vec<Frame>, Garbage> {
        let mut frames = Vec::new();
        loop {
            match decoder.next(&mut bytes, |_| Ok(()))? {
                Some(frame) => frames.push(frame),
                None if bytes.is_empty() => return Ok(frames),
                None => {}
            }
        }
    }

    #[test]
    fn frames_come_out_whole_wherever_their_bytes_are_cut() {
        let (frames, bytes) = frames(&[vec![1; 5], vec![], vec![2; 40]]);
        for at in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut all = decode(&mut decoder, &bytes[..at]).unwrap();
            let ends = [0, 21, 37, 93];
            assert_eq!(decoder.is_within(), !ends.contains(&at), "cut at {at}");
            all.extend(decode(&mut decoder, &bytes[at..]).unwrap());
            assert_eq!(all, frames, "cut at {at}");
        }
        let mut decoder = Decoder::default();
        let pieces = bytes.chunks(1).map(|byte| decode(&mut decoder, byte));
        assert_eq!(
            pieces.map(Result::unwrap).collect::<Vec<_>>().concat(),
            frames
        );
    }

    #[test]
    fn a_header_is_judged_before_memory_is_taken_for_its_message() {
        let header = Header {
            kind: Kind::Message,
            channel: 1,
            len: u32::MAX,
            number: 1,
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        let mut decoder = Decoder::default();
        let judged = decoder.next(&mut &bytes[..], |header| {
            assert_eq!(header.len, u32::MAX);
            Err(Garbage("too long"))
        });
        assert_eq!(judged, Err(Garbage("too long")));
        assert!(decoder.body.is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let judge = |header: &Header| match header.len {
                0..100 => Ok(()),
                _ => Err(Garbage("too long")),
            };
            let (mut decoder, mut rest) = (Decoder::default(), &bytes[..]);
            while !rest.is_empty() {
                if decoder.next(&mut rest, judge).is_err() {
                    break;
                }
            }
        }
    }
}
