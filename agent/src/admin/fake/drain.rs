//! A host that drains: two looks after it began a run has ended.

use std::sync::{Mutex, atomic::Ordering};

use homing_common::session::SessionId;

use super::*;

/// What the agent shall make up, and what it was told.
#[derive(Default)]
pub(crate) struct Script {
    /// The operator's command fails.
    pub command_fails: AtomicBool,
    /// Sessions that cannot be moved.
    pub immovable: AtomicU32,
    /// Sessions that are lost.
    pub lost: AtomicU32,
    /// What was asked for, in order.
    pub orders: Mutex<Vec<DrainOrder>>,
    state: Mutex<(Option<DrainCommand>, Option<DrainRun>)>,
}

/// Sessions that move.
const MOVED: u64 = 20;

fn why(reason: &str, sessions: u64) -> Vec<Why> {
    let why = Why {
        reason: reason.to_owned(),
        meaning: "no application here has registered the service".to_owned(),
        sessions,
    };
    (sessions > 0).then_some(why).into_iter().collect()
}

pub(crate) fn sample_run() -> DrainRun {
    DrainRun {
        end: None,
        to: vec![],
        rate: None,
        wait: false,
        elapsed_s: 0.5,
        remaining_s: Some(59.5),
        per_s: 40.0,
        rest_s: Some(0.25),
        seen: MOVED + 2,
        moved: MOVED / 2,
        ended: 0,
        gone: vec![],
        lost: vec![],
        queued: MOVED / 2 - 1,
        moving: 1,
        left: why("udp", 2),
        failed: vec![],
        arriving: 0,
        time_wait: 3,
        frozen_us: Latency {
            p50: Some(310),
            p99: Some(800),
            samples: MOVED / 2,
            sum_us: 3_200,
            buckets: vec![],
        },
    }
}

impl Fake {
    pub(super) fn drain_told(&self) -> Drain {
        let one_less = |open: u32| open.checked_sub(1);
        let open = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        let mut state = self.drain.state.lock().expect("not poisoned");
        let told = Drain {
            draining: self.draining.load(Ordering::Relaxed),
            sessions: open.unwrap_or(0).into(),
            takers: 1,
            command: state.0.clone(),
            run: state.1.clone(),
        };
        let (command, run) = &mut *state;
        if let Some(run) = run {
            let immovable = self.drain.immovable.load(Ordering::Relaxed).into();
            run.end = Some(match immovable {
                0 => DrainEnd::Drained,
                _ => DrainEnd::Left,
            });
            run.left = why("no_application", immovable);
            run.lost = why("over", self.drain.lost.load(Ordering::Relaxed).into());
            (run.moved, run.queued, run.moving) = (MOVED, 0, 0);
        }
        if let Some(command) = command {
            let fails = self.drain.command_fails.load(Ordering::Relaxed);
            command.state = match fails {
                true => CommandState::Failed,
                false => CommandState::Done,
            };
            command.error = fails.then(|| "/bin/false ended with exit status: 1".to_owned());
        }
        told
    }

    pub(super) fn drain_begun(&self, order: DrainOrder) -> Drain {
        let fails = self.drain.command_fails.load(Ordering::Relaxed);
        let goes_on = !fails || order.force;
        self.draining.store(goes_on, Ordering::Relaxed);
        let run = goes_on && order.moves;
        *self.drain.state.lock().expect("not poisoned") =
            (Some(running("on_drain")), run.then(sample_run));
        self.drain.orders.lock().expect("not poisoned").push(order);
        self.drain_told()
    }

    pub(super) fn drain_ended(&self) -> Drain {
        self.draining.store(false, Ordering::Relaxed);
        self.drain.state.lock().expect("not poisoned").0 = Some(running("on_undrain"));
        self.drain_told()
    }

    pub(super) fn session_moved(
        &self,
        session: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<Moved, Refusal> {
        let (outcome, reason) = match session.client_port.number() {
            40312 => (MoveOutcome::Moved, None),
            40313 => (MoveOutcome::Aborted, Some("timeout")),
            _ => {
                let why = "the session is not here: host 3 has it, and can move it";
                return Err(Refusal::NotFound(why.to_owned()));
            }
        };
        Ok(Moved {
            name: page::name(&session, SessionId(7)),
            target: target.0,
            outcome,
            step: reason.map(|_| "sending".to_owned()),
            reason: reason.map(str::to_owned),
            meaning: reason.map(|_| "there was no answer in time".to_owned()),
            detail: None,
            frozen_us: 1_234,
            took_us: within.as_micros() as u64,
        })
    }
}

fn running(name: &str) -> DrainCommand {
    DrainCommand {
        name: name.to_owned(),
        state: CommandState::Running,
        error: None,
    }
}
