//! Draining: this host takes no new sessions.
//!
//! The kernel side is told first, and keeps it when the agent goes: a host that
//! drains does so until it is told otherwise.

use tokio::sync::{Mutex, watch};

use crate::{
    datapath::control::ControlMap,
    gossip::task::{Handle, Stopped},
};

/// Whether this host drains, and all who must know.
pub(super) struct Drain {
    control: ControlMap,
    gossip: Handle,
    draining: watch::Sender<bool>,
    /// One change at a time: all who must know end up with the same.
    changing: Mutex<()>,
}

impl Drain {
    /// As an agent before left it.
    pub fn new(control: ControlMap, gossip: Handle) -> (Self, watch::Receiver<bool>) {
        let (draining, watched) = watch::channel(control.is_draining());
        let drain = Self {
            control,
            gossip,
            draining,
            changing: Mutex::new(()),
        };
        (drain, watched)
    }

    /// Whether it does.
    pub fn is_on(&self) -> bool {
        *self.draining.borrow()
    }

    /// Begins or ends it.
    ///
    /// # Errors
    ///
    /// The agent is stopping. The kernel side knows already, and the next agent
    /// will.
    pub async fn set(&self, draining: bool) -> Result<(), Stopped> {
        let _one = self.changing.lock().await;
        if self.is_on() != draining {
            tracing::info!(
                draining,
                "new sessions are {}",
                if draining { "refused" } else { "taken" }
            );
        }
        self.control.set_draining(draining);
        self.draining.send_replace(draining);
        self.gossip.drain(draining).await
    }
}
