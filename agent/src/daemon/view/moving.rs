//! Draining, and moves of single sessions.

use std::time::Duration;

use homing_common::{host::HostId, net::TCP, session::Tuple};
use tokio::time::Instant;

use super::{AgentView, blocking, latency};
use crate::{
    admin::{DrainOrder, Refusal, api, page},
    daemon::drain::{self, Stopped},
};

impl From<Stopped> for Refusal {
    fn from(stopped: Stopped) -> Self {
        Self::Unavailable(stopped.to_string())
    }
}

impl AgentView {
    /// The moving of sessions that was begun last.
    pub(super) fn drain_run(&self) -> Option<api::DrainRun> {
        let run = self.drain.told().run?;
        // Before its progress, so that one that ends now is seen to.
        let is_live = run.is_live();
        let mut told = drain::run(&run.progress(), latency);
        if !is_live && told.end.is_none() {
            // The agent is stopping: nothing moves any more.
            told.end = Some(api::DrainEnd::Stopped);
        }
        Some(told)
    }

    /// How draining stands.
    pub(super) async fn drain_told(&self) -> Result<api::Drain, Refusal> {
        let hosts = self.gossip.hosts().await?;
        let command = self.drain.told().command;
        let run = self.drain_run();
        let sessions = match run.as_ref().filter(|run| run.end.is_none()) {
            Some(run) => run.queued + run.moving + run.left(),
            None => self.count_sessions().await?,
        };
        Ok(api::Drain {
            draining: self.drain.is_on(),
            sessions,
            takers: hosts.iter().filter(|host| host.takes_sessions()).count() as u32,
            command: command.map(|command| command.told()),
            run,
        })
    }

    /// The entries of `SESSIONS`. What is counted by events is late by the time that a
    /// session's end, or its departure, is held back from the POP.
    async fn count_sessions(&self) -> Result<u64, Refusal> {
        let sessions = self.sessions.clone();
        blocking("SESSIONS", move || {
            let mut count = 0;
            sessions.scan(|_, _| count += 1)?;
            Ok(count)
        })
        .await
    }

    /// Begins to drain.
    pub(super) async fn drain_begun(&self, order: DrainOrder) -> Result<api::Drain, Refusal> {
        for host in order.wanted.to.iter().flatten() {
            self.is_other_host(*host).await?;
        }
        self.drain.begin(order).await?;
        self.drain_told().await
    }

    /// Has a session moved.
    pub(super) async fn session_moved(
        &self,
        session: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<api::Moved, Refusal> {
        self.is_other_host(target).await?;
        let sessions = self.sessions.clone();
        let here = blocking("SESSIONS", move || sessions.get(&session)).await?;
        let name = page::name(&session, session.id(&self.session_key));
        if here.is_none() {
            let owner = self.owner_of(session).await?;
            let (client, service) = (name.client, name.service);
            let who = owner.owner.map_or_else(
                || "nobody is known to have it".to_owned(),
                |host| format!("host {host} has it, and can move it"),
            );
            let why = format!("the session {client} > {service} is not here: {who}");
            return Err(Refusal::NotFound(why));
        }
        if session.protocol != TCP {
            return Err(Refusal::Conflict(
                "only sessions of TCP can move".to_owned(),
            ));
        }
        let begun = Instant::now();
        let report = self.moves.move_session(session, target, within).await;
        let report = report.map_err(|stopped| Refusal::Unavailable(stopped.to_string()))?;
        Ok(drain::moved(name, report, begun.elapsed()))
    }

    /// Whether sessions can be sent to a host at all.
    async fn is_other_host(&self, host: HostId) -> Result<(), Refusal> {
        if host == self.reload.config().host.id {
            let why = format!("host {host} is this host: name another one");
            return Err(Refusal::Conflict(why));
        }
        let hosts = self.gossip.hosts().await?;
        match hosts.iter().any(|known| known.host == host) {
            true => Ok(()),
            false => Err(Refusal::Conflict(format!(
                "host {host} is not known here: `homing hosts` lists all that are"
            ))),
        }
    }
}
