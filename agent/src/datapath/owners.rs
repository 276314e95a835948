//! `OWNERS`: which host owns each foreign session.
//!
//! The one module on this side that knows what kind of table that is. Only the
//! agent writes it, and only one agent can hold a [`super::Datapath`], so the
//! count of entries kept here is exact.

use std::{io, os::fd::AsFd as _};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use homing_common::{host::HostId, maps::Owner, session::SessionId};

use super::{map_io, sys};

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub enum OwnersError {
    /// All entries are taken. An entry that exists can still be changed.
    #[error("OWNERS is full ({capacity} entries); raise `limits.owners`")]
    Full {
        /// How many entries there are.
        capacity: u32,
    },
    /// The kernel refused for another reason.
    #[error("cannot write OWNERS: {0}")]
    Io(#[from] io::Error),
}

/// The table of foreign sessions' owners.
pub struct Owners {
    map: HashMap<MapData, SessionId, Owner>,
    len: u32,
    capacity: u32,
}

impl Owners {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = HashMap::<_, SessionId, Owner>::try_from(map).map_err(map_io)?;
        let capacity = map.map().info().map_err(map_io)?.max_entries();
        let mut owners = Self {
            map,
            len: 0,
            capacity,
        };
        let mut len = 0;
        owners.scan(|_, _| len += 1)?;
        owners.len = len;
        Ok(owners)
    }

    /// Makes `host` the owner of `session`.
    pub fn set(&mut self, session: SessionId, host: HostId) -> Result<(), OwnersError> {
        let owner = Owner {
            host: host.0,
            zero: [0; 3],
        };
        match self.insert(session, owner, NOEXIST) {
            Ok(()) => {
                self.len += 1;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(self.insert(session, owner, 0)?)
            }
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Err(OwnersError::Full {
                capacity: self.capacity,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the entry of `session`, if there is one.
    pub fn clear(&mut self, session: SessionId) -> io::Result<()> {
        match self.map.remove(&session) {
            Ok(()) => {
                self.len = self.len.saturating_sub(1);
                Ok(())
            }
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => match map_io(error) {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// The owner of `session`, if it has an entry.
    pub fn get(&self, session: SessionId) -> io::Result<Option<HostId>> {
        match self.map.get(&session, 0) {
            Ok(owner) => Ok(Some(HostId(owner.host))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_io(error)),
        }
    }

    /// Calls `each` with every entry.
    pub fn scan(&self, mut each: impl FnMut(SessionId, HostId)) -> io::Result<()> {
        sys::scan(
            self.map.map().fd().as_fd(),
            |session: SessionId, owner: Owner| each(session, HostId(owner.host)),
        )
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many entries there can be.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn insert(&mut self, session: SessionId, owner: Owner, flags: u64) -> io::Result<()> {
        self.map.insert(session, owner, flags).map_err(map_io)
    }
}

/// `BPF_NOEXIST`: only if there is no such entry yet.
const NOEXIST: u64 = 1;
