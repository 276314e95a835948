//! From an application to carriers, and the fates of what it has sent.

use std::{collections::VecDeque, io::ErrorKind, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use homing_client::message::record::{
    self, AGAIN, Fate, HEADER_LEN as RECORD_LEN, Header, Kind, NotSent, REPEATABLE, TELL,
};
use homing_common::host::HostId;

use super::{Blocked, Bundle, Core, Ending, Output, Pending, Progress, Role, Socket, cost};
use crate::mux::{
    Outcome, Pulled, SHORT_MAX, Size, carriers,
    sockets::{
        bundle::{self, HEADER_LEN, Note, RECORDS_MAX, SocketId, Why, bundle_header},
        port::{Came, Port},
    },
};

/// Datagrams read from one message socket before others have their turn.
const TURN: usize = 64;

/// The place of a size in pairs.
fn at(size: Size) -> usize {
    size as usize
}

/// The size of a message of a carrier.
fn size_of(len: usize) -> Size {
    match len > SHORT_MAX {
        true => Size::Long,
        false => Size::Short,
    }
}

impl Pending {
    /// Adds a record. Whether there was nothing of its size that carriers know of, and
    /// which size that is.
    fn push(&mut self, head: [u8; RECORD_LEN], body: &[u8]) -> (bool, Size) {
        let len = RECORD_LEN + body.len();
        let size = size_of(HEADER_LEN + len);
        let queue = &mut self.queues[at(size)];
        let fits = |bundle: &&mut Bundle| {
            size == Size::Short
                && bundle.bytes.len() + len <= SHORT_MAX
                && bundle.records < RECORDS_MAX
        };
        match queue.back_mut().filter(fits) {
            Some(bundle) => bundle.push(head, body),
            None => {
                let mut bytes = BytesMut::with_capacity(HEADER_LEN + len);
                bytes.put_bytes(0, HEADER_LEN);
                let mut bundle = Bundle { bytes, records: 0 };
                bundle.push(head, body);
                queue.push_back(bundle);
            }
        }
        let is_new = !std::mem::replace(&mut self.told[at(size)], true);
        (is_new, size)
    }

    pub(super) fn bundles(&self) -> impl Iterator<Item = &BytesMut> {
        self.queues.iter().flatten().map(|bundle| &bundle.bytes)
    }

    pub(super) fn take_all(self) -> impl Iterator<Item = BytesMut> {
        let bundles = self.queues.into_iter().flatten();
        bundles.map(|bundle| bundle.bytes)
    }
}

impl Bundle {
    fn push(&mut self, head: [u8; RECORD_LEN], body: &[u8]) {
        self.records += 1;
        self.bytes.put_slice(&head);
        self.bytes.put_slice(body);
    }
}

impl<P: Port> Core<P> {
    /// Whether a message socket may be read from.
    pub(super) fn may_read(&self, socket: &Socket<P>) -> bool {
        let may_hold = match socket.role {
            Role::Client { .. } => {
                socket.blocked.is_empty() && socket.held < self.limits.held_per_socket
            }
            // It has others to send to, and only what waits for each is bounded.
            Role::Service { .. } => socket.held < self.limits.held_per_socket * 4,
        };
        may_hold
            && socket.ending.is_none()
            && !socket.starved
            && socket.outbox_len < self.limits.unread_per_socket
    }

    /// A message socket may have a datagram of its application.
    pub fn readable(&mut self, id: SocketId, now: u64) -> Progress {
        let progress = self.read(id, now);
        self.wake_starved();
        progress
    }

    fn read(&mut self, id: SocketId, now: u64) -> Progress {
        for _ in 0..TURN {
            let Some(socket) = self.sockets.get(id) else {
                return Progress::Waits;
            };
            if !self.may_read(socket) {
                return Progress::Waits;
            }
            if !self.has_memory() {
                self.starve(id);
                return Progress::Waits;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let came = socket.port.receive(&mut scratch);
            let progress = match came {
                Ok(Came::Datagram(len)) => {
                    self.datagram(id, &scratch[..len]);
                    None
                }
                Ok(Came::TooLong) => {
                    self.counters.too_long += 1;
                    self.refuse(id, NotSent::TooLong);
                    None
                }
                Ok(Came::End) => {
                    self.end(id, Ending::Closed { at: now });
                    Some(Progress::Waits)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Progress::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => None,
                Err(_) => {
                    self.end(id, Ending::Closed { at: now });
                    Some(Progress::Waits)
                }
            };
            self.scratch = scratch;
            if let Some(progress) = progress {
                return progress;
            }
        }
        Progress::More
    }

    fn starve(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id)
            && !std::mem::replace(&mut socket.starved, true)
        {
            self.counters.starved += 1;
            self.starved.push_back(id);
        }
    }

    /// What came was no message that can be sent: it counts as one.
    fn refuse(&mut self, id: SocketId, why: NotSent) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.sent += 1;
            let header = Header {
                number: socket.sent,
                ..Header::message(0)
            };
            self.counters.messages_not_sent += 1;
            self.tell(id, &header, Fate::NotSent(why));
        }
    }

    fn datagram(&mut self, id: SocketId, datagram: &[u8]) {
        let mut rest = datagram;
        let mut count = 0;
        while let Some((header, _)) = record::split(&mut rest) {
            count += 1;
            if header.kind != Kind::Message || header.has(AGAIN) {
                rest = datagram;
                break;
            }
        }
        if !rest.is_empty() || count == 0 {
            self.counters.malformed += 1;
            return self.refuse(id, NotSent::Malformed);
        }
        let mut rest = datagram;
        while let Some((header, body)) = record::split(&mut rest) {
            self.message(id, header, body);
        }
    }

    fn message(&mut self, id: SocketId, mut header: Header, body: &[u8]) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        socket.sent += 1;
        header.number = socket.sent;
        self.counters.messages_sent += 1;
        self.counters.sent_bytes += body.len() as u64;
        let to = match socket.role {
            Role::Client { host, service } => {
                let is_to = |peer| peer == 0 || peer == Self::address(host, service);
                is_to(header.peer).then_some((host, service))
            }
            Role::Service { .. } => Self::addressed(header.peer),
        };
        let why = match to {
            _ if body.len() > self.limits.message_max => {
                self.counters.too_long += 1;
                NotSent::TooLong
            }
            None => NotSent::Gone,
            Some((host, _)) if host != self.me && !self.peers.contains_key(&host) => {
                NotSent::Unreachable
            }
            Some(to) => match self.hold(id, to, &header, body) {
                Ok(()) => return,
                Err(why) => why,
            },
        };
        self.counters.messages_not_sent += 1;
        self.tell(id, &header, Fate::NotSent(why));
    }

    /// Takes a message that can be sent, or waits for its receiver.
    fn hold(
        &mut self,
        id: SocketId,
        to: (HostId, SocketId),
        header: &Header,
        body: &[u8],
    ) -> Result<(), NotSent> {
        let Some(socket) = self.sockets.get_mut(id) else {
            return Ok(());
        };
        let wire = Header {
            peer: to.1.0,
            ..*header
        };
        let cost = cost(header);
        if let Some(blocked) = socket.blocked.get_mut(&to) {
            if blocked.cost + cost > self.limits.held_per_peer {
                return Err(NotSent::Full);
            }
            blocked.push(&wire, body);
        }
        socket.held += cost;
        self.held += cost;
        if header.has(REPEATABLE) {
            socket.open.insert(header.number);
        }
        if !socket.blocked.contains_key(&to) {
            self.pend(id, to.0, &wire, body);
        }
        Ok(())
    }

    /// A record is to be sent.
    fn pend(&mut self, id: SocketId, host: HostId, wire: &Header, body: &[u8]) {
        if let Some(socket) = self.sockets.get_mut(id) {
            let pending = socket.pending.entry(host).or_default();
            let (is_new, size) = pending.push(wire.encode(), body);
            if is_new {
                self.outputs.push(Output::Ready(host, id, size));
            }
        }
    }

    /// The next message for a carrier, see [`carriers::Exchange::pull`].
    pub fn pull(&mut self, host: HostId, id: SocketId, size: Size) -> Option<Pulled> {
        let socket = self.sockets.get_mut(id)?;
        let pending = socket.pending.get_mut(&host)?;
        let queue = &mut pending.queues[at(size)];
        let bundle = queue.pop_front();
        let more = !queue.is_empty();
        pending.told[at(size)] = more;
        if pending.queues.iter().all(VecDeque::is_empty) {
            socket.pending.remove(&host);
        }
        let mut bundle = bundle?.bytes;
        let settled = socket.open.first().copied().unwrap_or(socket.sent + 1);
        socket.turn = socket.turn.wrapping_add(1);
        bundle[..HEADER_LEN].copy_from_slice(&bundle_header(socket.turn, id, settled));
        let mut hint = carriers::Hint::default();
        hint[..8].copy_from_slice(&id.0.to_be_bytes());
        if let Some((header, _)) = bundle::records(&bundle[HEADER_LEN..]).next() {
            hint[8..].copy_from_slice(&header.peer.to_be_bytes());
        }
        Some(Pulled {
            body: bundle.freeze(),
            hint,
            more,
        })
    }

    /// A message that was pulled has met its end, see [`carriers::Exchange::ended`].
    pub fn ended(&mut self, host: HostId, id: SocketId, body: &Bytes, outcome: Outcome, now: u64) {
        let (fate, note) = match outcome {
            Outcome::Declined => (None, None),
            Outcome::Fate(fate, note) => (Some(fate), note),
        };
        let note = match note.as_deref().map(Note::decode) {
            None => Note::default(),
            Some(Some(note)) => note,
            Some(None) => {
                self.counters.garbage += 1;
                Note::default()
            }
        };
        let turn = bundle::turn_of(body).unwrap_or_default();
        let mut at = HEADER_LEN;
        for (place, (header, _)) in bundle::records(&body[HEADER_LEN..]).enumerate() {
            let record = body.slice(at..at + RECORD_LEN + header.len as usize);
            at += record.len();
            let fate = match (&fate, note.why(place)) {
                (None, _) | (Some(carriers::Fate::Delivered(_)), Some(Why::Wait)) => {
                    let to = (host, SocketId(header.peer));
                    if self.is_let_on(id, to, turn) {
                        self.pend(id, host, &header, &record[RECORD_LEN..]);
                    } else {
                        self.block(id, to, record, &header, now);
                    }
                    continue;
                }
                (Some(carriers::Fate::Delivered(_)), Some(Why::NotSent(why))) => Fate::NotSent(why),
                (Some(carriers::Fate::Delivered(_)), None) => Fate::Delivered,
                (Some(carriers::Fate::Unknown(_)), _) => {
                    if header.has(REPEATABLE) && self.may_repeat(id, host) {
                        self.counters.messages_repeated += 1;
                        let header = Header {
                            flags: header.flags | AGAIN,
                            ..header
                        };
                        self.pend(id, host, &header, &record[RECORD_LEN..]);
                        continue;
                    }
                    Fate::Unknown
                }
                (Some(carriers::Fate::NotSent(why)), _) => Fate::NotSent(match why {
                    carriers::NotSent::Stopped => NotSent::Stopping,
                    _ => NotSent::Unreachable,
                }),
            };
            self.settle(id, (host, SocketId(header.peer)), &header, fate);
        }
        self.look_after(id);
    }

    /// Whether it makes sense to send something again: who it is for may still be there.
    fn may_repeat(&self, id: SocketId, host: HostId) -> bool {
        let is_there = |socket: &Socket<P>| socket.ending != Some(Ending::Reset);
        self.peers.contains_key(&host) && self.sockets.get(id).is_some_and(is_there)
    }

    /// A message has met its fate.
    pub(super) fn settle(
        &mut self,
        id: SocketId,
        to: (HostId, SocketId),
        header: &Header,
        fate: Fate,
    ) {
        let is_gone = fate == Fate::NotSent(NotSent::Gone);
        // It may have arrived the time before.
        let fate = match fate {
            Fate::NotSent(_) if header.has(AGAIN) => Fate::Unknown,
            fate => fate,
        };
        match fate {
            Fate::Delivered => self.counters.messages_delivered += 1,
            Fate::Unknown => self.counters.messages_unknown += 1,
            Fate::NotSent(_) => self.counters.messages_not_sent += 1,
        }
        let cost = cost(header);
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        let (was_open, before) = (self.limits.held_per_socket, socket.held);
        socket.held -= cost;
        if socket.held == 0 {
            socket.let_on.clear();
        }
        socket.open.remove(&header.number);
        // Reading may go on.
        let limits = [was_open, was_open * 4];
        if limits
            .iter()
            .any(|limit| before >= *limit && socket.held < *limit)
        {
            self.outputs.push(Output::Wake(id));
        }
        let told = Header {
            peer: Self::address(to.0, to.1),
            ..*header
        };
        if fate != Fate::Delivered || header.has(TELL) {
            self.tell(id, &told, fate);
        }
        self.release(cost);
        // The one that it is connected to has gone, and it did not know yet.
        if is_gone {
            self.lost(id, to);
        }
    }

    /// A message socket had no room for a record: it waits to be let go on.
    fn block(
        &mut self,
        id: SocketId,
        to: (HostId, SocketId),
        record: Bytes,
        header: &Header,
        now: u64,
    ) {
        self.counters.messages_held += 1;
        if let Some(socket) = self.sockets.get_mut(id) {
            let blocked = socket.blocked.entry(to).or_insert_with(|| Blocked {
                since: now,
                records: Vec::new(),
                cost: 0,
            });
            blocked.cost += cost(header);
            blocked.records.push(record);
            self.restless.insert(id);
        }
    }

    /// Whether there is room again for a bundle of this turn, although there was none when
    /// it came.
    fn is_let_on(&self, id: SocketId, to: (HostId, SocketId), turn: u32) -> bool {
        let let_on = self.sockets.get(id).and_then(|it| it.let_on.get(&to));
        // Turns count on beyond their end.
        let_on.is_some_and(|let_on| let_on.wrapping_sub(turn) < u32::MAX / 2)
    }

    /// There is room again where a message socket sends to.
    pub(super) fn go_on(&mut self, id: SocketId, to: (HostId, SocketId)) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        if socket.held > 0 {
            socket.let_on.insert(to, socket.turn);
        }
        let Some(blocked) = socket.blocked.remove(&to) else {
            return;
        };
        for record in blocked.records {
            if let Some((header, body)) = record::split(&mut &record[..]) {
                self.pend(id, to.0, &header, body);
            }
        }
        self.outputs.push(Output::Wake(id));
    }

    /// Who offers a service, by its name.
    pub(super) fn service(&self, name: &str) -> Option<Arc<str>> {
        self.services
            .get_key_value(name)
            .map(|(name, _)| name.clone())
    }
}

impl Blocked {
    fn push(&mut self, wire: &Header, body: &[u8]) {
        let mut record = BytesMut::with_capacity(RECORD_LEN + body.len());
        record.put_slice(&wire.encode());
        record.put_slice(body);
        self.cost += cost(wire);
        self.records.push(record.freeze());
    }
}
