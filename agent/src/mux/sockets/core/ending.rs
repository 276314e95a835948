//! How message sockets end, and what becomes of what they have sent.

use homing_client::message::record::{Fate, HEADER_LEN as RECORD_LEN, Header, NotSent};
use homing_common::host::HostId;

use super::{Core, Ending, Output, Role, Socket};
use crate::mux::sockets::{
    bundle::{self, HEADER_LEN, Said, SocketId},
    port::Port,
};

impl<P: Port> Core<P> {
    /// Nothing more is read from a message socket.
    pub(super) fn end(&mut self, id: SocketId, ending: Ending) {
        if let Some(socket) = self.sockets.get_mut(id)
            && socket.ending.is_none()
        {
            socket.ending = Some(ending);
            match ending {
                Ending::Closed { .. } => self.counters.closed += 1,
                Ending::Reset => self.counters.reset += 1,
            }
            self.restless.insert(id);
            self.outputs.push(Output::Wake(id));
            self.look_after(id);
        }
    }

    /// Drops a message socket that ends and has nothing left to do.
    pub(super) fn look_after(&mut self, id: SocketId) {
        let is_over = |socket: &Socket<P>| match socket.ending {
            None => false,
            Some(Ending::Closed { .. }) => socket.held == 0,
            Some(Ending::Reset) => socket.held == 0 && socket.outbox.is_empty(),
        };
        if self.sockets.get(id).is_some_and(is_over) {
            self.drop_socket(id);
        }
    }

    /// The message socket at the other end of one of this host's is gone.
    pub(super) fn lost(&mut self, id: SocketId, peer: (HostId, SocketId)) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        match socket.role {
            Role::Client { host, service } if (host, service) == peer => {
                self.end(id, Ending::Reset);
                self.give_up(id, |host, to| (host, to) == peer, NotSent::Gone);
            }
            Role::Client { .. } => {}
            Role::Service { .. } => {
                socket.forget_waiter(|waiter| *waiter == peer);
                self.give_up(id, |host, to| (host, to) == peer, NotSent::Gone);
            }
        }
        self.look_after(id);
    }

    /// A message socket of another host is closed.
    pub(super) fn closed(&mut self, host: HostId, socket: SocketId) {
        self.once.forget(host, socket);
        let clients = self.connected.get(&(host, socket));
        let clients = clients.into_iter().flatten().copied();
        // Who has something held back for it.
        let blocked = self.restless.iter().copied().filter(|id| {
            let of = self.sockets.get(*id);
            of.is_some_and(|of| of.blocked.contains_key(&(host, socket)))
        });
        let concerned: Vec<_> = clients.chain(blocked).collect();
        for id in concerned {
            self.lost(id, (host, socket));
        }
    }

    /// A life of a host is over, and all its message sockets with it.
    pub fn left(&mut self, host: HostId) {
        self.once.forget_host(host);
        let all: Vec<_> = self.sockets.iter().map(|(id, _)| id).collect();
        for id in all {
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            match &mut socket.role {
                Role::Client { host: of, .. } if *of == host => self.end(id, Ending::Reset),
                Role::Client { .. } => continue,
                Role::Service { hosts, .. } => {
                    hosts.remove(&host);
                    socket.forget_waiter(|(of, _)| *of == host);
                }
            }
            self.give_up(id, |of, _| of == host, NotSent::Unreachable);
            self.look_after(id);
        }
    }

    /// What a message socket has for these others, and no carrier has taken, is not sent.
    fn give_up(&mut self, id: SocketId, of: impl Fn(HostId, SocketId) -> bool, why: NotSent) {
        let Some(socket) = self.sockets.get_mut(id) else {
            return;
        };
        let mut given_up: Vec<(HostId, Header)> = Vec::new();
        let blocked = socket.blocked.extract_if(|(host, to), _| of(*host, *to));
        for ((host, _), blocked) in blocked {
            let headers = blocked.records.iter().filter_map(|record| {
                let head = record.first_chunk::<RECORD_LEN>()?;
                Some((host, Header::decode(head)?))
            });
            given_up.extend(headers);
        }
        // A bundle to a host that stays may be for others, too: it goes, and is refused.
        let hosts = socket.pending.extract_if(.., |host, pending| {
            let all = pending.bundles();
            let mut records = all.flat_map(|bundle| bundle::records(&bundle[HEADER_LEN..]));
            records.all(|(header, _)| of(*host, SocketId(header.peer)))
        });
        for (host, pending) in hosts {
            for bundle in pending.take_all() {
                let records = bundle::records(&bundle[HEADER_LEN..]);
                given_up.extend(records.map(|(header, _)| (host, header)));
            }
        }
        given_up.sort_by_key(|(_, header)| header.number);
        for (host, header) in given_up {
            let to = (host, SocketId(header.peer));
            self.settle(id, to, &header, Fate::NotSent(why));
        }
    }

    /// A message socket is gone, whatever it still had.
    pub(super) fn drop_socket(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.remove(id) else {
            return;
        };
        self.counters.messages_unread += socket.outbox.len() as u64;
        self.unread -= socket.outbox_len;
        self.restless.remove(&id);
        let said = Said::Closed { socket: id }.encode();
        match socket.role {
            Role::Client { host, service } => {
                if let Some(all) = self.connected.get_mut(&(host, service)) {
                    all.remove(&id);
                    if all.is_empty() {
                        self.connected.remove(&(host, service));
                    }
                }
                if self.peers.contains_key(&host) {
                    self.outputs.push(Output::Insist(host, said));
                }
            }
            Role::Service { name, hosts } => {
                if let Some(all) = self.services.get_mut(&name) {
                    all.retain(|other| *other != id);
                    if all.is_empty() {
                        self.services.remove(&name);
                    }
                }
                self.count_offers();
                for host in hosts
                    .into_iter()
                    .filter(|host| self.peers.contains_key(host))
                {
                    self.outputs.push(Output::Insist(host, said.clone()));
                }
            }
        }
        self.outputs.push(Output::Gone(id));
        self.release(socket.held);
        self.closed(self.me, id);
    }

    /// Closes all message sockets, because the agent stops. What no carrier has taken is
    /// not sent; of the rest nobody can tell their applications any more.
    pub fn stop(&mut self) {
        let all: Vec<_> = self.sockets.iter().map(|(id, _)| id).collect();
        for id in all {
            self.give_up(id, |_, _| true, NotSent::Stopping);
            self.drop_socket(id);
        }
        self.connecting.clear();
    }

    /// Does what is due, see [`Core::TICK`].
    pub fn tick(&mut self, now: u64) {
        self.hurry(now);
        let probe_at = now.saturating_sub(self.limits.probe_every.as_micros() as u64);
        let linger_at = now.saturating_sub(self.limits.linger.as_micros() as u64);
        for id in self.restless.clone() {
            let Some(socket) = self.sockets.get(id) else {
                self.restless.remove(&id);
                continue;
            };
            if socket.ending.is_none() && socket.port.is_hung_up() && !self.may_read(socket) {
                self.end(id, Ending::Closed { at: now });
                continue;
            }
            if socket.ending.is_none() && socket.blocked.is_empty() {
                self.restless.remove(&id);
                continue;
            }
            let is_late = |ending| matches!(ending, Ending::Closed { at } if at < linger_at);
            if socket.ending.is_some_and(is_late) {
                self.give_up(id, |_, _| true, NotSent::Full);
                self.drop_socket(id);
                continue;
            }
            let due = socket.blocked.iter().filter(|(_, it)| it.since < probe_at);
            let mut due: Vec<_> = due.map(|(to, _)| *to).collect();
            due.sort_unstable();
            due.into_iter().for_each(|to| self.go_on(id, to));
        }
    }

    /// How often [`Core::tick`] is to be called, in milliseconds.
    pub const TICK: u64 = 100;
}

impl<P> Socket<P> {
    fn forget_waiter(&mut self, is_gone: impl Fn(&(HostId, SocketId)) -> bool) {
        self.waiting.retain(|waiter| !is_gone(waiter));
        self.waits.retain(|waiter| !is_gone(waiter));
    }
}
