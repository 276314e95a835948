//! How a carrier begins: who wants what from whom, and under which key.
//!
//! The dialer says so in clear text, the acceptor answers whether it will hear more;
//! then TLS proves that both hold the key, and within it each says which life of its
//! agent it is. The preamble is the identity of the key in TLS, and goes into the key
//! itself: whoever changes a byte of it, or leads a dialer to another host, or back to
//! itself, gets no handshake.

use std::fmt;

use bytes::{Buf as _, BufMut as _};
use homing_common::host::HostId;

use crate::pop::{Stream, keys::Key};

/// The version of all that is said on carriers.
pub const VERSION: u8 = 2;

/// Carriers begin with this.
const MAGIC: [u8; 2] = *b"Hc";

/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = 10;

/// What a dialer says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preamble {
    /// The dialer's [`VERSION`].
    pub version: u8,
    /// How the carrier is protected: [`MODE_TLS`], [`MODE_PLAIN`].
    pub mode: u8,
    /// The public id of the key.
    pub key: u8,
    /// What the carrier is for.
    pub channel: u8,
    /// Who speaks.
    pub dialer: HostId,
    /// To whom.
    pub acceptor: HostId,
}

/// Protected by TLS 1.3.
pub const MODE_TLS: u8 = 1;

/// Both sides prove that they hold the key; what follows is in clear text.
pub const MODE_PLAIN: u8 = 2;

impl Preamble {
    /// As it stands on the wire.
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        let mut into = &mut bytes[..];
        into.put_slice(&MAGIC);
        into.put_u8(self.version);
        into.put_u8(self.mode);
        into.put_u8(self.key);
        into.put_u8(self.channel);
        into.put_u16(self.dialer.0);
        into.put_u16(self.acceptor.0);
        bytes
    }

    /// Reads a preamble; none where it is something else.
    pub fn decode(bytes: &[u8; PREAMBLE_LEN]) -> Option<Self> {
        let mut from = bytes.strip_prefix(&MAGIC)?;
        Some(Self {
            version: from.get_u8(),
            mode: from.get_u8(),
            key: from.get_u8(),
            channel: from.get_u8(),
            dialer: HostId::try_from(from.get_u16()).ok()?,
            acceptor: HostId::try_from(from.get_u16()).ok()?,
        })
    }

    /// The key of this carrier.
    pub fn secret(&self, key: &Key) -> Key {
        *blake3::keyed_hash(key, &self.encode()).as_bytes()
    }
}

/// Bytes of a verdict.
pub const VERDICT_LEN: usize = 4;

/// What an acceptor makes of a preamble, or of a hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Welcome = 0,
    /// Another version.
    Version = 1,
    /// Another protection.
    Mode = 2,
    /// The key is unknown.
    Key = 3,
    /// The acceptor is another host.
    AnotherHost = 4,
    /// The dialer is no member, or has another address.
    Stranger = 5,
    /// Nobody listens to the channel.
    Channel = 6,
    /// There are too many carriers.
    Crowded = 7,
    /// A later life of the dialer is known.
    Stale = 8,
}

impl Verdict {
    const ALL: [Self; 9] = [
        Self::Welcome,
        Self::Version,
        Self::Mode,
        Self::Key,
        Self::AnotherHost,
        Self::Stranger,
        Self::Channel,
        Self::Crowded,
        Self::Stale,
    ];

    /// As it stands on the wire in answer to a preamble.
    pub fn encode(self) -> [u8; VERDICT_LEN] {
        [MAGIC[0], MAGIC[1], VERSION, self as u8]
    }

    /// Reads a verdict; none where it is something else.
    pub fn decode(bytes: [u8; VERDICT_LEN]) -> Option<Self> {
        let [first, second, _, number] = bytes;
        let verdict = Self::from_number(number)?;
        ([first, second] == MAGIC).then_some(verdict)
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Welcome => "welcome",
            Self::Version => "it speaks another version of carriers; upgrade the older host",
            Self::Mode => "its carriers are encrypted; set mux.encryption alike on all hosts",
            Self::Key => {
                "it does not have this host's key; compare `homing hosts` on both, and end \
                 the change of the key that was begun"
            }
            Self::AnotherHost => "another host answers at its address; compare host.id of both",
            Self::Stranger => {
                "it does not know this host as a member at the address that it dialed from"
            }
            Self::Channel => "nothing listens to this channel there; upgrade the older host",
            Self::Crowded => "it has as many carriers as it takes",
            Self::Stale => "it knows a later life of this host",
        })
    }
}

/// Bytes of a hello.
pub const HELLO_LEN: usize = 17;

/// What both say once the key is proven: the dialer first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the acceptor makes of the dialer's hello; the dialer says
    /// [`Verdict::Welcome`].
    pub verdict: Verdict,
    /// The life of the speaker's agent.
    pub stream: Stream,
}

impl Hello {
    /// As it stands on the wire.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let mut into = &mut bytes[..];
        into.put_u8(self.verdict as u8);
        into.put_u64(self.stream.incarnation);
        into.put_u64(self.stream.generation);
        bytes
    }

    /// Reads a hello; none where it is something else.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Option<Self> {
        let mut from = &bytes[..];
        Some(Self {
            verdict: Verdict::from_number(from.get_u8())?,
            stream: Stream {
                incarnation: from.get_u64(),
                generation: from.get_u64(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREAMBLE: Preamble = Preamble {
        version: VERSION,
        mode: MODE_TLS,
        key: 7,
        channel: 1,
        dialer: HostId(2),
        acceptor: HostId(3),
    };

    #[test]
    fn every_byte_of_a_preamble_changes_the_key() {
        let secret = PREAMBLE.secret(&[1; 32]);
        assert_eq!(Preamble::decode(&PREAMBLE.encode()), Some(PREAMBLE));
        for at in 0..PREAMBLE_LEN {
            let mut bytes = PREAMBLE.encode();
            bytes[at] ^= 1;
            if let Some(other) = Preamble::decode(&bytes) {
                assert_ne!(other.secret(&[1; 32]), secret, "byte {at}");
            }
        }
        let back = Preamble {
            dialer: PREAMBLE.acceptor,
            acceptor: PREAMBLE.dialer,
            ..PREAMBLE
        };
        assert_ne!(back.secret(&[1; 32]), secret);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; PREAMBLE_LEN], hello: [u8; HELLO_LEN]) {
            if let Some(preamble) = Preamble::decode(&bytes) {
                prop_assert_eq!(preamble.encode(), bytes);
            }
            if let Some(read) = Hello::decode(&hello) {
                prop_assert_eq!(read.encode(), hello);
            }
            let [a, b, c, d, ..] = bytes;
            for verdict in [[a, b, c, d], [MAGIC[0], MAGIC[1], VERSION, d]] {
                if let Some(read) = Verdict::decode(verdict) {
                    prop_assert_eq!(read.encode()[3], verdict[3]);
                }
            }
        }
    }
}
