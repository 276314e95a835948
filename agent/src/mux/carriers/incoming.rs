//! The acceptor's half of a carrier: receives messages, and acknowledges them.
//!
//! Sans-IO: bytes and the time go in; messages and bytes come out. Whoever drives it
//! looks at what is [first](Incoming::first), finds room for it, and then takes it:
//! only a message that was taken is acknowledged.
//!
//! An acknowledgement wakes the dialer, and one serves for all messages before it. So it
//! waits a moment for further messages ([`ACK_WITHIN`]), unless somebody waits for it or
//! for the window.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    frame::{Decoder, Garbage, Header, Hint, Kind, NOTE_MAX},
    outgoing::{Pace, Silent, WINDOW, cost, is_long},
};

/// The longest that an acknowledgement is held back, in microseconds. Timers have a
/// granularity of a millisecond: it may be two of them.
pub const ACK_WITHIN: u64 = 1_000;

/// Messages that take so much of the window are acknowledged at once: the dialer does not
/// come to its end meanwhile.
const ACK_AT: usize = WINDOW / 4;

/// What has arrived first, and waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// A message is offered: [`Incoming::grant`] once there is room, or
    /// [`Incoming::decline`].
    Offer {
        /// Its length.
        len: usize,
        /// For whom it is.
        hint: Hint,
    },
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
    /// What those between them take of the window, and by when to acknowledge them.
    unacked: usize,
    ack_by: u64,
    /// What else is to be written.
    out: BytesMut,
    decoder: Decoder,
    heard_at: u64,
    spoke_at: u64,
}

/// What has arrived and waits.
enum Arrived {
    Offer { len: usize, hint: Hint },
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
            unacked: 0,
            ack_by: now,
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
                    let mut hint = Hint::default();
                    hint.copy_from_slice(&frame.body);
                    self.arrived.push_back(Arrived::Offer { len, hint });
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
                // `judge` has refused all others.
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a frame may come now.
    fn judge(&self, header: &Header) -> Result<(), Garbage> {
        let len = header.len as usize;
        let offered = matches!(self.arrived.back(), Some(Arrived::Offer { .. }));
        let refuse = |why| Err(Garbage(why));
        match header.kind {
            _ if header.channel != self.channel => refuse("another channel"),
            Kind::Ack | Kind::Go | Kind::Retire | Kind::Note | Kind::Decline => {
                refuse("an answer against the stream")
            }
            Kind::Ping if len != 0 || header.number != 0 => refuse("a ping that says something"),
            Kind::Ping => Ok(()),
            _ if header.number != self.next => refuse("a message out of turn"),
            _ if len > self.limit => refuse("a message over the limit"),
            _ if offered => refuse("a message before there was room for the one offered"),
            Kind::Message if self.granted.is_some_and(|granted| granted != len) => {
                refuse("another message than the one offered")
            }
            Kind::Message if self.granted.is_some() => Ok(()),
            Kind::Message if is_long(len) => refuse("a long message that was not offered"),
            Kind::Message if self.window_used + cost(len) > WINDOW => {
                refuse("more messages than the window holds")
            }
            Kind::Offer if self.granted.is_some() || !is_long(len) => {
                refuse("an offer that is none")
            }
            Kind::Message | Kind::Offer => Ok(()),
        }
    }

    /// What has arrived first and waits.
    pub fn first(&self) -> Option<First> {
        Some(match self.arrived.front()? {
            Arrived::Offer { len, hint } => First::Offer {
                len: *len,
                hint: *hint,
            },
            Arrived::Message { body, granted } => First::Message {
                len: body.len(),
                granted: *granted,
            },
        })
    }

    /// There is room for the message that is offered first.
    pub fn grant(&mut self) {
        if let Some(Arrived::Offer { len, .. }) = self.arrived.front() {
            self.granted = Some(*len);
            self.arrived.pop_front();
            self.put(Kind::Go, self.next);
        }
    }

    /// There is no room for the message that is offered first, and none is waited for.
    pub fn decline(&mut self) {
        if let Some(Arrived::Offer { .. }) = self.arrived.front() {
            self.arrived.pop_front();
            self.put(Kind::Decline, self.next);
        }
    }

    /// Takes the message that is first. It will be acknowledged within [`ACK_WITHIN`]; see
    /// [`Incoming::note`] and [`Incoming::hurry`].
    pub fn accept(&mut self, now: u64) -> Option<Bytes> {
        let is_message = |arrived: &mut Arrived| matches!(arrived, Arrived::Message { .. });
        let Arrived::Message { body, granted } = self.arrived.pop_front_if(is_message)? else {
            return None;
        };
        if !granted {
            self.window_used -= cost(body.len());
        }
        if self.acked == self.accepted {
            self.ack_by = now + ACK_WITHIN;
        }
        self.unacked += cost(body.len());
        self.accepted += 1;
        Some(body)
    }

    /// Somebody waits for the acknowledgement of what was taken last.
    pub fn hurry(&mut self) {
        self.ack_by = 0;
    }

    /// Says something of the message that was taken last, before it is acknowledged.
    pub fn note(&mut self, note: &[u8]) {
        debug_assert!(self.acked < self.accepted && note.len() <= NOTE_MAX);
        self.put_with(Kind::Note, self.accepted, note.len());
        self.out.extend_from_slice(note);
    }

    /// Asks the dialer to use another carrier.
    pub fn retire(&mut self) {
        self.put(Kind::Retire, 0);
    }

    /// Moves bytes to be written to the end of `into`: one acknowledgement of all that
    /// was taken, if it is due.
    pub fn take(&mut self, into: &mut BytesMut, now: u64) {
        if self.acked < self.accepted && (now >= self.ack_by || self.unacked >= ACK_AT) {
            self.acked = self.accepted;
            self.unacked = 0;
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

    /// When to call [`Incoming::tick`], and then [`Incoming::take`].
    pub fn due(&self) -> u64 {
        let ping = self.spoke_at + self.pace.ping_every;
        let due = ping.min(self.heard_at + self.pace.dead_after);
        match self.acked < self.accepted {
            true => due.min(self.ack_by),
            false => due,
        }
    }

    /// Whether a message was begun and is not complete, or was not taken.
    pub fn is_within(&self) -> bool {
        self.decoder.is_within() || !self.arrived.is_empty() || self.granted.is_some()
    }

    fn put(&mut self, kind: Kind, number: u64) {
        self.put_with(kind, number, 0);
    }

    fn put_with(&mut self, kind: Kind, number: u64, len: usize) {
        let header = Header {
            kind,
            channel: self.channel,
            len: len as u32,
            number,
        };
        header.encode(&mut self.out);
    }
}
