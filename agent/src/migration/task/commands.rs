//! What the rest of the agent asks for.

use std::time::Duration;

use homing_common::{host::HostId, session::Tuple};
use tokio::sync::oneshot;

use super::{Reason, Report, Status, Task, handle::Command, now};
use crate::migration::{Command as MoveCommand, Ended, Local as _, Outcome};

impl Task {
    /// Takes in a command.
    pub(super) fn command(&mut self, command: Command) {
        // Who asked may have stopped waiting for the answer.
        match command {
            Command::Move {
                tuple,
                target,
                within,
                answer,
            } => self.begin_move(tuple, target, within, answer),
            Command::CallOff(tuple, answer) => {
                let _ = answer.send(self.moves.call_off(now(), &self.view, &tuple));
            }
            Command::Status(answer) => {
                let _ = answer.send(Status {
                    load: self.moves.load(),
                    counters: *self.moves.counters(),
                    under_way: self.moves.under_way(),
                    steps: self.moves.times(),
                });
            }
            Command::Leave(answer) => {
                self.moves.left(now(), &self.view, self.host);
                self.leaving = Some(answer);
            }
        }
    }

    fn begin_move(
        &mut self,
        tuple: Tuple,
        target: HostId,
        within: Duration,
        answer: oneshot::Sender<Report>,
    ) {
        let application = self.view.application(&tuple.service());
        let objection = if self.leaving.is_some() {
            Some(Reason::CalledOff)
        } else if self.waiters.contains_key(&tuple) {
            Some(Reason::Moving)
        } else if application.is_none() {
            Some(Reason::NoApplication)
        } else {
            None
        };
        let (None, Some(application)) = (objection, application) else {
            let ended = Ended {
                tuple,
                target,
                number: None,
                outcome: Outcome::Refused(objection.unwrap_or(Reason::NoApplication)),
                frozen_us: 0,
            };
            let detail = None;
            // Whoever asked may have stopped waiting.
            let _ = answer.send(Report { ended, detail });
            return;
        };
        self.waiters.insert(tuple, answer);
        let within = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        let command = MoveCommand {
            tuple,
            target,
            deadline: now().saturating_add(within),
            application,
            bytes: self.state_bytes,
        };
        self.moves.command(now(), &self.view, command);
    }
}
