//! Draining and moving in the words of the API.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    admin::api,
    migration::{
        Outcome,
        drain::{End, Progress, Why},
        task::Report,
    },
};

use super::{CommandState, CommandTold};

impl CommandTold {
    pub(in crate::daemon) fn told(&self) -> api::DrainCommand {
        let (state, error) = match &self.state {
            CommandState::Running => (api::CommandState::Running, None),
            CommandState::Done => (api::CommandState::Done, None),
            CommandState::Failed(why) => (api::CommandState::Failed, Some(why.clone())),
            CommandState::Cancelled => (api::CommandState::Cancelled, None),
        };
        api::DrainCommand {
            name: self.name.to_owned(),
            state,
            error,
        }
    }
}

/// How a drain goes. `latency` puts a histogram into the API's form.
pub(in crate::daemon) fn run(
    progress: &Progress,
    latency: impl Fn(&crate::gossip::Latency) -> api::Latency,
) -> api::DrainRun {
    let counts = &progress.counts;
    api::DrainRun {
        end: progress.end.map(|end| match end {
            End::Drained => api::DrainEnd::Drained,
            End::Left => api::DrainEnd::Left,
            End::Stopped => api::DrainEnd::Stopped,
        }),
        to: progress.options.to.iter().map(|host| host.0).collect(),
        rate: progress.options.rate.map(std::num::NonZero::get),
        wait: progress.options.wait,
        elapsed_s: progress.elapsed.as_secs_f64(),
        remaining_s: progress.remaining.map(|left| left.as_secs_f64()),
        per_s: progress.per_s,
        rest_s: progress.rest.map(|rest| rest.as_secs_f64()),
        seen: counts.seen,
        moved: counts.moved,
        ended: counts.ended,
        gone: whys(&counts.gone),
        lost: whys(&counts.lost),
        queued: progress.queued,
        moving: progress.moving,
        left: whys(&progress.left),
        failed: whys(&counts.failed),
        arriving: progress.arriving,
        time_wait: progress.time_wait,
        frozen_us: latency(&counts.frozen),
    }
}

fn whys(counts: &BTreeMap<Why, u64>) -> Vec<api::Why> {
    let whys = counts.iter().map(|(why, sessions)| api::Why {
        reason: why.label().to_owned(),
        meaning: why.as_str().to_owned(),
        sessions: *sessions,
    });
    whys.collect()
}

/// What came of one move.
pub(in crate::daemon) fn moved(
    name: api::SessionName,
    report: Report,
    took: Duration,
) -> api::Moved {
    let Report { ended, detail } = report;
    let (outcome, step, reason) = match ended.outcome {
        Outcome::Moved => (api::MoveOutcome::Moved, None, None),
        Outcome::Refused(reason) => (api::MoveOutcome::Refused, None, Some(reason)),
        Outcome::Aborted(step, reason) => (api::MoveOutcome::Aborted, Some(step), Some(reason)),
        Outcome::Gone(step, reason) => (api::MoveOutcome::Gone, Some(step), Some(reason)),
        Outcome::Lost(reason) => (api::MoveOutcome::Lost, None, Some(reason)),
    };
    let why = reason.map(Why::Move);
    api::Moved {
        name,
        target: ended.target.0,
        outcome,
        step: step.map(|step| format!("{step:?}").to_lowercase()),
        reason: why.map(|why| why.label().to_owned()),
        meaning: why.map(|why| why.as_str().to_owned()),
        detail,
        frozen_us: ended.frozen_us,
        took_us: took.as_micros() as u64,
    }
}
