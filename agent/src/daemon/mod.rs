//! The daemon: puts the subsystems together, and takes them down in order.
//!
//! At a start the fast path comes first, with what an agent before left in its
//! maps, so that no packet waits for gossip; then the agent joins the POP, and
//! says that it is ready once it answers questions. At a stop the POP is told
//! first; the fast path stays, pinned, and goes on forwarding.
//!
//! Any part that ends unasked ends the agent, with its reason: a supervisor that
//! starts it again is the better repair, and the fast path does not mind.

mod admin;
mod bases;
mod crowded;
mod drain;
mod limits;
mod linger;
mod members;
mod mss;
mod problems;
mod pump;
mod reload;
mod rendezvous;
mod start;
mod table;
mod thread;
mod view;
mod vitals;

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    admin::{Logs, systemd},
    config::Config,
};
use admin::AdminSockets;
use bases::Doors;

/// How long a graceful stop waits for sessions that are moving.
const MOVES_WITHIN: Duration = Duration::from_secs(3);
/// How long a graceful stop may take to tell the POP.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Runs an agent until it is told to stop: by SIGTERM, SIGINT or the admin socket.
///
/// # Errors
///
/// What could not be started, or which part ended and why.
pub async fn run(config: Config, logs: Arc<dyn Logs>) -> Result<()> {
    // Before anything that takes time: until then a signal ends the process as it stands.
    let mut signals = Signals::new()?;
    // A second agent is refused before it changes anything.
    let (sockets, admin) = AdminSockets::open(&config)?;
    let doors = Doors::open(&config)?;
    let (leave, mut leaving) = watch::channel(None);
    let mut parts = Parts::default();
    let agent = start::start(&config, doors, admin, logs, leave, &mut parts).await?;
    let view = Arc::new(agent.view);

    let (stop_serving, stopped) = watch::channel(());
    let serving = tokio::spawn(sockets.serve(view.clone(), stopped));
    let watchdog = tokio::spawn(systemd::watchdog(view.clone()));
    tracing::info!(
        host = %config.host.id, domain = config.host.domain, socket = %config.admin.socket.display(),
        "the agent is ready"
    );
    systemd::ready("serving");

    let outcome = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop(name) => {
                    tracing::info!(signal = name, "stopping");
                    break Ok(None);
                }
                Signal::Reload => {
                    let view = view.clone();
                    // What comes of it is in the log.
                    tokio::spawn(async move { view.reload.run(false).await });
                }
            },
            hold = asked(&mut leaving) => {
                tracing::info!("stopping: the admin socket asked for it");
                break Ok(hold);
            }
            error = parts.ended() => break Err(error),
        }
    };
    systemd::stopping("leaving the POP");
    // Its reader is to hear what was counted.
    view.capture_ended(None);
    let result = match outcome {
        Ok(hold) => {
            if timeout(MOVES_WITHIN, agent.moves.leave()).await.is_err() {
                tracing::warn!(
                    waited_s = MOVES_WITHIN.as_secs_f64(),
                    fix = "start the agent again: the next one settles these moves; until then their packets wait",
                    "the agent stops while sessions are still moving"
                );
            }
            let hold = hold.unwrap_or(view.reload.config().pop.leave_hold);
            match timeout(LEAVE_WITHIN, agent.gossip.leave(hold)).await {
                Ok(_) => tracing::info!(hold_s = hold.as_secs_f64(), "left the POP"),
                Err(_) => tracing::warn!(
                    waited_s = LEAVE_WITHIN.as_secs_f64(),
                    fix = "nothing: the others notice by themselves, and keep this host's sessions",
                    "the POP could not be told in time that the agent stops"
                ),
            }
            Ok(())
        }
        Err(error) => Err(error),
    };
    agent.bases.stop().await;
    drop(stop_serving);
    watchdog.abort();
    // A panic has been reported.
    let _ = serving.await;
    result
}

/// Waits until somebody asks, by the admin socket, that the agent leave; gives the
/// hold that was asked for.
async fn asked(leaving: &mut watch::Receiver<Option<Option<Duration>>>) -> Option<Duration> {
    match leaving.wait_for(Option::is_some).await {
        Ok(hold) => hold.flatten(),
        Err(_) => std::future::pending().await,
    }
}

/// What a signal asks for.
enum Signal {
    /// To stop; the signal's name.
    Stop(&'static str),
    /// To read configuration and key file again.
    Reload,
}

/// The signals that an agent listens to.
struct Signals {
    hang_up: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

/// The tasks that make up a running agent.
#[derive(Default)]
struct Parts(JoinSet<(&'static str, Result<()>)>);

impl Parts {
    /// Runs a part, which is not expected to end.
    fn run(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.0.spawn(async move { (name, part.await) });
    }

    /// Waits until a part ends, and says which and why.
    async fn ended(&mut self) -> anyhow::Error {
        match self.0.join_next().await {
            None => std::future::pending().await,
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended unasked"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(error)) => anyhow::anyhow!("a part of the agent died: {error}"),
        }
    }
}
