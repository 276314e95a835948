//! A snapshot as bytes: `docs/protocol.md`, "A connection's state". Every snapshot has one
//! form, and what has not exactly that form is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    QUEUE_MAX,
    options::{self, Setting},
    snapshot::{Buffer, Clock, Snapshot, Window},
    state::State,
};

/// The only version there is.
const VERSION: u16 = 1;

/// RFC 7323, section 2.2.
const SCALE_MAX: u8 = 14;
/// The kernel's names have fifteen bytes at most.
const CONGESTION_MAX: usize = 15;
/// Longer than all but the queues.
const FIXED_MAX: usize = 128 + options::MAX * 9;

mod flags {
    pub const SACK: u16 = 1;
    pub const TIMESTAMPS: u16 = 1 << 1;
    pub const MICROS: u16 = 1 << 2;
    pub const ECN: u16 = 1 << 3;
    pub const SCALES: u16 = 1 << 4;
    pub const FIN_UNSENT: u16 = 1 << 5;
    pub const READ_SHUT: u16 = 1 << 6;
    pub const RECEIVE_LOCKED: u16 = 1 << 7;
    pub const SEND_LOCKED: u16 = 1 << 8;
    pub const ALL: u16 = (1 << 9) - 1;
}

/// Why bytes are no snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Another version's.
    #[error("the connection's state has version {0}, and this build knows version 1 alone")]
    Version(u16),
    /// The bytes end too early, or go on too long.
    #[error("the connection's state is {0} bytes long, which is not what it says itself")]
    Length(usize),
    /// A field has a value that it cannot have.
    #[error("the connection's state has no valid {0}")]
    Field(&'static str),
}

impl Snapshot {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let queues = self.sent.len() + self.unsent.len() + self.received.len();
        let mut out = Vec::with_capacity(FIXED_MAX + queues);
        let (peer_scale, own_scale) = self.scales.unwrap_or_default();
        out.extend(VERSION.to_be_bytes());
        out.extend([if self.local.is_ipv4() { 4 } else { 6 }, self.state as u8]);
        out.extend(self.flags().to_be_bytes());
        out.extend([peer_scale, own_scale]);
        for end in [self.local, self.peer] {
            match end.ip() {
                IpAddr::V4(v4) => out.extend(v4.octets()),
                IpAddr::V6(v6) => out.extend(v6.octets()),
            }
            out.extend(end.port().to_be_bytes());
        }
        let Window {
            told_at,
            peer,
            peer_max,
            own,
            own_at,
        } = self.window;
        for word in [
            self.written,
            self.expected,
            self.mss,
            self.clock.map_or(0, |clock| clock.value),
            told_at,
            peer,
            peer_max,
            own,
            own_at,
            self.window_clamp,
            self.receive_buffer.bytes,
            self.send_buffer.bytes,
        ] {
            out.extend(word.to_be_bytes());
        }
        // Both are short: what is read from a socket and what is decoded.
        out.push(self.congestion.len() as u8);
        out.extend(self.congestion.as_bytes());
        out.push(self.settings.len() as u8);
        for setting in &self.settings {
            out.push(setting.id);
            out.extend(setting.value.to_be_bytes());
        }
        for queue in [&self.sent, &self.unsent, &self.received] {
            out.extend((queue.len() as u32).to_be_bytes());
            out.extend(queue);
        }
        out
    }

    fn flags(&self) -> u16 {
        [
            (self.sack, flags::SACK),
            (self.clock.is_some(), flags::TIMESTAMPS),
            (self.clock.is_some_and(|clock| clock.micros), flags::MICROS),
            (self.ecn, flags::ECN),
            (self.scales.is_some(), flags::SCALES),
            (self.fin_unsent, flags::FIN_UNSENT),
            (self.read_shut, flags::READ_SHUT),
            (self.receive_buffer.locked, flags::RECEIVE_LOCKED),
            (self.send_buffer.locked, flags::SEND_LOCKED),
        ]
        .into_iter()
        .fold(0, |all, (set, flag)| if set { all | flag } else { all })
    }

    /// The snapshot of these bytes, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader {
            all: bytes,
            rest: bytes,
        };
        match reader.u16()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        let snapshot = reader.body()?;
        if !reader.rest.is_empty() {
            return Err(Malformed::Length(bytes.len()));
        }
        snapshot.verify().map(|()| snapshot)
    }

    /// What no field says alone.
    fn verify(&self) -> Result<(), Malformed> {
        let field = |name| Err(Malformed::Field(name));
        if self.sent.len() + self.unsent.len() > QUEUE_MAX as usize {
            return field("send queue");
        }
        if self.received.len() > QUEUE_MAX as usize {
            return field("receive queue");
        }
        let all_sent = self.unsent.is_empty() && !self.fin_unsent;
        let fits = match self.state {
            State::Established | State::CloseWait => !self.fin_unsent,
            // The FIN comes after all data.
            State::FinWait1 => all_sent || self.fin_unsent,
            State::FinWait2 => all_sent && self.sent.is_empty(),
        };
        if !fits {
            return field("end of the send queue");
        }
        // Reading is shut down by the peer's FIN itself.
        if self.read_shut && self.state == State::CloseWait {
            return field("end of reading");
        }
        if self.local.port() == 0 || self.peer.port() == 0 {
            return field("port");
        }
        Ok(())
    }
}

struct Reader<'a> {
    all: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn body(&mut self) -> Result<Snapshot, Malformed> {
        let family = self.u8()?;
        let state = State::of(self.u8()?).ok_or(Malformed::Field("state"))?;
        let flags = self.u16()?;
        if flags & !flags::ALL != 0 {
            return Err(Malformed::Field("flags"));
        }
        let has = |flag| flags & flag != 0;
        let scales = self.scales(has(flags::SCALES))?;
        let (local, peer) = (self.end(family)?, self.end(family)?);
        let (written, expected, mss) = (self.u32()?, self.u32()?, self.u32()?);
        let clock = match (has(flags::TIMESTAMPS), has(flags::MICROS), self.u32()?) {
            (true, micros, value) => Some(Clock { value, micros }),
            (false, false, 0) => None,
            _ => return Err(Malformed::Field("clock")),
        };
        Ok(Snapshot {
            local,
            peer,
            state,
            written,
            expected,
            fin_unsent: has(flags::FIN_UNSENT),
            read_shut: has(flags::READ_SHUT),
            scales,
            mss,
            sack: has(flags::SACK),
            ecn: has(flags::ECN),
            clock,
            window: Window {
                told_at: self.u32()?,
                peer: self.u32()?,
                peer_max: self.u32()?,
                own: self.u32()?,
                own_at: self.u32()?,
            },
            window_clamp: self.u32()?,
            receive_buffer: Buffer {
                bytes: self.u32()?,
                locked: has(flags::RECEIVE_LOCKED),
            },
            send_buffer: Buffer {
                bytes: self.u32()?,
                locked: has(flags::SEND_LOCKED),
            },
            congestion: self.congestion()?,
            settings: self.settings()?,
            sent: self.queue()?,
            unsent: self.queue()?,
            received: self.queue()?,
        })
    }

    fn scales(&mut self, agreed: bool) -> Result<Option<(u8, u8)>, Malformed> {
        match (self.u8()?, self.u8()?) {
            (0, 0) if !agreed => Ok(None),
            (peer, own) if agreed && peer <= SCALE_MAX && own <= SCALE_MAX => Ok(Some((peer, own))),
            _ => Err(Malformed::Field("window scale")),
        }
    }

    fn end(&mut self, family: u8) -> Result<SocketAddr, Malformed> {
        let address = match family {
            4 => IpAddr::from(Ipv4Addr::from_bits(self.u32()?)),
            6 => IpAddr::from(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(Malformed::Field("family")),
        };
        if address.is_ipv6() && address.to_canonical().is_ipv4() {
            return Err(Malformed::Field("address"));
        }
        Ok(SocketAddr::new(address, self.u16()?))
    }

    fn congestion(&mut self) -> Result<String, Malformed> {
        let len = usize::from(self.u8()?);
        let name = self.take(len)?;
        let valid = (1..=CONGESTION_MAX).contains(&len) && name.iter().all(u8::is_ascii_graphic);
        match str::from_utf8(name) {
            Ok(name) if valid => Ok(name.to_owned()),
            _ => Err(Malformed::Field("congestion control")),
        }
    }

    fn settings(&mut self) -> Result<Vec<Setting>, Malformed> {
        let mut settings: Vec<Setting> = Vec::with_capacity(options::MAX);
        for _ in 0..self.u8()? {
            let (id, value) = (self.u8()?, i64::from_be_bytes(self.array()?));
            let ascends = settings.last().is_none_or(|last| last.id < id);
            if !ascends || !options::is_known(id) {
                return Err(Malformed::Field("socket option"));
            }
            settings.push(Setting { id, value });
        }
        Ok(settings)
    }

    fn queue(&mut self) -> Result<Vec<u8>, Malformed> {
        let len = self.u32()? as usize;
        // Only what is there is copied, whatever it says.
        self.take(len).map(<[u8]>::to_vec)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed::Length(self.all.len()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
