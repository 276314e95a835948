//! The target's side: it parks, restores in silence, and serves only once the session
//! is its own.
//!
//! This file holds the moves to this host and their timers; `hears` takes what the
//! source says, `steps` goes from step to step.

mod hears;
mod steps;

use std::collections::{BTreeSet, HashMap};

use homing_client::Blob;
use homing_common::{host::HostId, session::Tuple};

use super::{
    Entry, MoveId, Phase,
    context::{Context, Way},
    ended::Memory,
    limits::REPEAT_MIN,
    moves::{At, UnderWay},
    order::{Answer, Order, Reason},
    repeat::Repeat,
    wire::{Body, Fate, Life, Offer},
};

/// How far a move to this host is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Step {
    /// *Awaiting* is written into the journal.
    Marking,
    /// The application makes a socket.
    Opening,
    /// The source was told that this host is ready.
    Awaiting,
    /// The connection is restored.
    Restoring,
    /// The application takes its state in.
    Importing,
    /// *Prepared* is written into the journal.
    Preparing,
    /// The application that outlived its agent gives socket and state again.
    Recovering,
    /// The source was told that this host is prepared. What it decides is not known.
    Prepared,
    /// The session is this host's: the connection leaves repair mode.
    Activating,
    /// The application takes it.
    HandingOver,
    /// It is announced, and its packets come.
    Adopting,
    /// The copy is dropped.
    Dropping,
}

/// One move to this host.
struct Incoming {
    life: Life,
    /// Bytes of state, as reserved or as held.
    bytes: usize,
    step: Step,
    /// The step that was counted last as the present one, and since when.
    timed: (Step, u64),
    /// The order whose answer is awaited; zero is none.
    ticket: u64,
    until: u64,
    repeat: Option<Repeat>,
    timer: u64,
    /// What *ready* was said with.
    ready: u64,
    blob: Blob,
    /// When the first entry for it was written into the journal: the source froze the
    /// session later, because *ready* was said later.
    since: u64,
    /// How long the source keeps the session frozen at least; this host's own bound where
    /// that is shorter.
    hold: u64,
    /// An agent before this one began it, and `since` is when the last entry was written.
    found: bool,
    /// The session is this host's.
    released: bool,
    /// What the source is told once the copy is dropped, and by which way.
    farewell: Option<(Way, Farewell)>,
}

/// What the source is told of a copy that is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Farewell {
    /// It said so.
    Aborted,
    /// It could not be prepared, or is gone.
    Failed(Reason),
}

/// What became of a move to this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The session was taken over.
    Committed,
    /// The copy, or what there was for one, was dropped.
    Dropped,
    /// This agent knows nothing of it, but that it is over.
    Unknown,
}

/// All moves to this host.
pub(super) struct Target {
    moves: HashMap<MoveId, Incoming>,
    by_tuple: HashMap<Tuple, MoveId>,
    timers: BTreeSet<(u64, MoveId)>,
    bytes: usize,
    /// Counts what *ready* is said with, from a random start.
    readies: u64,
    ended: Memory<End>,
}

impl Target {
    /// No moves. `random` tells this life of the agent from others.
    pub fn new(random: u64) -> Self {
        Self {
            moves: HashMap::new(),
            by_tuple: HashMap::new(),
            timers: BTreeSet::new(),
            bytes: 0,
            readies: random,
            ended: Memory::default(),
        }
    }

    /// Takes up what an agent before this one left in the journal.
    pub fn found(&mut self, ctx: &mut Context<'_>, entry: &Entry) {
        let id = MoveId {
            source: entry.peer,
            number: entry.number,
        };
        let life = Life {
            tuple: entry.tuple,
            generation: entry.generation,
        };
        self.insert(
            id,
            Incoming {
                found: true,
                timed: (Step::Recovering, ctx.now),
                ..Incoming::new(life, 0, 0, entry.since)
            },
        );
        if entry.phase == Phase::Prepared {
            self.order(ctx, id, Step::Recovering, Order::Recover);
        } else {
            // Nothing was promised.
            self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Restarted)));
        }
    }

    /// When [`Target::on_time`] has something to do.
    pub fn next_time(&self) -> u64 {
        self.timers.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// Does what is due.
    pub fn on_time(&mut self, ctx: &mut Context<'_>) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= ctx.now
        {
            self.due(ctx, id);
            self.schedule(ctx, id);
        }
    }

    fn due(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        let Some(m) = self.moves.get_mut(&id) else {
            return;
        };
        if let Some(repeat) = m.repeat.as_mut().filter(|repeat| repeat.at <= ctx.now) {
            let turn = repeat.again(ctx.now);
            match m.step {
                Step::Prepared => {
                    ctx.say_again(id.source, turn, id, Body::Query);
                }
                step if step > Step::Prepared => self.order_again(ctx, id),
                _ => m.repeat = None,
            }
        }
        if let Some(m) = self.moves.get(&id)
            && m.until <= ctx.now
        {
            self.over(ctx, id, m.step);
        }
    }

    /// A step's bound has passed.
    fn over(&mut self, ctx: &mut Context<'_>, id: MoveId, step: Step) {
        match step {
            Step::Prepared => {
                ctx.out.counters.copies_given_up += 1;
                self.drop_copy(ctx, id, None);
            }
            Step::Recovering => {
                self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::ApplicationGone)))
            }
            Step::Activating | Step::HandingOver | Step::Adopting => self.lose(ctx, id),
            step if step < Step::Prepared => {
                self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Timeout)));
            }
            _ => self.at(id, |m| m.until = u64::MAX),
        }
    }

    fn insert(&mut self, id: MoveId, m: Incoming) {
        self.bytes += m.bytes;
        self.by_tuple.insert(m.life.tuple, id);
        self.moves.insert(id, m);
    }

    fn at(&mut self, id: MoveId, change: impl FnOnce(&mut Incoming)) {
        if let Some(m) = self.moves.get_mut(&id) {
            change(m);
        }
    }

    fn remove(&mut self, id: MoveId, end: End) -> Option<Incoming> {
        let m = self.moves.remove(&id)?;
        self.bytes -= m.bytes;
        self.timers.remove(&(m.timer, id));
        self.by_tuple.remove(&m.life.tuple);
        self.ended.insert(id, end);
        Some(m)
    }

    /// Sets the timer of a move, and counts how long it was at a step that it has left. To
    /// be called whenever one was touched.
    pub fn schedule(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        let Some(m) = self.moves.get_mut(&id) else {
            return;
        };
        let (step, since) = m.timed;
        if step != m.step {
            ctx.out.times.at_target(step, ctx.now.saturating_sub(since));
            m.timed = (m.step, ctx.now);
        }
        let at = m.until.min(m.repeat.map_or(u64::MAX, |repeat| repeat.at));
        let at = at.max(ctx.now + 1);
        if at != m.timer {
            self.timers.remove(&(m.timer, id));
            m.timer = at;
            if at != u64::MAX {
                self.timers.insert((at, id));
            }
        }
    }

    /// Whether a session is on its way here.
    pub fn has(&self, tuple: &Tuple) -> bool {
        self.by_tuple.contains_key(tuple)
    }

    /// Whether a move is not over.
    pub fn knows(&self, id: MoveId) -> bool {
        self.moves.contains_key(&id)
    }

    /// Those that are not over.
    pub fn under_way(&self) -> impl Iterator<Item = UnderWay> {
        self.moves.iter().map(|(&id, m)| UnderWay {
            id,
            tuple: m.life.tuple,
            peer: id.source,
            step: At::Target(m.step),
        })
    }

    /// The sources of moves that are not over.
    pub fn others(&self) -> impl Iterator<Item = HostId> {
        self.moves.keys().map(|id| id.source)
    }

    /// Moves to this host that are not over.
    pub fn len(&self) -> usize {
        self.moves.len()
    }

    /// Bytes of states reserved or held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Incoming {
    fn new(life: Life, bytes: usize, ready: u64, since: u64) -> Self {
        Self {
            life,
            bytes,
            step: Step::Marking,
            timed: (Step::Marking, since),
            ticket: 0,
            until: u64::MAX,
            repeat: None,
            timer: u64::MAX,
            ready,
            blob: Blob::default(),
            since,
            hold: 0,
            found: false,
            released: false,
            farewell: None,
        }
    }
}
