//! From datagrams to messages: total, for the sender may be anybody's program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    Closing, Connection, Family, HEADER_LEN, MESSAGE_MAX, Message, Pending, Protocol, Reason,
    SERVICES_MAX, TCP, VERSION, Wrong, kind,
};

/// The rest of a datagram.
pub(super) struct Reader<'a>(&'a [u8]);

const SHORT: Wrong = Wrong::Malformed("it is too short");

impl<'a> Reader<'a> {
    pub fn message(datagram: &'a [u8]) -> Result<Message<'a>, Wrong> {
        let mut reader = Self(datagram);
        let [version, kind, zero @ ..] = reader.array::<4>()?;
        if version != VERSION {
            return Err(Wrong::Version(version));
        }
        let body_len = reader.u32()? as usize;
        let number = reader.u64()?;
        if datagram.len() > MESSAGE_MAX {
            return Err(Wrong::Malformed("it is too long"));
        }
        if zero != [0, 0] || body_len != datagram.len() - HEADER_LEN {
            return Err(Wrong::Malformed("its header is wrong"));
        }
        let message = reader.body(kind, number)?;
        if !reader.0.is_empty() {
            return Err(Wrong::Malformed("something follows its end"));
        }
        Ok(message)
    }

    fn body(&mut self, kind: u8, number: u64) -> Result<Message<'a>, Wrong> {
        let of_a_move = !matches!(
            kind,
            kind::REGISTER | kind::READY | kind::REGISTERED | kind::CLOSING
        );
        if !of_a_move && number != 0 {
            return Err(Wrong::Malformed("it has a move's number and is of no move"));
        }
        Ok(match kind {
            kind::REGISTER => self.register()?,
            kind::PENDING => Message::Pending {
                number,
                pending: match self.u8()? {
                    1 => Pending::Export,
                    2 => Pending::Import,
                    3 => Pending::Kept,
                    _ => return Err(Wrong::Malformed("what is pending is unknown")),
                },
                connection: self.connection()?,
            },
            kind::READY => Message::Ready,
            kind::EXPORTED => Message::Exported { number },
            kind::IMPORTED => Message::Imported { number },
            kind::KEPT => Message::Kept { number },
            kind::ADOPTED => Message::Adopted { number },
            kind::REFUSE => Message::Refuse {
                number,
                reason: Reason::from_number(self.u8()?)
                    .ok_or(Wrong::Malformed("its reason is unknown"))?,
                text: self.text()?,
            },
            kind::STATE => self.state(number)?,
            kind::REGISTERED => Message::Registered {
                blob_max: self.u32()?,
                moves_max: self.u16()?,
            },
            kind::CLOSING => Message::Closing {
                closing: Closing::from_number(self.u8()?)
                    .ok_or(Wrong::Malformed("its reason is unknown"))?,
                text: self.text()?,
            },
            kind::EXPORT => Message::Export {
                number,
                within_ms: self.u32()?,
                connection: self.connection()?,
            },
            kind::COMMITTED => Message::Committed { number },
            kind::RESUME => Message::Resume {
                number,
                state: match self.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(Wrong::Malformed("a flag is neither 0 nor 1")),
                },
            },
            kind::IMPORT => self.import(number)?,
            kind::ADOPT => Message::Adopt { number },
            kind::DROP => Message::Drop { number },
            _ => return Err(Wrong::Malformed("its kind is unknown")),
        })
    }

    fn register(&mut self) -> Result<Message<'a>, Wrong> {
        let protocol = Protocol {
            name: self.text()?.to_owned(),
            version: self.u32()?,
        };
        if !protocol.is_valid() {
            return Err(Wrong::Malformed(
                "the protocol's name is empty, too long, or has control characters",
            ));
        }
        let count = usize::from(self.u16()?);
        if count == 0 || count > SERVICES_MAX {
            return Err(Wrong::Malformed("it has no services, or too many"));
        }
        // No more room than there are bytes for.
        let mut services = Vec::with_capacity(count.min(self.0.len() / 8));
        for _ in 0..count {
            self.tcp()?;
            services.push(self.endpoint()?);
        }
        Ok(Message::Register { protocol, services })
    }

    fn state(&mut self, number: u64) -> Result<Message<'a>, Wrong> {
        let (total, offset) = (self.u32()?, self.u32()?);
        let part = std::mem::take(&mut self.0);
        let end = u64::from(offset) + part.len() as u64;
        if end > total.into() || (part.is_empty() && total != 0) {
            return Err(Wrong::Malformed(
                "a part is empty, or ends behind the state's end",
            ));
        }
        Ok(Message::State {
            number,
            total,
            offset,
            part,
        })
    }

    fn import(&mut self, number: u64) -> Result<Message<'a>, Wrong> {
        let within_ms = self.u32()?;
        let family = match self.u8()? {
            4 => Family::V4,
            6 => Family::V6,
            _ => return Err(Wrong::Malformed("the socket's family is neither 4 nor 6")),
        };
        let connection = self.connection()?;
        if family == Family::V4 && connection.client.is_ipv6() {
            return Err(Wrong::Malformed(
                "a socket of IPv4 holds no connection over IPv6",
            ));
        }
        Ok(Message::Import {
            number,
            within_ms,
            family,
            connection,
        })
    }

    fn connection(&mut self) -> Result<Connection, Wrong> {
        self.tcp()?;
        let (client, service) = (self.endpoint()?, self.endpoint()?);
        if client.is_ipv4() != service.is_ipv4() {
            return Err(Wrong::Malformed(
                "client and service are of different families",
            ));
        }
        Ok(Connection { client, service })
    }

    fn tcp(&mut self) -> Result<(), Wrong> {
        match self.u8()? {
            TCP => Ok(()),
            _ => Err(Wrong::Malformed("the protocol of a connection is not TCP")),
        }
    }

    fn endpoint(&mut self) -> Result<SocketAddr, Wrong> {
        let address = match self.u8()? {
            4 => IpAddr::from(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::from(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(Wrong::Malformed("an address is of neither 4 nor 6")),
        };
        if address.to_canonical() != address {
            return Err(Wrong::Malformed("an IPv4 address is written as IPv6"));
        }
        Ok(SocketAddr::new(address, self.u16()?))
    }

    fn text(&mut self) -> Result<&'a str, Wrong> {
        let len = usize::from(self.u8()?);
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes).map_err(|_| Wrong::Malformed("a text is not UTF-8"))
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Wrong> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, Wrong> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Wrong> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}
