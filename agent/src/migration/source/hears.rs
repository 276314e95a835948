//! What the target says, and what becomes of it.

use super::{Body, Context, Fate, HostId, MoveId, Reason, Source, Step, Way};

impl Source {
    /// A message of a target about a move from this host.
    pub fn hear(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId, body: &Body<'_>) {
        let number = id.number;
        match self.moves.get(&number) {
            None => self.hear_of_unknown(ctx, way, id, body),
            Some(m) if m.target != way.to => {}
            Some(_) => self.hear_of(ctx, way, id, body),
        }
        self.schedule(ctx, number);
        self.begin_waiting(ctx);
    }

    fn hear_of_unknown(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId, body: &Body<'_>) {
        // Who is ready or prepared for a move that is over is to know that.
        if matches!(body, Body::Ready { .. } | Body::Prepared | Body::Query) {
            ctx.say(way, id, Body::Fate(self.fate_of_unknown(id)));
        }
    }

    fn hear_of(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId, body: &Body<'_>) {
        let number = id.number;
        let m = &self.moves[&number];
        let life = m.life();
        match (body, m.step) {
            (Body::Ready { ticket }, Step::Asking) => self.export(ctx, number, *ticket),
            (Body::Refused(reason) | Body::Failed(reason), Step::Asking) => {
                self.withdraw_alone(ctx, number, *reason);
            }
            (Body::Prepared, Step::Sending) => {
                self.order(ctx, number, Step::Rechecking, super::Order::Recheck);
            }
            (Body::Prepared, Step::Released) => ctx.say(way, id, Body::Release(life)),
            (Body::Prepared, Step::Withdrawing) => ctx.say(way, id, Body::Abort(life)),
            (Body::Failed(_), Step::Withdrawing) => self.go_back(ctx, number),
            (Body::Failed(reason), step) if step < Step::Releasing => {
                self.withdraw_alone(ctx, number, *reason);
            }
            (Body::Aborted { dropped }, step)
                if step < Step::Releasing || step == Step::Withdrawing =>
            {
                if *dropped || m.is_undisputed(ctx) {
                    self.withdraw_alone(ctx, number, Reason::Over);
                } else if step != Step::Withdrawing {
                    self.withdraw(ctx, number, Reason::Over);
                }
            }
            (Body::Failed(reason), Step::Released) => self.lost(ctx, number, *reason),
            (Body::Aborted { .. }, Step::Released) => self.lost(ctx, number, Reason::Over),
            (Body::Committed, Step::Released) => self.confirm(ctx, number),
            (Body::Committed, Step::Releasing | Step::Destroying) => {
                self.at(number, |m| m.confirmed = true);
            }
            // The POP took this host's kernel for dead, and the target serves.
            (Body::Committed, Step::Sending | Step::Rechecking)
            | (Body::Committed, Step::Withdrawing | Step::Recovering) => {
                self.at(number, |m| m.confirmed = true);
                self.release(ctx, number);
            }
            (Body::Query, step) => {
                let fate = match step {
                    _ if m.is_released() => Fate::Released,
                    // Nobody withdraws, resumes or discards what was released.
                    step if step >= Step::Withdrawing => Fate::NotReleased,
                    _ => Fate::Undecided,
                };
                ctx.say(way, id, Body::Fate(fate));
            }
            _ => {}
        }
    }

    /// A host's kernel is dead; this host itself is held for dead.
    pub fn voided(&mut self, ctx: &mut Context<'_>, host: HostId) {
        for number in self.numbers() {
            let m = &self.moves[&number];
            if host == ctx.here {
                self.at(number, |m| m.outvoted = m.sent);
            } else if m.target == host && m.step < Step::Releasing {
                // It may have a copy and be cut off, not dead; were this host to resume
                // now and die, the target could take the copy for the session. So this
                // is no reason to resume any sooner than without it.
                self.withdraw(ctx, number, Reason::Voided);
            }
            self.schedule(ctx, number);
        }
        self.begin_waiting(ctx);
    }

    /// A host leaves, or this one does: what the target has no copy of yet goes on here.
    pub fn left(&mut self, ctx: &mut Context<'_>, host: HostId) {
        for number in self.numbers() {
            let m = &self.moves[&number];
            let is_meant = m.target == host || host == ctx.here;
            if is_meant && !m.sent && m.step < Step::Releasing {
                self.withdraw(ctx, number, Reason::NoMember);
            }
            self.schedule(ctx, number);
        }
        if host == ctx.here {
            while let Some(command) = self.waiting.pop_front() {
                self.waits.remove(&command.tuple);
                super::refuse(ctx, &command, Reason::CalledOff);
            }
        }
        self.begin_waiting(ctx);
    }

    fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<_> = self.moves.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }
}
