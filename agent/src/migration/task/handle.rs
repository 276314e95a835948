//! What the rest of the agent has of moves.

use std::time::Duration;

use homing_common::{host::HostId, session::Tuple};
use tokio::sync::{mpsc, oneshot};

use crate::{
    bound::Bound,
    migration::{Counters, Ended, Outcome, StepTime, UnderWay, moves::Load},
};

/// What each session of a drain could repeat.
static NOT_MOVED: Bound = Bound::new();
static LOST: Bound = Bound::new();

/// Commands that may wait to be read; of those that were read, [`Limits::waiting`] wait.
///
/// [`Limits::waiting`]: crate::migration::Limits::waiting
const COMMANDS: usize = 256;

/// The agent is stopping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopped;

/// What came of a move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// That.
    pub ended: Ended,
    /// More of the reason, if this host knows more.
    pub detail: Option<String>,
}

impl Report {
    pub(super) fn log(&self) {
        let Ended {
            tuple,
            target,
            number,
            outcome,
            frozen_us,
        } = &self.ended;
        let detail = self.detail.as_deref().unwrap_or_default();
        let left_out = match outcome {
            Outcome::Moved => Some(0),
            Outcome::Refused(..) | Outcome::Aborted(..) | Outcome::Gone(..) => NOT_MOVED.take(),
            Outcome::Lost(..) => LOST.take(),
        };
        let Some(left_out) = left_out else {
            return;
        };
        match outcome {
            Outcome::Moved => {
                tracing::debug!(?tuple, %target, ?number, frozen_us, "a session has moved");
            }
            Outcome::Refused(reason) => tracing::info!(
                ?tuple, %target, reason = reason.as_str(), detail, left_out,
                "a session is not moved"
            ),
            Outcome::Aborted(step, reason) => tracing::info!(
                ?tuple, %target, ?number, ?step, reason = reason.as_str(), detail, frozen_us,
                left_out, "a move was given up; the session goes on here"
            ),
            Outcome::Gone(step, reason) => tracing::info!(
                ?tuple, %target, ?number, ?step, reason = reason.as_str(), detail, left_out,
                "a session ended while it was to be moved"
            ),
            Outcome::Lost(reason) => tracing::warn!(
                ?tuple, %target, ?number, reason = reason.as_str(), detail, left_out,
                fix = "its client has to connect again; the target's log at this time, and its application's, say more",
                "a session was lost in a move"
            ),
        }
    }
}

/// How moves are doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// How many there are, and what they hold.
    pub load: Load,
    /// What happened so far.
    pub counters: Counters,
    /// Those that are not over, by session.
    pub under_way: Vec<UnderWay>,
    /// How long moves stood at each step.
    pub steps: Vec<StepTime>,
}

pub(super) enum Command {
    Move {
        tuple: Tuple,
        target: HostId,
        within: Duration,
        answer: oneshot::Sender<Report>,
    },
    CallOff(Tuple, oneshot::Sender<bool>),
    Status(oneshot::Sender<Status>),
    Leave(oneshot::Sender<()>),
}

/// What moves are asked for through. Clones ask the same task.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Command>);

impl Handle {
    /// Moves a session of this host, and waits for what comes of it. A move that is not
    /// released `within` that time is given up. If this is dropped, the move goes on.
    ///
    /// # Errors
    ///
    /// The agent is stopping; the next one settles the move.
    pub async fn move_session(
        &self,
        tuple: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<Report, Stopped> {
        self.ask(|answer| Command::Move {
            tuple,
            target,
            within,
            answer,
        })
        .await
    }

    /// Gives the move of a session up, if it is not released yet. Says whether there was
    /// one that could be.
    ///
    /// # Errors
    ///
    /// The agent is stopping.
    pub async fn call_off(&self, tuple: Tuple) -> Result<bool, Stopped> {
        self.ask(|answer| Command::CallOff(tuple, answer)).await
    }

    /// How moves are doing.
    ///
    /// # Errors
    ///
    /// The agent is stopping.
    pub async fn status(&self) -> Result<Status, Stopped> {
        self.ask(Command::Status).await
    }

    /// This agent is about to leave: no move begins any more, what can be given up is, and
    /// this returns once nothing is left whose end others wait for.
    ///
    /// # Errors
    ///
    /// The agent has stopped.
    pub async fn leave(&self) -> Result<(), Stopped> {
        self.ask(Command::Leave).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

pub(super) fn handle() -> (Handle, mpsc::Receiver<Command>) {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    (Handle(commands), inbox)
}
