//! From other agents to applications.

use std::io::ErrorKind;

use bytes::{BufMut as _, Bytes, BytesMut};
use homing_client::message::record::{
    BATCH_MAX, Fate, HEADER_LEN as RECORD_LEN, Header, NotSent, REPEATABLE, TELL,
};
use homing_common::host::HostId;

use super::{Core, Ending, Output, Progress, Role, Socket};
use crate::{
    mux::{
        Answer, Hint, Outcome, SHORT_MAX, Size, carriers,
        sockets::{
            bundle::{self, Note, Said, SocketId, Why},
            once::Verdict,
            port::Port,
        },
    },
    pop::Stream,
};

/// How many of those who wait for room in a message socket are let go on at once.
const GO_AT_ONCE: usize = 4;

/// The most who wait for room in a message socket and are told when there is.
const WAITERS_MAX: usize = 65_536;

/// What became of a datagram for an application.
enum Handed {
    /// The kernel has it, or it waits here.
    Taken,
    /// There is no room.
    Full,
    /// Nobody reads.
    Closed,
}

impl<P: Port> Socket<P> {
    /// Hands a datagram to the application, or keeps it if `keep` allows that many bytes
    /// to wait.
    fn hand(&mut self, parts: [&[u8]; 2], keep: usize) -> Handed {
        if self.outbox.is_empty() {
            match self.port.send(parts) {
                Ok(()) => return Handed::Taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Handed::Closed,
            }
        }
        let len = parts[0].len() + parts[1].len();
        // One long message may wait although it is over the limit.
        if self.outbox_len + len > keep && !(self.outbox.is_empty() && len > SHORT_MAX) {
            return Handed::Full;
        }
        let mut datagram = BytesMut::with_capacity(len);
        datagram.put_slice(parts[0]);
        datagram.put_slice(parts[1]);
        self.outbox_len += len;
        self.outbox.push_back(datagram.freeze());
        Handed::Taken
    }
}

impl<P: Port> Core<P> {
    /// Whether a long message may come, see [`carriers::Exchange::offered`].
    pub fn offered(&mut self, host: HostId, hint: &Hint, len: usize) -> bool {
        let [from, to] = ids(hint);
        let (unread, limits) = (self.unread, &self.limits);
        // What it is for has gone: it is told so when it comes.
        let Some(socket) = self.sockets.get_mut(to) else {
            return true;
        };
        let waits = socket.outbox_len + socket.expected;
        // A long one is let come while another one is read.
        let has_room = waits == 0
            || waits + len <= limits.message_max * 2 && unread + len <= limits.unread_total;
        if has_room {
            socket.expected += len;
        } else {
            socket.wait(host, from);
        }
        has_room
    }

    /// A long message does not come.
    pub fn withdrawn(&mut self, hint: &Hint, len: usize) {
        let [_, to] = ids(hint);
        if let Some(socket) = self.sockets.get_mut(to) {
            socket.expected = socket.expected.saturating_sub(len);
        }
        self.let_go_on(to);
    }

    /// A message of another agent has come.
    pub fn receive(&mut self, host: HostId, body: &[u8], now: u64) -> Answer {
        match bundle::decode(body) {
            Some(Said::Bundle {
                turn: _,
                from,
                settled,
                records,
            }) => {
                self.once.settled(host, from, settled);
                let is_long = body.len() > SHORT_MAX;
                return self.bundle(host, from, records, is_long.then_some(body.len()));
            }
            Some(Said::Open { request, name }) => self.opens(host, request, name),
            Some(Said::Opened { request, result }) => self.opened(host, request, result, now),
            Some(Said::GoOn { to, peer }) => self.go_on(to, (host, peer)),
            Some(Said::Closed { socket }) => self.closed(host, socket),
            None => self.counters.garbage += 1,
        }
        Answer::default()
    }

    fn bundle(
        &mut self,
        host: HostId,
        from: SocketId,
        records: &[u8],
        long: Option<usize>,
    ) -> Answer {
        let mut note = Note::default();
        let mut is_awaited = false;
        let mut len = 0;
        let mut last = None;
        for (place, (header, body)) in bundle::records(records).enumerate() {
            len += RECORD_LEN + body.len();
            let to = SocketId(header.peer);
            if let Some(long) = long
                && let Some(socket) = self.sockets.get_mut(to)
            {
                socket.expected = socket.expected.saturating_sub(long);
            }
            if last != Some(to) {
                self.flush(last.replace(to));
            }
            is_awaited |= header.has(TELL);
            if let Err(why) = self.deliver(host, from, to, &header, body) {
                note.push(place, why);
                is_awaited = true;
            }
        }
        if len != records.len() {
            self.counters.garbage += 1;
        }
        self.flush(last);
        Answer {
            note: note.encode(),
            is_awaited,
        }
    }

    /// Hands a message to its message socket.
    fn deliver(
        &mut self,
        host: HostId,
        from: SocketId,
        to: SocketId,
        header: &Header,
        body: &[u8],
    ) -> Result<(), Why> {
        let keep = self.room_to_keep();
        let Some(socket) = self.sockets.get_mut(to).filter(|it| it.hears(host, from)) else {
            self.counters.messages_astray += 1;
            return Err(Why::NotSent(NotSent::Gone));
        };
        let repeatable = header.has(REPEATABLE);
        if repeatable {
            match self.once.judge(host, from, header.number) {
                Verdict::New => {}
                Verdict::Again => {
                    self.counters.messages_again += 1;
                    return Ok(());
                }
                Verdict::Crowded => return Err(Why::NotSent(NotSent::Full)),
            }
        }
        let head = Header {
            flags: 0,
            peer: Self::address(host, from),
            ..*header
        }
        .encode();
        let before = socket.outbox_len;
        let len = RECORD_LEN + body.len();
        let handed = if !socket.batches || len > BATCH_MAX {
            socket.hand([&head, body], keep)
        } else if socket.outbox_len + socket.batch.len() + len > keep.max(BATCH_MAX) {
            Handed::Full
        } else {
            let handed = match socket.batch.len() + len > BATCH_MAX {
                true => socket.hand_batch(keep),
                false => Handed::Taken,
            };
            if matches!(handed, Handed::Taken) {
                socket.batch.put_slice(&head);
                socket.batch.put_slice(body);
            }
            handed
        };
        self.unread = self.unread + socket.outbox_len - before;
        match handed {
            Handed::Taken => {
                if repeatable {
                    self.once.take(host, from, header.number);
                }
                self.counters.messages_received += 1;
                self.counters.received_bytes += body.len() as u64;
                if before == 0 && socket.outbox_len > 0 {
                    self.outputs.push(Output::Wake(to));
                }
                Ok(())
            }
            Handed::Full => {
                socket.wait(host, from);
                self.outputs.push(Output::Wake(to));
                Err(Why::Wait)
            }
            Handed::Closed => {
                self.drop_socket(to);
                Err(Why::NotSent(NotSent::Gone))
            }
        }
    }

    /// What may wait for a message socket here.
    fn room_to_keep(&self) -> usize {
        match self.unread < self.limits.unread_total {
            true => self.limits.unread_per_socket,
            false => 0,
        }
    }

    /// Hands over what makes up a batch so far, and lets others go on if there is room.
    fn flush(&mut self, id: Option<SocketId>) {
        let Some(id) = id else {
            return;
        };
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        if !socket.batch.is_empty() {
            let before = socket.outbox_len;
            // There was room for each of them.
            let handed = socket.hand_batch(usize::MAX);
            self.unread = self.unread + socket.outbox_len - before;
            if before == 0 && socket.outbox_len > 0 {
                self.outputs.push(Output::Wake(id));
            }
            if matches!(handed, Handed::Closed) {
                return self.drop_socket(id);
            }
        }
        self.let_go_on(id);
    }

    /// Lets go on some of those who wait for room in a message socket, if there is.
    fn let_go_on(&mut self, id: SocketId) {
        for _ in 0..GO_AT_ONCE {
            let Some(socket) = self.sockets.get_mut(id) else {
                return;
            };
            let waits = socket.outbox_len + socket.expected;
            if waits > self.limits.unread_per_socket / 2 {
                return;
            }
            let Some((host, to)) = socket.waiting.pop_front() else {
                return;
            };
            socket.waits.remove(&(host, to));
            if host == self.me {
                self.go_on(to, (host, id));
            } else {
                self.say(host, &Said::GoOn { to, peer: id });
            }
        }
    }

    /// A message socket may have room for its application.
    pub fn writable(&mut self, id: SocketId) -> Progress {
        let progress = self.empty_outbox(id);
        self.let_go_on(id);
        self.look_after(id);
        progress
    }

    fn empty_outbox(&mut self, id: SocketId) -> Progress {
        let Some(socket) = self.sockets.get_mut(id) else {
            return Progress::Waits;
        };
        let before = socket.outbox_len;
        let mut progress = Progress::Waits;
        while let Some(datagram) = socket.outbox.front() {
            match socket.port.send([datagram, &[]]) {
                Ok(()) => {
                    socket.outbox_len -= datagram.len();
                    socket.outbox.pop_front();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    progress = Progress::Blocked;
                    break;
                }
                Err(_) => {
                    self.unread = self.unread + socket.outbox_len - before;
                    self.drop_socket(id);
                    return Progress::Waits;
                }
            }
        }
        self.unread = self.unread + socket.outbox_len - before;
        // Reading may have waited for this, see `may_read`.
        if before >= self.limits.unread_per_socket && socket.outbox_len < before {
            self.outputs.push(Output::Wake(id));
        }
        progress
    }

    /// Tells an application what became of a message of its.
    pub(super) fn tell(&mut self, id: SocketId, header: &Header, fate: Fate) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        if matches!(socket.ending, Some(Ending::Closed { .. })) {
            return;
        }
        let before = socket.outbox_len;
        let head = Header::fate(header, fate).encode();
        // Bounded by what is held: nothing more is read while much of it waits.
        if let Handed::Closed = socket.hand([&head, &[]], usize::MAX) {
            return self.drop_socket(id);
        }
        self.unread = self.unread + socket.outbox_len - before;
        if before == 0 && socket.outbox_len > 0 {
            self.outputs.push(Output::Wake(id));
        }
    }

    /// What a message socket sends to one of this host.
    pub fn loop_back(&mut self, id: SocketId, size: Size, now: u64) {
        while let Some(pulled) = self.pull(self.me, id, size) {
            let len = pulled.body.len();
            let outcome = match size == Size::Short || self.offered(self.me, &pulled.hint, len) {
                false => Outcome::Declined,
                true => {
                    let Answer { note, .. } = self.receive(self.me, &pulled.body, now);
                    let note = (!note.is_empty()).then(|| Bytes::from(note));
                    Outcome::Fate(carriers::Fate::Delivered(Stream::default()), note)
                }
            };
            self.ended(self.me, id, &pulled.body, outcome, now);
            if !pulled.more {
                return;
            }
        }
    }
}

impl<P: Port> Socket<P> {
    /// Whether another message socket may send to this one.
    fn hears(&self, host: HostId, from: SocketId) -> bool {
        let is_peer = match self.role {
            Role::Client { host: of, service } => (of, service) == (host, from),
            Role::Service { .. } => true,
        };
        is_peer && self.ending.is_none()
    }

    fn wait(&mut self, host: HostId, from: SocketId) {
        // Others find out by themselves that there is room again.
        if self.waits.len() < WAITERS_MAX && self.waits.insert((host, from)) {
            self.waiting.push_back((host, from));
        }
    }

    fn hand_batch(&mut self, keep: usize) -> Handed {
        let batch = self.batch.split();
        let handed = self.hand([&batch, &[]], keep);
        if let Handed::Full = handed {
            self.batch = batch;
        }
        handed
    }
}

/// The two message sockets that a hint names: from which, and for which.
fn ids(hint: &Hint) -> [SocketId; 2] {
    let [from, to] = [&hint[..8], &hint[8..]].map(|half| {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        SocketId(u64::from_be_bytes(word))
    });
    [from, to]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_names_both() {
        let mut hint = Hint::default();
        (hint[7], hint[15]) = (1, 2);
        assert_eq!(ids(&hint), [SocketId(1), SocketId(2)]);
    }
}
