//! The task of a carrier that this host opens: opens it, and sends over it.

use std::{io, pin::pin, sync::Arc};

use tokio::{
    select,
    time::{Instant, sleep, timeout},
};

use super::{
    alarm::Alarm,
    duplex::{Duplex, WRITE_LEN},
    exchange::{Outcome, Size},
    frame::Garbage,
    handshake::{self, OpenError, Opened},
    line::{Line, Popped, Tag, Takes},
    outgoing::{Outgoing, Said, Silent, is_long},
    preamble::{MODE_TLS, Verdict},
    shared::{Shared, Target},
    view::{Fate, NotSent},
};
use crate::pop::keys::CarrierKey;

/// Opens a carrier for a line if one is missing.
pub(super) fn tend(shared: &Arc<Shared>, line: &Arc<Line>) {
    if line.begin_opening() {
        open(shared, line);
    }
}

/// Opens a carrier, as the line has asked for.
pub(super) fn open(shared: &Arc<Shared>, line: &Arc<Line>) {
    let task = run(shared.clone(), line.clone());
    let runtime = shared.runtime_of(line.channel.number);
    shared.tasks.spawn_on(task, runtime);
}

async fn run(shared: Arc<Shared>, line: Arc<Line>) {
    let opened = select! {
        opened = open_at_last(&shared, &line) => opened,
        () = shared.stopped.cancelled() => None,
    };
    if let Some((opened, key)) = opened {
        shared.count(|counters| counters.opened += 1);
        if line.opened() {
            open(&shared, &line);
        }
        send(&shared, &line, opened, &key).await;
        tend(&shared, &line);
    }
}

/// Tries until a carrier is open, or none is wanted any more.
async fn open_at_last(shared: &Arc<Shared>, line: &Line) -> Option<(Opened, CarrierKey)> {
    let [mut pause, longest] = shared.limits.back_off;
    let mut mode = shared.mode(line.channel);
    loop {
        // Without a target the host is no member any more, and its line is drained.
        let target = shared.target(line.host, line.channel, mode)?;
        let why = match attempt(shared, &target).await {
            Ok(opened) => return Some((opened, target.key)),
            // Who asks for encryption gets it: hosts are told one after the other.
            Err(OpenError::Refused(_, Verdict::Mode)) if mode != MODE_TLS => {
                mode = MODE_TLS;
                continue;
            }
            Err(error) => error,
        };
        shared.count(|counters| {
            counters.open_failures += 1;
            counters.refused_by_peer += u64::from(matches!(why, OpenError::Refused(..)));
        });
        let why: Arc<str> = why.to_string().into();
        if line.status().problem.as_ref() != Some(&why) {
            tracing::warn!(
                host = line.host.0, channel = line.channel.number, %why,
                fix = "nothing, if that host is just starting or stopping: tried again, at longer and longer intervals; else let TCP to its pop.address through, and compare the keys of both hosts (`homing key show`)",
                "cannot open a carrier"
            );
        }
        let given_up = line.not_opened(&why, shared.limits.give_up_after, pause);
        let host = line.host;
        let why = NotSent::Unreachable { host, why };
        for (source, size) in given_up.sources {
            shared.refuse(line, source, size, &why);
        }
        shared.not_sent(line, given_up.messages, &why);
        if !given_up.go_on {
            return None;
        }
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

async fn attempt(shared: &Shared, target: &Target) -> Result<Opened, OpenError> {
    let attempt = timeout(
        shared.limits.handshake_timeout,
        handshake::open(shared, target),
    );
    attempt
        .await
        .unwrap_or(Err(OpenError::Timeout(target.address)))
}

/// How a carrier ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it was idle")]
    Idle,
    #[error("its key is no longer accepted")]
    Retired,
    #[error("the other host began a new life, or is no member now")]
    Life,
    #[error("its connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error(transparent)]
    Garbage(#[from] Garbage),
}

/// Sends over a carrier until it ends.
async fn send(shared: &Arc<Shared>, line: &Arc<Line>, opened: Opened, key: &CarrierKey) {
    let mut carrier = Sending {
        shared,
        line,
        peer: opened.peer,
        outgoing: Outgoing::new(line.channel.number, shared.limits.pace(), shared.now()),
        duplex: Duplex::new(opened.stream),
        free: false,
        has_long: false,
        idle_since: Instant::now(),
    };
    let mut keys = shared.keys.subscribe();
    let mut life_ends = pin!(opened.life.cancelled());
    let mut alarm = Alarm::new(carrier.idle_since);
    let end = loop {
        match carrier.give() {
            // The line has counted it as gone.
            Some(end) => {
                carrier.finish(&end).await;
                return;
            }
            None => carrier.duplex.rest().await,
        }
        if !keys.borrow_and_update().accept(key) {
            carrier.outgoing.retire();
        }
        let due = shared.instant(carrier.outgoing.due());
        alarm.set(match carrier.outgoing.is_idle() {
            true => due.min(carrier.idle_since + shared.limits.idle_of(line.channel)),
            false => due,
        });
        let done: Result<(), End> = select! {
            biased;
            () = &mut life_ends => Err(End::Life),
            moved = carrier.duplex.exchange() => match moved {
                Ok(()) => carrier.hear().map_err(End::from),
                Err(error) => Err(error.into()),
            },
            () = line.wake.notified(), if carrier.free => Ok(()),
            _ = keys.changed() => Ok(()),
            () = alarm.end() => carrier.outgoing.tick(shared.now()).map_err(End::from),
        };
        if let Err(end) = done {
            break end;
        }
    };
    line.set_free(&mut carrier.free, false);
    line.closed();
    carrier.finish(&end).await;
}

/// A carrier that messages are sent over.
struct Sending<'a> {
    shared: &'a Arc<Shared>,
    line: &'a Arc<Line>,
    /// The life that it leads to.
    peer: crate::pop::Stream,
    outgoing: Outgoing<Tag>,
    duplex: Duplex,
    /// As the line counts it.
    free: bool,
    /// The line counts it as busy with a long message.
    has_long: bool,
    idle_since: Instant,
}

impl Sending<'_> {
    /// Gives the carrier what it has room for. Returns how it ends if it may end in good
    /// order, and the line has counted it as gone.
    fn give(&mut self) -> Option<End> {
        let waits = loop {
            let takes = Takes {
                room: |len| self.outgoing.has_room(len),
                is_busy: self.has_long,
            };
            let message = match self.line.pop(takes) {
                Popped::Message(message) => Some(message),
                Popped::Source(source, size) => {
                    let pulled = self.shared.pull(self.line, source, size);
                    if pulled.is_none() && size == Size::Long {
                        self.line.long_done();
                    }
                    pulled
                }
                Popped::NoRoom => break true,
                Popped::Empty => break false,
            };
            if let Some(message) = message {
                self.idle_since = Instant::now();
                self.has_long = is_long(message.body.len());
                self.outgoing.give(message);
            }
        };
        let is_free = !waits && self.outgoing.has_room(0);
        self.line.set_free(&mut self.free, is_free);
        if waits {
            tend(self.shared, self.line);
        }
        let now = self.shared.now();
        self.outgoing.take(&mut self.duplex.write, WRITE_LEN, now);
        if !self.outgoing.is_idle() || !self.duplex.write.is_empty() {
            return None;
        }
        if self.outgoing.is_retired() {
            // Another carrier takes what waits.
            self.line.set_free(&mut self.free, false);
            self.line.closed();
            return Some(End::Retired);
        }
        let is_due = self.idle_since.elapsed() >= self.shared.limits.idle_of(self.line.channel);
        (is_due && self.line.may_close(&mut self.free)).then_some(End::Idle)
    }

    /// Tells the fate of what has arrived.
    fn hear(&mut self) -> Result<(), Garbage> {
        if self.duplex.heard().is_empty() {
            return Ok(());
        }
        let mut said = Vec::new();
        let heard = self.duplex.heard();
        let result = self.outgoing.hear(heard, self.shared.now(), &mut said);
        if !said.is_empty() {
            self.idle_since = Instant::now();
            self.told(said);
        }
        result
    }

    fn told(&mut self, said: Vec<Said<Tag>>) {
        let delivered = said.iter().filter_map(|said| match said {
            Said::Delivered(message, _) => Some(message.body.len()),
            Said::Declined(_) => None,
        });
        let (messages, bytes) =
            delivered.fold((0, 0), |(messages, bytes), len| (messages + 1, bytes + len));
        self.line.delivered(messages, bytes);
        self.shared.count(|counters| {
            counters.messages_delivered += messages as u64;
            counters.delivered_bytes += bytes as u64;
            counters.messages_declined += (said.len() - messages) as u64;
        });
        self.settle_long();
        // Who is told may send the next one at once: this carrier takes it.
        if self.outgoing.has_room(0) {
            self.line.set_free(&mut self.free, true);
        }
        for said in said {
            match said {
                Said::Delivered(message, note) => {
                    let fate = Fate::Delivered(self.peer);
                    self.shared
                        .tell(self.line, message, Outcome::Fate(fate, note));
                }
                Said::Declined(message) => {
                    self.shared.tell(self.line, message, Outcome::Declined);
                }
            }
        }
    }

    /// Tells the line when a long message is done with.
    fn settle_long(&mut self) {
        if self.has_long && !self.outgoing.is_busy() {
            self.has_long = false;
            self.line.long_done();
        }
    }

    /// Ends the connection, and tells or puts back what was not acknowledged.
    async fn finish(self, end: &End) {
        let Self {
            shared,
            line,
            outgoing,
            duplex,
            has_long,
            ..
        } = self;
        let ended = outgoing.end();
        if has_long {
            line.long_done();
        }
        shared.count(|counters| {
            counters.messages_unknown += ended.unknown.len() as u64;
            *match end {
                End::Idle => &mut counters.closed_idle,
                End::Retired => &mut counters.closed_key,
                End::Life => &mut counters.closed_life,
                End::Broken(_) => &mut counters.broken,
                End::Silent(_) => &mut counters.silent,
                End::Garbage(_) => &mut counters.garbage,
            } += 1;
        });
        tracing::debug!(host = ?line.host, channel = line.channel.number, "a carrier ended: {end}");
        if !ended.unknown.is_empty() {
            let why: Arc<str> = end.to_string().into();
            for message in ended.unknown {
                let outcome = Outcome::Fate(Fate::Unknown(why.clone()), None);
                shared.tell(line, message, outcome);
            }
        }
        let orphaned = line.put_back(ended.unsent);
        shared.not_sent(line, orphaned, &NotSent::NoMember(line.host));
        match end {
            End::Idle | End::Retired => {
                // What waits need not wait for the farewell.
                tend(shared, line);
                duplex.close().await;
            }
            _ => duplex.abort(),
        }
    }
}
