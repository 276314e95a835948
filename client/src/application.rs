//! What an application must be able to do.

use std::{fmt::Display, future::Future, os::fd::OwnedFd, time::Duration};

use crate::{
    Blob,
    wire::{Connection, Reason, cut_text},
};

/// A connection that was exported.
#[derive(Debug)]
pub struct Exported<K> {
    /// A descriptor of it. It goes to the agent; a copy of it is kept until the move has
    /// ended.
    pub descriptor: OwnedFd,
    /// What an application of the same kind needs to go on with it.
    pub state: Blob,
    /// What this application needs to go on with it itself, besides the state.
    pub kept: K,
}

/// Why an application does not do what it is asked to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}{}{text}", if text.is_empty() { "" } else { ": " })]
pub struct Refusal {
    /// The kind of reason.
    pub reason: Reason,
    /// More, for operators; what exceeds 255 bytes is cut off.
    pub text: String,
}

impl Refusal {
    /// Something else than what the other [reasons](Reason) say.
    pub fn failed(why: impl Display) -> Self {
        Self {
            reason: Reason::Failed,
            text: cut_text(&why.to_string()).to_owned(),
        }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            text: String::new(),
        }
    }
}

/// An application whose connections can move. Methods run as tokio tasks, those of
/// several connections at the same time; a panic in one of them ends
/// [`Registration::serve`](crate::Registration::serve) with that panic.
pub trait Application: Send + Sync + 'static {
    /// What it keeps of a connection while that is being moved away.
    type Kept: Send + 'static;
    /// What a connection that is being moved here begins with.
    type Begun: Send + 'static;

    /// The agent knows the application, and that all it holds of earlier moves.
    fn registered(&self) {}

    /// The agent is not there, has gone, or has closed the connection, for a reason that
    /// is meant for a log. It is tried again.
    fn unreachable(&self, why: &str) {
        let _ = why;
    }

    /// Stops every reader and writer of a connection at a boundary: from here on nobody
    /// reads from it or writes to it, threads that were blocked in a read are out of it,
    /// and what was read and not served is in the state. An answer that comes later than
    /// `within` is too late: the application will be told to resume.
    ///
    /// # Errors
    ///
    /// It goes on with the connection, or does not know it.
    fn export(
        &self,
        connection: Connection,
        within: Duration,
    ) -> impl Future<Output = Result<Exported<Self::Kept>, Refusal>> + Send;

    /// Goes on with a connection that was exported: it stays here.
    fn resume(
        &self,
        connection: Connection,
        kept: Self::Kept,
        state: Blob,
    ) -> impl Future<Output = ()> + Send;

    /// A connection that was exported lives elsewhere now: its descriptors here are dead,
    /// and can be closed.
    fn committed(
        &self,
        connection: Connection,
        kept: Self::Kept,
    ) -> impl Future<Output = ()> + Send {
        drop((connection, kept));
        async {}
    }

    /// Looks whether it could go on from a state. This is the moment to refuse, for the
    /// connection still lives where it was; once [adopted](Self::adopt) it lives here
    /// alone. If the connection does not come after all, what is returned is dropped.
    ///
    /// # Errors
    ///
    /// It cannot, and the connection stays where it is.
    fn begin(
        &self,
        connection: Connection,
        state: Blob,
    ) -> impl Future<Output = Result<Self::Begun, Refusal>> + Send;

    /// Serves a connection that was moved here. The socket is connected, does not block,
    /// and has the options that it had.
    ///
    /// # Errors
    ///
    /// It cannot; the connection ends.
    fn adopt(
        &self,
        connection: Connection,
        begun: Self::Begun,
        socket: OwnedFd,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
}
