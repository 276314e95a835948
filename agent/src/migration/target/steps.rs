//! From step to step: up to *prepared*, to serving, or to nothing.

use super::{
    Answer, Blob, Body, Context, End, Farewell, MoveId, Order, Phase, REPEAT_MIN, Reason, Repeat,
    Step, Target, Way,
};

impl Target {
    /// Gives the order of the next step.
    pub(super) fn order(&mut self, ctx: &mut Context<'_>, id: MoveId, step: Step, order: Order) {
        let until = match step {
            // What the datapath does once it is begun has no bound: it is the kernel.
            Step::Dropping => u64::MAX,
            // The whole of what follows the release.
            Step::Activating => ctx.now + ctx.limits.recover,
            Step::HandingOver | Step::Adopting => self.moves[&id].until,
            Step::Recovering => ctx.now + ctx.limits.recover,
            _ => ctx.now + ctx.limits.step,
        };
        self.at(id, |m| {
            m.step = step;
            m.until = until;
            m.repeat = None;
            m.ticket = ctx.order(id, m.life.tuple, order);
        });
        self.schedule(ctx, id);
    }

    /// An order was carried out, or not.
    pub fn answered(&mut self, ctx: &mut Context<'_>, id: MoveId, ticket: u64, answer: Answer) {
        let Some(m) = self.moves.get_mut(&id) else {
            return;
        };
        if m.ticket != ticket {
            return;
        }
        m.ticket = 0;
        match (m.step, answer) {
            (Step::Marking, Answer::Done) => self.order(ctx, id, Step::Opening, Order::Open),
            (Step::Opening, Answer::Done) => {
                m.step = Step::Awaiting;
                m.until = ctx.now + ctx.limits.step * 2;
                let ready = Body::Ready { ticket: m.ready };
                ctx.say(Way::direct(id.source), id, ready);
            }
            (Step::Restoring, Answer::Done) => {
                let blob = m.blob.clone();
                self.order(ctx, id, Step::Importing, Order::Import { blob });
            }
            (Step::Importing, Answer::Done) => {
                let order = Order::Journal {
                    phase: Phase::Prepared,
                    generation: m.life.generation,
                    peer: id.source,
                };
                self.order(ctx, id, Step::Preparing, order);
            }
            (Step::Preparing, Answer::Done) => {
                self.prepared(ctx, id);
                ctx.say(Way::direct(id.source), id, Body::Prepared);
            }
            (Step::Recovering, Answer::Done) => {
                if m.released {
                    self.activate(ctx, id);
                } else {
                    self.prepared(ctx, id);
                    ctx.say(Way::direct(id.source), id, Body::Query);
                }
            }
            (Step::Activating, Answer::Done) => self.hand_over(ctx, id),
            (Step::HandingOver, Answer::Done) => self.adopt(ctx, id),
            (Step::Adopting, Answer::Done) => self.adopted(ctx, id),
            (Step::Dropping, Answer::Done) => self.dropped(ctx, id),
            // The kernel is asked again, and so is the application, which may come back.
            (Step::Activating | Step::HandingOver | Step::Adopting | Step::Dropping, _) => {
                m.repeat = Some(Repeat::new(ctx.now, REPEAT_MIN));
            }
            (Step::Awaiting | Step::Prepared, _) => {}
            (_, Answer::Cannot(reason)) => {
                self.drop_copy(ctx, id, Some(Farewell::Failed(reason)));
            }
            // An answer that does not belong to the order.
            _ => self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Kernel))),
        }
        self.schedule(ctx, id);
    }

    /// The copy stands ready, and the source decides.
    fn prepared(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        let (now, doubt) = (ctx.now, ctx.limits.doubt);
        self.at(id, |m| {
            m.step = Step::Prepared;
            m.until = m.since + doubt;
            m.repeat = Some(Repeat::new(now, REPEAT_MIN));
        });
    }

    /// The session is this host's.
    pub(super) fn activate(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        self.order(ctx, id, Step::Activating, Order::Activate);
    }

    fn hand_over(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        let blob = self.moves[&id].blob.clone();
        self.order(ctx, id, Step::HandingOver, Order::HandOver { blob });
    }

    fn adopt(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        let generation = self.moves[&id].life.generation.saturating_add(1);
        self.order(ctx, id, Step::Adopting, Order::Adopt { generation });
    }

    fn adopted(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        ctx.out.counters.taken_over += 1;
        if let Some(m) = self.remove(id, End::Committed) {
            let (step, since) = m.timed;
            ctx.out.times.at_target(step, ctx.now.saturating_sub(since));
            ctx.order(id, m.life.tuple, Order::Serve);
            ctx.say(Way::direct(id.source), id, Body::Committed);
        }
    }

    /// The kernel could not do it, or the application was not there: once more.
    pub(super) fn order_again(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        ctx.out.counters.orders_repeated += 1;
        match self.moves[&id].step {
            Step::Activating => {
                let until = self.moves[&id].until;
                self.activate(ctx, id);
                self.at(id, |m| m.until = until);
            }
            Step::HandingOver => self.hand_over(ctx, id),
            Step::Adopting => self.adopt(ctx, id),
            _ => self.order(ctx, id, Step::Dropping, Order::Drop),
        }
    }

    /// Released, but no application takes it.
    pub(super) fn lose(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        ctx.out.counters.copies_lost += 1;
        self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::ApplicationGone)));
    }

    /// Drops the copy; the source is told once that is done.
    pub(super) fn drop_copy(
        &mut self,
        ctx: &mut Context<'_>,
        id: MoveId,
        farewell: Option<Farewell>,
    ) {
        self.at(id, |m| {
            m.farewell = farewell.map(|what| (Way::direct(id.source), what));
            m.blob = Blob::default();
        });
        self.order(ctx, id, Step::Dropping, Order::Drop);
    }

    fn dropped(&mut self, ctx: &mut Context<'_>, id: MoveId) {
        ctx.out.counters.copies_dropped += 1;
        let farewell = self.remove(id, End::Dropped).and_then(|m| m.farewell);
        match farewell {
            Some((way, Farewell::Aborted)) => {
                ctx.say(way, id, Body::Aborted { dropped: true });
            }
            Some((way, Farewell::Failed(reason))) => ctx.say(way, id, Body::Failed(reason)),
            None => {}
        }
    }
}
