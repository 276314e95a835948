//! The acceptor's half of a carrier: receives messages, and acknowledges them.
//!
//! Sans-IO: bytes and the time go in; messages and bytes come out. Whoever drives it
//! looks at what is [first](Incoming::first), finds room for it, and then takes it:
//! only a message that was taken is acknowledged.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    frame::{Decoder, Garbage, Header, Kind},
    outgoing::{Pace, Silent, WINDOW, cost},
};

/// What has arrived first, and waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// A message of this length is offered: [`Incoming::grant`] once there is room.
    Offer(usize),
    /// A message is here: [`Incoming::accept`].
    Message {
        /// Its length.
        len: usize,
        /// Room was granted to it before.
        granted: bool,
    },
}

/// The acceptor's half.
pub struct Incoming {
    channel: u8,
    /// The longest message, in bytes.
    limit: usize,
    pace: Pace,
    /// The number of the message that comes next.
    next: u64,
    arrived: VecDeque<Arrived>,
    /// How much of the window is in use.
    window_used: usize,
    /// The length of the message that was offered and that room was granted to.
    granted: Option<usize>,
    /// The last message that was taken, and the last that was acknowledged.
    accepted: u64,
    acked: u64,
    /// What else is to be written.
    out: BytesMut,
    decoder: Decoder,
    heard_at: u64,
    spoke_at: u64,
}

/// What has arrived and waits.
enum Arrived {
    Offer(usize),
    Message { body: Bytes, granted: bool },
}

impl Incoming {
    /// A carrier that has just been opened, for messages of up to `limit` bytes.
    pub fn new(channel: u8, limit: usize, pace: Pace, now: u64) -> Self {
        Self {
            channel,
            limit,
            pace,
            next: 1,
            arrived: VecDeque::new(),
            window_used: 0,
            granted: None,
            accepted: 0,
            acked: 0,
            out: BytesMut::new(),
            decoder: Decoder::default(),
            heard_at: now,
            spoke_at: now,
        }
    }

    /// Reads what the dialer says.
    ///
    /// # Errors
    ///
    /// It makes no sense: the carrier is to be closed.
    pub fn hear(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Garbage> {
        self.heard_at = now;
        while !bytes.is_empty() {
            let mut decoder = std::mem::take(&mut self.decoder);
            let frame = decoder.next(&mut bytes, |header| self.judge(header))?;
            self.decoder = decoder;
            let Some(frame) = frame else { continue };
            match frame.header.kind {
                Kind::Offer => {
                    let len = frame.header.len as usize;
                    self.arrived.push_back(Arrived::Offer(len));
                }
                Kind::Message => {
                    self.next += 1;
                    let granted = self.granted.take().is_some();
                    if !granted {
                        self.window_used += cost(frame.body.len());
                    }
                    let body = frame.body;
                    self.arrived.push_back(Arrived::Message { body, granted });
                }
                Kind::Ack | Kind::Go | Kind::Ping | Kind::Retire => {}
            }
        }
        Ok(())
    }

    /// Whether a frame may come now.
    fn judge(&self, header: &Header) -> Result<(), Garbage> {
        let len = header.len as usize;
        let offered = matches!(self.arrived.back(), Some(Arrived::Offer(_)));
        let refuse = |why| Err(Garbage(why));
        match header.kind {
            _ if header.channel != self.channel => refuse("another channel"),
            Kind::Ack | Kind::Go | Kind::Retire => refuse("an answer against the stream"),
            Kind::Ping if len != 0 || header.number != 0 => refuse("a ping that says something"),
            Kind::Ping => Ok(()),
            _ if header.number != self.next => refuse("a message out of turn"),
            _ if len > self.limit => refuse("a message over the limit"),
            _ if offered => refuse("a message before there was room for the one offered"),
            Kind::Message if self.granted.is_some_and(|granted| granted != len) => {
                refuse("another message than the one offered")
            }
            Kind::Message if self.granted.is_some() => Ok(()),
            Kind::Message if self.window_used + cost(len) > WINDOW => {
                refuse("more messages than the window holds")
            }
            Kind::Offer if self.granted.is_some() || cost(len) <= WINDOW => {
                refuse("an offer that is none")
            }
            Kind::Message | Kind::Offer => Ok(()),
        }
    }

    /// What has arrived first and waits.
    pub fn first(&self) -> Option<First> {
        Some(match self.arrived.front()? {
            Arrived::Offer(len) => First::Offer(*len),
            Arrived::Message { body, granted } => First::Message {
                len: body.len(),
                granted: *granted,
            },
        })
    }

    /// There is room for the message that is offered first.
    pub fn grant(&mut self) {
        if let Some(Arrived::Offer(len)) = self.arrived.front() {
            self.granted = Some(*len);
            self.arrived.pop_front();
            self.put(Kind::Go, self.next);
        }
    }

    /// Takes the message that is first. It will be acknowledged.
    pub fn accept(&mut self) -> Option<Bytes> {
        let is_message = |arrived: &mut Arrived| matches!(arrived, Arrived::Message { .. });
        let Arrived::Message { body, granted } = self.arrived.pop_front_if(is_message)? else {
            return None;
        };
        if !granted {
            self.window_used -= cost(body.len());
        }
        self.accepted += 1;
        Some(body)
    }

    /// Its channel's number.
    pub fn channel(&self) -> u8 {
        self.channel
    }

    /// Asks the dialer to use another carrier.
    pub fn retire(&mut self) {
        self.put(Kind::Retire, 0);
    }

    /// Moves bytes to be written to the end of `into`: one acknowledgement of all that
    /// was taken.
    pub fn take(&mut self, into: &mut BytesMut, now: u64) {
        if self.acked < self.accepted {
            self.acked = self.accepted;
            self.put(Kind::Ack, self.accepted);
        }
        if !self.out.is_empty() {
            into.unsplit(self.out.split());
            self.spoke_at = now;
        }
    }

    /// Does what is due, see [`Incoming::due`].
    ///
    /// # Errors
    ///
    /// The peer is silent: the carrier is to be closed.
    pub fn tick(&mut self, now: u64) -> Result<(), Silent> {
        if now >= self.heard_at + self.pace.dead_after {
            return Err(Silent);
        }
        if now >= self.spoke_at + self.pace.ping_every {
            self.spoke_at = now;
            self.put(Kind::Ping, 0);
        }
        Ok(())
    }

    /// When to call [`Incoming::tick`].
    pub fn due(&self) -> u64 {
        let ping = self.spoke_at + self.pace.ping_every;
        ping.min(self.heard_at + self.pace.dead_after)
    }

    /// Whether a message was begun and is not complete, or was not taken.
    pub fn is_within(&self) -> bool {
        self.decoder.is_within() || !self.arrived.is_empty() || self.granted.is_some()
    }

    fn put(&mut self, kind: Kind, number: u64) {
        let header = Header {
            kind,
            channel: self.channel,
            len: 0,
            number,
        };
        header.encode(&mut self.out);
    }
}
