//! All moves of one host, from it and to it.

use std::collections::BTreeSet;

use homing_common::{host::HostId, session::Tuple};

use super::{
    Entry, MoveId, Phase,
    context::{Context, Out, Way},
    limits::{Counters, Limits},
    local::{Application, Local},
    order::{Answer, Output, Step},
    passing::Passing,
    source::Source,
    target::{self, Target},
    times::StepTime,
    wire::{self, Body, Message, Parcel},
};

/// A session is to be moved from this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// The session.
    pub tuple: Tuple,
    /// Where to.
    pub target: HostId,
    /// A move that is not released by then is given up.
    pub deadline: u64,
    /// The application's protocol.
    pub application: Application,
    /// About how many bytes of state there will be: what the socket's queues hold, and
    /// what the application's states have come to so far.
    pub bytes: u32,
}

/// How many moves there are, and what they hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Moves from this host before their confirmation.
    pub from_here: usize,
    /// Commands that wait for their turn.
    pub waiting: usize,
    /// Bytes of state of moves from this host.
    pub bytes_from_here: usize,
    /// Moves to this host.
    pub to_here: usize,
    /// Bytes of state of moves to this host.
    pub bytes_to_here: usize,
}

/// A move that is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnderWay {
    /// What names it.
    pub id: MoveId,
    /// The session.
    pub tuple: Tuple,
    /// The other host.
    pub peer: HostId,
    /// How far it is on this side.
    pub step: At,
}

/// How far a move is, on the side of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// It leaves this host.
    Source(Step),
    /// It comes here.
    Target(target::Step),
}

/// The moves of one host.
///
/// Inputs and the time go in by methods; then [`Moves::poll`] is to be called until it
/// gives nothing more, and [`Moves::on_time`] at [`Moves::next_time`].
pub struct Moves {
    here: HostId,
    limits: Limits,
    source: Source,
    target: Target,
    passing: Passing,
    out: Out,
}

/// Makes the context of one input. A macro, because it borrows fields apart.
macro_rules! context {
    ($moves:ident, $now:expr, $local:expr) => {
        &mut Context {
            now: $now,
            here: $moves.here,
            limits: &$moves.limits,
            local: $local,
            out: &mut $moves.out,
        }
    };
}

impl Moves {
    /// Goes by other limits from now on. Where more moves are under way than they allow, no
    /// more begin until enough are over; what its state finds no room for goes on where it is.
    /// Where there is more room, those that waited for it begin.
    pub fn set_limits(&mut self, now: u64, limits: Limits, local: &dyn Local) {
        self.limits = limits;
        self.source.begin_waiting(context!(self, now, local));
    }

    /// The moves of this host, whose kernel has this incarnation. `journal` is what the
    /// agent finds in `MOVING` at its start: no message may be answered before it is
    /// known. `random` differs from start to start.
    pub fn new(
        now: u64,
        here: HostId,
        incarnation: u64,
        random: u64,
        limits: Limits,
        journal: &[Entry],
        local: &dyn Local,
    ) -> Self {
        let mut moves = Self {
            here,
            limits,
            source: Source::new(incarnation, random),
            target: Target::new(random),
            passing: Passing::default(),
            out: Out::new(),
        };
        for entry in journal {
            moves.out.counters.found += 1;
            let ctx = context!(moves, now, local);
            match entry.phase {
                Phase::Awaiting | Phase::Prepared => moves.target.found(ctx, entry),
                Phase::Frozen | Phase::Released => moves.source.found(ctx, entry),
            }
        }
        moves
    }

    /// A session is to be moved. How it ends comes out as [`Output::Ended`].
    pub fn command(&mut self, now: u64, local: &dyn Local, command: Command) {
        let ctx = context!(self, now, local);
        if self.target.has(&command.tuple) {
            // It is on its way here, and not yet here.
            return super::source::refuse(ctx, &command, super::Reason::Moving);
        }
        self.source.command(ctx, command);
    }

    /// A session's move is to be given up, if it is not released. Says whether there was
    /// one that could be.
    pub fn call_off(&mut self, now: u64, local: &dyn Local, tuple: &Tuple) -> bool {
        let ctx = context!(self, now, local);
        self.source.call_off(ctx, tuple)
    }

    /// Bytes of another agent came. Whoever carried them vouches for `from`.
    pub fn message(&mut self, now: u64, local: &dyn Local, from: HostId, bytes: &[u8]) {
        let ctx = context!(self, now, local);
        match wire::decode(bytes) {
            None => ctx.out.counters.malformed += 1,
            Some(Parcel::Direct(message)) => self.hear(now, local, Way::direct(from), message),
            Some(Parcel::By(passed)) if passed.destination != self.here => {
                self.passing.pass(ctx, from, passed);
            }
            Some(Parcel::By(passed)) => {
                let way = Way {
                    to: passed.origin,
                    by: Some(from),
                };
                if let Some(Parcel::Direct(message)) = wire::decode(passed.message) {
                    self.hear(now, local, way, message);
                }
            }
        }
    }

    fn hear(&mut self, now: u64, local: &dyn Local, way: Way, message: Message<'_>) {
        let ctx = context!(self, now, local);
        let Message { id, body } = message;
        let is_targets = matches!(
            body,
            Body::Ready { .. }
                | Body::Refused(_)
                | Body::Prepared
                | Body::Failed(_)
                | Body::Committed
                | Body::Aborted { .. }
                | Body::Query
        );
        if is_targets && id.source == self.here {
            self.source.hear(ctx, way, id, &body);
        } else if !is_targets && id.source == way.to && way.to != self.here {
            let source = &mut self.source;
            self.target
                .hear(ctx, way, id, &body, |ctx, life| source.give_way(ctx, life));
        } else {
            // A move is its source's and its target's business.
            ctx.out.counters.malformed += 1;
        }
    }

    /// An order was carried out, or not.
    pub fn answer(&mut self, now: u64, local: &dyn Local, id: MoveId, ticket: u64, answer: Answer) {
        let ctx = context!(self, now, local);
        if id.source == self.here {
            self.source.answered(ctx, id.number, ticket, answer);
        } else {
            self.target.answered(ctx, id, ticket, answer);
        }
    }

    /// A host's kernel is dead: the POP says so, and this host reaches *more* than half
    /// of it; or the host has begun a new life. If the POP has held this host's own kernel
    /// for dead in its present life, that must be said as well, also to an agent that has
    /// started since: as soon as a member says so, of whom [`Local::reached_since`] counts.
    pub fn voided(&mut self, now: u64, local: &dyn Local, host: HostId) {
        let ctx = context!(self, now, local);
        self.source.voided(ctx, host);
        if host != self.here {
            self.target.voided(ctx, host);
        }
    }

    /// A host leaves, or this one does. What was neither frozen nor promised is given
    /// up; the rest goes on.
    pub fn left(&mut self, now: u64, local: &dyn Local, host: HostId) {
        let ctx = context!(self, now, local);
        self.source.left(ctx, host);
        if host == self.here {
            self.target.leave(ctx);
        }
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: u64, local: &dyn Local) {
        let ctx = context!(self, now, local);
        self.source.on_time(ctx);
        self.target.on_time(ctx);
    }

    /// When [`Moves::on_time`] has something to do; the end of time if nothing waits.
    pub fn next_time(&self) -> u64 {
        self.source.next_time().min(self.target.next_time())
    }

    /// The next thing that came out.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.queue.pop_front()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.out.counters
    }

    /// How long moves stood at each step, in order.
    pub fn times(&self) -> Vec<StepTime> {
        self.out.times.list()
    }

    /// How many moves there are, and what they hold.
    pub fn load(&self) -> Load {
        let (from_here, waiting, bytes_from_here) = self.source.load();
        Load {
            from_here,
            waiting,
            bytes_from_here,
            to_here: self.target.len(),
            bytes_to_here: self.target.bytes(),
        }
    }

    /// How far the move of a session from this host is.
    pub fn step(&self, tuple: &Tuple) -> Option<Step> {
        self.source.step(tuple)
    }

    /// Whether a move is not over.
    pub fn has(&self, id: MoveId) -> bool {
        match id.source == self.here {
            true => self.source.has(id.number),
            false => self.target.knows(id),
        }
    }

    /// All moves that are not over, by session.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let mut all: Vec<_> = self.source.under_way(self.here).collect();
        all.extend(self.target.under_way());
        all.sort_unstable_by_key(|one| (one.tuple, one.id));
        all
    }

    /// The hosts that moves are with whose end is open: what becomes of their kernels
    /// matters.
    pub fn others(&self) -> BTreeSet<HostId> {
        self.source.others().chain(self.target.others()).collect()
    }

    /// When the first session was frozen here whose move is open: what the POP has held
    /// of this host's kernel since then matters.
    pub fn frozen_at(&self) -> Option<u64> {
        self.source.frozen_at()
    }

    /// Whether nothing moves, waits or diverts.
    pub fn is_idle(&self) -> bool {
        self.source.len() == 0 && self.target.len() == 0
    }
}
