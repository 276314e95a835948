//! The task of a carrier that this host opens: opens it, and sends over it.

use std::{io, sync::Arc};

use tokio::{
    select,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    duplex::{Duplex, WRITE_LEN},
    frame::Garbage,
    handshake::{self, OpenError, Opened},
    line::{Line, Popped, Queued},
    outgoing::{Outgoing, Silent},
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
    shared.tasks.spawn_on(task, &shared.runtime);
}

async fn run(shared: Arc<Shared>, line: Arc<Line>) {
    let opened = select! {
        opened = open_at_last(&shared, &line) => opened,
        () = shared.stopped.cancelled() => None,
    };
    if let Some((opened, key)) = opened {
        shared.count(|counters| counters.opened += 1);
        line.opened();
        send(&shared, &line, opened, &key).await;
        tend(&shared, &line);
    }
}

/// Tries until a carrier is open, or none is wanted any more.
async fn open_at_last(shared: &Arc<Shared>, line: &Line) -> Option<(Opened, CarrierKey)> {
    let [mut pause, longest] = shared.limits.back_off;
    loop {
        // Without a target the host is no member any more, and its line is drained.
        let target = shared.target(line.host, line.channel)?;
        let why = match attempt(shared, &target).await {
            Ok(opened) => return Some((opened, target.key)),
            Err(error) => error,
        };
        shared.count(|counters| {
            counters.open_failures += 1;
            counters.refused_by_peer += u64::from(matches!(why, OpenError::Refused(..)));
        });
        let why: Arc<str> = why.to_string().into();
        if line.status().problem.as_ref() != Some(&why) {
            tracing::warn!(host = ?line.host, channel = line.channel.number, "cannot open a carrier: {why}");
        }
        let (given_up, go_on) = line.not_opened(&why, shared.limits.give_up_after, pause);
        let host = line.host;
        shared.not_sent(given_up, &NotSent::Unreachable { host, why });
        if !go_on {
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
        idle_since: Instant::now(),
    };
    let mut keys = shared.keys.subscribe();
    let end = loop {
        match carrier.give() {
            // The line has counted it as gone.
            Some(end) => {
                carrier.finish(&end).await;
                return;
            }
            None => tokio::task::coop::consume_budget().await,
        }
        if !keys.borrow_and_update().accept(key) {
            carrier.outgoing.retire();
        }
        let due = shared.instant(carrier.outgoing.due());
        let idle_at = carrier.idle_since + shared.limits.idle_of(line.channel);
        let is_idle = carrier.outgoing.is_idle();
        let done: Result<(), End> = select! {
            biased;
            () = opened.life.cancelled() => Err(End::Life),
            moved = carrier.duplex.exchange() => match moved {
                Ok(()) => carrier.hear().map_err(End::from),
                Err(error) => Err(error.into()),
            },
            () = line.wake.notified(), if carrier.free => Ok(()),
            _ = keys.changed() => Ok(()),
            () = sleep_until(idle_at), if is_idle => Ok(()),
            () = sleep_until(due) => carrier.outgoing.tick(shared.now()).map_err(End::from),
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
    outgoing: Outgoing<super::line::Tag>,
    duplex: Duplex,
    /// As the line counts it.
    free: bool,
    idle_since: Instant,
}

impl Sending<'_> {
    /// Gives the carrier what it has room for. Returns how it ends if it may end in good
    /// order, and the line has counted it as gone.
    fn give(&mut self) -> Option<End> {
        let waits = loop {
            let has_room = |len| self.outgoing.has_room(len);
            match self.line.pop(has_room) {
                Popped::Message(message) => {
                    self.idle_since = Instant::now();
                    self.outgoing.give(message);
                }
                Popped::NoRoom => break true,
                Popped::Empty => break false,
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
        let mut delivered = Vec::new();
        let heard = self.duplex.heard();
        let result = self.outgoing.hear(heard, self.shared.now(), &mut delivered);
        if !delivered.is_empty() {
            self.idle_since = Instant::now();
            let bytes = delivered.iter().map(|message| message.body.len()).sum();
            self.line.delivered(delivered.len(), bytes);
            self.shared.count(|counters| {
                counters.messages_delivered += delivered.len() as u64;
                counters.bytes_delivered += bytes as u64;
            });
        }
        // Who is told may send the next one at once: this carrier takes it.
        if self.outgoing.has_room(0) {
            self.line.set_free(&mut self.free, true);
        }
        for message in delivered {
            tell(message, Fate::Delivered(self.peer));
        }
        result
    }

    /// Ends the connection, and tells or puts back what was not acknowledged.
    async fn finish(self, end: &End) {
        let Self {
            shared,
            line,
            outgoing,
            duplex,
            ..
        } = self;
        let ended = outgoing.end();
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
                tell(message, Fate::Unknown(why.clone()));
            }
        }
        let orphaned = line.put_back(ended.unsent);
        shared.not_sent(orphaned, &NotSent::NoMember(line.host));
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

fn tell(message: Queued, fate: Fate) {
    // Nobody may want to know.
    let _ = message.tag.fate.send(fate);
}
