//! The source's side: it asks, freezes, sends, and alone decides.
//!
//! This file holds the moves from this host and their timers; `steps` goes from step
//! to step, `back` gives a move up, `hears` takes what the target says.

mod back;
mod hears;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque, btree_map};

use homing_client::Blob;
use homing_common::{host::HostId, session::Tuple};

use super::{
    Command, Entry, MoveId, Phase,
    context::{Context, Way},
    ended::Memory,
    limits::{Limits, REPEAT_MIN, REPEAT_STATE},
    local::Application,
    moves::{At, UnderWay},
    order::{Answer, Ended, Order, Outcome, Output, Reason, Step},
    repeat::Repeat,
    wire::{Body, Fate, Life, Offer},
};

/// One move from this host.
struct Move {
    tuple: Tuple,
    generation: u32,
    target: HostId,
    deadline: u64,
    application: Application,
    /// Bytes of state, as reserved or as held.
    bytes: usize,
    step: Step,
    /// The step that was counted last as the present one, and since when.
    timed: (Step, u64),
    /// The order whose answer is awaited; zero is none.
    ticket: u64,
    /// When the present step is over; the end of time if it has no bound.
    until: u64,
    repeat: Option<Repeat>,
    /// Where it stands in the timers.
    timer: u64,
    /// What the target's *ready* came with.
    ready: u64,
    tcp: Vec<u8>,
    blob: Blob,
    /// When *frozen* was written into the journal.
    frozen_at: Option<u64>,
    /// The state was sent: the target may have a copy.
    sent: bool,
    /// The POP has taken this host's kernel for dead meanwhile: the target may serve.
    outvoted: bool,
    /// An agent before this one began it: its descriptor is with the application.
    found: bool,
    /// The target serves it.
    confirmed: bool,
    /// The step at which it was given up, and why.
    why: Option<(Step, Reason)>,
}

impl Move {
    fn new(now: u64, command: Command, generation: u32) -> Self {
        Self {
            tuple: command.tuple,
            generation,
            target: command.target,
            deadline: command.deadline,
            application: command.application,
            bytes: command.bytes as usize,
            step: Step::Asking,
            timed: (Step::Asking, now),
            ticket: 0,
            until: u64::MAX,
            repeat: None,
            timer: u64::MAX,
            ready: 0,
            tcp: Vec::new(),
            blob: Blob::default(),
            frozen_at: None,
            sent: false,
            outvoted: false,
            found: false,
            confirmed: false,
            why: None,
        }
    }

    fn life(&self) -> Life {
        Life {
            tuple: self.tuple,
            generation: self.generation,
        }
    }

    /// Whether *released* is in the journal.
    fn is_released(&self) -> bool {
        matches!(
            self.step,
            Step::Destroying | Step::Released | Step::Settling
        )
    }
}

/// All moves from this host.
pub(super) struct Source {
    incarnation: u64,
    count: u64,
    moves: HashMap<u64, Move>,
    by_tuple: HashMap<Tuple, u64>,
    waiting: VecDeque<Command>,
    waits: HashSet<Tuple>,
    timers: BTreeSet<(u64, u64)>,
    settling: VecDeque<u64>,
    /// Moves before their confirmation, and bytes of state reserved or held for them.
    active: usize,
    bytes: usize,
    /// How many of the active moves go to each host.
    targets: BTreeMap<HostId, usize>,
    /// When the active ones were frozen that are.
    frozen: BTreeSet<(u64, u64)>,
    /// Moves that were released, also those that are over.
    released: Memory<()>,
}

impl Source {
    /// No moves. The count of moves begins at `count`, which is random.
    pub fn new(incarnation: u64, count: u64) -> Self {
        Self {
            incarnation,
            count,
            moves: HashMap::new(),
            by_tuple: HashMap::new(),
            waiting: VecDeque::new(),
            waits: HashSet::new(),
            timers: BTreeSet::new(),
            settling: VecDeque::new(),
            active: 0,
            bytes: 0,
            targets: BTreeMap::new(),
            frozen: BTreeSet::new(),
            released: Memory::default(),
        }
    }

    /// Takes up what an agent before this one left in the journal.
    pub fn found(&mut self, ctx: &mut Context<'_>, entry: &Entry) {
        let command = Command {
            tuple: entry.tuple,
            target: entry.peer,
            deadline: u64::MAX,
            application: Application {
                name: String::new(),
                version: 0,
            },
            bytes: 0,
        };
        let number = entry.number;
        self.insert(
            number,
            Move {
                frozen_at: Some(entry.since),
                sent: true,
                found: true,
                timed: (Step::Recovering, ctx.now),
                ..Move::new(ctx.now, command, entry.generation)
            },
        );
        if entry.phase == Phase::Released {
            // Whether the socket was destroyed nobody has written down.
            self.released.insert(self.id(ctx, number), ());
            self.destroy(ctx, number);
        } else {
            // Nobody knows what became of the state that was or was not sent.
            self.at(number, |m| m.step = Step::Sending);
            self.withdraw(ctx, number, Reason::Restarted);
        }
    }

    /// A session is to be moved. It is begun at once, waits for its turn, or is refused.
    pub fn command(&mut self, ctx: &mut Context<'_>, command: Command) {
        let tuple = command.tuple;
        let reason = if self.by_tuple.contains_key(&tuple) || self.waits.contains(&tuple) {
            Reason::Moving
        } else if self.waiting.len() >= ctx.limits.waiting {
            Reason::Full
        } else {
            self.waits.insert(tuple);
            self.waiting.push_back(command);
            return self.begin_waiting(ctx);
        };
        refuse(ctx, &command, reason);
    }

    /// Begins what waits, as far as there is room.
    pub fn begin_waiting(&mut self, ctx: &mut Context<'_>) {
        while let Some(next) = self.waiting.front() {
            let bytes = self.bytes + next.bytes as usize;
            let is_alone = self.active == 0;
            if self.active >= ctx.limits.from_here || bytes > ctx.limits.bytes && !is_alone {
                return;
            }
            if let Some(command) = self.waiting.pop_front() {
                self.waits.remove(&command.tuple);
                self.begin(ctx, command);
            }
        }
    }

    fn begin(&mut self, ctx: &mut Context<'_>, command: Command) {
        if command.deadline <= ctx.now {
            return refuse(ctx, &command, Reason::Deadline);
        }
        if !ctx.local.members().contains(&command.target) || command.target == ctx.here {
            return refuse(ctx, &command, Reason::NoMember);
        }
        let Some(generation) = ctx.local.session(&command.tuple) else {
            return refuse(ctx, &command, Reason::Gone);
        };
        ctx.out.counters.begun += 1;
        let number = MoveId::number(self.incarnation, self.count);
        self.count = self.count.wrapping_add(1);
        self.insert(number, Move::new(ctx.now, command, generation));
        self.ask(ctx, number);
    }

    /// A session's move is to be given up, if it is not released. Says whether there
    /// was one that could be.
    pub fn call_off(&mut self, ctx: &mut Context<'_>, tuple: &Tuple) -> bool {
        if self.waits.remove(tuple) {
            let at = self.waiting.iter().position(|w| w.tuple == *tuple);
            if let Some(command) = at.and_then(|at| self.waiting.remove(at)) {
                refuse(ctx, &command, Reason::CalledOff);
            }
            return true;
        }
        let Some(&number) = self.by_tuple.get(tuple) else {
            return false;
        };
        let can = self.moves[&number].step < Step::Releasing;
        if can {
            self.withdraw(ctx, number, Reason::CalledOff);
        }
        can
    }

    /// Makes room for the session's return, if there is nothing here but what is left
    /// of a move that a later generation shows to be over. Says whether there is room.
    pub fn give_way(&mut self, ctx: &mut Context<'_>, life: &Life) -> bool {
        let Some(&number) = self.by_tuple.get(&life.tuple) else {
            return true;
        };
        let m = &self.moves[&number];
        if m.generation >= life.generation {
            return false;
        }
        match m.step {
            // Only who serves a session can offer it.
            Step::Released => self.confirm(ctx, number),
            Step::Settling => {}
            _ => return false,
        }
        self.settle(ctx, number);
        true
    }

    /// What has become of a move that there is no record of any more.
    fn fate_of_unknown(&self, id: MoveId) -> Fate {
        if self.released.get(id).is_some() {
            Fate::Released
        } else if id.is_of(self.incarnation) {
            // Released moves stand in the journal until no target can be in doubt any
            // more.
            Fate::NotReleased
        } else {
            Fate::Unknown
        }
    }

    /// When [`Source::on_time`] has something to do.
    pub fn next_time(&self) -> u64 {
        self.timers.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// Does what is due.
    pub fn on_time(&mut self, ctx: &mut Context<'_>) {
        while let Some(&(at, number)) = self.timers.first()
            && at <= ctx.now
        {
            self.due(ctx, number);
            self.schedule(ctx, number);
        }
        self.begin_waiting(ctx);
    }

    fn due(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        let Some(m) = self.moves.get_mut(&number) else {
            return;
        };
        if let Some(repeat) = m.repeat.as_mut().filter(|repeat| repeat.at <= ctx.now) {
            let turn = repeat.again(ctx.now);
            let (to, life) = (m.target, m.life());
            match m.step {
                // The state goes straight to the target, or not at all.
                Step::Asking => ctx.say_again(to, None, id, Body::Prepare(m.offer(ctx.limits))),
                Step::Sending => ctx.say_again(to, None, id, m.state()),
                Step::Withdrawing => ctx.say_again(to, turn, id, Body::Abort(life)),
                Step::Released => ctx.say_again(to, turn, id, Body::Release(life)),
                Step::Destroying | Step::Discarding => {
                    ctx.out.counters.orders_repeated += 1;
                    m.repeat = None;
                    m.ticket = ctx.order(id, m.tuple, Order::Destroy);
                }
                Step::Releasing => {
                    ctx.out.counters.orders_repeated += 1;
                    self.release(ctx, number);
                    return;
                }
                _ => m.repeat = None,
            }
        }
        let is_late = m.step < Step::Releasing && m.deadline <= ctx.now;
        if m.step == Step::Withdrawing {
            self.withdrawn_for_long(ctx, number);
        } else if is_late || m.until <= ctx.now {
            self.over(ctx, number);
        }
    }

    /// A step's bound has passed.
    fn over(&mut self, ctx: &mut Context<'_>, number: u64) {
        let m = &self.moves[&number];
        let reason = if m.deadline <= ctx.now {
            Reason::Deadline
        } else {
            Reason::Timeout
        };
        match m.step {
            Step::Released => self.lost(ctx, number, reason),
            Step::Settling => self.settle(ctx, number),
            Step::Recovering => self.discard(ctx, number),
            Step::GivingBack => self.end_back(ctx, number, Some(Reason::ApplicationGone)),
            step if step < Step::Releasing => self.withdraw(ctx, number, reason),
            _ => self.at(number, |m| m.until = u64::MAX),
        }
    }

    fn id(&self, ctx: &Context<'_>, number: u64) -> MoveId {
        MoveId {
            source: ctx.here,
            number,
        }
    }

    fn insert(&mut self, number: u64, m: Move) {
        self.active += 1;
        *self.targets.entry(m.target).or_default() += 1;
        self.frozen.extend(m.frozen_at.map(|at| (at, number)));
        self.bytes += m.bytes;
        self.by_tuple.insert(m.tuple, number);
        self.moves.insert(number, m);
    }

    /// Changes a move, if there is one.
    fn at(&mut self, number: u64, change: impl FnOnce(&mut Move)) {
        if let Some(m) = self.moves.get_mut(&number) {
            change(m);
        }
    }

    /// A move's states hold another number of bytes now. Says whether there is room.
    fn hold(&mut self, ctx: &Context<'_>, number: u64) -> bool {
        let Some(m) = self.moves.get_mut(&number) else {
            return false;
        };
        let held = m.tcp.len() + m.blob.len();
        if held > m.bytes {
            self.bytes += held - m.bytes;
            m.bytes = held;
        }
        held <= super::wire::STATE_LEN_MAX && (self.bytes <= ctx.limits.bytes || self.active == 1)
    }

    /// A move holds no place and no bytes any more.
    fn leave(&mut self, number: u64) {
        if let Some(m) = self.moves.get_mut(&number) {
            self.active -= 1;
            if let Some(at) = m.frozen_at {
                self.frozen.remove(&(at, number));
            }
            if let btree_map::Entry::Occupied(mut entry) = self.targets.entry(m.target) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
            self.bytes -= m.bytes;
            m.bytes = 0;
            m.tcp = Vec::new();
            m.blob = Blob::default();
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(m) = self.moves.remove(&number) {
            self.timers.remove(&(m.timer, number));
            self.by_tuple.remove(&m.tuple);
        }
    }

    /// Sets the timer of a move, and counts how long it was at a step that it has left. To
    /// be called whenever one was touched.
    pub fn schedule(&mut self, ctx: &mut Context<'_>, number: u64) {
        let Some(m) = self.moves.get_mut(&number) else {
            return;
        };
        let (step, since) = m.timed;
        if step != m.step {
            ctx.out.times.at_source(step, ctx.now.saturating_sub(since));
            m.timed = (m.step, ctx.now);
        }
        let mut at = m.until.min(m.repeat.map_or(u64::MAX, |repeat| repeat.at));
        if m.step < Step::Releasing {
            at = at.min(m.deadline);
        }
        let at = at.max(ctx.now + 1);
        if at != m.timer {
            self.timers.remove(&(m.timer, number));
            m.timer = at;
            if at != u64::MAX {
                self.timers.insert((at, number));
            }
        }
    }

    /// Moves from this host that are not over.
    pub fn len(&self) -> usize {
        self.moves.len() + self.waiting.len()
    }

    /// Moves before their confirmation, those that wait, and bytes of state.
    pub fn load(&self) -> (usize, usize, usize) {
        (self.active, self.waiting.len(), self.bytes)
    }

    /// Whether a move is not over.
    pub fn has(&self, number: u64) -> bool {
        self.moves.contains_key(&number)
    }

    /// Those that have begun and are not over.
    pub fn under_way(&self, here: HostId) -> impl Iterator<Item = UnderWay> {
        self.moves.iter().map(move |(&number, m)| UnderWay {
            id: MoveId {
                source: here,
                number,
            },
            tuple: m.tuple,
            peer: m.target,
            step: At::Source(m.step),
        })
    }

    /// The targets of moves that are not confirmed.
    pub fn others(&self) -> impl Iterator<Item = HostId> {
        self.targets.keys().copied()
    }

    /// When the first session was frozen whose move is not confirmed, nor over.
    pub fn frozen_at(&self) -> Option<u64> {
        self.frozen.first().map(|(at, _)| *at)
    }

    /// How far a session's move is.
    pub fn step(&self, tuple: &Tuple) -> Option<Step> {
        Some(self.moves[self.by_tuple.get(tuple)?].step)
    }
}

/// Says that a move was not begun.
pub(super) fn refuse(ctx: &mut Context<'_>, command: &Command, reason: Reason) {
    ctx.out.counters.refused += 1;
    ctx.out.queue.push_back(Output::Ended(Ended {
        tuple: command.tuple,
        target: command.target,
        number: None,
        outcome: Outcome::Refused(reason),
        frozen_us: 0,
    }));
}
