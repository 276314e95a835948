//! A move is given up: before the release, so that the session goes on here; or after
//! it, because nobody confirms.

use super::{
    Answer, Blob, Body, Context, Ended, Move, Order, Outcome, Output, REPEAT_MIN, Reason, Repeat,
    Source, Step, Way,
};

impl Move {
    /// Whether the POP cannot have taken this host's kernel for dead since the freeze:
    /// then the target has never served, whatever became of it meanwhile.
    pub(super) fn is_undisputed(&self, ctx: &Context<'_>) -> bool {
        let reached = ctx.local.reached_since().filter(|_| !self.outvoted);
        let frozen_at = self.frozen_at.unwrap_or(ctx.now);
        !self.sent || reached.is_some_and(|reached| reached <= frozen_at)
    }
}

impl Source {
    /// Gives a move up that is not released. The target may have a copy if it was sent
    /// the state: then it is told until it has said that it has none.
    pub(super) fn withdraw(&mut self, ctx: &mut Context<'_>, number: u64, reason: Reason) {
        let id = self.id(ctx, number);
        let Some(m) = self.moves.get_mut(&number) else {
            return;
        };
        m.why.get_or_insert((m.step, reason));
        m.ticket = 0;
        ctx.say(Way::direct(m.target), id, Body::Abort(m.life()));
        if !m.sent {
            return self.go_back(ctx, number);
        }
        m.step = Step::Withdrawing;
        m.until = m.frozen_at.unwrap_or(ctx.now) + ctx.limits.hold;
        m.repeat = Some(Repeat::new(ctx.now, REPEAT_MIN));
        self.schedule(ctx, number);
    }

    /// The target has no copy and will have none: the session goes on here at once.
    pub(super) fn withdraw_alone(&mut self, ctx: &mut Context<'_>, number: u64, reason: Reason) {
        self.at(number, |m| {
            m.why.get_or_insert((m.step, reason));
            m.ticket = 0;
        });
        self.go_back(ctx, number);
    }

    /// The target has not said that it has no copy. Could it serve, the POP would have
    /// had to find this host's kernel dead, within the time that the session has been
    /// frozen: who has reached half of the POP for so long knows that it did not.
    pub(super) fn withdrawn_for_long(&mut self, ctx: &mut Context<'_>, number: u64) {
        let Some(m) = self.moves.get_mut(&number) else {
            return;
        };
        let frozen_at = m.frozen_at.unwrap_or(ctx.now);
        let reached = ctx.local.reached_since().filter(|_| !m.outvoted);
        if let Some(reached) = reached {
            m.until = frozen_at.max(reached) + ctx.limits.hold;
            if m.until <= ctx.now {
                return self.go_back(ctx, number);
            }
        } else {
            m.until = frozen_at + ctx.limits.kept();
        }
        if frozen_at + ctx.limits.kept() <= ctx.now {
            self.discard(ctx, number);
        }
    }

    /// The session goes on here.
    pub(super) fn go_back(&mut self, ctx: &mut Context<'_>, number: u64) {
        let m = &self.moves[&number];
        let (step, reason) = m.why.unwrap_or((m.step, Reason::CalledOff));
        if m.frozen_at.is_some() {
            let (step, order) = if m.found {
                (Step::Recovering, Order::Recover)
            } else {
                (Step::Resuming, Order::Resume)
            };
            self.order(ctx, number, step, order);
        } else if step == Step::Asking {
            self.end(ctx, number, Outcome::Refused(reason));
        } else {
            self.give_back(ctx, number);
        }
    }

    fn give_back(&mut self, ctx: &mut Context<'_>, number: u64) {
        let mut blob = Blob::default();
        self.at(number, |m| blob = std::mem::take(&mut m.blob));
        self.order(ctx, number, Step::GivingBack, Order::GiveBack { blob });
    }

    /// Answers on the way back, and refusals.
    pub(super) fn answered_back(&mut self, ctx: &mut Context<'_>, number: u64, answer: Answer) {
        let step = self.moves[&number].step;
        match (step, answer) {
            (Step::Recovering, Answer::Done) => {
                self.order(ctx, number, Step::Resuming, Order::Resume);
            }
            (Step::Resuming, Answer::Done) => self.give_back(ctx, number),
            // Nobody holds the connection any more.
            (Step::Recovering | Step::Resuming, _) => self.discard(ctx, number),
            (Step::GivingBack, Answer::Cannot(reason)) => {
                self.end_back(ctx, number, Some(reason));
            }
            (Step::GivingBack, _) => self.end_back(ctx, number, None),
            (Step::Discarding, _) => self.discarded(ctx, number),
            // The application has not begun: there is nothing to give back.
            (Step::Exporting, Answer::Cannot(reason)) => {
                let id = self.id(ctx, number);
                self.at(number, |m| {
                    m.why = Some((Step::Exporting, reason));
                    ctx.say(Way::direct(m.target), id, Body::Abort(m.life()));
                });
                let gone = matches!(reason, Reason::ApplicationGone | Reason::Gone);
                self.end_back(ctx, number, gone.then_some(reason));
            }
            (step, Answer::Cannot(reason)) if step < Step::Withdrawing => {
                self.withdraw(ctx, number, reason);
            }
            // An answer that does not belong to the order: as good as none.
            (step, _) if step < Step::Releasing => self.withdraw(ctx, number, Reason::Kernel),
            _ => {}
        }
    }

    /// The session is here again; with a reason, nobody serves it.
    pub(super) fn end_back(&mut self, ctx: &mut Context<'_>, number: u64, gone: Option<Reason>) {
        let m = &self.moves[&number];
        let (step, reason) = m.why.unwrap_or((m.step, Reason::CalledOff));
        let outcome = match gone {
            Some(reason) => Outcome::Gone(step, reason),
            None => Outcome::Aborted(step, reason),
        };
        self.end(ctx, number, outcome);
    }

    /// The connection is to be destroyed without a packet: nobody holds it any more, or
    /// nobody can say that the target does not serve it.
    pub(super) fn discard(&mut self, ctx: &mut Context<'_>, number: u64) {
        self.order(ctx, number, Step::Discarding, Order::Destroy);
    }

    fn discarded(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        let m = &self.moves[&number];
        ctx.order(id, m.tuple, Order::Settle);
        let (step, reason) = m.why.unwrap_or((m.step, Reason::Gone));
        let outcome = if m
            .frozen_at
            .is_some_and(|at| at + ctx.limits.kept() <= ctx.now)
        {
            Outcome::Lost(reason)
        } else {
            Outcome::Gone(step, Reason::ApplicationGone)
        };
        self.end(ctx, number, outcome);
    }

    /// Released, and the target will not serve it, or does not say so.
    pub(super) fn lost(&mut self, ctx: &mut Context<'_>, number: u64, reason: Reason) {
        let id = self.id(ctx, number);
        // That tells the application, too.
        self.at(number, |m| {
            ctx.order(id, m.tuple, Order::Settle);
        });
        self.end(ctx, number, Outcome::Lost(reason));
    }

    /// A move is over and forgotten.
    fn end(&mut self, ctx: &mut Context<'_>, number: u64, outcome: Outcome) {
        let counters = &mut ctx.out.counters;
        *match outcome {
            Outcome::Moved => &mut counters.moved,
            Outcome::Refused(_) => &mut counters.refused,
            Outcome::Aborted(..) => &mut counters.aborted,
            Outcome::Gone(..) => &mut counters.gone,
            Outcome::Lost(_) => &mut counters.lost,
        } += 1;
        self.say_ended(ctx, number, outcome);
        self.leave(number);
        self.remove(number);
    }

    pub(super) fn say_ended(&self, ctx: &mut Context<'_>, number: u64, outcome: Outcome) {
        let Some(m) = self.moves.get(&number) else {
            return;
        };
        let frozen_us = m.frozen_at.map_or(0, |at| ctx.now.saturating_sub(at));
        ctx.out.queue.push_back(Output::Ended(Ended {
            tuple: m.tuple,
            target: m.target,
            number: Some(number),
            outcome,
            frozen_us,
        }));
    }
}
