//! The moves that are pending at an application.

use std::{collections::HashMap, os::fd::OwnedFd};

use crate::{Application, Assembly, Blob, Exported, wire::Connection};

pub(crate) type Moves<A> = HashMap<u64, Move<A>>;

/// One move.
pub(crate) struct Move<A: Application> {
    pub connection: Connection,
    pub step: Step<A>,
}

/// How far it is.
pub(crate) enum Step<A: Application> {
    /// The application stops its readers and writers.
    Exporting {
        /// The agent has taken it back meanwhile, or has gone.
        cancelled: bool,
    },
    /// The agent decides what becomes of it. The descriptor stays here for an agent that
    /// comes after this one.
    Exported {
        exported: Exported<A::Kept>,
        /// The state, on its way back.
        back: Option<Assembly>,
    },
    /// The agent has the socket, too; the state comes.
    Importing {
        socket: OwnedFd,
        state: Option<Assembly>,
    },
    /// The application looks at the state.
    Beginning { socket: OwnedFd, cancelled: bool },
    /// It can go on from it.
    Begun { socket: OwnedFd, begun: A::Begun },
}

impl<A: Application> Step<A> {
    /// A state comes in parts: the place for them, and the step's own say whether any may
    /// come now.
    pub fn assembly(&mut self) -> Option<&mut Option<Assembly>> {
        match self {
            Self::Exported { back, .. } => Some(back),
            Self::Importing { state, .. } => Some(state),
            _ => None,
        }
    }
}

/// A task of the application's has ended.
pub(crate) enum Done<A: Application> {
    Exported(u64, Result<Exported<A::Kept>, crate::Refusal>),
    Begun(u64, Result<A::Begun, crate::Refusal>),
    /// With the number of the connection to the agent that asked for it.
    Adopted(u64, u64, Result<(), crate::Refusal>),
    /// One that nobody waits for.
    Other,
}

/// The state that came back, or the one that was kept.
pub(crate) fn state_of(back: Option<Assembly>, kept: Blob) -> Blob {
    match back {
        Some(assembly) if assembly.is_whole() => assembly.finish(),
        _ => kept,
    }
}
