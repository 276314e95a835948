//! The dialer's half of a carrier: sends messages, and tells their fate.
//!
//! Sans-IO: messages, bytes and the time go in; bytes and fates come out.
//!
//! A message of up to [`SHORT_MAX`] bytes is sent unasked as long as all that is sent
//! unasked and not acknowledged fits into [`WINDOW`]. A longer one is offered first, and
//! sent once the acceptor has room for it. So the acceptor always reads: a slow reader
//! there stops messages, never the connection, and a silent connection is a dead one.
//! Long before that, one that lags ([`Pace::lag_after`]) takes no more messages.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{Decoder, Frame, Garbage, Header, Hint, Kind, NOTE_MAX};

/// What may be under way unasked, in bytes, each message at its [`cost`].
pub const WINDOW: usize = 160 << 10;

/// The longest message that is sent unasked, in bytes: two of them fit into [`WINDOW`].
pub const SHORT_MAX: usize = WINDOW / 2 - MESSAGE_COST;

/// What a message takes of any bound, in bytes: itself, and what is kept about it. So
/// a bound on bytes bounds messages, too.
pub const fn cost(len: usize) -> usize {
    len + MESSAGE_COST
}

/// Whether a message of this length has to be offered before it is sent.
pub const fn is_long(len: usize) -> bool {
    len > SHORT_MAX
}

/// What is kept about a message, at most, in bytes.
pub const MESSAGE_COST: usize = 256;

/// When to speak, and when to give up; microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Who has said nothing for so long pings.
    pub ping_every: u64,
    /// Who has messages that are not acknowledged, and was not heard for so long, gets no
    /// more.
    pub lag_after: u64,
    /// Who is not heard for so long is dead.
    pub dead_after: u64,
}

/// A message on its way, and who is to be told of its fate.
#[derive(Debug)]
pub struct Message<T> {
    /// The message.
    pub body: Bytes,
    /// For whom it is, if it has to be offered.
    pub hint: Hint,
    /// The caller's own.
    pub tag: T,
}

/// What the acceptor says of a message.
#[derive(Debug)]
pub enum Said<T> {
    /// It has it, whole; and its note, if it has one.
    Delivered(Message<T>, Option<Bytes>),
    /// It was offered, and there is no room for it. No byte of it was sent.
    Declined(Message<T>),
}

/// The peer was not heard for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nothing was heard on a carrier for too long")]
pub struct Silent;

/// What became of the messages of a carrier that has ended.
pub struct Ended<T> {
    /// They were at least partly sent, and not acknowledged: nobody can say.
    pub unknown: Vec<Message<T>>,
    /// No byte of them was sent.
    pub unsent: Vec<Message<T>>,
}

/// A message that was put into the stream.
struct Sent<T> {
    /// Where in the stream its frame begins and ends.
    begins: u64,
    ends: u64,
    message: Message<T>,
    note: Option<Bytes>,
}

/// The dialer's half.
pub struct Outgoing<T> {
    channel: u8,
    pace: Pace,
    /// The number of the next message, or of the one that is offered.
    next: u64,
    /// Acknowledged up to here.
    acked: u64,
    unacked: VecDeque<Sent<T>>,
    /// How much of the window is in use.
    window_used: usize,
    offered: Option<Message<T>>,
    /// A message that was offered is on its way. What came after it would have to wait
    /// for all of it, however much of it is in the kernel's buffers already.
    is_busy: bool,
    /// What is to be written.
    out: VecDeque<Bytes>,
    /// Bytes of the stream that were put into `out`, and taken from it, ever.
    put: u64,
    taken: u64,
    decoder: Decoder,
    heard_at: u64,
    spoke_at: u64,
    /// Since when an answer is waited for: since a message was sent, or the last answer.
    waits_since: Option<u64>,
    /// It was waited for too long.
    lags: bool,
    retired: bool,
}

impl<T> Outgoing<T> {
    /// A carrier that has just been opened.
    pub fn new(channel: u8, pace: Pace, now: u64) -> Self {
        Self {
            channel,
            pace,
            next: 1,
            acked: 0,
            unacked: VecDeque::new(),
            window_used: 0,
            offered: None,
            is_busy: false,
            out: VecDeque::new(),
            put: 0,
            taken: 0,
            decoder: Decoder::default(),
            heard_at: now,
            spoke_at: now,
            waits_since: None,
            lags: false,
            retired: false,
        }
    }

    /// Whether a message of this length may be given now. Busy with another one, lagging
    /// or retired, it takes none.
    pub fn has_room(&self, len: usize) -> bool {
        let fits = is_long(len) || self.window_used + cost(len) <= WINDOW;
        !self.retired && !self.is_busy && !self.lags && fits
    }

    /// Takes a message for which there is room.
    pub fn give(&mut self, message: Message<T>) {
        debug_assert!(self.has_room(message.body.len()));
        if is_long(message.body.len()) {
            self.put_header(Kind::Offer, message.body.len(), self.next);
            self.put(Bytes::copy_from_slice(&message.hint));
            self.offered = Some(message);
            self.is_busy = true;
        } else {
            self.window_used += cost(message.body.len());
            self.put_message(message);
        }
    }

    /// Moves bytes to be written to the end of `into`, until that holds `max`.
    pub fn take(&mut self, into: &mut BytesMut, max: usize, now: u64) {
        while into.len() < max
            && let Some(front) = self.out.front_mut()
        {
            let some = front.len().min(max - into.len());
            into.extend_from_slice(&front[..some]);
            front.advance(some);
            if front.is_empty() {
                self.out.pop_front();
            }
            self.taken += some as u64;
            self.spoke_at = now;
        }
        if !self.is_idle() {
            self.waits_since.get_or_insert(now);
        }
    }

    /// Reads what the acceptor says, and appends to `said` what that means for messages.
    ///
    /// # Errors
    ///
    /// It makes no sense: the carrier is to be closed.
    pub fn hear(
        &mut self,
        mut bytes: &[u8],
        now: u64,
        said: &mut Vec<Said<T>>,
    ) -> Result<(), Garbage> {
        self.heard_at = now;
        while !bytes.is_empty() {
            let channel = self.channel;
            let judge = |header: &Header| match header.kind {
                Kind::Message | Kind::Offer => Err(Garbage("a message against the stream")),
                _ if header.channel != channel => Err(Garbage("another channel")),
                Kind::Note if header.len as usize > NOTE_MAX => Err(Garbage("a note too long")),
                Kind::Note => Ok(()),
                _ if header.len != 0 => Err(Garbage("a length where none belongs")),
                _ => Ok(()),
            };
            if let Some(frame) = self.decoder.next(&mut bytes, judge)? {
                self.obey(&frame, said)?;
            }
        }
        self.waits_since = (!self.is_idle()).then_some(now);
        self.lags = false;
        Ok(())
    }

    fn obey(&mut self, frame: &Frame, said: &mut Vec<Said<T>>) -> Result<(), Garbage> {
        let header = &frame.header;
        match header.kind {
            Kind::Ack => {
                let Some(count) = header.number.checked_sub(self.acked) else {
                    return Err(Garbage("an acknowledgement taken back"));
                };
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let last = count.checked_sub(1).map(|last| self.unacked.get(last));
                if last.is_some_and(|last| last.is_none_or(|sent| sent.ends > self.taken)) {
                    return Err(Garbage("an acknowledgement of what was not sent"));
                }
                self.acked = header.number;
                for sent in self.unacked.drain(..count) {
                    match sent.message.body.len() {
                        len if is_long(len) => self.is_busy = false,
                        len => self.window_used -= cost(len),
                    }
                    said.push(Said::Delivered(sent.message, sent.note));
                }
            }
            Kind::Note => {
                let at = header.number.checked_sub(self.acked + 1);
                let at = at.and_then(|at| usize::try_from(at).ok());
                let sent = at.and_then(|at| self.unacked.get_mut(at));
                match sent {
                    Some(sent) if sent.ends <= self.taken => sent.note = Some(frame.body.clone()),
                    _ => return Err(Garbage("a note on what was not sent")),
                }
            }
            Kind::Go => match self.offered.take() {
                Some(message) if header.number == self.next => self.put_message(message),
                offered => {
                    self.offered = offered;
                    return Err(Garbage("room for what was not offered"));
                }
            },
            Kind::Decline => match self.offered.take() {
                Some(message) if header.number == self.next => {
                    self.is_busy = false;
                    said.push(Said::Declined(message));
                }
                offered => {
                    self.offered = offered;
                    return Err(Garbage("no room for what was not offered"));
                }
            },
            Kind::Retire => self.retired = true,
            Kind::Ping | Kind::Message | Kind::Offer => {}
        }
        Ok(())
    }

    /// Does what is due, see [`Outgoing::due`].
    ///
    /// # Errors
    ///
    /// The peer is silent: the carrier is to be closed.
    pub fn tick(&mut self, now: u64) -> Result<(), Silent> {
        if now >= self.heard_at + self.pace.dead_after {
            return Err(Silent);
        }
        self.lags = self.lag_at().is_some_and(|at| now >= at);
        if now >= self.spoke_at + self.pace.ping_every {
            self.spoke_at = now;
            if self.out.is_empty() {
                self.put_header(Kind::Ping, 0, 0);
            }
        }
        Ok(())
    }

    /// When to call [`Outgoing::tick`].
    pub fn due(&self) -> u64 {
        let ping = self.spoke_at + self.pace.ping_every;
        let lag = self.lag_at().filter(|_| !self.lags).unwrap_or(u64::MAX);
        ping.min(lag).min(self.heard_at + self.pace.dead_after)
    }

    fn lag_at(&self) -> Option<u64> {
        Some(self.waits_since? + self.pace.lag_after)
    }

    /// Whether a long message is offered or on its way.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Takes no more messages; those that it has are finished.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Whether it takes no more messages.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether it has no message whose fate is open.
    pub fn is_idle(&self) -> bool {
        self.unacked.is_empty() && self.offered.is_none()
    }

    /// The carrier has ended: what that means for its messages.
    pub fn end(self) -> Ended<T> {
        let taken = self.taken;
        let is_unknown = |sent: &Sent<T>| sent.begins < taken;
        let (unknown, unsent): (Vec<_>, Vec<_>) = self.unacked.into_iter().partition(is_unknown);
        let messages = |sent: Vec<Sent<T>>| sent.into_iter().map(|sent| sent.message);
        Ended {
            unknown: messages(unknown).collect(),
            unsent: messages(unsent).chain(self.offered).collect(),
        }
    }

    fn put_message(&mut self, message: Message<T>) {
        let begins = self.put;
        self.put_header(Kind::Message, message.body.len(), self.next);
        self.next += 1;
        if !message.body.is_empty() {
            self.put(message.body.clone());
        }
        let ends = self.put;
        self.unacked.push_back(Sent {
            begins,
            ends,
            message,
            note: None,
        });
    }

    fn put_header(&mut self, kind: Kind, len: usize, number: u64) {
        let mut bytes = BytesMut::with_capacity(super::frame::HEADER_LEN);
        let header = Header {
            kind,
            channel: self.channel,
            len: len as u32,
            number,
        };
        header.encode(&mut bytes);
        self.put(bytes.freeze());
    }

    fn put(&mut self, bytes: Bytes) {
        self.put += bytes.len() as u64;
        self.out.push_back(bytes);
    }
}
