//! The listener, and the task of a carrier that another host has opened.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Received,
    alarm::Alarm,
    duplex::{Duplex, WRITE_LEN},
    exchange::Exchange,
    frame::{Garbage, Hint},
    handshake::{self, AcceptError, Carrier, Greeted},
    incoming::{First, Incoming},
    outgoing::{Silent, is_long},
    preamble::Verdict,
    room::Taken,
    shared::{Accepted, Handshake, Reader, Shared, To},
};

/// The pause after the system has refused to accept a connection: it has no descriptors
/// or no memory.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How often a refusal is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Accepts carriers until all is stopped.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            () = shared.stopped.cancelled() => return,
        };
        match accepted {
            Ok((tcp, source)) => match shared.begin_handshake(source.ip()) {
                Some(handshake) => {
                    let task = greet(shared.clone(), tcp, source, handshake);
                    shared.tasks.spawn_on(task, &shared.runtime);
                }
                // The kernel keeps nothing of it.
                None => drop(tcp.set_zero_linger()),
            },
            Err(_) => {
                shared.count(|counters| counters.accept_errors += 1);
                sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// Hears whose carrier it is, and for whom: whoever that is goes on with it.
async fn greet(shared: Arc<Shared>, tcp: TcpStream, source: SocketAddr, handshake: Handshake) {
    let by = Instant::now() + shared.limits.handshake_timeout;
    let greeted = handshake::greet(&shared, tcp, source);
    let greeted = select! {
        greeted = timeout_at(by, greeted) => greeted,
        () = shared.stopped.cancelled() => return,
    };
    match greeted.unwrap_or(Err(AcceptError::Timeout)) {
        Ok(greeted) => {
            let runtime = shared.runtime_of(greeted.preamble.channel).clone();
            let task = run(shared.clone(), greeted, source, handshake, by);
            shared.tasks.spawn_on(task, &runtime);
        }
        Err(error) => refused(&shared, source, &error),
    }
}

async fn run(
    shared: Arc<Shared>,
    greeted: Greeted,
    source: SocketAddr,
    handshake: Handshake,
    by: Instant,
) {
    let begun = handshake::accept(&shared, greeted);
    let carrier = select! {
        carrier = timeout_at(by, begun) => carrier,
        () = shared.stopped.cancelled() => return,
    };
    drop(handshake);
    match carrier.unwrap_or(Err(AcceptError::Timeout)) {
        Ok(carrier) => {
            shared.count(|counters| counters.accepted += 1);
            receive(&shared, carrier).await;
        }
        Err(error) => refused(&shared, source, &error),
    }
}

/// Counts a refusal, and logs it now and then.
fn refused(shared: &Shared, source: SocketAddr, error: &AcceptError) {
    shared.count(|counters| {
        *match error {
            AcceptError::Garbage => &mut counters.handshake_garbage,
            AcceptError::Unproven(..) => &mut counters.handshake_failures,
            AcceptError::Timeout => &mut counters.handshake_timeouts,
            AcceptError::Refused(_, verdict) => match verdict {
                Verdict::Version | Verdict::Mode => &mut counters.refused_version,
                Verdict::Key => &mut counters.refused_key,
                Verdict::AnotherHost => &mut counters.refused_another_host,
                Verdict::Stranger => &mut counters.refused_strangers,
                Verdict::Channel => &mut counters.refused_channel,
                Verdict::Stale => &mut counters.refused_stale,
                Verdict::Crowded | Verdict::Welcome => &mut counters.refused_many,
            },
        } += 1;
    });
    if shared.may_log(LOG_EVERY) {
        tracing::warn!(
            %source, %error,
            fix = "if that is a host of the POP, bring it to the version and the key of the others (`homing hosts`, `homing key show`); if not, keep it from the port of pop.address",
            "a carrier was not accepted"
        );
    }
}

/// How a carrier ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("its key is no longer accepted")]
    Key,
    #[error("the other host began a new life, or is no member now")]
    Life,
    #[error("its connection ended: {0}")]
    Ended(#[from] io::Error),
    #[error("nobody reads its channel any more")]
    Unread,
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error(transparent)]
    Garbage(#[from] Garbage),
}

/// Room that is waited for.
type Waiting = Pin<Box<dyn Future<Output = Option<Taken>> + Send>>;

/// Receives from a carrier until it ends.
async fn receive(shared: &Arc<Shared>, carrier: Carrier) {
    let Carrier {
        stream,
        preamble,
        key,
        accepted,
    } = carrier;
    let Some(reader) = shared.reader(preamble.channel) else {
        return;
    };
    let limit = shared.limits.message_max(reader.channel);
    let pace = shared.limits.pace();
    let mut receiving = Receiving {
        shared,
        reader,
        incoming: Incoming::new(preamble.channel, limit, pace, shared.now()),
        granted: None,
        expected: None,
        accepted,
    };
    let mut duplex = Duplex::new(stream);
    let mut waiting: Option<Waiting> = None;
    let mut keys = shared.keys.subscribe();
    let mut retire_by: Option<Instant> = None;
    let life = receiving.accepted.life.clone();
    let mut life_ends = pin!(life.cancelled());
    let mut alarm = Alarm::new(Instant::now());
    let end = loop {
        if waiting.is_none() {
            match receiving.take_in() {
                Ok(waits) => waiting = waits,
                Err(end) => break end,
            }
        }
        if retire_by.is_none() && !keys.borrow_and_update().accept(&key) {
            receiving.incoming.retire();
            retire_by = Some(Instant::now() + shared.limits.retire_within);
        }
        if duplex.write.len() < WRITE_LEN {
            receiving.incoming.take(&mut duplex.write, shared.now());
        }
        duplex.rest().await;
        let due = shared.instant(receiving.incoming.due());
        alarm.set(retire_by.map_or(due, |by| by.min(due)));
        let done: Result<(), End> = select! {
            biased;
            () = &mut life_ends => Err(End::Life),
            moved = duplex.exchange() => match moved {
                Ok(()) if duplex.heard().is_empty() => Ok(()),
                Ok(()) => receiving.incoming.hear(duplex.heard(), shared.now()).map_err(End::from),
                Err(error) => Err(error.into()),
            },
            room = until(&mut waiting) => receiving.found(room),
            _ = keys.changed() => Ok(()),
            () = alarm.end() => match retire_by {
                Some(by) if by <= Instant::now() => Err(End::Key),
                _ => receiving.incoming.tick(shared.now()).map_err(End::from),
            },
        };
        if let Err(end) = done {
            break end;
        }
    };
    receiving.withdraw();
    let cut = receiving.incoming.is_within();
    shared.count(|counters| {
        *match &end {
            End::Key => &mut counters.closed_key,
            End::Life => &mut counters.closed_life,
            End::Ended(error) if error.kind() == io::ErrorKind::UnexpectedEof && !cut => {
                &mut counters.closed_idle
            }
            End::Ended(_) | End::Unread => &mut counters.broken,
            End::Silent(_) => &mut counters.silent,
            End::Garbage(_) => &mut counters.garbage,
        } += 1;
    });
    tracing::debug!(host = ?preamble.dialer, channel = preamble.channel, "a carrier ended: {end}");
    duplex.abort();
}

/// Where an inbox is filled from.
type Sender = mpsc::UnboundedSender<Received>;

/// Waits for room, once.
async fn until(waiting: &mut Option<Waiting>) -> Option<Taken> {
    match waiting {
        Some(room) => {
            let room = room.await;
            *waiting = None;
            room
        }
        None => std::future::pending().await,
    }
}

/// A carrier that messages come from.
struct Receiving<'a> {
    shared: &'a Arc<Shared>,
    reader: &'a Reader,
    incoming: Incoming,
    /// Room for a message that was offered, or is first: for an inbox.
    granted: Option<Taken>,
    /// The message that was offered, and that the exchange lets come.
    expected: Option<(Hint, usize)>,
    accepted: Accepted,
}

impl Receiving<'_> {
    /// Hands over what has arrived, as far as there is room. Returns the room that is
    /// to be waited for, if there is not enough.
    fn take_in(&mut self) -> Result<Option<Waiting>, End> {
        match &self.reader.to {
            To::Inbox(sender) => self.feed_inbox(sender),
            To::Exchange(exchange) => {
                self.feed_exchange(&**exchange);
                Ok(None)
            }
            To::Nobody => Err(End::Unread),
        }
    }

    fn feed_exchange(&mut self, exchange: &dyn Exchange) {
        let (mut messages, mut bytes) = (0, 0);
        let (host, stream) = (self.accepted.host, self.accepted.stream);
        while let Some(first) = self.incoming.first() {
            match first {
                First::Offer { len, hint } => {
                    if exchange.offered(host, &hint, len) {
                        self.expected = Some((hint, len));
                        self.incoming.grant();
                    } else {
                        self.incoming.decline();
                    }
                }
                First::Message { .. } => {
                    let Some(body) = self.incoming.accept(self.shared.now()) else {
                        return;
                    };
                    messages += 1;
                    bytes += body.len() as u64;
                    if is_long(body.len()) {
                        self.expected = None;
                    }
                    let answer = exchange.receive(host, stream, body);
                    if !answer.note.is_empty() {
                        self.incoming.note(&answer.note);
                    }
                    if answer.is_awaited {
                        self.incoming.hurry();
                    }
                }
            }
        }
        if messages > 0 {
            self.shared.received(host, messages, bytes);
        }
    }

    /// The carrier has ended: what was to come does not.
    fn withdraw(&mut self) {
        if let (To::Exchange(exchange), Some((hint, len))) = (&self.reader.to, &self.expected) {
            exchange.withdrawn(hint, *len);
        }
    }

    fn feed_inbox(&mut self, sender: &Sender) -> Result<Option<Waiting>, End> {
        let (mut messages, mut bytes) = (0, 0);
        let mut waiting = None;
        while let Some(first) = self.incoming.first() {
            let (First::Offer { len, .. } | First::Message { len, .. }) = first;
            if self.granted.is_none() {
                self.granted = self.accepted.room.try_take(len);
            }
            let Some(room) = self.granted.take() else {
                self.shared.count(|counters| counters.stalls += 1);
                waiting = Some(Box::pin(self.accepted.room.clone().take(len)) as Waiting);
                break;
            };
            if let First::Offer { .. } = first {
                self.granted = Some(room);
                self.incoming.grant();
                break;
            }
            messages += 1;
            bytes += len as u64;
            self.hand_over(sender, room)?;
        }
        if messages > 0 {
            self.shared.received(self.accepted.host, messages, bytes);
        }
        Ok(waiting)
    }

    /// There is room for what is first.
    fn found(&mut self, room: Option<Taken>) -> Result<(), End> {
        self.granted = Some(room.ok_or(End::Unread)?);
        Ok(())
    }

    fn hand_over(&mut self, sender: &Sender, room: Taken) -> Result<(), End> {
        let Some(body) = self.incoming.accept(self.shared.now()) else {
            return Ok(());
        };
        // Its sender waits for its fate.
        self.incoming.hurry();
        let received = Received::new(self.accepted.host, self.accepted.stream, body, room);
        sender.send(received).map_err(|_| End::Unread)
    }
}
