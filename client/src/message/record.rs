//! What goes over the descriptor of a message socket: each datagram is a **record**, a
//! header of 32 bytes and a body, or several records one after the other (a **batch**).

use crate::reasons::reasons;

/// Bytes of a header.
pub const HEADER_LEN: usize = 32;

/// The longest batch, in bytes, headers included: a datagram of a Unix socket's default
/// buffers. One record alone may be longer.
pub const BATCH_MAX: usize = 64 << 10;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A message, from either.
    Message = 1,
    /// What became of a message, from the agent; without a body.
    Fate = 2,
}

/// Send it again if nobody can say whether it arrived; the receiver gets it once.
pub const REPEATABLE: u8 = 1;

/// Tell of its fate, also if it was delivered.
pub const TELL: u8 = 2;

/// Between agents: it was sent before, and nobody could say whether it arrived.
pub const AGAIN: u8 = 128;

const FLAGS: u8 = REPEATABLE | TELL | AGAIN;

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fate {
    /// The agent of the other host has it, whole.
    Delivered,
    /// It was under way when the connection between the hosts broke: nobody can say.
    Unknown,
    /// Nobody will ever receive it.
    NotSent(NotSent),
}

reasons! {
    /// Why a message was not sent.
    NotSent {
        /// It is over the limit: `EMSGSIZE`.
        TooLong = 16 "the message is over the limit",
        /// The datagram is no record, or no batch of records.
        Malformed = 17 "the datagram is no record",
        /// The message socket that it is for has gone: `ECONNRESET`.
        Gone = 18 "the message socket that it is for has gone",
        /// The host that it is for has gone, or cannot be reached: `EHOSTUNREACH`.
        Unreachable = 19 "the host cannot be reached",
        /// Who it is for does not read, and nothing more is held for it: `EAGAIN`.
        Full = 20 "who it is for does not read",
        /// The agent stops.
        Stopping = 21 "the agent stops",
    }
}

impl Fate {
    /// As it stands in a header.
    pub fn code(self) -> u16 {
        match self {
            Self::Delivered => 1,
            Self::Unknown => 2,
            Self::NotSent(why) => why as u16,
        }
    }

    /// The fate with this code.
    pub fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Delivered),
            2 => Some(Self::Unknown),
            _ => {
                let number = u8::try_from(code).ok()?;
                NotSent::from_number(number).map(Self::NotSent)
            }
        }
    }
}

/// The header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// Bytes of the body.
    pub len: u32,
    /// What it is.
    pub kind: Kind,
    /// Of a message: [`REPEATABLE`], [`TELL`].
    pub flags: u8,
    /// Of a fate: its code. Else 0.
    pub code: u16,
    /// The name that whoever sent a request has given to it; its reply carries the same.
    /// 0: it has none.
    pub name: u64,
    /// The other message socket: from whom a message is that was received, to whom one is
    /// that is sent. 0 from a connected message socket: to whom it is connected.
    pub peer: u64,
    /// The how manieth message of its message socket it is, from 1 on. Agents write it:
    /// whoever sends leaves it 0, and counts along.
    pub number: u64,
}

impl Header {
    /// Of a message without name or flags.
    pub fn message(len: usize) -> Self {
        Self {
            len: len as u32,
            kind: Kind::Message,
            flags: 0,
            code: 0,
            name: 0,
            peer: 0,
            number: 0,
        }
    }

    /// Of a fate.
    pub fn fate(of: &Self, fate: Fate) -> Self {
        Self {
            len: 0,
            kind: Kind::Fate,
            flags: 0,
            code: fate.code(),
            ..*of
        }
    }

    /// As it stands in a datagram.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.len.to_be_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.code.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.name.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.peer.to_be_bytes());
        bytes[24..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads a header; none where it is something else.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let [a, b, c, d, kind, flags, e, f, ..] = *bytes;
        let code = u16::from_be_bytes([e, f]);
        let kind = match kind {
            1 if flags & !FLAGS == 0 && code == 0 => Kind::Message,
            2 if flags == 0 && Fate::from_code(code).is_some() => Kind::Fate,
            _ => return None,
        };
        Some(Self {
            len: u32::from_be_bytes([a, b, c, d]),
            kind,
            flags,
            code,
            name: word(8),
            peer: word(16),
            number: word(24),
        })
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Takes the first record off the front of a datagram: its header and its body. None if
/// there is no whole record: the datagram is over, or malformed.
pub fn split<'a>(datagram: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let (head, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let header = Header::decode(head)?;
    let (body, rest) = rest.split_at_checked(header.len as usize)?;
    *datagram = rest;
    Some((header, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_and_numbers_come_back() {
        for fate in [Fate::Delivered, Fate::Unknown] {
            assert_eq!(Fate::from_code(fate.code()), Some(fate));
        }
        for &why in NotSent::ALL {
            let fate = Fate::NotSent(why);
            assert_eq!(Fate::from_code(fate.code()), Some(fate));
        }
        assert_eq!(Fate::from_code(0), None);
        assert_eq!(Fate::from_code(16 + 256), None);
    }

    #[test]
    fn a_batch_cut_anywhere_gives_its_whole_records() {
        let mut bytes = Vec::new();
        for len in [0_usize, 3, 40] {
            bytes.extend(Header::message(len).encode());
            bytes.extend(vec![len as u8; len]);
        }
        let ends = [32, 67, 139];
        for cut in 0..=bytes.len() {
            let mut rest = &bytes[..cut];
            let mut whole = 0;
            while let Some((header, body)) = split(&mut rest) {
                assert_eq!(body, vec![header.len as u8; header.len as usize]);
                whole += 1;
            }
            assert_eq!(whole, ends.iter().filter(|end| **end <= cut).count());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; HEADER_LEN], kind in 0..4_u8, flags in prop_oneof![0..5_u8, Just(128)]) {
            let mut bytes = bytes;
            (bytes[4], bytes[5]) = (kind, flags);
            for code in [bytes[7], 0] {
                (bytes[6], bytes[7]) = (0, code);
                if let Some(header) = Header::decode(&bytes) {
                    prop_assert_eq!(header.encode(), bytes);
                }
            }
        }
    }
}
