//! Why a session does not move.

use crate::migration::Reason;

/// Why a session does not move, or has not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// It is a flow of UDP, which has no socket of its own.
    Udp,
    /// No application here has registered its service.
    NoApplication,
    /// Its application has closed it, and the kernel has yet to bring that to its end.
    Closing,
    /// The application has not accepted it yet.
    NotAccepted,
    /// No other host takes sessions, or none of those that it may go to.
    NoTarget,
    /// Its turn had not come when time was up.
    TimeUp,
    /// Its turn had not come when the drain was stopped.
    Stopped,
    /// What its last move was refused or given up for.
    Move(Reason),
}

impl Why {
    /// The name in JSON and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::NoApplication => "no_application",
            Self::Closing => "closing",
            Self::NotAccepted => "not_accepted",
            Self::NoTarget => "no_target",
            Self::TimeUp => "time_up",
            Self::Stopped => "stopped",
            Self::Move(reason) => label(reason),
        }
    }

    /// What a person reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "flows of UDP cannot be moved",
            Self::NoApplication => "no application here has registered the service",
            Self::Closing => "the application has closed it; the kernel ends it",
            Self::NotAccepted => "the application has not accepted it yet",
            Self::NoTarget => "no other host takes it",
            Self::TimeUp => "its turn had not come at the deadline",
            Self::Stopped => "its turn had not come when the drain was stopped",
            Self::Move(reason) => reason.as_str(),
        }
    }

    /// Whether it passes by itself, or may: such sessions are waited for.
    pub(super) fn passes(self) -> bool {
        matches!(self, Self::Closing | Self::NotAccepted)
    }
}

impl PartialOrd for Why {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Why {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.label().cmp(other.label())
    }
}

/// The name of a reason. At the target there is no application where it is named so.
fn label(reason: Reason) -> &'static str {
    match reason {
        Reason::NoService => "target_no_service",
        Reason::Full => "target_full",
        Reason::Draining => "target_draining",
        Reason::NoApplication => "target_no_application",
        Reason::OtherVersion => "target_other_version",
        Reason::Live => "target_live",
        Reason::Moving => "moving",
        Reason::TooLarge => "too_large",
        Reason::Application => "application",
        Reason::ApplicationGone => "application_gone",
        Reason::Gone => "gone",
        Reason::NotCarried => "not_carried",
        Reason::Kernel => "kernel",
        Reason::Changed => "changed",
        Reason::Timeout => "timeout",
        Reason::Deadline => "deadline",
        Reason::Restarted => "restarted",
        Reason::Over => "over",
        Reason::NoMember => "target_no_member",
        Reason::Voided => "target_dead",
        Reason::CalledOff => "called_off",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_reasons_have_one_name() {
        let own = [
            Why::Udp,
            Why::NoApplication,
            Why::Closing,
            Why::NotAccepted,
            Why::NoTarget,
            Why::TimeUp,
            Why::Stopped,
        ];
        let all = own.into_iter().chain(Reason::ALL.map(Why::Move));
        let names: BTreeSet<_> = all.clone().map(Why::label).collect();
        assert_eq!(names.len(), all.count());
    }
}
