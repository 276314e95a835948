//! What the source says, and what becomes of it.

use super::{
    Body, Context, End, Farewell, Fate, HostId, Incoming, Life, MoveId, Offer, Order, Phase,
    Reason, Step, Target, Way,
};
use crate::{migration::limits::void_window, pop::MS};

impl Target {
    /// A message of the source of a move to this host.
    ///
    /// `is_free` says whether no move from this host stands in the way of a session
    /// that comes.
    pub fn hear(
        &mut self,
        ctx: &mut Context<'_>,
        way: Way,
        id: MoveId,
        body: &Body<'_>,
        is_free: impl FnOnce(&mut Context<'_>, &Life) -> bool,
    ) {
        match body {
            Body::Prepare(offer) => self.offered(ctx, id, offer, is_free),
            Body::State { ticket, tcp, blob } => self.state(ctx, way, id, *ticket, tcp, blob),
            Body::Release(life) => self.released(ctx, way, id, Some(life)),
            Body::Abort(life) => self.aborted(ctx, way, id, life),
            Body::Fate(Fate::Released) => self.released(ctx, way, id, None),
            Body::Fate(Fate::NotReleased) => self.not_released(ctx, way, id),
            _ => {}
        }
        self.schedule(ctx, id);
    }

    fn offered(
        &mut self,
        ctx: &mut Context<'_>,
        id: MoveId,
        offer: &Offer,
        is_free: impl FnOnce(&mut Context<'_>, &Life) -> bool,
    ) {
        let way = Way::direct(id.source);
        if let Some(m) = self.moves.get(&id) {
            if m.step == Step::Awaiting {
                ctx.say(way, id, Body::Ready { ticket: m.ready });
            }
            return;
        }
        if let Some(reason) = self.objection(ctx, id, offer, is_free) {
            ctx.out.counters.turned_away += 1;
            return ctx.say(way, id, Body::Refused(reason));
        }
        ctx.out.counters.agreed += 1;
        self.readies = self.readies.wrapping_add(1);
        let since = ctx.now;
        let m = Incoming {
            hold: ctx.limits.hold.min(u64::from(offer.hold_ms) * MS),
            ..Incoming::new(offer.life, offer.bytes as usize, self.readies, since)
        };
        self.insert(id, m);
        let order = Order::Journal {
            phase: Phase::Awaiting,
            generation: offer.life.generation,
            peer: id.source,
        };
        self.order(ctx, id, Step::Marking, order);
    }

    /// Why a session cannot come here.
    fn objection(
        &mut self,
        ctx: &mut Context<'_>,
        id: MoveId,
        offer: &Offer,
        is_free: impl FnOnce(&mut Context<'_>, &Life) -> bool,
    ) -> Option<Reason> {
        let local = ctx.local;
        let service = offer.life.tuple.service();
        if self.ended.get(id).is_some() {
            return Some(Reason::Over);
        }
        if !local.has_service(&service) {
            return Some(Reason::NoService);
        }
        if local.drains() {
            return Some(Reason::Draining);
        }
        match local.application(&service) {
            None => return Some(Reason::NoApplication),
            Some(here) if here != offer.application => return Some(Reason::OtherVersion),
            Some(_) => {}
        }
        if local.session(&offer.life.tuple).is_some() {
            return Some(Reason::Live);
        }
        if let Some(&other) = self.by_tuple.get(&offer.life.tuple) {
            // The source knows what became of that one; this host may not have heard.
            if self.moves[&other].step == Step::Prepared {
                ctx.say(Way::direct(other.source), other, Body::Query);
            }
            return Some(Reason::Moving);
        }
        let bytes = self.bytes + offer.bytes as usize;
        if self.moves.len() >= ctx.limits.to_here
            || bytes > ctx.limits.bytes && !self.moves.is_empty()
        {
            return Some(Reason::Full);
        }
        (!is_free(ctx, &offer.life)).then_some(Reason::Moving)
    }

    fn state(
        &mut self,
        ctx: &mut Context<'_>,
        way: Way,
        id: MoveId,
        ticket: u64,
        tcp: &[u8],
        blob: &[u8],
    ) {
        let Some(m) = self.moves.get_mut(&id) else {
            // Sent to an agent that is no more: nothing of it is here.
            if self.ended.get(id) != Some(End::Committed) {
                self.say_aborted(ctx, way, id);
            }
            return;
        };
        if m.step == Step::Prepared {
            return ctx.say(way, id, Body::Prepared);
        }
        // What was sent for another readiness may be older than this one.
        if m.step != Step::Awaiting || m.ready != ticket {
            return;
        }
        let held = tcp.len() + blob.len();
        if held > m.bytes {
            self.bytes += held - m.bytes;
            m.bytes = held;
        }
        m.blob = blob.to_vec().into();
        if self.bytes > ctx.limits.bytes && self.moves.len() > 1 {
            return self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Full)));
        }
        let tcp = tcp.to_vec();
        self.order(ctx, id, Step::Restoring, Order::Restore { tcp });
    }

    /// The session is this host's.
    fn released(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId, life: Option<&Life>) {
        let Some(m) = self.moves.get_mut(&id) else {
            let serves = life.is_some_and(|life| is_served(ctx, life));
            match self.ended.get(id) {
                Some(End::Committed) => ctx.say(way, id, Body::Committed),
                None if serves => ctx.say(way, id, Body::Committed),
                _ => ctx.say(way, id, Body::Failed(Reason::Over)),
            }
            return;
        };
        match m.step {
            Step::Recovering => m.released = true,
            Step::Prepared => {
                m.released = true;
                self.activate(ctx, id);
            }
            _ => {}
        }
    }

    /// The source has given the move up, and wants to hear that there is no copy.
    fn aborted(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId, life: &Life) {
        if self.moves.contains_key(&id) {
            return self.not_released(ctx, way, id);
        }
        let end = self.ended.get(id);
        if end == Some(End::Committed) || end.is_none() && is_served(ctx, life) {
            ctx.say(way, id, Body::Committed);
        } else {
            self.say_aborted(ctx, way, id);
        }
    }

    /// There is no copy, and there will be none: what the source sent before may come
    /// after this.
    fn say_aborted(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId) {
        let dropped = self.ended.get(id) == Some(End::Dropped);
        if !dropped {
            self.ended.insert(id, End::Unknown);
        }
        ctx.say(way, id, Body::Aborted { dropped });
    }

    fn not_released(&mut self, ctx: &mut Context<'_>, way: Way, id: MoveId) {
        let Some(m) = self.moves.get_mut(&id) else {
            return;
        };
        if m.step == Step::Dropping {
            m.farewell.get_or_insert((way, Farewell::Aborted));
        } else if !m.released {
            self.drop_copy(ctx, id, Some(Farewell::Aborted));
            self.at(id, |m| m.farewell = Some((way, Farewell::Aborted)));
        }
    }

    /// The kernel of a source is dead, says more than half of the POP.
    ///
    /// That alone does not say that it had not resumed before: a copy that its session
    /// has outlived must not be served. But no source resumes without a word from here
    /// before it has held the session for some time, and that time began after this
    /// host said that it was ready. An agent that finds a copy does not know when that was.
    pub fn voided(&mut self, ctx: &mut Context<'_>, host: HostId) {
        let mut ids: Vec<_> = self.moves.keys().copied().collect();
        ids.retain(|id| id.source == host);
        ids.sort_unstable();
        for id in ids {
            let m = &self.moves[&id];
            let in_time = !m.found && ctx.now < m.since + void_window(m.hold);
            match m.step {
                _ if m.released => {}
                Step::Recovering | Step::Prepared if in_time => {
                    ctx.out.counters.taken_over_void += 1;
                    let is_prepared = m.step == Step::Prepared;
                    self.at(id, |m| m.released = true);
                    if is_prepared {
                        self.activate(ctx, id);
                    }
                }
                Step::Dropping => {}
                step => {
                    let counters = &mut ctx.out.counters;
                    counters.copies_void_too_late += u64::from(step >= Step::Recovering);
                    self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Voided)));
                }
            }
            self.schedule(ctx, id);
        }
    }

    /// This host leaves: what was promised nothing yet is given up.
    pub fn leave(&mut self, ctx: &mut Context<'_>) {
        let mut ids: Vec<_> = self.moves.keys().copied().collect();
        ids.retain(|id| self.moves[id].step < Step::Preparing);
        ids.sort_unstable();
        for id in ids {
            self.drop_copy(ctx, id, Some(Farewell::Failed(Reason::Draining)));
            self.schedule(ctx, id);
        }
    }
}

/// Whether this life of the tuple is served here, at a later generation: a new session
/// that uses the tuple has begun with generation 0.
fn is_served(ctx: &Context<'_>, life: &Life) -> bool {
    let here = ctx.local.session(&life.tuple);
    here.is_some_and(|generation| generation > life.generation)
}
