//! Draining: the sessions of this host move to others, as many as can, and what cannot
//! is told by its reason.
//!
//! What it promises:
//!
//! - Every session that this host has meanwhile ends in exactly one class: moved; ended
//!   by itself; gone with its application in the middle of its move; lost; or left here,
//!   with a reason ([`Why`]). New ones that appear are taken in until none is left.
//! - No more moves are under way at once than may be, no more are begun than the rate
//!   allows, and no session is in two of them.
//! - The target of a session is its rendezvous host among those that take sessions. One
//!   that refuses makes the session try the next; what fails otherwise is tried again
//!   after a pause, so many times.
//! - What has no descriptor any more (closing connections) is waited for.
//! - It ends: when nothing is left, when nothing that is left can move, at its deadline,
//!   or when it is stopped; moves that are not released are then called off.
//!
//! What it does not do: it neither says that this host takes no new sessions, nor does it
//! move anything itself. [`Plan`] is sans-IO: what there is, what came of moves, and the
//! time go in; moves to begin come out. [`Run`] drives it; [`Mover`] carries moves out,
//! and [`Here`] looks at this host.

mod here;
mod pace;
mod plan;
mod progress;
mod run;
mod targets;
mod why;

pub use here::{Here, ThisHost};
pub use plan::{Begin, End, Plan};
pub use progress::Progress;
pub use run::{Mover, Run};
pub use why::Why;

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use homing_common::{host::HostId, session::Tuple};

/// How to drain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Only to these hosts; to any if empty.
    pub to: BTreeSet<HostId>,
    /// Moves begun in a second, at most.
    pub rate: Option<NonZeroU32>,
    /// After this long what has not moved stays.
    pub deadline: Option<Duration>,
    /// Go on until the deadline while sessions are left that cannot be moved: they may
    /// end.
    pub wait: bool,
}

/// How long a drain takes at most, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(60);

impl Default for Options {
    fn default() -> Self {
        Self {
            to: BTreeSet::new(),
            rate: None,
            deadline: Some(DEADLINE),
            wait: false,
        }
    }
}

/// What is asked to be different; the rest stays as it is, or as [`Options::default`]
/// says if nothing is under way.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    /// Only to these hosts.
    pub to: Option<BTreeSet<HostId>>,
    /// Moves begun in a second.
    pub rate: Option<NonZeroU32>,
    /// After this long, from now on, what has not moved stays.
    pub deadline: Option<Duration>,
    /// Go on until the deadline while sessions are left that cannot be moved.
    pub wait: bool,
}

impl Wanted {
    /// Whether nothing is asked to be different.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is to be done from now on, where `before` is under way; and whether its
    /// deadline is a new one, which counts from now on.
    pub fn over(self, before: Option<&Options>) -> (Options, bool) {
        let fresh = before.is_none();
        let before = before.cloned().unwrap_or_default();
        // Who waits for sessions to end does not know for how long.
        let deadline = match (self.deadline, self.wait) {
            (None, true) => None,
            (None, false) => before.deadline,
            (given, _) => given,
        };
        let is_new = fresh || self.wait || self.deadline.is_some();
        let options = Options {
            to: self.to.unwrap_or(before.to),
            rate: self.rate.or(before.rate),
            deadline,
            wait: self.wait || before.wait,
        };
        (options, is_new)
    }
}

/// A session as it was found on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The session.
    pub tuple: Tuple,
    /// The cookie of its socket: tells apart two sessions that use one tuple after each
    /// other.
    pub cookie: u64,
    /// What its rendezvous host is chosen by.
    pub key: u64,
    /// Why it cannot be moved as it stands; none if it can.
    pub hindrance: Option<Why>,
}

/// What there is on this host.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Look {
    /// All sessions that were open all the while.
    pub sessions: Vec<Found>,
    /// Sessions on their way here: whoever agreed to take them before this host drained.
    pub arriving: usize,
    /// Connections that are closed and that the kernel still answers for (TIME_WAIT).
    pub time_wait: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        assert_eq!(Wanted::default().over(None), (Options::default(), true));
        let wait = Wanted {
            wait: true,
            ..Wanted::default()
        };
        let (waiting, _) = wait.clone().over(None);
        assert_eq!((waiting.wait, waiting.deadline), (true, None));
        let rate = Wanted {
            rate: NonZeroU32::new(7),
            ..Wanted::default()
        };
        let before = Options {
            to: [HostId(3)].into(),
            ..Options::default()
        };
        let after = Options {
            rate: NonZeroU32::new(7),
            ..before.clone()
        };
        assert_eq!(rate.over(Some(&before)), (after, false));
        let (waiting, is_new) = wait.over(Some(&before));
        assert_eq!((waiting.deadline, is_new), (None, true));
        let (waiting, is_new) = Wanted::default().over(Some(&waiting));
        assert_eq!(
            (waiting.wait, waiting.deadline, is_new),
            (true, None, false)
        );
    }
}
