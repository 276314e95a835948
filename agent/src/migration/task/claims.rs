//! What is told beyond this host: that a session is here, or no longer.

use std::os::fd::AsFd as _;

use homing_common::session::Tuple;
use tokio::sync::{mpsc, oneshot};

use super::{MoveId, Reason, Task, hold::Hold, kernel::Done, orders::done};
use crate::{datapath::events::Found, migration::Answer};

/// Parked packets that are given to sockets without a thread of their own for it.
const FED_AT_ONCE: usize = 32;

impl Task {
    /// The session is this host's: it is recorded and announced, and gets its packets.
    ///
    /// That other hosts hear of it is not waited for: until then they send its packets to
    /// the source, which diverts them. That this host's own programs know is: they would
    /// send its packets to the source as well, which sends nothing back.
    pub(super) fn adopt(
        &mut self,
        id: MoveId,
        tuple: Tuple,
        ticket: u64,
        generation: u32,
        hold: Hold,
    ) {
        let (kernel, found) = (self.kernel.clone(), self.found.clone());
        let (done_to, known) = oneshot::channel();
        self.go_on(id, ticket, true, async move {
            let Hold::Active(socket) = hold else {
                return Done::cannot(hold, Reason::Gone, "there is no connection");
            };
            let session = match kernel.record(&tuple, generation, &socket) {
                Ok(session) => session,
                Err(error) => return Done::cannot(Hold::Active(socket), Reason::Kernel, error),
            };
            let adopted = Found::Adopted {
                tuple,
                session,
                done: done_to,
            };
            // Nobody is left to be told if the agent stops; the next one scans SESSIONS.
            if found.send(adopted).await.is_ok() {
                let _ = known.await;
            }
            let park = kernel.park.clone();
            let serve = move || park.serve(&tuple, id.number);
            let served = if kernel.park.waiting() <= FED_AT_ONCE {
                serve()
            } else {
                match tokio::task::spawn_blocking(serve).await {
                    Ok(served) => served,
                    Err(error) => return Done::cannot(Hold::Active(socket), Reason::Kernel, error),
                }
            };
            let closed = kernel.forget_closed(&tuple, socket.as_fd());
            tell_closed(&found, tuple, closed).await;
            match served {
                Ok(fed) => {
                    tracing::debug!(?tuple, from = %id.source, generation, fed, "a session has come");
                    done(Hold::Active(socket), Answer::Done)
                }
                Err(error) => Done::cannot(Hold::Active(socket), Reason::Kernel, error),
            }
        });
    }

    /// Tells that a session has ended, if its socket was closed.
    pub(super) fn tell_closed(&self, tuple: Tuple, closed: Option<u64>) {
        let found = self.found.clone();
        if closed.is_some() {
            tokio::spawn(async move { tell_closed(&found, tuple, closed).await });
        }
    }

    /// The session is not this host's any more: its claim is closed, and stragglers are
    /// diverted no longer.
    pub(super) fn settle(&mut self, id: MoveId, tuple: Tuple, ticket: u64, hold: Hold) {
        // It may have been told already.
        let _ = self.apps.committed(id.number);
        drop(hold);
        let cookie = self.lanes.of(id, tuple).cookie;
        let (kernel, found) = (self.kernel.clone(), self.found.clone());
        self.go_on(id, ticket, false, async move {
            let (done_to, closed) = oneshot::channel();
            let left = Found::Left {
                tuple,
                cookie,
                done: done_to,
            };
            if found.send(left).await.is_ok() {
                // An error says that the agent is stopping.
                let _ = closed.await;
            }
            kernel.end(&tuple, id.number);
            done(Hold::Nothing, Answer::Done)
        });
    }
}

async fn tell_closed(found: &mpsc::Sender<Found>, tuple: Tuple, closed: Option<u64>) {
    if let Some(cookie) = closed {
        // Nobody is left to be told if the agent stops; the next one scans SESSIONS.
        let _ = found.send(Found::Ended(vec![(tuple, cookie)])).await;
    }
}
