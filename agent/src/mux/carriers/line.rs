//! What is to be sent to one host on one channel, and the carriers that share it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use homing_common::host::HostId;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use super::{
    exchange::Size,
    limits::{Channel, Count},
    outgoing::{Message, SHORT_MAX, is_long},
    view::{Fate, LineStatus},
};

/// What is kept about a message until its fate is known.
#[derive(Debug)]
pub(super) enum Tag {
    /// Somebody has pushed it.
    Pushed {
        fate: oneshot::Sender<Fate>,
        since: Instant,
        /// What it takes of the bounds, of its line's and of all.
        _room: [OwnedSemaphorePermit; 2],
    },
    /// It was pulled from this source of the exchange.
    Pulled(u64),
}

pub(super) type Queued = Message<Tag>;

/// What a carrier got when it asked for a message.
pub(super) enum Popped {
    Message(Queued),
    /// This source of the exchange has one.
    Source(u64, Size),
    /// There is one, but not for this carrier now.
    NoRoom,
    Empty,
}

/// What a carrier can take now.
#[derive(Clone, Copy)]
pub(super) struct Takes<F> {
    /// Whether it has room for a message of that length.
    pub room: F,
    /// It has a long message already.
    pub is_busy: bool,
}

/// One host, one channel.
pub(super) struct Line {
    pub host: HostId,
    pub channel: Channel,
    /// Its bound.
    pub room: Arc<Semaphore>,
    room_total: usize,
    /// Wakes a carrier that is free.
    pub wake: Notify,
    carriers: Count,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was pushed, short and long, and sources that are ready: each with its turn.
    queues: [VecDeque<(u64, Queued)>; 2],
    ready: [VecDeque<(u64, u64)>; 2],
    next_turn: u64,
    /// Carriers that are open, those of them that are free, and those that are busy with
    /// a long message.
    carriers: usize,
    free: usize,
    busy: usize,
    opening: bool,
    /// No further carrier is opened before, as long as there is one.
    not_before: Option<Instant>,
    /// Since when none can be opened, and why.
    failing_since: Option<Instant>,
    problem: Option<Arc<str>>,
    /// When that was.
    failed_at: Option<Instant>,
    /// The host is no member any more.
    gone: bool,
    messages_delivered: u64,
    bytes_delivered: u64,
}

/// The place of a size in pairs.
const fn at(size: Size) -> usize {
    size as usize
}

impl State {
    /// Whether another carrier may be given a long message: one is left to short ones.
    fn may_be_long(&self, count: Count) -> bool {
        self.busy < count.most().saturating_sub(1).max(1)
    }

    /// Whether something waits that a carrier could be given.
    fn waits(&self, count: Count) -> bool {
        let waits = |size| !self.queues[at(size)].is_empty() || !self.ready[at(size)].is_empty();
        waits(Size::Short) || waits(Size::Long) && self.may_be_long(count)
    }

    /// Whether a carrier is to be opened; if so, the caller opens it.
    fn begin_opening(&mut self, count: Count) -> bool {
        let may = self.carriers == 0
            || self.carriers < count.most()
                && self.not_before.is_none_or(|at| Instant::now() >= at);
        let wanted = match count {
            Count::UpTo(_) => self.free == 0,
            Count::Fixed(_) => true,
        };
        let begin = may && !self.opening && wanted && self.waits(count);
        self.opening |= begin;
        begin
    }

    fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    fn take_queues(&mut self) -> Vec<Queued> {
        let queues = std::mem::take(&mut self.queues);
        let mut all: Vec<_> = queues.into_iter().flatten().collect();
        all.sort_by_key(|(turn, _)| *turn);
        all.into_iter().map(|(_, message)| message).collect()
    }
}

impl Line {
    pub fn new(host: HostId, channel: Channel, room: usize, carriers: Count) -> Self {
        Self {
            host,
            channel,
            room: Arc::new(Semaphore::new(room)),
            room_total: room,
            wake: Notify::new(),
            carriers,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Whether a carrier is to be opened, by the caller.
    ///
    /// # Errors
    ///
    /// The host is no member any more.
    pub fn push(&self, message: Queued) -> Result<bool, Queued> {
        let mut state = self.state();
        if state.gone {
            return Err(message);
        }
        let turn = state.turn();
        let which = usize::from(is_long(message.body.len()));
        state.queues[which].push_back((turn, message));
        Ok(self.came(&mut state))
    }

    /// A source has something to send, and stands in none of the two lists of that size.
    /// Whether a carrier is to be opened, by the caller.
    pub fn ready(&self, source: u64, size: Size) -> bool {
        let mut state = self.state();
        let turn = state.turn();
        state.ready[at(size)].push_back((turn, source));
        self.came(&mut state)
    }

    /// A source that the asking carrier has pulled from has more of that size. It asks
    /// again, and tends the line if it has no room: it opens none here.
    pub fn ready_again(&self, source: u64, size: Size) {
        let mut state = self.state();
        let turn = state.turn();
        state.ready[at(size)].push_back((turn, source));
        if state.free > 0 {
            self.wake.notify_one();
        }
    }

    fn came(&self, state: &mut State) -> bool {
        if state.free > 0 {
            self.wake.notify_one();
        }
        state.begin_opening(self.carriers)
    }

    /// Whether a carrier is to be opened, by the caller.
    pub fn begin_opening(&self) -> bool {
        self.state().begin_opening(self.carriers)
    }

    /// What has waited longest of what the carrier that asks can take.
    pub fn pop(&self, takes: Takes<impl Fn(usize) -> bool>) -> Popped {
        let mut state = self.state();
        let may_be_long = state.may_be_long(self.carriers);
        // By turn: what can be taken; and whether something waits for more room.
        let mut best: Option<(u64, bool, bool)> = None;
        let mut no_room = false;
        for long in [false, true] {
            if long && !may_be_long {
                continue;
            }
            let which = usize::from(long);
            let message = state.queues[which].front();
            let message = message.map(|(turn, message)| (*turn, message.body.len(), true));
            let least = if long { SHORT_MAX + 1 } else { SHORT_MAX };
            let source = state.ready[which].front();
            let source = source.map(|(turn, _)| (*turn, least, false));
            for (turn, len, pushed) in message.into_iter().chain(source) {
                if takes.is_busy || !(takes.room)(len) {
                    no_room = true;
                } else if best.is_none_or(|(first, ..)| turn < first) {
                    best = Some((turn, long, pushed));
                }
            }
        }
        let Some((_, long, pushed)) = best else {
            return if no_room {
                Popped::NoRoom
            } else {
                Popped::Empty
            };
        };
        let which = usize::from(long);
        let popped = match pushed {
            true => state.queues[which]
                .pop_front()
                .map(|(_, message)| Popped::Message(message)),
            false => state.ready[which].pop_front().map(|(_, source)| {
                let size = if long { Size::Long } else { Size::Short };
                Popped::Source(source, size)
            }),
        };
        state.busy += which;
        // One wake-up may have stood for several messages.
        if state.free > 0 && state.waits(self.carriers) {
            self.wake.notify_one();
        }
        popped.unwrap_or(Popped::Empty)
    }

    /// A carrier is done with the long message that it was given, or did not get one
    /// after all.
    pub fn long_done(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.free > 0 && state.waits(self.carriers) {
            self.wake.notify_one();
        }
    }

    /// Puts messages back that were not sent, before all others; returns them if the
    /// host is no member any more.
    pub fn put_back(&self, messages: Vec<Queued>) -> Vec<Queued> {
        let mut state = self.state();
        if state.gone {
            return messages;
        }
        for message in messages.into_iter().rev() {
            let which = usize::from(is_long(message.body.len()));
            state.queues[which].push_front((0, message));
        }
        Vec::new()
    }

    /// The carrier that was being opened is open. Whether another one is to be opened, by
    /// the caller.
    pub fn opened(&self) -> bool {
        let mut state = self.state();
        state.opening = false;
        state.carriers += 1;
        state.failing_since = None;
        state.problem = None;
        state.failed_at = None;
        state.not_before = None;
        matches!(self.carriers, Count::Fixed(_)) && state.begin_opening(self.carriers)
    }

    /// A carrier has become free, or busy.
    pub fn set_free(&self, was: &mut bool, is: bool) {
        if *was != is {
            *was = is;
            let mut state = self.state();
            match is {
                true => state.free += 1,
                false => state.free -= 1,
            }
        }
    }

    /// A carrier that is not free has ended.
    pub fn closed(&self) {
        self.state().carriers -= 1;
    }

    /// A carrier wants to end in good order. Whether it may: no message waits.
    pub fn may_close(&self, free: &mut bool) -> bool {
        let mut state = self.state();
        if state.waits(self.carriers) {
            return false;
        }
        if std::mem::take(free) {
            state.free -= 1;
        }
        state.carriers -= 1;
        true
    }

    /// The carrier that was being opened could not be. Takes out what has waited for too
    /// long, and says whether to go on trying.
    pub fn not_opened(&self, why: &Arc<str>, give_up_after: Duration, pause: Duration) -> GivenUp {
        let mut state = self.state();
        state.problem = Some(why.clone());
        let now = Instant::now();
        state.failed_at = Some(now);
        if state.carriers > 0 {
            state.opening = false;
            state.not_before = Some(now + pause);
            return GivenUp::default();
        }
        let failing_since = *state.failing_since.get_or_insert(now);
        let mut given_up = GivenUp::default();
        for which in 0..2 {
            let queue = std::mem::take(&mut state.queues[which]);
            for (turn, message) in queue {
                let since = match &message.tag {
                    Tag::Pushed { since, .. } => failing_since.max(*since),
                    Tag::Pulled(_) => failing_since,
                };
                match now < since + give_up_after {
                    true => state.queues[which].push_back((turn, message)),
                    false => given_up.messages.push(message),
                }
            }
        }
        if now >= failing_since + give_up_after {
            for size in [Size::Short, Size::Long] {
                let ready = std::mem::take(&mut state.ready[at(size)]);
                let sources = ready.into_iter().map(|(_, source)| (source, size));
                given_up.sources.extend(sources);
            }
        }
        state.opening = state.waits(self.carriers);
        given_up.go_on = state.opening;
        given_up
    }

    /// The host is no member any more: takes out all messages.
    pub fn drain(&self) -> Vec<Queued> {
        self.room.close();
        let mut state = self.state();
        state.gone = true;
        state.ready = Default::default();
        state.take_queues()
    }

    /// Messages arrived.
    pub fn delivered(&self, messages: usize, bytes: usize) {
        let mut state = self.state();
        state.messages_delivered += messages as u64;
        state.bytes_delivered += bytes as u64;
    }

    pub fn status(&self) -> LineStatus {
        let state = self.state();
        let count = |lens: [usize; 2]| lens.iter().sum::<usize>();
        LineStatus {
            channel: self.channel.number,
            carriers: state.carriers,
            opening: state.opening,
            queued: count(state.queues.each_ref().map(VecDeque::len)),
            ready: count(state.ready.each_ref().map(VecDeque::len)),
            queued_bytes: self.room_total - self.room.available_permits(),
            messages_delivered: state.messages_delivered,
            bytes_delivered: state.bytes_delivered,
            problem: state.problem.clone(),
            failing_for: state.failing_since.map(|at| at.elapsed()),
            failed_ago: state.failed_at.map(|at| at.elapsed()),
        }
    }
}

/// What has waited for too long for a carrier.
#[derive(Default)]
pub(super) struct GivenUp {
    /// What was pushed.
    pub messages: Vec<Queued>,
    /// Sources whose messages are not sent.
    pub sources: Vec<(u64, Size)>,
    /// Something still waits: another attempt is to be made.
    pub go_on: bool,
}
