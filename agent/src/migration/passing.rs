//! Messages that this host passes on for two others that do not reach each other.

use super::{context::Context, order::Output, wire::Passed};
use crate::pop::SECOND;
use homing_common::host::HostId;

/// Counts what is passed on, second by second.
#[derive(Default)]
pub(super) struct Passing {
    second: u64,
    count: u32,
}

impl Passing {
    /// Passes a message on, if it came from who wrote it and there were not too many.
    pub fn pass(&mut self, ctx: &mut Context<'_>, from: HostId, passed: Passed<'_>) {
        let second = ctx.now / SECOND;
        if second != self.second {
            *self = Self { second, count: 0 };
        }
        if passed.origin != from || self.count >= ctx.limits.passed_on {
            ctx.out.counters.not_passed_on += 1;
            return;
        }
        self.count += 1;
        ctx.out.counters.passed_on += 1;
        ctx.out.queue.push_back(Output::Send {
            to: passed.destination,
            bytes: passed.encode().into(),
        });
    }
}
