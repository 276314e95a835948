//! The sans-IO machine of message sockets: datagrams of applications, messages of carriers
//! and the time go in, and the same come out.

mod connecting;
mod ending;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use homing_client::message::{
    record::Header,
    wire::{Opened, Refused},
};
use homing_common::host::HostId;

use super::{
    bundle::{HEADER_LEN, SocketId},
    limits::Limits,
    once::Once,
    port::Port,
    table::{ID_BITS, Table},
};
use crate::{mux::Size, pop::counters::counters};

pub use connecting::Wanted;
pub use view::{SocketStatus, Status};

counters! {
    /// What happened to message sockets and their messages.
    Counters {
        /// Message sockets made that are connected to a service.
        connected,
        /// Message sockets made that offer a service.
        offered,
        /// Requests for a message socket that were refused or not answered.
        refused,
        /// Message sockets closed by their application.
        closed,
        /// Message sockets closed because the other end has gone.
        reset,
        /// Messages that applications sent.
        messages_sent,
        /// Bytes of messages that applications sent.
        sent_bytes,
        /// Messages handed to applications, or to the kernel for them.
        messages_received,
        /// Bytes of messages handed to applications, or to the kernel for them.
        received_bytes,
        /// Messages that the other agent has.
        messages_delivered,
        /// Messages of which nobody can say whether they arrived.
        messages_unknown,
        /// Messages that were certainly not sent.
        messages_not_sent,
        /// Messages sent again because their fate was unknown.
        messages_repeated,
        /// Messages that came again and were dropped.
        messages_again,
        /// Messages held back because their reader was slow.
        messages_held,
        /// Messages for message sockets that are not there.
        messages_astray,
        /// Messages dropped unread because their reader closed.
        messages_unread,
        /// Datagrams of applications over the limit.
        too_long,
        /// Datagrams of applications that were no records.
        malformed,
        /// Messages of other agents that were nonsense.
        garbage,
        /// Times that reading stopped because all that is held reached its limit.
        starved,
    }
}

/// The core's outputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// A message socket has something to send to a host, and had not: carriers pull it.
    Ready(HostId, SocketId, Size),
    /// A message to a host.
    Say(HostId, Bytes),
    /// A message to a host that is to be repeated until it arrives or the host is gone.
    Insist(HostId, Bytes),
    /// What a message socket waits for may have changed: [`Core::wants`].
    Wake(SocketId),
    /// The answer to [`Core::connect`].
    Connected(u32, Result<(SocketId, Opened), Refused>),
    /// The message socket is gone: its port was dropped.
    Gone(SocketId),
}

/// What a message socket waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wants {
    /// A datagram of the application.
    pub read: bool,
    /// Room for a datagram to the application.
    pub write: bool,
}

/// How far something got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing more can be done until the descriptor is ready again.
    Blocked,
    /// There is more, but others have their turn first.
    More,
    /// It waits for something else: see [`Core::wants`].
    Waits,
}

/// A message socket.
struct Socket<P> {
    port: P,
    role: Role,
    /// It takes several records in one datagram.
    batches: bool,
    /// Its messages so far.
    sent: u64,
    /// What was read from it and has no fate yet.
    held: usize,
    /// What is to be sent, by host.
    pending: BTreeMap<HostId, Pending>,
    /// Bundles that it has sent.
    turn: u32,
    /// What other message sockets had no room for.
    blocked: HashMap<(HostId, SocketId), Blocked>,
    /// At which turn others have said that there is room again: of bundles up to that one
    /// it may be heard only later that there was none, for that comes another way.
    let_on: HashMap<(HostId, SocketId), u32>,
    /// Its repeatable messages that have no fate yet.
    open: BTreeSet<u64>,
    /// It waits for others' messages to get their fate, for there are too many.
    starved: bool,
    /// What is to be handed to the application: datagrams.
    outbox: VecDeque<Bytes>,
    outbox_len: usize,
    /// Records that become one datagram.
    batch: BytesMut,
    /// Long messages that may come.
    expected: usize,
    /// Who waits for room here.
    waiting: VecDeque<(HostId, SocketId)>,
    waits: HashSet<(HostId, SocketId)>,
    /// Nothing more is read from it.
    ending: Option<Ending>,
}

/// What a message socket is for.
enum Role {
    /// Connected to a service's.
    Client { host: HostId, service: SocketId },
    /// Offers a service; these hosts have message sockets that are connected to it.
    Service {
        name: Arc<str>,
        hosts: BTreeSet<HostId>,
    },
}

/// Why a message socket ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The application has closed it, at this time; what it sent still goes.
    Closed { at: u64 },
    /// The other end has gone; what the application has to be told still goes.
    Reset,
}

/// What is to be sent to a host.
#[derive(Default)]
struct Pending {
    /// By size: bundles.
    queues: [VecDeque<Bundle>; 2],
    /// By size: carriers know that there is something.
    told: [bool; 2],
}

/// Records that become one message of a carrier.
struct Bundle {
    /// The header's place, then records.
    bytes: BytesMut,
    records: usize,
}

/// Records that a message socket had no room for.
struct Blocked {
    since: u64,
    records: Vec<Bytes>,
    cost: usize,
}

/// What a record takes of the bounds on what is held.
fn cost(header: &Header) -> usize {
    header.len as usize + super::COST
}

/// The machine.
pub struct Core<P> {
    me: HostId,
    limits: Limits,
    sockets: Table<Socket<P>>,
    services: HashMap<Arc<str>, VecDeque<SocketId>>,
    /// A filter of their names.
    offers: u64,
    /// Message sockets by what they are connected to.
    connected: HashMap<(HostId, SocketId), BTreeSet<SocketId>>,
    peers: BTreeMap<HostId, super::PeerInfo>,
    connecting: HashMap<u32, connecting::Connecting<P>>,
    next_request: u32,
    once: Once,
    held: usize,
    unread: usize,
    starved: VecDeque<SocketId>,
    /// Message sockets that wait for somebody's room, or end.
    restless: BTreeSet<SocketId>,
    scratch: Box<[u8]>,
    outputs: Vec<Output>,
    counters: Counters,
}

impl<P: Port> Core<P> {
    /// A machine without message sockets. Ids are made from the random numbers.
    pub fn new(me: HostId, limits: Limits, random: impl FnMut() -> u64 + Send + 'static) -> Self {
        // A datagram that is longer than the longest batch or message shows as such.
        let longest = super::datagram_max(&limits) + 1;
        Self {
            me,
            limits,
            sockets: Table::new(random),
            services: HashMap::new(),
            offers: 0,
            connected: HashMap::new(),
            peers: BTreeMap::new(),
            connecting: HashMap::new(),
            next_request: 0,
            once: Once::default(),
            held: 0,
            unread: 0,
            starved: VecDeque::new(),
            restless: BTreeSet::new(),
            scratch: vec![0; longest].into(),
            outputs: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Goes by other limits from now on: of message sockets, and of the bytes that are held
    /// for all of them. Where there is more than they allow, nothing new finds room.
    pub fn set_room(&mut self, sockets: usize, memory: usize) {
        self.limits.sockets = sockets;
        self.limits.held_total = memory;
        self.limits.unread_total = memory;
        self.wake_starved();
    }

    /// What is to be done now.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The port of a message socket.
    pub fn port(&self, id: SocketId) -> Option<&P> {
        self.sockets.get(id).map(|socket| &socket.port)
    }

    /// What a message socket waits for; nothing if it is gone.
    pub fn wants(&self, id: SocketId) -> Wants {
        let Some(socket) = self.sockets.get(id) else {
            return Wants {
                read: false,
                write: false,
            };
        };
        Wants {
            read: self.may_read(socket),
            write: !socket.outbox.is_empty(),
        }
    }

    /// Another host's message socket as applications name it, or one of this host.
    pub fn address(host: HostId, socket: SocketId) -> u64 {
        u64::from(host.0) << ID_BITS | socket.0
    }

    /// The message socket that an application names.
    fn addressed(peer: u64) -> Option<(HostId, SocketId)> {
        let host = HostId::try_from((peer >> ID_BITS) as u16).ok()?;
        Some((host, SocketId(peer & ((1 << ID_BITS) - 1))))
    }

    fn say(&mut self, host: HostId, said: &super::bundle::Said<'_>) {
        self.outputs.push(Output::Say(host, said.encode()));
    }

    /// Memory is free again: who waited for it goes on.
    fn release(&mut self, cost: usize) {
        self.held -= cost;
        self.wake_starved();
    }

    /// Lets the next of those go on that wait for memory, if there is some. When it has
    /// taken what it needs, it wakes the one after it.
    fn wake_starved(&mut self) {
        while self.has_memory()
            && let Some(id) = self.starved.pop_front()
        {
            let Some(socket) = self.sockets.get_mut(id) else {
                continue;
            };
            socket.starved = false;
            if self
                .sockets
                .get(id)
                .is_some_and(|socket| self.may_read(socket))
            {
                self.outputs.push(Output::Wake(id));
                return;
            }
        }
    }

    fn has_memory(&self) -> bool {
        self.held + self.scratch.len() + HEADER_LEN <= self.limits.held_total
    }
}
