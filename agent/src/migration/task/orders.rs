//! Orders: given to the kernel or to an application, and answered.

use std::sync::Arc;

use homing_common::session::Tuple;

use super::{
    Kernel, MoveId, Order, Phase, Reason, Task, applications::not_served, hold::Hold, kernel::Done,
    now,
};
use crate::{
    datapath::moving::{Error as MovingError, Move},
    migration::{
        Answer,
        app::{Apps, Failure, Family},
    },
};

/// An order was carried out, or not.
pub(super) struct Finished {
    id: MoveId,
    ticket: u64,
    done: Done,
    /// Whether the machine awaits the answer.
    answered: bool,
}

impl Task {
    /// Has an order carried out, after those of its move that came before.
    pub(super) fn give(&mut self, id: MoveId, tuple: Tuple, ticket: u64, order: Order) {
        let lane = self.lanes.of(id, tuple);
        // The machine has stopped waiting for the application to come back.
        lane.awaited = None;
        if lane.busy {
            lane.queue.push_back((ticket, order));
            return;
        }
        lane.busy = true;
        let hold = std::mem::take(&mut lane.hold);
        self.begin(id, tuple, ticket, order, hold);
    }

    fn begin(&mut self, id: MoveId, tuple: Tuple, ticket: u64, order: Order, hold: Hold) {
        let answered = order.is_answered();
        let finish = move |done| Finished {
            id,
            ticket,
            done,
            answered,
        };
        let (kernel, apps) = (self.kernel.clone(), self.apps.clone());
        let number = id.number;
        let done = match order {
            Order::Journal {
                phase,
                generation,
                peer,
            } => {
                let of = Move {
                    number,
                    peer,
                    generation,
                };
                journal(&kernel, &tuple, of, phase, hold)
            }
            Order::Check => kernel.check(hold),
            Order::Recheck => kernel.recheck(hold),
            Order::Destroy => {
                let (done, cookie) = kernel.destroy(&tuple, hold);
                if let Some(cookie) = cookie {
                    self.lanes.of(id, tuple).cookie = cookie;
                }
                done
            }
            Order::Resume => {
                let (done, closed) = kernel.resume(&tuple, number, hold);
                self.tell_closed(tuple, closed);
                done
            }
            Order::GiveBack { blob } => {
                let blob = Some(blob).filter(|blob| !blob.is_empty());
                match (apps.resume(number, blob), hold) {
                    (Ok(()), _) | (Err(_), Hold::Kept) => done(Hold::Nothing, Answer::Done),
                    (Err(error), _) => Done::cannot(Hold::Nothing, Reason::ApplicationGone, error),
                }
            }
            Order::Committed => {
                if let Err(error) = apps.committed(number) {
                    tracing::debug!(?tuple, %error, "nobody is told that a session has moved");
                }
                done(Hold::Nothing, Answer::Done)
            }
            Order::Recover => return self.recover(id, tuple, ticket, hold),
            Order::Read if kernel.is_light(&hold) => kernel.read(hold),
            Order::Read => {
                self.running
                    .spawn_blocking(move || finish(kernel.read(hold)));
                return;
            }
            Order::Restore { tcp } => match kernel.unpack(&tuple, &tcp, hold) {
                Ok((socket, snapshot)) if snapshot.is_light() => {
                    kernel.restore(id, &tcp, socket, snapshot)
                }
                Ok((socket, snapshot)) => {
                    self.running
                        .spawn_blocking(move || finish(kernel.restore(id, &tcp, socket, snapshot)));
                    return;
                }
                Err(done) => done,
            },
            Order::Activate if kernel.is_light(&hold) => kernel.activate(hold),
            Order::Activate => {
                self.running
                    .spawn_blocking(move || finish(kernel.activate(hold)));
                return;
            }
            Order::Drop => {
                // It may be gone already.
                let _ = apps.drop_import(number);
                self.running
                    .spawn_blocking(move || finish(kernel.drop_copy(id, &tuple, hold)));
                return;
            }
            Order::Export => {
                self.running
                    .spawn(async move { finish(export(&apps, number, tuple).await) });
                return;
            }
            Order::Open => {
                self.running
                    .spawn(async move { finish(import(&apps, number, tuple).await) });
                return;
            }
            Order::Import { blob } => {
                self.running.spawn(async move {
                    finish(match apps.give(number, blob).await {
                        Ok(()) => done(hold, Answer::Done),
                        Err(error) => Done::cannot(hold, reason_of(&error), error),
                    })
                });
                return;
            }
            Order::HandOver { blob } => {
                if apps.keeps(number) {
                    done(hold, Answer::Done)
                } else {
                    self.running.spawn(async move {
                        finish(hand_over_anew(kernel, apps, number, tuple, blob, hold).await)
                    });
                    return;
                }
            }
            Order::Adopt { generation } => {
                return self.adopt(id, tuple, ticket, generation, hold);
            }
            Order::Serve => {
                kernel.kept.remove(id);
                self.running.spawn(async move {
                    if let Err(error) = apps.adopt(number).await {
                        not_served(tuple, &error);
                    }
                    finish(done(Hold::Nothing, Answer::Done))
                });
                return;
            }
            Order::Settle => return self.settle(id, tuple, ticket, hold),
        };
        self.finished(finish(done));
    }

    /// Goes on with a move whose order was carried out, or not.
    pub(super) fn finished(&mut self, finished: Finished) {
        let Finished {
            id,
            ticket,
            done,
            answered,
        } = finished;
        if let Answer::Exported { blob } = &done.answer {
            self.state_bytes = guess(self.state_bytes, blob.len());
        }
        if let Some(lane) = self.lanes.get(id) {
            lane.busy = false;
            lane.hold = done.hold;
            if let Some(detail) = done.detail {
                tracing::debug!(tuple = ?lane.tuple, answer = ?done.answer, detail, "a step of a move");
                lane.detail = Some(detail);
            }
            if let Some((ticket, order)) = lane.queue.pop_front() {
                lane.busy = true;
                let (tuple, hold) = (lane.tuple, std::mem::take(&mut lane.hold));
                self.begin(id, tuple, ticket, order, hold);
            }
        }
        if answered {
            self.moves
                .answer(now(), &self.view, id, ticket, done.answer);
        }
        // What the machine still orders for it comes by `pump`.
        self.lanes.done_with(id);
    }

    /// An order is carried out by somebody else, who gives the answer.
    pub(super) fn finished_as(&mut self, id: MoveId, ticket: u64, done: Done, answered: bool) {
        self.finished(Finished {
            id,
            ticket,
            done,
            answered,
        });
    }

    /// Spawns the rest of an order.
    pub(super) fn go_on(
        &mut self,
        id: MoveId,
        ticket: u64,
        answered: bool,
        rest: impl Future<Output = Done> + Send + 'static,
    ) {
        self.running.spawn(async move {
            Finished {
                id,
                ticket,
                done: rest.await,
                answered,
            }
        });
    }
}

pub(super) fn done(hold: Hold, answer: Answer) -> Done {
    Done {
        hold,
        answer,
        detail: None,
    }
}

/// About how many bytes a state will have: the greater counts at once, the less slowly.
fn guess(before: u32, bytes: usize) -> u32 {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    bytes.max(before - before / 16)
}

fn journal(kernel: &Kernel, tuple: &Tuple, of: Move, phase: Phase, hold: Hold) -> Done {
    match kernel.journal(tuple, of, phase) {
        Ok(()) => done(hold, Answer::Done),
        Err(error) => {
            let reason = match error {
                MovingError::Busy { .. } => Reason::Moving,
                MovingError::Full => Reason::Full,
                MovingError::Other { .. } | MovingError::Kernel(_) => Reason::Kernel,
            };
            Done::cannot(hold, reason, error)
        }
    }
}

async fn export(apps: &Apps, number: u64, tuple: Tuple) -> Done {
    match apps.export(number, tuple).await {
        Ok(exported) => done(
            Hold::Exported(exported.descriptor),
            Answer::Exported {
                blob: exported.state,
            },
        ),
        Err(error) => {
            let hold = match error {
                Failure::Gone | Failure::NotRegistered => Hold::Nothing,
                _ => Hold::Kept,
            };
            Done::cannot(hold, reason_of(&error), error)
        }
    }
}

async fn import(apps: &Apps, number: u64, tuple: Tuple) -> Done {
    let family = Family::of(tuple.service_endpoint().ip());
    match apps.import(number, tuple, family).await {
        Ok(socket) => done(Hold::Fresh(socket), Answer::Done),
        Err(error) => Done::cannot(Hold::Nothing, reason_of(&error), error),
    }
}

/// The application that was to take the session over has gone, and another one may have
/// come in its place.
async fn hand_over_anew(
    kernel: Arc<Kernel>,
    apps: Apps,
    number: u64,
    tuple: Tuple,
    blob: homing_client::Blob,
    hold: Hold,
) -> Done {
    let Hold::Active(active) = hold else {
        return Done::cannot(hold, Reason::Gone, "there is no connection");
    };
    let family = Family::of(tuple.service_endpoint().ip());
    let fresh = match apps.import(number, tuple, family).await {
        Ok(fresh) => fresh,
        Err(error) => return Done::cannot(Hold::Active(active), Reason::ApplicationGone, error),
    };
    let moved = tokio::task::spawn_blocking(move || kernel.transplant(active, fresh));
    let moved = match moved.await {
        Ok(moved) => moved,
        Err(error) => return Done::cannot(Hold::Nothing, Reason::Kernel, error),
    };
    if moved.answer != Answer::Done {
        return moved;
    }
    match apps.give(number, blob).await {
        Ok(()) => moved,
        Err(error) => Done::cannot(moved.hold, reason_of(&error), error),
    }
}

/// Why an application did not do its part, as the other host is told.
fn reason_of(failure: &Failure) -> Reason {
    match failure {
        Failure::NotRegistered => Reason::NoApplication,
        Failure::Busy | Failure::NumberInUse => Reason::Moving,
        Failure::TooMany | Failure::NoRoom => Reason::Full,
        Failure::TimedOut => Reason::Timeout,
        Failure::Gone | Failure::NotPending => Reason::ApplicationGone,
        Failure::Refused { .. } | Failure::Descriptor(_) => Reason::Application,
    }
}
