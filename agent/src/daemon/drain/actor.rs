//! The order of things: one at a time, whoever asks.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{CommandState, CommandTold, Order, Parts, Told, command};
use crate::{
    admin::DrainOrder,
    migration::drain::{Here, Mover, Run},
};

pub(super) struct Actor<M, H> {
    parts: Parts<M, H>,
    draining: watch::Sender<bool>,
    tell: watch::Sender<Told>,
    settled_at: Instant,
    command: Option<Command>,
}

/// A command that runs.
struct Command {
    name: &'static str,
    task: JoinHandle<Result<(), String>>,
    /// What comes after it.
    then: Option<DrainOrder>,
}

const ON_DRAIN: &str = "on_drain";
const ON_UNDRAIN: &str = "on_undrain";

impl<M: Mover, H: Here + Clone> Actor<M, H> {
    pub fn new(
        parts: Parts<M, H>,
        draining: watch::Sender<bool>,
        tell: watch::Sender<Told>,
        settled_at: Instant,
    ) -> Self {
        Self {
            parts,
            draining,
            tell,
            settled_at,
            command: None,
        }
    }

    /// Until nobody can ask any more.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<(Order, oneshot::Sender<()>)>) {
        loop {
            let ended = async {
                match &mut self.command {
                    Some(command) => (&mut command.task).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = inbox.recv() => {
                    let Some((order, done)) = order else { return };
                    match order {
                        Order::Begin(order) => self.begin(order).await,
                        Order::End => self.end().await,
                    }
                    // Who asked may have gone.
                    let _ = done.send(());
                }
                ended = ended => {
                    let done = ended.unwrap_or_else(|error| Err(error.to_string()));
                    self.command_ended(done).await;
                }
            }
        }
    }

    async fn begin(&mut self, order: DrainOrder) {
        if let Some(run) = self.live_run() {
            match order.moves {
                true if order.wanted.is_empty() => {}
                true => run.replace(order.wanted),
                false => run.stop(),
            }
            return;
        }
        if let Some(Command {
            then: Some(then), ..
        }) = &mut self.command
        {
            // It is about to begin; what is asked last holds.
            *then = order;
            return;
        }
        self.cancel();
        // What came of another time says nothing of this one.
        self.tell.send_modify(|told| told.run = None);
        match self.start(ON_DRAIN, Some(order)) {
            Ok(()) => {}
            Err(order) => self.engage(order).await,
        }
    }

    async fn end(&mut self) {
        self.cancel();
        if let Some(run) = self.live_run() {
            run.stop();
        }
        self.set(false).await;
        // Without such a command nothing comes after.
        let _ = self.start(ON_UNDRAIN, None);
    }

    fn live_run(&self) -> Option<Arc<Run>> {
        let run = self.tell.borrow().run.clone();
        run.filter(|run| run.is_live())
    }

    /// Refuses new sessions, and moves the others.
    async fn engage(&mut self, order: Option<DrainOrder>) {
        let Some(order) = order else { return };
        self.set(true).await;
        if !order.moves {
            return;
        }
        let Parts {
            mover,
            here,
            in_force,
            gossip,
            ..
        } = &self.parts;
        let in_force = in_force.clone();
        let run = Run::start(
            mover.clone(),
            here.clone(),
            gossip.watch_hosts(),
            order.wanted.over(None).0,
            move || in_force.borrow().migration.moves.into(),
            self.settled_at.saturating_duration_since(Instant::now()),
        );
        self.tell.send_modify(|told| told.run = Some(Arc::new(run)));
    }

    async fn set(&mut self, draining: bool) {
        if *self.draining.borrow() != draining {
            tracing::info!(
                draining,
                "new sessions are {}",
                if draining { "refused" } else { "taken" }
            );
        }
        self.parts.control.set_draining(draining);
        self.draining.send_replace(draining);
        // Gossip that has stopped does so with the agent; the next one will tell.
        let _ = self.parts.gossip.drain(draining).await;
    }

    /// Starts a command of the operator's, if there is one; else gives back what comes
    /// after it.
    fn start(
        &mut self,
        name: &'static str,
        then: Option<DrainOrder>,
    ) -> Result<(), Option<DrainOrder>> {
        let config = self.parts.in_force.borrow().drain.clone();
        let argv = match name {
            ON_DRAIN => config.on_drain,
            _ => config.on_undrain,
        };
        if argv.is_empty() {
            return Err(then);
        }
        let names = self.parts.names.clone();
        let within = config.timeout;
        let task = tokio::spawn(async move { command::run(name, &argv, &names, within).await });
        self.command = Some(Command { name, task, then });
        self.tell_command(name, CommandState::Running);
        Ok(())
    }

    /// Kills the command that runs, if one does.
    fn cancel(&mut self) {
        if let Some(command) = self.command.take() {
            tracing::warn!(
                command = command.name,
                fix = "nothing, if that is what was meant: the command for the opposite runs next",
                "the operator's command is killed in the middle: the opposite is asked for"
            );
            command.task.abort();
            self.tell_command(command.name, CommandState::Cancelled);
        }
    }

    async fn command_ended(&mut self, done: Result<(), String>) {
        let Some(Command { name, then, .. }) = self.command.take() else {
            return;
        };
        let goes_on = done.is_ok() || then.as_ref().is_some_and(|order| order.force);
        // Before its end is told: who waits for that sees what came after it.
        if goes_on {
            self.engage(then).await;
        }
        self.tell_command(
            name,
            match done {
                Ok(()) => CommandState::Done,
                Err(why) => CommandState::Failed(why),
            },
        );
    }

    fn tell_command(&self, name: &'static str, state: CommandState) {
        let command = Some(CommandTold { name, state });
        self.tell.send_modify(|told| told.command = command);
    }
}
