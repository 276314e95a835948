//! The sealed datagram byte by byte, and the messages by which windows open.
//! `docs/protocol.md` has the same as a table.

use homing_common::host::HostId;

use crate::pop::{
    DATAGRAM_LEN_MAX, Stream,
    keys::{DatagramKey, Keys},
};

const MAGIC: [u8; 2] = *b"Hm";
/// The version of datagrams.
pub const VERSION: u8 = 3;

/// The destination of a multicast datagram.
pub(super) const MULTICAST: u16 = 0xffff;

const HEADER_LEN: usize = 34;
const TAG_LEN: usize = 16;

/// Bytes that sealing adds to a body of at least [`BODY_LEN_MIN`] bytes.
pub const OVERHEAD_LEN: usize = HEADER_LEN + TAG_LEN;

/// Shorter bodies are padded to this, so that no datagram is shorter than the
/// challenge it may cause.
const BODY_LEN_MIN: usize = Control::LEN;

/// Which protocol a datagram belongs to.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// The seal's own challenges, answers and refusals.
    Control = 0,
    /// Membership.
    Membership = 1,
    /// Gossip of announcements.
    Gossip = 2,
    /// Asks about sessions that nobody at a host knows.
    Ask = 3,
    /// Liveness of kernels.
    Liveness = 4,
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub channel: Channel,
    pub origin: HostId,
    pub destination: u16,
    pub stream: Stream,
    pub sequence: u64,
}

/// Why bytes are no datagram of this POP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Error {
    Length,
    Foreign,
    Version,
    /// Signed with a key that is not accepted: its id.
    Key(u8),
    Tag,
    Header,
}

/// Writes a datagram.
pub(super) fn write(keys: &Keys, header: &Header, body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() + OVERHEAD_LEN <= DATAGRAM_LEN_MAX);
    let padding = BODY_LEN_MIN.saturating_sub(body.len());
    let mut out = Vec::with_capacity(body.len() + padding + OVERHEAD_LEN);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, header.channel as u8, keys.sign.id, padding as u8]);
    out.extend_from_slice(&header.origin.0.to_be_bytes());
    out.extend_from_slice(&header.destination.to_be_bytes());
    out.extend_from_slice(&header.stream.incarnation.to_be_bytes());
    out.extend_from_slice(&header.stream.generation.to_be_bytes());
    out.extend_from_slice(&header.sequence.to_be_bytes());
    out.extend_from_slice(body);
    out.resize(out.len() + padding, 0);
    let tag = tag(&keys.sign, &out);
    out.extend_from_slice(&tag.to_be_bytes());
    out
}

/// Reads a datagram and checks its tag: header, body, and the id of the key that
/// it is signed with.
pub(super) fn read<'a>(keys: &Keys, datagram: &'a [u8]) -> Result<(Header, &'a [u8], u8), Error> {
    if datagram.len() < 3 || datagram[..2] != MAGIC {
        return Err(Error::Foreign);
    }
    if datagram[2] != VERSION {
        return Err(Error::Version);
    }
    if !(BODY_LEN_MIN + OVERHEAD_LEN..=DATAGRAM_LEN_MAX).contains(&datagram.len()) {
        return Err(Error::Length);
    }
    let key_id = datagram[4];
    let key = keys.by_id(key_id).ok_or(Error::Key(key_id))?;
    let (sealed, found) = datagram.split_at(datagram.len() - TAG_LEN);
    // Compared as one integer, in a time that does not depend on the bytes.
    if u128::from_be_bytes(array(found, 0)) ^ tag(key, sealed) != 0 {
        return Err(Error::Tag);
    }
    let (head, body) = sealed.split_at(HEADER_LEN);
    let header = Header {
        channel: match head[3] {
            0 => Channel::Control,
            1 => Channel::Membership,
            2 => Channel::Gossip,
            3 => Channel::Ask,
            4 => Channel::Liveness,
            _ => return Err(Error::Header),
        },
        origin: HostId::try_from(u16::from_be_bytes(array(head, 6))).map_err(|_| Error::Header)?,
        destination: u16::from_be_bytes(array(head, 8)),
        stream: Stream {
            incarnation: u64::from_be_bytes(array(head, 10)),
            generation: u64::from_be_bytes(array(head, 18)),
        },
        sequence: u64::from_be_bytes(array(head, 26)),
    };
    let len = body
        .len()
        .checked_sub(usize::from(head[5]))
        .ok_or(Error::Header)?;
    Ok((header, &body[..len], key_id))
}

fn tag(key: &DatagramKey, bytes: &[u8]) -> u128 {
    let hash = blake3::keyed_hash(&key.key, bytes);
    u128::from_be_bytes(array(hash.as_bytes(), 0))
}

/// `N` bytes from an offset that the caller knows to be within.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

/// The seal's own messages. All have the same length, so that no reply is larger
/// than what caused it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Control {
    /// "Prove that you are there now."
    Challenge { nonce: u64 },
    /// "I am, and my next sequence numbers are these."
    Answer {
        nonce: u64,
        next_unicast: u64,
        next_multicast: u64,
        own_nonce: u64,
    },
    /// "I know better": the nonce is the answer's own.
    Refusal { nonce: u64, refusal: Refusal },
}

/// Why an answer is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// A later life of the host is known.
    Stale { incarnation: u64 },
    /// The host id is heard at another address.
    InUse,
}

impl Control {
    const LEN: usize = 33;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let (kind, words) = match *self {
            Self::Challenge { nonce } => (1, [nonce, 0, 0, 0]),
            Self::Answer {
                nonce,
                next_unicast,
                next_multicast,
                own_nonce,
            } => (2, [nonce, next_unicast, next_multicast, own_nonce]),
            Self::Refusal {
                nonce,
                refusal: Refusal::Stale { incarnation },
            } => (3, [nonce, incarnation, 0, 0]),
            Self::Refusal {
                nonce,
                refusal: Refusal::InUse,
            } => (4, [nonce, 0, 0, 0]),
        };
        let mut out = [kind; Self::LEN];
        for (n, word) in words.into_iter().enumerate() {
            out[1 + 8 * n..9 + 8 * n].copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        if body.len() != Self::LEN {
            return None;
        }
        let word = |n: usize| u64::from_be_bytes(array(body, 1 + 8 * n));
        let nonce = word(0);
        Some(match body[0] {
            1 => Self::Challenge { nonce },
            2 => Self::Answer {
                nonce,
                next_unicast: word(1),
                next_multicast: word(2),
                own_nonce: word(3),
            },
            3 => Self::Refusal {
                nonce,
                refusal: Refusal::Stale {
                    incarnation: word(1),
                },
            },
            4 => Self::Refusal {
                nonce,
                refusal: Refusal::InUse,
            },
            _ => return None,
        })
    }
}
