//! How an application asks its agent for message sockets, byte by byte: datagrams on the
//! agent's socket for messages. `docs/protocol.md` has the same as tables.

use crate::reasons::reasons;

/// The version of this protocol.
pub const VERSION: u8 = 1;

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;

/// The longest name of a service, in bytes.
pub const NAME_MAX: usize = 64;

/// The longest text of a refusal, in bytes.
pub const TEXT_MAX: usize = 255;

/// The longest datagram.
pub const DATAGRAM_MAX: usize = 512;

/// What an application asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask<'a> {
    /// A message socket that is connected to a service.
    Connect {
        /// Its name.
        name: &'a str,
        /// The host; 0: any that offers it.
        host: u16,
        /// For how long to try, in milliseconds.
        within_ms: u32,
    },
    /// A message socket that receives what is sent to a service.
    Offer {
        /// Its name.
        name: &'a str,
    },
}

/// A datagram from an application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// The application's own: the answer carries the same.
    pub number: u32,
    /// Messages may come several in one datagram.
    pub batches: bool,
    /// What it wants.
    pub ask: Ask<'a>,
}

reasons! {
    /// Why an application does not get a message socket.
    Refused {
        /// It does not speak the version of the protocol.
        Version = 1 "another version of the protocol",
        /// What came is no request.
        Malformed = 2 "not a request",
        /// Nobody offers the service there: `ECONNREFUSED`.
        NoService = 3 "nobody offers the service",
        /// There is no such host in the POP: `EHOSTUNREACH`.
        NoHost = 4 "no such host in the POP",
        /// No answer came in time: `ETIMEDOUT`.
        Timeout = 5 "no answer in time",
        /// There are too many message sockets, or too many requests: `EMFILE`.
        TooMany = 6 "too many message sockets",
        /// The agent stops.
        Stopping = 7 "the agent stops",
        /// The system refused what the agent needed.
        Failed = 8 "the agent failed",
    }
}

/// A datagram from the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer<'a> {
    /// The request's.
    pub number: u32,
    /// What came of it.
    pub result: Result<Opened, (Refused, &'a str)>,
}

/// A message socket is open; its descriptor comes with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The longest message, in bytes, without its header.
    pub message_max: u32,
    /// The message socket that it is connected to, as messages from there name it; 0 for
    /// one that offers a service.
    pub peer: u64,
}

const CONNECT: u8 = 1;
const OFFER: u8 = 2;
const OPENED: u8 = 32;
const REFUSED: u8 = 33;

const BATCHES: u16 = 1;

/// Whether a service can have this name.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Why a datagram is none of the protocol's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    /// It is of another version.
    #[error("version {0}, not {VERSION}")]
    Version(u8),
    /// It contradicts itself or the protocol; here is what does.
    #[error("{0}")]
    Malformed(&'static str),
}

const SHORT: Wrong = Wrong::Malformed("it is too short");

fn head(kind: u8, flags: u16, number: u32) -> Vec<u8> {
    let mut out = vec![VERSION, kind];
    out.extend(flags.to_be_bytes());
    out.extend(number.to_be_bytes());
    out
}

/// Kind, flags and number of a datagram, and the rest.
fn begin(bytes: &[u8]) -> Result<(u8, u16, u32, &[u8]), Wrong> {
    let ([version, kind, a, b, number @ ..], rest) =
        bytes.split_first_chunk::<HEADER_LEN>().ok_or(SHORT)?;
    if *version != VERSION {
        return Err(Wrong::Version(*version));
    }
    let flags = u16::from_be_bytes([*a, *b]);
    Ok((*kind, flags, u32::from_be_bytes(*number), rest))
}

fn text(bytes: &[u8]) -> Result<&str, Wrong> {
    let (&len, text) = bytes.split_first().ok_or(SHORT)?;
    if text.len() != usize::from(len) {
        return Err(Wrong::Malformed("a text has another length than it says"));
    }
    std::str::from_utf8(text).map_err(|_| Wrong::Malformed("a text is not UTF-8"))
}

fn name(bytes: &[u8]) -> Result<&str, Wrong> {
    let name = text(bytes)?;
    match is_name(name) {
        true => Ok(name),
        false => Err(Wrong::Malformed(
            "the service's name is empty, too long, or has control characters",
        )),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

impl<'a> Request<'a> {
    /// The request as a datagram.
    pub fn encode(&self) -> Vec<u8> {
        let flags = if self.batches { BATCHES } else { 0 };
        let (mut out, name) = match self.ask {
            Ask::Connect {
                name,
                host,
                within_ms,
            } => {
                let mut out = head(CONNECT, flags, self.number);
                out.extend(within_ms.to_be_bytes());
                out.extend(host.to_be_bytes());
                (out, name)
            }
            Ask::Offer { name } => (head(OFFER, flags, self.number), name),
        };
        put_text(&mut out, name);
        out
    }

    /// Reads a request.
    ///
    /// # Errors
    ///
    /// It is none of this version.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Wrong> {
        let (kind, flags, number, rest) = begin(datagram)?;
        if flags & !BATCHES != 0 {
            return Err(Wrong::Malformed("a flag is unknown"));
        }
        let ask = match kind {
            CONNECT => {
                let ([a, b, c, d, host @ ..], rest) = rest.split_first_chunk::<6>().ok_or(SHORT)?;
                Ask::Connect {
                    name: name(rest)?,
                    host: u16::from_be_bytes(*host),
                    within_ms: u32::from_be_bytes([*a, *b, *c, *d]),
                }
            }
            OFFER => Ask::Offer { name: name(rest)? },
            _ => return Err(Wrong::Malformed("its kind is unknown")),
        };
        Ok(Self {
            number,
            batches: flags & BATCHES != 0,
            ask,
        })
    }
}

impl<'a> Answer<'a> {
    /// The answer as a datagram.
    pub fn encode(&self) -> Vec<u8> {
        match self.result {
            Ok(opened) => {
                let mut out = head(OPENED, 0, self.number);
                out.extend(opened.message_max.to_be_bytes());
                out.extend(opened.peer.to_be_bytes());
                out
            }
            Err((why, text)) => {
                let mut out = head(REFUSED, 0, self.number);
                out.push(why as u8);
                put_text(&mut out, &text[..text.floor_char_boundary(TEXT_MAX)]);
                out
            }
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// It is none of this version.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Wrong> {
        let (kind, flags, number, rest) = begin(datagram)?;
        if flags != 0 {
            return Err(Wrong::Malformed("a flag is unknown"));
        }
        let result = match kind {
            OPENED => {
                let ([a, b, c, d, peer @ ..], rest) =
                    rest.split_first_chunk::<12>().ok_or(SHORT)?;
                if !rest.is_empty() {
                    return Err(Wrong::Malformed("something follows its end"));
                }
                Ok(Opened {
                    message_max: u32::from_be_bytes([*a, *b, *c, *d]),
                    peer: u64::from_be_bytes(*peer),
                })
            }
            REFUSED => {
                let (&why, rest) = rest.split_first().ok_or(SHORT)?;
                let unknown = Wrong::Malformed("its reason is unknown");
                Err((Refused::from_number(why).ok_or(unknown)?, text(rest)?))
            }
            _ => return Err(Wrong::Malformed("its kind is unknown")),
        };
        Ok(Self { number, result })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_understood_and_no_cut_of_it() {
        let name = "orders";
        let connect = Ask::Connect {
            name,
            host: 7,
            within_ms: 5000,
        };
        for (ask, batches) in [(connect, true), (Ask::Offer { name }, false)] {
            let request = Request {
                number: 9,
                batches,
                ask,
            };
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Ok(request));
            for cut in 0..bytes.len() {
                assert!(Request::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            assert!(Request::decode(&[&bytes[..], b"x"].concat()).is_err());
        }
        let opened = Opened {
            message_max: 1 << 20,
            peer: 77,
        };
        let refused = Refused::ALL.iter().map(|why| Err((*why, "why not")));
        for result in [Ok(opened)].into_iter().chain(refused) {
            let answer = Answer { number: 3, result };
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes), Ok(answer));
            for cut in 0..bytes.len() {
                assert!(Answer::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn names_are_bounded() {
        let longest = "n".repeat(NAME_MAX);
        assert!(is_name("a b") && is_name(&longest));
        assert!(!is_name("") && !is_name("a\n") && !is_name(&(longest + "n")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60), kind in 0..40_u8) {
            let _ = Request::decode(&bytes);
            if bytes.len() > HEADER_LEN {
                bytes[..4].copy_from_slice(&[VERSION, kind, 0, 0]);
            }
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            if let Ok(answer) = Answer::decode(&bytes) {
                prop_assert_eq!(answer.encode(), bytes.clone());
            }
        }
    }
}
