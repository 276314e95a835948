//! The admin socket: what the agent tells operators, and what they can ask of it.
//!
//! [`api`] is the contract: the JSON that `curl --unix-socket` and the command
//! line read. [`View`] is what an agent must be able to answer; [`server`] serves
//! it over HTTP on a Unix socket, [`metrics`] as Prometheus text. Nothing here
//! knows how the answers come about, so all of it is tested with an agent that
//! makes them up.
//!
//! The server never waits for an agent that is stuck: a request that takes longer
//! than [`server::ANSWER_WITHIN`] ends in an error.

pub mod advice;
pub mod api;
pub mod counts;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod manual;
pub mod metrics;
#[cfg(test)]
mod monitoring;
pub mod page;
pub mod pcapng;
pub mod server;
pub mod socket;
pub mod systemd;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    future::Future,
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::body::Bytes;
use homing_common::{host::HostId, session::Tuple};
use tokio::sync::mpsc;

use crate::{
    config::{Change, Problems, Takes},
    datapath::beside::capture,
    migration::drain::Wanted,
};

/// Why a [`View`] has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What was asked about does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense as things stand.
    #[error("{0}")]
    Conflict(String),
    /// The agent is starting, stopping or overloaded; later may do.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration is wrong.
    #[error("{0}\nnothing has changed")]
    Config(Problems),
    /// A reload cannot change all that differs in the file.
    #[error("{}", needs_restart(path, changes))]
    Restart {
        /// The file.
        path: PathBuf,
        /// What differs.
        changes: Vec<Change>,
    },
    /// Something failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

fn needs_restart(path: &Path, changes: &[Change]) -> String {
    let mut text = format!("{}: a reload cannot change", path.display());
    for change in changes {
        if change.takes == Takes::Restart {
            text += &format!("\n  {change}");
        }
    }
    text + "\nso nothing has changed: restart the agent (its sessions stay), or put these keys \
            back and reload again"
}

/// What an agent can be asked: implemented by the daemon.
///
/// Answers are snapshots. An implementation must not hold up the agent's own
/// work, and may be dropped before it has answered.
pub trait View: Send + Sync + 'static {
    /// This agent and the sum of what it knows.
    fn status(&self) -> impl Future<Output = Result<api::Status, Refusal>> + Send;

    /// All hosts of the POP, this one among them, by id.
    fn hosts(&self) -> impl Future<Output = Result<Vec<api::Host>, Refusal>> + Send;

    /// At most `limit` of this host's own sessions, in the order of their tuples,
    /// from the first after `after`. [`page::Page`] picks them.
    fn sessions(
        &self,
        after: Option<Tuple>,
        limit: usize,
    ) -> impl Future<Output = Result<api::Sessions, Refusal>> + Send;

    /// Who owns a session, and how this host knows. A session that nobody is
    /// known to own is an answer, not a refusal.
    fn owner(&self, session: Tuple) -> impl Future<Output = Result<api::Owner, Refusal>> + Send;

    /// What becomes of packets here, by the fast path itself, and why. Nothing comes of
    /// it.
    fn explain(
        &self,
        order: api::ExplainOrder,
    ) -> impl Future<Output = Result<api::Explanations, Refusal>> + Send;

    /// Captures packets: gives the pieces of a pcapng file, until what was ordered is there,
    /// or [`View::end_capture`]. Nobody reads: it ends.
    fn capture(
        &self,
        order: CaptureOrder,
    ) -> impl Future<Output = Result<Captured, Refusal>> + Send;

    /// Has the capture of this number, or whichever there is, come to its end; whether there
    /// was one.
    fn end_capture(&self, number: Option<u64>) -> bool;

    /// The carriers to and from other hosts.
    fn carriers(&self) -> impl Future<Output = Result<api::Carriers, Refusal>> + Send;

    /// The applications whose connections can move.
    fn apps(&self) -> impl Future<Output = Result<api::Apps, Refusal>> + Send;

    /// Message sockets.
    fn mux(&self) -> impl Future<Output = Result<api::Mux, Refusal>> + Send;

    /// Counters of the fast path, the hooks, gossip, carriers, applications and messages.
    fn stats(&self) -> impl Future<Output = Result<api::Stats, Refusal>> + Send;

    /// What is logged.
    fn log(&self) -> api::Log;

    /// Logs something else from now on, in the directives of `--log`.
    ///
    /// # Errors
    ///
    /// They make no sense: why.
    fn set_log(&self, level: &str) -> Result<(), String>;

    /// Whether the agent does its work, for `/healthz` and the watchdog: it must
    /// go through the loops that do it, so that one that hangs is noticed.
    fn health(&self) -> impl Future<Output = Result<api::Health, Refusal>> + Send;

    /// Begins a graceful stop: the agent leaves the POP and exits, and the others
    /// keep its claims for `hold` (none: as configured). Returns as soon as the
    /// stop has begun.
    fn leave(&self, hold: Option<Duration>) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Reads the configuration and the key file again and goes on with what they hold, or
    /// changes nothing. `dry`: only says what would change.
    fn reload(&self, dry: bool) -> impl Future<Output = Result<api::Reloaded, Refusal>> + Send;

    /// The configuration in force.
    fn config(&self) -> api::InForce;

    /// Whether new sessions go elsewhere, and how the moving of the others goes.
    fn drain(&self) -> impl Future<Output = Result<api::Drain, Refusal>> + Send;

    /// Sends new sessions elsewhere from now on, and moves those that there are. Returns
    /// as soon as that has begun. One that is under way goes on, with what is wanted to be
    /// different.
    fn begin_drain(
        &self,
        order: DrainOrder,
    ) -> impl Future<Output = Result<api::Drain, Refusal>> + Send;

    /// Takes new sessions again, and moves none away any more. Returns as soon as that
    /// holds.
    fn end_drain(&self) -> impl Future<Output = Result<api::Drain, Refusal>> + Send;

    /// Moves one of this host's sessions, and says what came of it. If it is not released
    /// `within` this time, it goes on here. May take [`server::MOVED_WITHIN`].
    fn move_session(
        &self,
        session: Tuple,
        target: HostId,
        within: Duration,
    ) -> impl Future<Output = Result<api::Moved, Refusal>> + Send;
}

/// What the agent logs, and how that is changed.
pub trait Logs: Send + Sync {
    /// What is logged now, and what was at the start.
    fn level(&self) -> api::Log;

    /// Logs something else from now on.
    ///
    /// # Errors
    ///
    /// The directives make no sense: why.
    fn set_level(&self, level: &str) -> Result<(), String>;
}

/// What is to be captured, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOrder {
    /// Which packets.
    pub wanted: capture::Wanted,
    /// How many at most.
    pub count: Option<NonZeroU64>,
    /// For how long at most.
    pub duration: Option<Duration>,
}

/// A capture that has begun.
#[derive(Debug)]
pub struct Captured {
    /// Its number, of all since the agent's start.
    pub number: u64,
    /// The pieces of the file.
    pub pieces: mpsc::Receiver<Bytes>,
}

/// How a host is to drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    /// How its sessions are to be moved.
    pub wanted: Wanted,
    /// Whether they are to be.
    pub moves: bool,
    /// Whether it is to go on although the operator's command fails.
    pub force: bool,
}
