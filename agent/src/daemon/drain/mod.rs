//! Draining: this host takes no new sessions, and moves those that it has to others.
//!
//! In this order: the operator's command `on_drain`, whose failure ends it unless it is to
//! go on all the same; then new sessions are refused; then sessions move. Undraining goes
//! back: moves that are not released are called off, new sessions are taken, then comes
//! `on_undrain`. What is asked last holds: a command that runs for the opposite is killed.
//!
//! That new sessions are refused the kernel side is told first, and keeps it when the
//! agent goes: a host that drains does so until it is told otherwise. The moving ends with
//! the agent.

mod actor;
mod command;
mod told;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    admin::DrainOrder,
    config::Config,
    datapath::control::ControlMap,
    gossip::task::Handle,
    migration::drain::{Here, Mover, Run},
};
use actor::Actor;
pub(super) use told::{moved, run};

/// After an agent's start applications and hosts need so long to be known: until then
/// none is taken for missing.
const SETTLED_AFTER: Duration = Duration::from_secs(6);

/// Orders that may wait; each is answered at once.
const ORDERS_MAX: usize = 16;

/// What draining needs of the rest of the agent.
pub(super) struct Parts<M, H> {
    pub control: ControlMap,
    pub gossip: Handle,
    pub mover: M,
    /// How this host is looked at, anew for each run.
    pub here: H,
    /// The operator's commands, and how many moves at once.
    pub in_force: watch::Receiver<Arc<Config>>,
    /// What the operator's commands are told: instance, host.
    pub names: [(&'static str, String); 2],
}

/// Whether this host drains, and all who must know.
pub(super) struct Drain {
    draining: watch::Receiver<bool>,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    told: watch::Receiver<Told>,
}

enum Order {
    Begin(DrainOrder),
    End,
}

/// What can be seen of it.
#[derive(Clone, Default)]
pub(super) struct Told {
    pub command: Option<CommandTold>,
    pub run: Option<Arc<Run>>,
}

/// A command of the operator's that runs or has run.
#[derive(Clone)]
pub(super) struct CommandTold {
    pub name: &'static str,
    pub state: CommandState,
}

#[derive(Clone)]
pub(super) enum CommandState {
    Running,
    Done,
    Failed(String),
    Cancelled,
}

/// The agent is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the agent is stopping")]
pub(super) struct Stopped;

impl Drain {
    /// As an agent before left it, which is what `draining` says.
    pub fn new<M: Mover, H: Here + Clone>(
        parts: Parts<M, H>,
        draining: watch::Sender<bool>,
    ) -> Self {
        let watched = draining.subscribe();
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (tell, told) = watch::channel(Told::default());
        let settled_at = Instant::now() + SETTLED_AFTER;
        let actor = Actor::new(parts, draining, tell, settled_at);
        tokio::spawn(actor.run(inbox));
        Self {
            draining: watched,
            orders,
            told,
        }
    }

    /// Whether it does.
    pub fn is_on(&self) -> bool {
        *self.draining.borrow()
    }

    /// What can be seen of it.
    pub fn told(&self) -> Told {
        self.told.borrow().clone()
    }

    /// Begins it, or has what is under way go on as is wanted. Returns as soon as that
    /// has begun.
    ///
    /// # Errors
    ///
    /// The agent is stopping. If new sessions are refused already, the kernel side knows,
    /// and the next agent will.
    pub async fn begin(&self, order: DrainOrder) -> Result<(), Stopped> {
        self.order(Order::Begin(order)).await
    }

    /// Ends it. Returns once new sessions are taken.
    ///
    /// # Errors
    ///
    /// As [`Drain::begin`].
    pub async fn end(&self) -> Result<(), Stopped> {
        self.order(Order::End).await
    }

    async fn order(&self, order: Order) -> Result<(), Stopped> {
        let (done, is_done) = oneshot::channel();
        let sent = self.orders.send((order, done)).await;
        sent.map_err(|_| Stopped)?;
        is_done.await.map_err(|_| Stopped)
    }
}
