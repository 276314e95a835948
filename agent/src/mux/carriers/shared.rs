//! What all carriers of a host share: keys, members, bounds and counters.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use homing_common::host::HostId;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Options, Peer, Received,
    exchange::{Exchange, Outcome, Size},
    limits::{CHANNELS, Channel, Limits},
    line::{Line, Queued, Tag},
    outgoing::Message,
    preamble::{MODE_PLAIN, MODE_TLS, Preamble, VERSION, Verdict},
    room::Room,
    tls::Tls,
    view::{Counters, Fate, NotSent, PeerStatus, Status},
};
use crate::pop::{
    Stream,
    keys::{CarrierKey, CarrierKeys},
};

/// What all carriers of a host share.
pub(super) struct Shared {
    pub host: HostId,
    pub address: SocketAddr,
    pub limits: Limits,
    pub tls: Tls,
    pub runtime: Handle,
    pub tasks: TaskTracker,
    /// Ends everything.
    pub stopped: CancellationToken,
    /// Told of when the keys change.
    pub keys: watch::Sender<CarrierKeys>,
    /// The bound on all that waits or is under way to other hosts.
    pub queued: Arc<Semaphore>,
    /// The bound on carriers that others have to this host.
    places: Arc<Semaphore>,
    readers: [Reader; CHANNELS.len()],
    /// Message sockets need no encryption between hosts.
    plain: bool,
    began: Instant,
    logged_at: Mutex<Option<Instant>>,
    counters: Mutex<Counters>,
    state: Mutex<State>,
}

/// Where the messages of a channel go.
pub(super) struct Reader {
    pub channel: Channel,
    /// The bound on what was received and not dropped.
    pub room: Arc<Semaphore>,
    pub to: To,
}

/// Who reads a channel.
pub(super) enum To {
    Inbox(mpsc::UnboundedSender<Received>),
    Exchange(Arc<dyn Exchange>),
    Nobody,
}

impl Reader {
    /// Whether nobody reads the channel any more.
    fn is_closed(&self) -> bool {
        match &self.to {
            To::Inbox(sender) => sender.is_closed(),
            To::Exchange(_) => false,
            To::Nobody => true,
        }
    }
}

struct State {
    stream: Stream,
    peers: BTreeMap<HostId, Known>,
    /// Connections within the handshake.
    handshakes: HashMap<IpAddr, usize>,
    handshakes_total: usize,
}

/// Another host.
struct Known {
    address: SocketAddr,
    /// The latest life that membership or the host itself told of.
    stream: Stream,
    /// Ends with that life.
    life: CancellationToken,
    lines: BTreeMap<u8, Arc<Line>>,
    /// The bounds on what was received from it, by channel.
    rooms: BTreeMap<u8, Arc<Semaphore>>,
    /// The bound on carriers that it has to this host.
    places: Arc<Semaphore>,
    messages_received: u64,
    bytes_received: u64,
}

/// Where to open a carrier to, and as whom.
pub(super) struct Target {
    pub address: SocketAddr,
    pub preamble: Preamble,
    pub key: CarrierKey,
    /// This host's life.
    pub ours: Stream,
}

/// A carrier that another host has to this one, for as long as it counts.
pub(super) struct Accepted {
    _places: [OwnedSemaphorePermit; 2],
    pub host: HostId,
    pub stream: Stream,
    pub life: CancellationToken,
    /// Where room for its messages comes from.
    pub room: Room,
}

/// A connection within the handshake, for as long as it counts.
pub(super) struct Handshake {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.handshakes_total -= 1;
        if let Some(count) = state.handshakes.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                state.handshakes.remove(&self.source);
            }
        }
    }
}

impl Shared {
    pub fn new(options: Options, tls: Tls, readers: [(Channel, To); CHANNELS.len()]) -> Self {
        let limits = options.limits;
        let readers = readers.map(|(channel, to)| Reader {
            channel,
            room: Arc::new(Semaphore::new(limits.received_total)),
            to,
        });
        Self {
            host: options.host,
            address: options.address,
            queued: Arc::new(Semaphore::new(limits.queued_total)),
            places: Arc::new(Semaphore::new(limits.accepted_total)),
            limits,
            tls,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            keys: watch::Sender::new(options.keys.carriers),
            readers,
            plain: options.plain,
            began: Instant::now(),
            logged_at: Mutex::default(),
            counters: Mutex::default(),
            state: Mutex::new(State {
                stream: options.stream,
                peers: BTreeMap::new(),
                handshakes: HashMap::new(),
                handshakes_total: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, in microseconds.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// A moment on the clock of [`Shared::now`].
    pub fn instant(&self, at: u64) -> Instant {
        self.began + Duration::from_micros(at)
    }

    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether to log what others can bring about as often as they like.
    pub fn may_log(&self, every: Duration) -> bool {
        let mut at = self
            .logged_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let may = at.is_none_or(|at| at.elapsed() >= every);
        if may {
            *at = Some(Instant::now());
        }
        may
    }

    /// Where the messages of a channel go.
    pub fn reader(&self, channel: u8) -> Option<&Reader> {
        let mut all = self.readers.iter();
        all.find(|reader| reader.channel.number == channel)
    }

    /// Where the carriers of a channel have their tasks.
    pub fn runtime_of(&self, channel: u8) -> &Handle {
        match self.reader(channel).map(|reader| &reader.to) {
            Some(To::Exchange(exchange)) => exchange.runtime().unwrap_or(&self.runtime),
            _ => &self.runtime,
        }
    }

    fn exchange(&self, channel: Channel) -> Option<&Arc<dyn Exchange>> {
        match &self.reader(channel.number)?.to {
            To::Exchange(exchange) => Some(exchange),
            To::Inbox(_) | To::Nobody => None,
        }
    }

    /// Tells all exchanges that a life of a host is over.
    fn left(&self, hosts: &[HostId]) {
        for reader in &self.readers {
            if let To::Exchange(exchange) = &reader.to {
                hosts.iter().for_each(|&host| exchange.left(host));
            }
        }
    }

    pub fn set_stream(&self, stream: Stream) {
        self.state().stream = stream;
    }

    /// Replaces what is known of the members. Who is not among them any more, or has
    /// begun a new life, or is elsewhere, loses its carriers.
    pub fn set_peers(&self, peers: &BTreeMap<HostId, Peer>) {
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        let mut state = self.state();
        state.peers.retain(|host, known| {
            let stays = peers.contains_key(host);
            if !stays {
                known.life.cancel();
                gone.extend(known.lines.values().cloned());
                left.push(*host);
            }
            stays
        });
        for (&host, peer) in peers.iter().filter(|(host, _)| **host != self.host) {
            let known = state.peers.entry(host).or_insert_with(|| Known {
                address: peer.address,
                stream: peer.stream,
                life: self.stopped.child_token(),
                lines: BTreeMap::new(),
                rooms: BTreeMap::new(),
                places: Arc::new(Semaphore::new(self.limits.accepted_per_peer)),
                messages_received: 0,
                bytes_received: 0,
            });
            if known.address != peer.address {
                known.address = peer.address;
                self.renew(known, known.stream);
            }
            if known.stream < peer.stream {
                self.renew(known, peer.stream);
                left.push(host);
            }
        }
        drop(state);
        for line in gone {
            self.not_sent(&line, line.drain(), &NotSent::NoMember(line.host));
        }
        self.left(&left);
    }

    /// A life begins: the carriers of the one before end.
    fn renew(&self, known: &mut Known, stream: Stream) {
        known.stream = stream;
        known.life.cancel();
        known.life = self.stopped.child_token();
    }

    /// What is sent to a host on a channel.
    pub fn line(&self, host: HostId, channel: Channel) -> Option<Arc<Line>> {
        let mut state = self.state();
        let known = state.peers.get_mut(&host)?;
        let line = known.lines.entry(channel.number).or_insert_with(|| {
            let limits = &self.limits;
            let bounds = (limits.queued_per_peer, limits.carriers_per_peer);
            Arc::new(Line::new(host, channel, bounds.0, bounds.1))
        });
        Some(line.clone())
    }

    /// How to open a carrier to a host.
    pub fn target(&self, host: HostId, channel: Channel, mode: u8) -> Option<Target> {
        let key = self.keys.borrow().sign.clone();
        let state = self.state();
        let known = state.peers.get(&host)?;
        Some(Target {
            address: known.address,
            preamble: Preamble {
                version: VERSION,
                mode,
                key: key.id,
                channel: channel.number,
                dialer: self.host,
                acceptor: host,
            },
            key,
            ours: state.stream,
        })
    }

    /// A host that was reached, or has reached this one, says which life it is.
    /// Returns what ends with that life; none if a later one is known.
    pub fn meet(&self, host: HostId, stream: Stream) -> Option<CancellationToken> {
        let mut state = self.state();
        let known = state.peers.get_mut(&host)?;
        if stream < known.stream {
            return None;
        }
        let is_new = stream > known.stream;
        if is_new {
            self.renew(known, stream);
        }
        let life = known.life.clone();
        drop(state);
        if is_new {
            self.left(&[host]);
        }
        Some(life)
    }

    /// How carriers of a channel are protected that this host opens.
    pub fn mode(&self, channel: Channel) -> u8 {
        match self.plain && channel.may_be_plain {
            true => MODE_PLAIN,
            false => MODE_TLS,
        }
    }

    /// This host's life.
    pub fn stream(&self) -> Stream {
        self.state().stream
    }

    /// A connection comes in: none if it is to be closed at once.
    pub fn begin_handshake(self: &Arc<Self>, source: IpAddr) -> Option<Handshake> {
        let limits = &self.limits;
        let mut state = self.state();
        if !state
            .peers
            .values()
            .any(|known| known.address.ip() == source)
        {
            drop(state);
            self.count(|counters| counters.refused_strangers += 1);
            return None;
        }
        let total = state.handshakes_total;
        let count = state.handshakes.entry(source).or_default();
        if *count >= limits.handshakes_per_source || total >= limits.handshakes_total {
            if *count == 0 {
                state.handshakes.remove(&source);
            }
            drop(state);
            self.count(|counters| counters.refused_crowded += 1);
            return None;
        }
        *count += 1;
        state.handshakes_total += 1;
        let shared = self.clone();
        Some(Handshake { shared, source })
    }

    /// What to answer to a preamble, and the key to go on with.
    pub fn judge(&self, preamble: &Preamble, source: IpAddr) -> Result<CarrierKey, Verdict> {
        if preamble.version != VERSION {
            return Err(Verdict::Version);
        }
        if preamble.acceptor != self.host {
            return Err(Verdict::AnotherHost);
        }
        let reader = self.reader(preamble.channel).ok_or(Verdict::Channel)?;
        if reader.is_closed() {
            return Err(Verdict::Channel);
        }
        // Who wants more protection than this host asks for gets it.
        if preamble.mode != MODE_TLS && preamble.mode != self.mode(reader.channel) {
            return Err(Verdict::Mode);
        }
        let key = self.keys.borrow().by_id(preamble.key).cloned();
        let state = self.state();
        let known = state.peers.get(&preamble.dialer);
        let known = known.filter(|known| known.address.ip() == source);
        let known = known.ok_or(Verdict::Stranger)?;
        if known.places.available_permits() == 0 || self.places.available_permits() == 0 {
            return Err(Verdict::Crowded);
        }
        key.ok_or(Verdict::Key)
    }

    /// A host has proven the key and said which life it is.
    pub fn admit(&self, preamble: &Preamble, stream: Stream) -> Result<Accepted, Verdict> {
        let reader = self.reader(preamble.channel).ok_or(Verdict::Channel)?;
        let life = self.meet(preamble.dialer, stream).ok_or(Verdict::Stale)?;
        let limits = &self.limits;
        let mut state = self.state();
        let known = state.peers.get_mut(&preamble.dialer);
        let known = known.ok_or(Verdict::Stranger)?;
        let place = |places: &Arc<Semaphore>| places.clone().try_acquire_owned();
        let crowded = |_| Verdict::Crowded;
        let of_peer = place(&known.places).map_err(crowded)?;
        let places = [of_peer, place(&self.places).map_err(crowded)?];
        let of_peer = known.rooms.entry(preamble.channel);
        let of_peer = of_peer.or_insert_with(|| Arc::new(Semaphore::new(limits.received_per_peer)));
        let room = Room {
            of_peer: of_peer.clone(),
            of_all: reader.room.clone(),
        };
        Ok(Accepted {
            _places: places,
            host: preamble.dialer,
            stream,
            life,
            room,
        })
    }

    /// Messages of a host were received.
    pub fn received(&self, host: HostId, messages: u64, bytes: u64) {
        if let Some(known) = self.state().peers.get_mut(&host) {
            known.messages_received += messages;
            known.bytes_received += bytes;
        }
        self.count(|counters| {
            counters.messages_received += messages;
            counters.received_bytes += bytes;
        });
    }

    /// Tells the fate of messages that are not sent.
    pub fn not_sent(&self, line: &Line, messages: Vec<Queued>, why: &NotSent) {
        for message in messages {
            self.count(|counters| counters.messages_not_sent += 1);
            let outcome = Outcome::Fate(Fate::NotSent(why.clone()), None);
            self.tell(line, message, outcome);
        }
    }

    /// Tells what became of a message.
    pub fn tell(&self, line: &Line, message: Queued, outcome: Outcome) {
        let Message { body, tag, .. } = message;
        match (tag, outcome) {
            // Nobody may want to know.
            (Tag::Pushed { fate, .. }, Outcome::Fate(told, _)) => drop(fate.send(told)),
            (Tag::Pushed { fate, .. }, Outcome::Declined) => {
                let full = Fate::NotSent(NotSent::Full(line.host));
                drop(fate.send(full));
            }
            (Tag::Pulled(source), outcome) => {
                if let Some(exchange) = self.exchange(line.channel) {
                    exchange.ended(line.host, source, body, outcome);
                }
            }
        }
    }

    /// The next message of a source.
    pub fn pull(&self, line: &Line, source: u64, size: Size) -> Option<Queued> {
        let exchange = self.exchange(line.channel)?;
        let pulled = exchange.pull(line.host, source, size)?;
        if pulled.more {
            line.ready_again(source, size);
        }
        Some(Message {
            body: pulled.body,
            hint: pulled.hint,
            tag: Tag::Pulled(source),
        })
    }

    /// What a source has is not sent.
    pub fn refuse(&self, line: &Line, source: u64, size: Size, why: &NotSent) {
        let exchange = self.exchange(line.channel);
        while let Some(pulled) = exchange.and_then(|it| it.pull(line.host, source, size)) {
            let message = Message {
                body: pulled.body,
                hint: pulled.hint,
                tag: Tag::Pulled(source),
            };
            self.not_sent(line, vec![message], why);
            if !pulled.more {
                break;
            }
        }
    }

    /// Tells all messages that wait that the agent stops.
    pub fn drain(&self) {
        let peers = std::mem::take(&mut self.state().peers);
        for line in peers.values().flat_map(|known| known.lines.values()) {
            self.not_sent(line, line.drain(), &NotSent::Stopped);
        }
    }

    pub fn status(&self) -> Status {
        let key = self.keys.borrow().sign.id;
        let state = self.state();
        let peers = state.peers.iter().map(|(&host, known)| PeerStatus {
            host,
            stream: known.stream,
            accepted: self.limits.accepted_per_peer - known.places.available_permits(),
            messages_received: known.messages_received,
            bytes_received: known.bytes_received,
            lines: known.lines.values().map(|line| line.status()).collect(),
        });
        Status {
            address: self.address,
            key,
            queued_bytes: self.limits.queued_total - self.queued.available_permits(),
            handshakes: state.handshakes_total,
            accepted: self.limits.accepted_total - self.places.available_permits(),
            counters: *self.counters.lock().unwrap_or_else(PoisonError::into_inner),
            peers: peers.collect(),
        }
    }
}
