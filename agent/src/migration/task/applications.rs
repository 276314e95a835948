//! What applications do by themselves: those that come or go, and those that have
//! outlived their agent and tell what is pending with them.

use std::os::fd::OwnedFd;

use homing_common::session::Tuple;

use super::{MoveId, Reason, Task, hold::Hold, kernel::Done, orders::done};
use crate::{
    bound::Bound,
    migration::{
        Answer,
        app::{Event, Failure, Left, Pending},
    },
};

/// What applications could repeat.
static COME: Bound = Bound::new();
static GONE: Bound = Bound::new();
static UNSERVED: Bound = Bound::new();

/// A session has come, and its application has not taken it.
pub(super) fn not_served(session: Tuple, error: &Failure) {
    if let Some(left_out) = UNSERVED.take() {
        tracing::warn!(
            ?session, %error, left_out,
            fix = "look at the application's log; the connection stays open without a reader until it is restarted or its client gives up",
            "an application does not serve a session that has come"
        );
    }
}

impl Task {
    /// Takes in what applications do by themselves.
    pub(super) fn application(&mut self, event: Event) {
        match event {
            Event::Registered {
                protocol, services, ..
            } => {
                if let Some(left_out) = COME.take() {
                    tracing::info!(
                        name = protocol.name,
                        version = protocol.version,
                        services = services.len(),
                        left_out,
                        "an application has registered"
                    );
                }
            }
            // Each of its moves fails at the next step that needs it.
            Event::Gone { moves, .. } => {
                if let Some(left_out) = GONE.take() {
                    tracing::info!(moves = moves.len(), left_out, "an application has gone");
                }
            }
            Event::Pending {
                left, descriptor, ..
            } => match self.move_of(&left.session, left.number) {
                Some(id) => self.told(id, left, descriptor),
                None => self.told_of_none(left),
            },
        }
    }

    /// An application that has outlived its agent tells of a move that the journal has.
    fn told(&mut self, id: MoveId, left: Left, descriptor: OwnedFd) {
        let lane = self.lanes.of(id, left.session);
        if lane.busy || !matches!(lane.hold, Hold::Nothing) {
            // This agent has all of it: the application has only connected once more.
            return;
        }
        lane.hold = Hold::Told(left.pending, descriptor);
        if let Some(ticket) = lane.awaited.take() {
            lane.busy = true;
            let (tuple, hold) = (lane.tuple, std::mem::take(&mut lane.hold));
            self.recover(id, tuple, ticket, hold);
        }
    }

    /// The same of one that is in no move: it is over, and the session is here or not.
    fn told_of_none(&mut self, left: Left) {
        let Left {
            number,
            session,
            pending,
        } = left;
        let is_here = match self.kernel.sessions.get(&session) {
            Ok(session) => session.is_some(),
            Err(error) => {
                tracing::warn!(
                    %error, ?session,
                    fix = "restart the application, which tells of this move again; if it goes on, restart the agent, and keep this log",
                    "cannot read SESSIONS for a move that an application tells of"
                );
                return;
            }
        };
        let told = match (pending, is_here) {
            (Pending::Export, true) => self.apps.resume(number, None),
            (Pending::Export, false) => self.apps.committed(number),
            (Pending::Kept, true) => {
                let apps = self.apps.clone();
                tokio::spawn(async move {
                    if let Err(error) = apps.adopt(number).await {
                        not_served(session, &error);
                    }
                });
                Ok(())
            }
            (Pending::Import | Pending::Kept, _) => self.apps.drop_import(number),
        };
        if let Err(error) = told {
            tracing::debug!(?session, %error, "an application is not told of the end of a move");
        }
    }

    /// Has the descriptor again of an application that has outlived its agent, once it
    /// tells.
    pub(super) fn recover(&mut self, id: MoveId, tuple: Tuple, ticket: u64, hold: Hold) {
        let is_source = id.source == self.host;
        match hold {
            Hold::Told(Pending::Export, _) if is_source => {
                self.finished_as(id, ticket, done(hold, Answer::Done), true);
            }
            Hold::Told(Pending::Kept, socket) if !is_source => {
                let kernel = self.kernel.clone();
                self.go_on(id, ticket, true, async move {
                    let found = move || kernel.found(id, &tuple, socket);
                    match tokio::task::spawn_blocking(found).await {
                        Ok(done) => done,
                        Err(error) => Done::cannot(Hold::Nothing, Reason::Kernel, error),
                    }
                });
            }
            Hold::Told(..) => {
                let detail = "the application is not as far as the journal";
                self.finished_as(
                    id,
                    ticket,
                    Done::cannot(hold, Reason::ApplicationGone, detail),
                    true,
                );
            }
            hold => {
                let lane = self.lanes.of(id, tuple);
                lane.hold = hold;
                lane.busy = false;
                lane.awaited = Some(ticket);
            }
        }
    }
}
