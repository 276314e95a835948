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
    limits::Channel,
    outgoing::Message,
    view::{Fate, LineStatus},
};

/// What is kept about a message until its fate is known.
#[derive(Debug)]
pub(super) struct Tag {
    pub fate: oneshot::Sender<Fate>,
    pub since: Instant,
    /// What it takes of the bounds, of its line's and of all.
    pub _room: [OwnedSemaphorePermit; 2],
}

pub(super) type Queued = Message<Tag>;

/// What a carrier got when it asked for a message.
pub(super) enum Popped {
    Message(Queued),
    /// There is one, but not for this carrier now.
    NoRoom,
    Empty,
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
    carriers_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Carriers that are open, and those of them that are free.
    carriers: usize,
    free: usize,
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

impl State {
    /// Whether a carrier is to be opened; if so, the caller opens it.
    fn begin_opening(&mut self, max: usize) -> bool {
        let may = self.carriers == 0
            || self.carriers < max && self.not_before.is_none_or(|at| Instant::now() >= at);
        let begin = may && !self.opening && self.free == 0 && !self.queue.is_empty();
        self.opening |= begin;
        begin
    }
}

impl Line {
    pub fn new(host: HostId, channel: Channel, room: usize, carriers_max: usize) -> Self {
        Self {
            host,
            channel,
            room: Arc::new(Semaphore::new(room)),
            room_total: room,
            wake: Notify::new(),
            carriers_max,
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
        state.queue.push_back(message);
        if state.free > 0 {
            self.wake.notify_one();
        }
        Ok(state.begin_opening(self.carriers_max))
    }

    /// Whether a carrier is to be opened, by the caller.
    pub fn begin_opening(&self) -> bool {
        self.state().begin_opening(self.carriers_max)
    }

    /// The first message, if the carrier that asks has room for it.
    pub fn pop(&self, has_room: impl FnOnce(usize) -> bool) -> Popped {
        let mut state = self.state();
        let Some(first) = state.queue.front() else {
            return Popped::Empty;
        };
        if !has_room(first.body.len()) {
            return Popped::NoRoom;
        }
        let message = state.queue.pop_front();
        // One wake-up may have stood for several messages.
        if !state.queue.is_empty() && state.free > 0 {
            self.wake.notify_one();
        }
        message.map_or(Popped::Empty, Popped::Message)
    }

    /// Puts messages back that were not sent, before all others; returns them if the
    /// host is no member any more.
    pub fn put_back(&self, messages: Vec<Queued>) -> Vec<Queued> {
        let mut state = self.state();
        if state.gone {
            return messages;
        }
        for message in messages.into_iter().rev() {
            state.queue.push_front(message);
        }
        Vec::new()
    }

    /// The carrier that was being opened is open.
    pub fn opened(&self) {
        let mut state = self.state();
        state.opening = false;
        state.carriers += 1;
        state.failing_since = None;
        state.problem = None;
        state.failed_at = None;
        state.not_before = None;
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
        if !state.queue.is_empty() {
            return false;
        }
        if std::mem::take(free) {
            state.free -= 1;
        }
        state.carriers -= 1;
        true
    }

    /// The carrier that was being opened could not be. Takes out the messages that have
    /// waited for too long, and says whether to go on trying.
    pub fn not_opened(
        &self,
        why: &Arc<str>,
        give_up_after: Duration,
        pause: Duration,
    ) -> (Vec<Queued>, bool) {
        let mut state = self.state();
        state.problem = Some(why.clone());
        let now = Instant::now();
        state.failed_at = Some(now);
        if state.carriers > 0 {
            state.opening = false;
            state.not_before = Some(now + pause);
            return (Vec::new(), false);
        }
        let failing_since = *state.failing_since.get_or_insert(now);
        let fresh = |message: &Queued| now < message.tag.since.max(failing_since) + give_up_after;
        let (kept, given_up): (Vec<_>, Vec<_>) = std::mem::take(&mut state.queue)
            .into_iter()
            .partition(fresh);
        state.queue = kept.into();
        state.opening = !state.queue.is_empty();
        (given_up, state.opening)
    }

    /// The host is no member any more: takes out all messages.
    pub fn drain(&self) -> Vec<Queued> {
        self.room.close();
        let mut state = self.state();
        state.gone = true;
        std::mem::take(&mut state.queue).into()
    }

    /// Messages arrived.
    pub fn delivered(&self, messages: usize, bytes: usize) {
        let mut state = self.state();
        state.messages_delivered += messages as u64;
        state.bytes_delivered += bytes as u64;
    }

    pub fn status(&self) -> LineStatus {
        let state = self.state();
        LineStatus {
            channel: self.channel.number,
            carriers: state.carriers,
            opening: state.opening,
            queued: state.queue.len(),
            queued_bytes: self.room_total - self.room.available_permits(),
            messages_delivered: state.messages_delivered,
            bytes_delivered: state.bytes_delivered,
            problem: state.problem.clone(),
            failing_for: state.failing_since.map(|at| at.elapsed()),
            failed_ago: state.failed_at.map(|at| at.elapsed()),
        }
    }
}
