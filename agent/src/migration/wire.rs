//! Messages between agents byte by byte. `docs/protocol.md` has the same as tables.
//!
//! A message is carried whole, secret and authenticated by whoever carries it; so the
//! sender is not in it. All integers are big-endian.

use bytes::{Buf, BufMut};
use homing_common::{
    host::HostId,
    net::{Address, Port},
    session::Tuple,
};

use super::{MoveId, local::Application, order::Reason};

/// The version of these messages.
pub const VERSION: u8 = 1;

/// Bytes before what differs from message to message.
pub const HEAD_LEN: usize = 12;

/// The longest name of an application's protocol, in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// The most bytes of state in a message, connection and application together.
pub const STATE_LEN_MAX: usize = 16 << 20;

/// The longest message: a state.
pub const MESSAGE_LEN_MAX: usize = HEAD_LEN + 12 + STATE_LEN_MAX;

/// A message about a move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// The move.
    pub id: MoveId,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body<'a> {
    /// Source: "will you take this session?"
    Prepare(Offer),
    /// Target: "yes; its packets are parked here from now on."
    Ready {
        /// Random; the state must come with it. So a state that was sent for another
        /// readiness than the present one, and may be old, is told from it.
        ticket: u64,
    },
    /// Target: "no."
    Refused(Reason),
    /// Source: "here it is."
    State {
        /// That of *ready*.
        ticket: u64,
        /// The connection, as the source's datapath read it.
        tcp: &'a [u8],
        /// The application's state.
        blob: &'a [u8],
    },
    /// Target: "restored, silent, and in my journal."
    Prepared,
    /// Target: "I have no copy, and will not serve."
    Failed(Reason),
    /// Source: "it is yours; mine is destroyed."
    Release(Life),
    /// Target: "I serve it."
    Committed,
    /// Source: "drop your copy."
    Abort(Life),
    /// Target: "I have no copy, and will not serve": the answer to *abort*.
    Aborted {
        /// There was one, and it was dropped. Otherwise nothing is known of the move:
        /// there may have been one in another life of the target.
        dropped: bool,
    },
    /// Target: "what has become of this move?"
    Query,
    /// Source: the answer.
    Fate(Fate),
}

/// A session that a target is to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The session.
    pub life: Life,
    /// The application's protocol.
    pub application: Application,
    /// About how many bytes of state there will be: room is kept for so many.
    pub bytes: u32,
    /// How long the source keeps the session frozen, at least ([`Limits::hold`]), in
    /// milliseconds: so the target need not have the same bound.
    ///
    /// [`Limits::hold`]: super::Limits::hold
    pub hold_ms: u32,
}

/// One life of a tuple: a new session that uses it begins with generation 0 again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// The session.
    pub tuple: Tuple,
    /// Its generation before the move.
    pub generation: u32,
}

/// What has become of a move, as its source knows it.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The source does not know the move: another kernel gave that number.
    Unknown = 0,
    /// It was not released, and never will be: the source resumes.
    NotReleased = 1,
    /// It was released: the session is the target's.
    Released = 2,
    /// Neither yet.
    Undecided = 3,
}

/// What comes in: a message, or one that a third host passes on or is to pass on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parcel<'a> {
    /// From whoever it came from.
    Direct(Message<'a>),
    /// By way of a third host. It is passed on once: by a host that has it from its
    /// origin.
    By(Passed<'a>),
}

/// A message by way of a third host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passed<'a> {
    /// Who wrote it.
    pub origin: HostId,
    /// Whom it is for.
    pub destination: HostId,
    /// The message: any but a state, and none that is itself passed on.
    pub message: &'a [u8],
}

mod kind {
    pub(super) const PREPARE: u8 = 1;
    pub(super) const READY: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const STATE: u8 = 4;
    pub(super) const PREPARED: u8 = 5;
    pub(super) const FAILED: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const COMMITTED: u8 = 8;
    pub(super) const ABORT: u8 = 9;
    pub(super) const ABORTED: u8 = 10;
    pub(super) const QUERY: u8 = 11;
    pub(super) const FATE: u8 = 12;
    pub(super) const PASSED: u8 = 13;
}

impl Body<'_> {
    fn kind(&self) -> u8 {
        match self {
            Self::Prepare(_) => kind::PREPARE,
            Self::Ready { .. } => kind::READY,
            Self::Refused(_) => kind::REFUSED,
            Self::State { .. } => kind::STATE,
            Self::Prepared => kind::PREPARED,
            Self::Failed(_) => kind::FAILED,
            Self::Release(_) => kind::RELEASE,
            Self::Committed => kind::COMMITTED,
            Self::Abort(_) => kind::ABORT,
            Self::Aborted { .. } => kind::ABORTED,
            Self::Query => kind::QUERY,
            Self::Fate(_) => kind::FATE,
        }
    }
}

impl Message<'_> {
    /// Writes it. A name or a state must not be longer than its bound.
    pub fn encode(&self) -> Vec<u8> {
        // With room for all of it: a vector that grows leaves copies of a state behind.
        let state = match &self.body {
            Body::State { tcp, blob, .. } => 12 + tcp.len() + blob.len(),
            _ => 0,
        };
        let mut buf = Vec::with_capacity(HEAD_LEN + 52 + state);
        buf.put_slice(&[VERSION, self.body.kind()]);
        buf.put_u16(self.id.source.0);
        buf.put_u64(self.id.number);
        match &self.body {
            Body::Prepare(offer) => {
                debug_assert!(offer.application.name.len() <= NAME_LEN_MAX);
                offer.life.put(&mut buf);
                buf.put_u32(offer.bytes);
                buf.put_u32(offer.hold_ms);
                buf.put_u32(offer.application.version);
                buf.put_u8(offer.application.name.len() as u8);
                buf.put_slice(offer.application.name.as_bytes());
            }
            Body::Ready { ticket } => buf.put_u64(*ticket),
            Body::Refused(reason) | Body::Failed(reason) => buf.put_u8(*reason as u8),
            Body::State { ticket, tcp, blob } => {
                debug_assert!(tcp.len() + blob.len() <= STATE_LEN_MAX);
                buf.put_u64(*ticket);
                buf.put_u32(tcp.len() as u32);
                buf.put_slice(tcp);
                buf.put_slice(blob);
            }
            Body::Release(life) | Body::Abort(life) => life.put(&mut buf),
            Body::Fate(fate) => buf.put_u8(*fate as u8),
            Body::Aborted { dropped } => buf.put_u8(u8::from(*dropped)),
            Body::Prepared | Body::Committed | Body::Query => {}
        }
        buf
    }
}

impl Passed<'_> {
    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(6 + self.message.len());
        buf.put_slice(&[VERSION, kind::PASSED]);
        buf.put_u16(self.origin.0);
        buf.put_u16(self.destination.0);
        buf.put_slice(self.message);
        buf
    }
}

/// Reads a message; none if the bytes are no message, or one of another version.
pub fn decode(bytes: &[u8]) -> Option<Parcel<'_>> {
    let mut buf = bytes;
    if bytes.len() > MESSAGE_LEN_MAX || buf.try_get_u8().ok()? != VERSION {
        return None;
    }
    if buf.try_get_u8().ok()? == kind::PASSED {
        let origin = take_host(&mut buf)?;
        let destination = take_host(&mut buf)?;
        let fits = matches!(decode(buf)?, Parcel::Direct(m) if m.body.kind() != kind::STATE);
        return fits.then_some(Parcel::By(Passed {
            origin,
            destination,
            message: buf,
        }));
    }
    Some(Parcel::Direct(decode_message(bytes)?))
}

fn decode_message(bytes: &[u8]) -> Option<Message<'_>> {
    let mut buf = bytes.get(1..)?;
    let kind = buf.try_get_u8().ok()?;
    let id = MoveId {
        source: take_host(&mut buf)?,
        number: buf.try_get_u64().ok()?,
    };
    let body = match kind {
        kind::PREPARE => Body::Prepare(Offer::take(&mut buf)?),
        kind::READY => Body::Ready {
            ticket: buf.try_get_u64().ok()?,
        },
        kind::REFUSED => Body::Refused(take_reason(&mut buf)?),
        kind::STATE => {
            let ticket = buf.try_get_u64().ok()?;
            let len = usize::try_from(buf.try_get_u32().ok()?).ok()?;
            let (tcp, blob) = buf.split_at_checked(len)?;
            buf = &[];
            Body::State { ticket, tcp, blob }
        }
        kind::PREPARED => Body::Prepared,
        kind::FAILED => Body::Failed(take_reason(&mut buf)?),
        kind::RELEASE => Body::Release(Life::take(&mut buf)?),
        kind::COMMITTED => Body::Committed,
        kind::ABORT => Body::Abort(Life::take(&mut buf)?),
        kind::ABORTED => Body::Aborted {
            dropped: match buf.try_get_u8().ok()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        },
        kind::QUERY => Body::Query,
        kind::FATE => Body::Fate(match buf.try_get_u8().ok()? {
            0 => Fate::Unknown,
            1 => Fate::NotReleased,
            2 => Fate::Released,
            3 => Fate::Undecided,
            _ => return None,
        }),
        _ => return None,
    };
    // Bytes left over would be a message that this version half understands.
    buf.is_empty().then_some(Message { id, body })
}

impl Life {
    fn put(&self, buf: &mut Vec<u8>) {
        buf.put_slice(&self.tuple.client.0);
        buf.put_slice(&self.tuple.service.0);
        buf.put_slice(&self.tuple.client_port.0);
        buf.put_slice(&self.tuple.service_port.0);
        buf.put_u8(self.tuple.protocol);
        buf.put_u32(self.generation);
    }

    fn take(buf: &mut &[u8]) -> Option<Self> {
        let [client, service] = [take_array(buf)?, take_array(buf)?].map(Address);
        let [client_port, service_port] = [take_array(buf)?, take_array(buf)?].map(Port);
        let protocol = buf.try_get_u8().ok()?;
        let generation = buf.try_get_u32().ok()?;
        // No session is of both versions of IP.
        (client.is_v4() == service.is_v4()).then_some(Self {
            tuple: Tuple::new(client, client_port, service, service_port, protocol),
            generation,
        })
    }
}

impl Offer {
    fn take(buf: &mut &[u8]) -> Option<Self> {
        let life = Life::take(buf)?;
        let bytes = buf.try_get_u32().ok()?;
        let hold_ms = buf.try_get_u32().ok()?;
        let version = buf.try_get_u32().ok()?;
        let len = usize::from(buf.try_get_u8().ok()?);
        if len > NAME_LEN_MAX {
            return None;
        }
        let (name, rest) = buf.split_at_checked(len)?;
        *buf = rest;
        let name = std::str::from_utf8(name).ok()?.to_owned();
        Some(Self {
            life,
            application: Application { name, version },
            bytes,
            hold_ms,
        })
    }
}

fn take_array<const N: usize>(buf: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = buf.split_first_chunk()?;
    *buf = rest;
    Some(*array)
}

fn take_host(buf: &mut &[u8]) -> Option<HostId> {
    HostId::try_from(buf.try_get_u16().ok()?).ok()
}

fn take_reason(buf: &mut &[u8]) -> Option<Reason> {
    let number = usize::from(buf.try_get_u8().ok()?);
    Reason::ALL.get(number.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host() -> impl Strategy<Value = HostId> {
        (1u16..4096).prop_map(HostId)
    }

    fn life() -> impl Strategy<Value = Life> {
        let ends = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<bool>());
        let rest = (any::<u16>(), any::<u16>(), any::<u8>(), any::<u32>());
        (ends, rest).prop_map(|((mut a, mut b, v4), (cp, sp, protocol, generation))| {
            for address in [&mut a, &mut b] {
                if v4 {
                    address[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
                } else {
                    address[0] |= 0x20;
                }
            }
            let (client, service) = (Address(a), Address(b));
            Life {
                tuple: Tuple::new(client, Port::new(cp), service, Port::new(sp), protocol),
                generation,
            }
        })
    }

    #[derive(Clone, Debug)]
    struct State(Vec<u8>, Vec<u8>);

    /// A body that borrows from `state`, by its number.
    fn body<'a>(n: u8, life: Life, name: &str, w: u64, state: &'a State) -> Body<'a> {
        let reason = Reason::ALL[w as usize % Reason::ALL.len()];
        match n {
            0 => Body::Prepare(Offer {
                life,
                application: Application {
                    name: name.to_owned(),
                    version: w as u32,
                },
                bytes: (w >> 32) as u32,
                hold_ms: (w >> 16) as u32,
            }),
            1 => Body::Ready { ticket: w },
            2 => Body::Refused(reason),
            3 => Body::State {
                ticket: w,
                tcp: &state.0,
                blob: &state.1,
            },
            4 => Body::Prepared,
            5 => Body::Failed(reason),
            6 => Body::Release(life),
            7 => Body::Committed,
            8 => Body::Abort(life),
            9 => Body::Aborted {
                dropped: w % 2 == 1,
            },
            10 => Body::Query,
            _ => Body::Fate(
                [
                    Fate::Unknown,
                    Fate::NotReleased,
                    Fate::Released,
                    Fate::Undecided,
                ][w as usize % 4],
            ),
        }
    }

    proptest! {
        /// Every message comes out as it went in; cut anywhere or with a byte too many
        /// it is none, but for a state, whose end nothing marks but the message's.
        #[test]
        fn messages_survive_the_wire(
            n in 0u8..12,
            life in life(),
            name in "[a-zé-]{0,32}",
            w: u64,
            tcp in prop::collection::vec(any::<u8>(), 0..60),
            blob in prop::collection::vec(any::<u8>(), 0..60),
            (source, origin, destination) in (host(), host(), host()),
            number: u64,
        ) {
            let state = State(tcp, blob);
            let message = Message {
                id: MoveId { source, number },
                body: body(n, life, &name, w, &state),
            };
            let bytes = message.encode();
            prop_assert_eq!(decode(&bytes), Some(Parcel::Direct(message)));
            let passed = Passed { origin, destination, message: &bytes };
            let outer = passed.encode();
            let found = decode(&outer);
            if n == 3 {
                prop_assert_eq!(found, None, "states are not passed on");
                return Ok(());
            }
            prop_assert_eq!(found, Some(Parcel::By(passed)));
            for bytes in [&bytes, &outer] {
                for len in 0..bytes.len() {
                    prop_assert_eq!(decode(&bytes[..len]), None);
                }
                let longer = [&bytes[..], &[0]].concat();
                prop_assert_eq!(decode(&longer), None);
                let mut other = bytes.clone();
                other[0] += 1;
                prop_assert_eq!(decode(&other), None, "another version");
            }
            let twice = Passed { origin, destination, message: &outer }.encode();
            prop_assert_eq!(decode(&twice), None, "passed on once");
        }

        #[test]
        fn no_bytes_panic(
            kind in 0u8..15,
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = decode(&bytes);
            let _ = decode(&[&[VERSION, kind][..], &bytes].concat());
            let _ = decode(&[&[VERSION, 13, 0, 1, 0, 2, VERSION, kind, 0, 3][..], &bytes].concat());
        }
    }

    #[test]
    fn a_state_has_its_bound() {
        let tcp = vec![0; STATE_LEN_MAX];
        let id = MoveId {
            source: HostId(1),
            number: 1,
        };
        let body = Body::State {
            ticket: 1,
            tcp: &tcp,
            blob: &[],
        };
        let mut bytes = Message { id, body }.encode();
        assert_eq!(bytes.len(), MESSAGE_LEN_MAX);
        assert!(decode(&bytes).is_some());
        bytes.push(0);
        assert_eq!(decode(&bytes), None);
    }

    #[test]
    fn reasons_have_the_numbers_of_their_places() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at + 1);
            assert!(!reason.as_str().is_empty());
        }
    }
}
