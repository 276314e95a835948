//! What the SWIM library needs of us: members as its identities, and its
//! messages as bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foca::{Codec, Header, Identity, Message, State};
use homing_common::host::HostId;

use crate::pop::{Member, member::DecodeError};

impl Identity for Member {
    type Addr = HostId;

    /// A member that was falsely reported down comes back with the next renewal,
    /// unless it is leaving.
    fn renew(&self) -> Option<Self> {
        if self.leaving.is_some() {
            return None;
        }
        Some(Self {
            renewal: self.renewal.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> HostId {
        self.host
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_later_than(adversary)
    }
}

/// Writes and reads the library's messages.
pub(super) struct Wire;

/// Why a message could not be written or read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("no room")]
    NoRoom,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The longest header: three members, two numbers, the kind and a probe number.
const HEADER_LEN_MAX: usize = 3 * Member::LEN_MAX + 2 + 1 + 1;

mod kind {
    pub(super) const PING: u8 = 1;
    pub(super) const ACK: u8 = 2;
    pub(super) const PING_REQ: u8 = 3;
    pub(super) const INDIRECT_PING: u8 = 4;
    pub(super) const INDIRECT_ACK: u8 = 5;
    pub(super) const FORWARDED_ACK: u8 = 6;
    pub(super) const ANNOUNCE: u8 = 7;
    pub(super) const FEED: u8 = 8;
    pub(super) const GOSSIP: u8 = 9;
    pub(super) const BROADCAST: u8 = 10;
    pub(super) const TURN_UNDEAD: u8 = 11;
}

impl Codec<Member> for Wire {
    type Error = WireError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        if buf.remaining_mut() < HEADER_LEN_MAX {
            return Err(WireError::NoRoom);
        }
        header.src.encode(&mut buf);
        buf.put_u16(header.src_incarnation);
        header.dst.encode(&mut buf);
        let (kind, number, third) = match &header.message {
            Message::Ping(n) => (kind::PING, Some(n), None),
            Message::Ack(n) => (kind::ACK, Some(n), None),
            Message::PingReq {
                target,
                probe_number,
            } => (kind::PING_REQ, Some(probe_number), Some(target)),
            Message::IndirectPing {
                origin,
                probe_number,
            } => (kind::INDIRECT_PING, Some(probe_number), Some(origin)),
            Message::IndirectAck {
                target,
                probe_number,
            } => (kind::INDIRECT_ACK, Some(probe_number), Some(target)),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (kind::FORWARDED_ACK, Some(probe_number), Some(origin)),
            Message::Announce => (kind::ANNOUNCE, None, None),
            Message::Feed => (kind::FEED, None, None),
            Message::Gossip => (kind::GOSSIP, None, None),
            Message::Broadcast => (kind::BROADCAST, None, None),
            Message::TurnUndead => (kind::TURN_UNDEAD, None, None),
        };
        buf.put_u8(kind);
        if let Some(number) = number {
            buf.put_u8(*number);
        }
        if let Some(member) = third {
            member.encode(&mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Member>, WireError> {
        let src = Member::decode(&mut buf)?;
        let src_incarnation = buf.try_get_u16().map_err(DecodeError::from)?;
        let dst = Member::decode(&mut buf)?;
        let kind = buf.try_get_u8().map_err(DecodeError::from)?;
        let mut number = || buf.try_get_u8().map_err(DecodeError::from);
        let message = match kind {
            kind::PING => Message::Ping(number()?),
            kind::ACK => Message::Ack(number()?),
            kind::PING_REQ => Message::PingReq {
                probe_number: number()?,
                target: Member::decode(&mut buf)?,
            },
            kind::INDIRECT_PING => Message::IndirectPing {
                probe_number: number()?,
                origin: Member::decode(&mut buf)?,
            },
            kind::INDIRECT_ACK => Message::IndirectAck {
                probe_number: number()?,
                target: Member::decode(&mut buf)?,
            },
            kind::FORWARDED_ACK => Message::ForwardedAck {
                probe_number: number()?,
                origin: Member::decode(&mut buf)?,
            },
            kind::ANNOUNCE => Message::Announce,
            kind::FEED => Message::Feed,
            kind::GOSSIP => Message::Gossip,
            kind::BROADCAST => Message::Broadcast,
            kind::TURN_UNDEAD => Message::TurnUndead,
            _ => return Err(DecodeError("message kind").into()),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Member>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        if buf.remaining_mut() < member.id().encoded_len() + 3 {
            return Err(WireError::NoRoom);
        }
        member.id().encode(&mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<Member>, WireError> {
        let id = Member::decode(&mut buf)?;
        let incarnation = buf.try_get_u16().map_err(DecodeError::from)?;
        let state = match buf.try_get_u8().map_err(DecodeError::from)? {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            _ => return Err(DecodeError("member state").into()),
        };
        Ok(foca::Member::new(id, incarnation, state))
    }
}

/// Whether a message of the library is an announcement: its sender joins, or looks
/// around.
pub(super) fn is_announcement(body: &[u8]) -> bool {
    let header = Wire.decode_header(body);
    header.is_ok_and(|header| header.message == Message::Announce)
}

/// What tells a host that a later life of it is known, where the library's
/// messages begin with a host id: a zero, which is none, and the incarnation.
pub(super) fn encode_outdated(incarnation: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(10);
    body.put_u16(0);
    body.put_u64(incarnation);
    body.freeze()
}

pub(super) fn decode_outdated(mut body: &[u8]) -> Option<u64> {
    let is_that = body.len() == 10 && body.get_u16() == 0;
    is_that.then(|| body.get_u64())
}

/// A member as it would come back from the wire: all members compare it.
pub(super) fn canonical(member: Member) -> Member {
    let mut bytes = Vec::with_capacity(Member::LEN_MAX);
    member.encode(&mut bytes);
    Member::decode(&mut &bytes[..]).unwrap_or(member)
}
