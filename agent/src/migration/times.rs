//! Where the time of moves goes: how long they stand at each step, on either side.

use crate::gossip::Latency;

use super::{order::Step, target};

/// The steps of a move that goes well, in order: at the source, at the target.
const SOURCE: [(Step, &str); 10] = [
    (Step::Asking, "asking"),
    (Step::Exporting, "exporting"),
    (Step::Checking, "checking"),
    (Step::Freezing, "freezing"),
    (Step::Reading, "reading"),
    (Step::Sending, "sending"),
    (Step::Rechecking, "rechecking"),
    (Step::Releasing, "releasing"),
    (Step::Destroying, "destroying"),
    (Step::Released, "released"),
];
const TARGET: [(target::Step, &str); 10] = [
    (target::Step::Marking, "marking"),
    (target::Step::Opening, "opening"),
    (target::Step::Awaiting, "awaiting"),
    (target::Step::Restoring, "restoring"),
    (target::Step::Importing, "importing"),
    (target::Step::Preparing, "preparing"),
    (target::Step::Prepared, "prepared"),
    (target::Step::Activating, "activating"),
    (target::Step::HandingOver, "handingover"),
    (target::Step::Adopting, "adopting"),
];

/// How long moves stood at one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepTime {
    /// `source` or `target`.
    pub side: &'static str,
    /// The step.
    pub step: &'static str,
    /// How many moves have passed it.
    pub times: u64,
    /// The sum of what they took, microseconds.
    pub sum_us: u64,
    /// What half of them took at most; none without any.
    pub p50_us: Option<u64>,
    /// The same for 99 of 100.
    pub p99_us: Option<u64>,
}

/// How long moves stood at the steps on this host, up to now.
#[derive(Default)]
pub(super) struct Times {
    source: [Latency; SOURCE.len()],
    target: [Latency; TARGET.len()],
}

impl Times {
    /// A move has left a step at its source.
    pub fn at_source(&mut self, step: Step, us: u64) {
        if let Some(at) = SOURCE.iter().position(|(of, _)| *of == step) {
            self.source[at].record(us);
        }
    }

    /// The same at its target.
    pub fn at_target(&mut self, step: target::Step, us: u64) {
        if let Some(at) = TARGET.iter().position(|(of, _)| *of == step) {
            self.target[at].record(us);
        }
    }

    /// All steps, in the order in which they are taken.
    pub fn list(&self) -> Vec<StepTime> {
        let source = SOURCE.iter().zip(&self.source);
        let source = source.map(|((_, step), times)| sum_up("source", step, times));
        let target = TARGET.iter().zip(&self.target);
        let target = target.map(|((_, step), times)| sum_up("target", step, times));
        source.chain(target).collect()
    }
}

fn sum_up(side: &'static str, step: &'static str, times: &Latency) -> StepTime {
    StepTime {
        side,
        step,
        times: times.samples(),
        sum_us: times.sum_us(),
        p50_us: times.quantile_us(0.5),
        p99_us: times.quantile_us(0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_names_every_step() {
        const MANUAL: &str = include_str!("../../../docs/counters.md");
        for StepTime { side, step, .. } in Times::default().list() {
            assert!(MANUAL.contains(&format!("`{step}`")), "{side}: {step}");
        }
    }
}
