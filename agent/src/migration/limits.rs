//! Bounds, and counters of what happened.

use std::time::Duration;

use crate::pop::{MS, SECOND, counters::counters};

/// What a host's moves are bound by. Times are microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Moves from this host under way at once, up to the confirmation. More wait.
    pub from_here: usize,
    /// Moves to this host under way at once. More are refused.
    pub to_here: usize,
    /// Commands that wait for their turn. More are refused.
    pub waiting: usize,
    /// Bytes of states held at once, on either side.
    pub bytes: usize,
    /// Moves that are confirmed and still divert stragglers. More make the oldest end.
    /// Together with the moves under way they must fit into the journal.
    pub settling: usize,
    /// The most that each step may take which has no bound of its own.
    pub step: u64,
    /// How long the source keeps a session frozen, at least, before it resumes without
    /// having heard that the target has dropped its copy. Must be longer than it takes
    /// to find a kernel dead, so that a target has time to serve in its place.
    pub hold: u64,
    /// How long a target stays in doubt before it drops its copy.
    pub doubt: u64,
    /// How long an agent waits for an application that is to come back: to its agent,
    /// which has started anew, or to a session that was released to it.
    pub recover: u64,
    /// How long stragglers are diverted once the target has confirmed: the time in
    /// which its claim spreads.
    pub settle: u64,
    /// Messages passed on for others in a second.
    pub passed_on: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            from_here: 64,
            to_here: 64,
            waiting: 1 << 16,
            bytes: 64 << 20,
            settling: 3_500,
            step: 2 * SECOND,
            hold: 4 * SECOND,
            doubt: 30 * SECOND,
            recover: 10 * SECOND,
            settle: SECOND,
            passed_on: 10_000,
        }
    }
}

impl Limits {
    /// The same for a POP that finds a kernel dead within so long: `hold` is a third
    /// longer than that, if it is not anyway, and the other bounds follow. All hosts must
    /// have the same, or a source resumes while a target still may serve.
    pub fn outlasting(self, kernel_dead_after: Duration) -> Self {
        let dead_after = kernel_dead_after.as_micros() as u64;
        let hold = self.hold.max(dead_after + dead_after / 3);
        // Who is in doubt must not give up before the source may be void.
        let doubt = self.doubt.max(hold + 10 * SECOND);
        Self {
            hold,
            doubt,
            ..self
        }
    }

    /// How long after the freeze a move is kept whose end the target does not confirm:
    /// longer than any target is in doubt or waits for its application, so that one
    /// that still asks is told.
    pub fn kept(&self) -> u64 {
        self.doubt + self.recover + 6 * self.step
    }
}

/// Until when after its first entry in the journal a target may serve because the source's
/// kernel is dead, if the source holds the session for so long: clocks of two hosts do not
/// differ by more than a 64th.
pub(super) fn void_window(hold: u64) -> u64 {
    hold - hold / 64
}

/// Until a message is sent again; doubles each time.
pub(super) const REPEAT_MIN: u64 = 50 * MS;
/// The same for a state, which is large.
pub(super) const REPEAT_STATE: u64 = 500 * MS;
/// The longest time until a message is sent again.
pub(super) const REPEAT_MAX: u64 = SECOND;
/// Ended moves that are remembered, so that a repeated message begins nothing.
pub(super) const REMEMBERED: usize = 1 << 14;

counters! {
    /// What happened to the moves of one host.
    Counters {
        /// Moves from this host that were begun.
        begun,
        /// Sessions that go on at their target.
        moved,
        /// Moves refused before the session was touched.
        refused,
        /// Moves given up; the session went on here.
        aborted,
        /// Moves given up; the session or its application was gone.
        gone,
        /// Sessions lost: released, and the target did not take over; or given up because nobody could be sure.
        lost,
        /// Moves to this host that were agreed to.
        agreed,
        /// Moves to this host that were refused.
        turned_away,
        /// Sessions taken over by this host.
        taken_over,
        /// Sessions taken over by this host because the source's kernel was dead.
        taken_over_void,
        /// Copies of sessions dropped: the move was given up.
        copies_dropped,
        /// Copies dropped that nobody had decided on within the bound of doubt.
        copies_given_up,
        /// Copies dropped because the source's kernel was dead, and it was too late to be sure that it had not resumed.
        copies_void_too_late,
        /// Copies lost: released, but the application had gone.
        copies_lost,
        /// Entries found in the journal at the agent's start.
        found,
        /// Messages of moves sent again because no answer had come.
        repeated,
        /// Messages passed on for others.
        passed_on,
        /// Messages not passed on: too many in a second, or not to be passed on by this host.
        not_passed_on,
        /// Messages that are none.
        malformed,
        /// Orders of the datapath that had to be given again.
        orders_repeated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_time_to_serve_for_a_dead_source_however_late_it_is_found_dead() {
        let of = |ms| Limits::default().outlasting(Duration::from_millis(ms));
        assert_eq!(of(3_000), Limits::default());
        assert_eq!(of(1_000), Limits::default());
        for ms in [3_000, 3_001, 10_000, 23_000, 60_000] {
            let limits = of(ms);
            let dead_after = ms * MS;
            // What the steps up to *prepared* may take, and what a judgement may be late.
            assert!(
                void_window(limits.hold) > dead_after + dead_after / 4,
                "{ms}"
            );
            assert!(void_window(limits.hold) < limits.hold);
            assert!(limits.doubt > limits.hold && limits.kept() > limits.doubt);
        }
    }
}
