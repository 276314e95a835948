//! From step to step, as long as all goes well.

use super::{
    Answer, Body, Context, Limits, Move, Offer, Order, Outcome, Phase, REPEAT_MIN, REPEAT_STATE,
    Reason, Repeat, Source, Step, Way,
};
use crate::pop::MS;

impl Move {
    pub(super) fn offer(&self, limits: &Limits) -> Offer {
        Offer {
            life: self.life(),
            application: self.application.clone(),
            bytes: self.bytes as u32,
            hold_ms: u32::try_from(limits.hold / MS).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn state(&self) -> Body<'_> {
        Body::State {
            ticket: self.ready,
            tcp: &self.tcp,
            blob: &self.blob,
        }
    }
}

impl Source {
    /// Asks the target.
    pub(super) fn ask(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        let (now, bound) = (ctx.now, ctx.limits.step);
        self.at(number, |m| {
            m.until = now + bound;
            m.repeat = Some(Repeat::new(now, REPEAT_MIN));
            ctx.say(
                Way::direct(m.target),
                id,
                Body::Prepare(m.offer(ctx.limits)),
            );
        });
        self.schedule(ctx, number);
    }

    /// Gives the order of the next step.
    pub(super) fn order(&mut self, ctx: &mut Context<'_>, number: u64, step: Step, order: Order) {
        let id = self.id(ctx, number);
        let until = match step {
            // What the datapath does once it is begun has no bound: it is the kernel.
            Step::Releasing | Step::Destroying | Step::Resuming | Step::Discarding => u64::MAX,
            Step::Recovering => ctx.now + ctx.limits.recover,
            _ => ctx.now + ctx.limits.step,
        };
        self.at(number, |m| {
            m.step = step;
            m.until = until;
            m.repeat = None;
            m.ticket = ctx.order(id, m.tuple, order);
        });
        self.schedule(ctx, number);
    }

    /// The target is ready.
    pub(super) fn export(&mut self, ctx: &mut Context<'_>, number: u64, ready: u64) {
        self.at(number, |m| m.ready = ready);
        self.order(ctx, number, Step::Exporting, Order::Export);
    }

    /// An order was carried out, or not.
    pub fn answered(&mut self, ctx: &mut Context<'_>, number: u64, ticket: u64, answer: Answer) {
        let Some(m) = self.moves.get_mut(&number) else {
            return;
        };
        if m.ticket != ticket {
            return;
        }
        m.ticket = 0;
        match (m.step, answer) {
            (Step::Exporting, Answer::Exported { blob }) => {
                m.blob = blob;
                if self.hold(ctx, number) {
                    self.order(ctx, number, Step::Checking, Order::Check);
                } else {
                    self.withdraw(ctx, number, Reason::TooLarge);
                }
            }
            (Step::Checking, Answer::Done) => {
                m.frozen_at = Some(ctx.now);
                self.frozen.insert((ctx.now, number));
                let order = self.journal(number, Phase::Frozen);
                self.order(ctx, number, Step::Freezing, order);
            }
            (Step::Freezing, Answer::Done) => {
                self.order(ctx, number, Step::Reading, Order::Read);
            }
            (Step::Freezing, Answer::Cannot(reason)) => {
                if let Some(at) = m.frozen_at.take() {
                    self.frozen.remove(&(at, number));
                }
                self.withdraw(ctx, number, reason);
            }
            (Step::Reading, Answer::Read { tcp }) => {
                m.tcp = tcp;
                if self.hold(ctx, number) {
                    self.send(ctx, number);
                } else {
                    self.withdraw(ctx, number, Reason::TooLarge);
                }
            }
            (Step::Rechecking, Answer::Done) => self.release(ctx, number),
            (Step::Rechecking, Answer::Changed) => self.withdraw(ctx, number, Reason::Changed),
            (Step::Releasing, Answer::Done) => {
                self.released.insert(self.id(ctx, number), ());
                self.destroy(ctx, number);
            }
            (Step::Destroying, Answer::Done) => self.destroyed(ctx, number),
            // The target serves already: there is no way back.
            (Step::Releasing, _) if m.confirmed => {
                m.repeat = Some(Repeat::new(ctx.now, REPEAT_MIN));
            }
            (Step::Destroying | Step::Discarding, answer) if answer != Answer::Done => {
                m.repeat = Some(Repeat::new(ctx.now, REPEAT_MIN));
            }
            (_, answer) => self.answered_back(ctx, number, answer),
        }
        self.schedule(ctx, number);
        self.begin_waiting(ctx);
    }

    /// The order that writes into the journal.
    fn journal(&self, number: u64, phase: Phase) -> Order {
        let m = &self.moves[&number];
        Order::Journal {
            phase,
            generation: m.generation,
            peer: m.target,
        }
    }

    fn send(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        let now = ctx.now;
        let bound = ctx.limits.step;
        self.at(number, |m| {
            m.step = Step::Sending;
            m.sent = true;
            m.until = now + bound;
            m.repeat = Some(Repeat::new(now, REPEAT_STATE));
            ctx.say(Way::direct(m.target), id, m.state());
        });
    }

    /// Writes *released*: from here on there is no way back.
    pub(super) fn release(&mut self, ctx: &mut Context<'_>, number: u64) {
        let order = self.journal(number, Phase::Released);
        self.order(ctx, number, Step::Releasing, order);
    }

    /// Destroys the socket: the journal says *released*.
    pub(super) fn destroy(&mut self, ctx: &mut Context<'_>, number: u64) {
        self.order(ctx, number, Step::Destroying, Order::Destroy);
    }

    fn destroyed(&mut self, ctx: &mut Context<'_>, number: u64) {
        if self.moves[&number].confirmed {
            return self.confirm(ctx, number);
        }
        let id = self.id(ctx, number);
        let (now, kept) = (ctx.now, ctx.limits.kept());
        self.at(number, |m| {
            m.step = Step::Released;
            m.until = m.frozen_at.unwrap_or(now) + kept;
            m.repeat = Some(Repeat::new(now, REPEAT_MIN));
            ctx.say(Way::direct(m.target), id, Body::Release(m.life()));
        });
    }

    /// The target serves it, and here it is destroyed.
    pub(super) fn confirm(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        self.leave(number);
        let until = ctx.now + ctx.limits.settle;
        self.at(number, |m| {
            m.step = Step::Settling;
            m.confirmed = true;
            m.until = until;
            m.repeat = None;
            ctx.order(id, m.tuple, Order::Committed);
        });
        ctx.out.counters.moved += 1;
        self.say_ended(ctx, number, Outcome::Moved);
        self.schedule(ctx, number);
        self.settling.push_back(number);
        while self.settling.len() > ctx.limits.settling
            && let Some(oldest) = self.settling.pop_front()
        {
            self.settle(ctx, oldest);
        }
    }

    /// Stragglers are not diverted any longer.
    pub(super) fn settle(&mut self, ctx: &mut Context<'_>, number: u64) {
        let id = self.id(ctx, number);
        if let Some(m) = self.moves.get(&number) {
            ctx.order(id, m.tuple, Order::Settle);
        }
        self.remove(number);
        while let Some(oldest) = self.settling.front()
            && !self.moves.contains_key(oldest)
        {
            self.settling.pop_front();
        }
    }
}
