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

pub mod api;
pub mod counts;
#[cfg(test)]
pub(crate) mod fake;
pub mod metrics;
pub mod page;
pub mod server;
pub mod socket;
pub mod systemd;
#[cfg(test)]
pub(crate) mod tests;

use std::{future::Future, time::Duration};

use homing_common::session::Tuple;

/// Why a [`View`] has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What was asked about does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The agent is starting, stopping or overloaded; later may do.
    #[error("{0}")]
    Unavailable(String),
    /// Something failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
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

    /// Counters of the fast path, the hooks and gossip.
    fn stats(&self) -> impl Future<Output = Result<api::Stats, Refusal>> + Send;

    /// Whether the agent does its work, for `/healthz` and the watchdog: it must
    /// go through the loops that do it, so that one that hangs is noticed.
    fn health(&self) -> impl Future<Output = Result<api::Health, Refusal>> + Send;

    /// Begins a graceful stop: the agent leaves the POP and exits, and the others
    /// keep its claims for `hold` (none: as configured). Returns as soon as the
    /// stop has begun.
    fn leave(&self, hold: Option<Duration>) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Reads the key file again and goes on with what it holds; a file that is
    /// wrong changes nothing.
    fn reload(&self) -> impl Future<Output = Result<api::Reloaded, Refusal>> + Send;

    /// Sends new sessions elsewhere from now on, or no longer.
    fn drain(&self, draining: bool) -> impl Future<Output = Result<api::Draining, Refusal>> + Send;
}
