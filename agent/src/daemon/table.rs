//! `OWNERS`, written by gossip and looked at by the admin socket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homing_common::{host::HostId, session::SessionId};

use crate::{
    datapath::{
        hosts::Voids,
        owners::{Growth, Owners},
    },
    gossip::{Table, TableFull},
};

/// Entries that are kept apart of the table, beside those that are configured, for
/// sessions whose packets come here while it is full: a sixteenth, within bounds.
pub(super) fn kept(limit: u32) -> u32 {
    (limit / 16).clamp(64, 65_536)
}

/// The table, for one writer and for whoever asks.
#[derive(Clone)]
pub(super) struct Shared {
    owners: Arc<Mutex<Owners>>,
    voids: Arc<Voids>,
}

/// How full the table is.
pub(super) struct Usage {
    pub entries: u32,
    pub capacity: u32,
    /// Bytes of memory.
    pub bytes: u64,
    /// What came of tries to give it more.
    pub growth: Growth,
}

impl Shared {
    /// `voids`: what says of hosts that are members of the same POP that they are void.
    pub fn new(owners: Owners, voids: Voids) -> Self {
        Self {
            owners: Arc::new(Mutex::new(owners)),
            voids: Arc::new(voids),
        }
    }

    /// The table's entry for a session.
    pub fn get(&self, session: SessionId) -> Option<HostId> {
        self.lock().get(session)
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let owners = self.lock();
        Usage {
            entries: owners.len(),
            capacity: owners.capacity(),
            bytes: owners.bytes(),
            growth: owners.growth(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owners> {
        // Every change leaves the table whole, so a panic elsewhere harms nothing.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table for Shared {
    fn set(&mut self, id: SessionId, owner: HostId) -> Result<(), TableFull> {
        Table::set(&mut *self.lock(), id, owner)
    }

    fn set_asked(&mut self, id: SessionId, owner: HostId) -> Result<bool, TableFull> {
        Table::set_asked(&mut *self.lock(), id, owner)
    }

    fn clear(&mut self, id: SessionId) {
        Table::clear(&mut *self.lock(), id);
    }

    /// In the kernel's eyes by one write, at once; the entries go after it.
    fn void(&mut self, owner: HostId) -> u32 {
        let sweep = || Table::void(&mut *self.lock(), owner);
        let (entries, result) = self.voids.sweep(owner, sweep);
        if let Err(error) = result {
            // Without the write they were void one by one.
            tracing::warn!(
                %owner, %error,
                fix = "nothing: its entries were removed one by one instead, which takes longer",
                "cannot write HOSTS to void a host's entries at once"
            );
        }
        entries
    }
}
