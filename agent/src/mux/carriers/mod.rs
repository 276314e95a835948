//! Carriers: TCP connections between agents that carry whole messages.
//!
//! What it promises:
//!
//! - A message arrives whole or not at all, once at most. There is no order between
//!   messages.
//! - Its [`Fate`] is told, never guessed: delivered, not sent, or unknown.
//! - Who sends and who receives holds the POP's key, and nobody else can read, change,
//!   repeat or make up a message (unless the operator has turned encryption off, which
//!   he can for channels that [may be plain](Channel::may_be_plain)). A receiver is told which host it is from, and which
//!   life of it. As with gossip, members are trusted: who holds the key and can use a
//!   host's fabric address can speak for that host.
//! - Everything is bounded ([`Limits`]): who sends more waits, who reads slowly delays
//!   only what is sent to it on that channel, and neither costs more memory than stated.
//! - A dead connection, or a dead agent at the other end, is known within
//!   [`Limits::dead_after`].
//!
//! A carrier has one direction, from the host that opened it, and one [`Channel`]. The
//! messages of a channel are pushed and come out of an [`Inbox`], or are an [`Exchange`]'s.
//! [`frame`], [`outgoing`] and [`incoming`] are sans-IO and hold the protocol;
//! [`preamble`] is how a carrier begins. The tasks drive them.
//!
//! What it does not do: find out who is a member. It is told ([`Carriers::set_peers`]).

mod alarm;
mod connection;
mod duplex;
pub mod exchange;
pub mod frame;
mod handshake;
pub mod incoming;
pub mod limits;
mod line;
pub mod outgoing;
mod plain;
pub mod preamble;
mod receiving;
mod room;
mod sending;
mod shared;
mod tls;
pub mod view;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use homing_common::host::HostId;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, TryAcquireError, mpsc, oneshot},
    time::Instant,
};

pub use exchange::{Answer, Exchange, Outcome, Pulled, Size};
pub use frame::Hint;
pub use limits::{Channel, Count, GOSSIP, Limits, MESSAGE_CEILING, MIGRATION, MUX};
pub use outgoing::SHORT_MAX;
pub use view::{Counters, Fate, LineStatus, NotSent, PeerStatus, Status};

use self::{
    line::{Queued, Tag},
    outgoing::cost,
    room::Taken,
    shared::{Shared, To},
};
use zeroize::Zeroize as _;

use crate::pop::{
    Stream,
    keys::{CarrierKeys, Keys},
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Another host, as membership knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its fabric address, and its agent's port.
    pub address: SocketAddr,
    /// Its life.
    pub stream: Stream,
}

/// A message that was received. Its room is given back when it is dropped.
#[derive(Debug)]
pub struct Received {
    /// Who sent it.
    pub host: HostId,
    /// In which life.
    pub stream: Stream,
    /// The message.
    pub body: Bytes,
    _room: Taken,
}

impl Received {
    fn new(host: HostId, stream: Stream, body: Bytes, room: Taken) -> Self {
        Self {
            host,
            stream,
            body,
            _room: room,
        }
    }
}

impl Received {
    /// Drops the message, and leaves no copy of it in memory, if nobody else has one.
    pub fn wipe(self) {
        if let Ok(mut body) = self.body.try_into_mut() {
            body.zeroize();
        }
    }
}

/// What the channels' messages come out of, but those of the exchange's.
pub struct Inboxes {
    /// Of [`MIGRATION`].
    pub migration: Inbox,
    /// Of [`GOSSIP`].
    pub gossip: Inbox,
}

/// What a channel's messages come out of. Once it is dropped, carriers for the channel
/// are refused.
pub struct Inbox(mpsc::UnboundedReceiver<Received>);

impl Inbox {
    /// The next message; none once carriers are stopped. May be dropped at any time.
    pub async fn next(&mut self) -> Option<Received> {
        self.0.recv().await
    }

    /// The next message, if it is there already.
    pub fn try_next(&mut self) -> Option<Received> {
        self.0.try_recv().ok()
    }
}

/// Who opens carriers, where, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// This host.
    pub host: HostId,
    /// The life of its agent.
    pub stream: Stream,
    /// Its fabric address, and the port of gossip (UDP): carriers use its number for
    /// TCP.
    pub address: SocketAddr,
    /// The POP's keys.
    pub keys: Keys,
    /// What bounds carriers.
    pub limits: Limits,
    /// Carriers that [may be plain](Channel::may_be_plain) are.
    pub plain: bool,
}

/// Why carriers cannot be.
#[derive(Debug, thiserror::Error)]
pub enum CarriersError {
    /// The fabric address could not be used.
    #[error(
        "cannot listen on pop.address {address} (TCP): {source}; it must be an address of this \
         host, and nothing else may use the port"
    )]
    Listen {
        /// The fabric address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(s2n_tls::error::Error),
}

/// The carriers of a host. A handle: clones are the same carriers.
#[derive(Clone)]
pub struct Carriers {
    shared: Arc<Shared>,
}

impl Carriers {
    /// Begins to accept carriers; the messages of [`MUX`] are the exchange's, and refused
    /// without one. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The fabric address cannot be listened on.
    pub fn open(
        options: Options,
        exchange: Option<Arc<dyn Exchange>>,
    ) -> Result<(Self, Inboxes), CarriersError> {
        let address = options.address;
        let listener = listen(address);
        let listener = listener.map_err(|source| CarriersError::Listen { address, source })?;
        let tls = tls::Tls::new().map_err(CarriersError::Tls)?;
        let (migration, migration_inbox) = mpsc::unbounded_channel();
        let (gossip, gossip_inbox) = mpsc::unbounded_channel();
        let readers = [
            (MIGRATION, To::Inbox(migration)),
            (GOSSIP, To::Inbox(gossip)),
            (MUX, exchange.map_or(To::Nobody, To::Exchange)),
        ];
        let shared = Arc::new(Shared::new(options, tls, readers));
        let task = receiving::listen(shared.clone(), listener);
        shared.tasks.spawn_on(task, &shared.runtime);
        let inboxes = Inboxes {
            migration: Inbox(migration_inbox),
            gossip: Inbox(gossip_inbox),
        };
        Ok((Self { shared }, inboxes))
    }

    /// Sends a message and waits for its fate. While too much is on its way, it waits
    /// for room first: then nothing happens if it is dropped. Later, the message goes
    /// its way although it is dropped.
    pub async fn send(&self, host: HostId, channel: Channel, body: Bytes) -> Fate {
        match self.queue(host, channel, body).await {
            Ok(fate) => fate.told().await,
            Err(why) => Fate::NotSent(why),
        }
    }

    /// Queues a message, waiting for room if need be.
    ///
    /// # Errors
    ///
    /// It is not sent.
    pub async fn queue(
        &self,
        host: HostId,
        channel: Channel,
        body: Bytes,
    ) -> Result<Told, NotSent> {
        let line = self.line(host, channel, body.len())?;
        let cost = cost(body.len()) as u32;
        // A bound is closed when its host is no member any more, or all is stopped.
        let room = |bound: &Arc<Semaphore>| bound.clone().acquire_many_owned(cost);
        let of_line = room(&line.room).await;
        let of_line = of_line.map_err(|_| self.refused(self.gone(host)))?;
        let of_all = room(&self.shared.queued).await;
        let of_all = of_all.map_err(|_| self.refused(NotSent::Stopped))?;
        self.push(&line, body, [of_line, of_all])
    }

    /// Queues a message if there is room for it now.
    ///
    /// # Errors
    ///
    /// It is not sent.
    pub fn try_queue(&self, host: HostId, channel: Channel, body: Bytes) -> Result<Told, NotSent> {
        let line = self.line(host, channel, body.len())?;
        let cost = cost(body.len()) as u32;
        let room = |bound: &Arc<Semaphore>| {
            let room = bound.clone().try_acquire_many_owned(cost);
            room.map_err(|error| match error {
                TryAcquireError::NoPermits => {
                    self.shared.count(|counters| counters.full += 1);
                    self.refused(NotSent::Full(host))
                }
                TryAcquireError::Closed => self.refused(self.gone(host)),
            })
        };
        let rooms = [room(&line.room)?, room(&self.shared.queued)?];
        self.push(&line, body, rooms)
    }

    /// A source of the exchange of this channel has something to send to a host, and was
    /// not named so since it had nothing of that size. False: the host is no member.
    pub fn ready(&self, host: HostId, channel: Channel, source: u64, size: Size) -> bool {
        let Some(line) = self.shared.line(host, channel) else {
            return false;
        };
        if line.ready(source, size) {
            sending::open(&self.shared, &line);
        }
        true
    }

    fn line(&self, host: HostId, channel: Channel, len: usize) -> Result<Arc<line::Line>, NotSent> {
        let max = self.shared.limits.message_max(channel);
        if len > max {
            self.shared.count(|counters| counters.too_long += 1);
            return Err(self.refused(NotSent::TooLong { len, max }));
        }
        let line = self.shared.line(host, channel);
        line.ok_or_else(|| self.refused(self.gone(host)))
    }

    fn push(
        &self,
        line: &Arc<line::Line>,
        body: Bytes,
        room: [tokio::sync::OwnedSemaphorePermit; 2],
    ) -> Result<Told, NotSent> {
        let (fate, told) = oneshot::channel();
        let tag = Tag::Pushed {
            fate,
            since: Instant::now(),
            _room: room,
        };
        let hint = Hint::default();
        match line.push(Queued { body, hint, tag }) {
            Ok(true) => sending::open(&self.shared, line),
            Ok(false) => {}
            Err(_) => return Err(self.refused(self.gone(line.host))),
        }
        Ok(Told(told))
    }

    /// Why nothing can be sent to a host that is not known.
    fn gone(&self, host: HostId) -> NotSent {
        match self.shared.stopped.is_cancelled() {
            true => NotSent::Stopped,
            false => NotSent::NoMember(host),
        }
    }

    fn refused(&self, why: NotSent) -> NotSent {
        self.shared
            .count(|counters| counters.messages_not_sent += 1);
        why
    }

    /// Says who the members are. A host that is not among them any more, that has begun
    /// a new life or has another address, loses its carriers at once.
    pub fn set_peers(&self, peers: &BTreeMap<HostId, Peer>) {
        self.shared.set_peers(peers);
    }

    /// The POP's keys have changed. Carriers whose key is no longer accepted are
    /// replaced: what is on its way on them is finished first, and what waits takes new
    /// ones.
    pub fn set_keys(&self, keys: &Keys) {
        let keys: CarrierKeys = keys.carriers.clone();
        self.shared.keys.send_replace(keys);
    }

    /// This host has begun a new life: carriers opened from now on say so.
    pub fn set_stream(&self, stream: Stream) {
        self.shared.set_stream(stream);
    }

    /// How carriers are.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Closes everything: what waits is not sent, what is on its way has an unknown
    /// fate. Returns when all tasks have ended.
    pub async fn stop(&self) {
        self.shared.stopped.cancel();
        self.shared.queued.close();
        self.shared.drain();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// Where the fate of a message is told. Who drops it is not told; the message goes its
/// way.
#[derive(Debug)]
pub struct Told(oneshot::Receiver<Fate>);

impl Told {
    /// Waits for the fate.
    pub async fn told(self) -> Fate {
        // Every message is told its fate before it is dropped, except by a task that
        // has died: then nobody knows.
        let unknown = |_| Fate::Unknown("its carrier was lost".into());
        self.0.await.unwrap_or_else(unknown)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the agent before may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
