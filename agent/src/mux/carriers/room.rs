//! Room for messages that were received: memory that is bounded, for each host and for
//! all, and given back when the reader drops the message.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::outgoing::cost;

/// Where room comes from.
#[derive(Clone)]
pub(super) struct Room {
    pub of_peer: Arc<Semaphore>,
    pub of_all: Arc<Semaphore>,
}

/// Room that was taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Room {
    /// Room for a message, if there is any now.
    pub fn try_take(&self, len: usize) -> Option<Taken> {
        let cost = cost(len) as u32;
        let of_peer = self.of_peer.clone().try_acquire_many_owned(cost).ok()?;
        let of_all = self.of_all.clone().try_acquire_many_owned(cost).ok()?;
        Some(Taken {
            _of_peer: of_peer,
            _of_all: of_all,
        })
    }

    /// Waits for room for a message; who comes first is served first. None once there
    /// will be none any more.
    pub async fn take(self, len: usize) -> Option<Taken> {
        let cost = cost(len) as u32;
        let of_peer = self.of_peer.acquire_many_owned(cost).await.ok()?;
        let of_all = self.of_all.acquire_many_owned(cost).await.ok()?;
        Some(Taken {
            _of_peer: of_peer,
            _of_all: of_all,
        })
    }
}
