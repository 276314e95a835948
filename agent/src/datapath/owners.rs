//! `OWNERS`: which host owns each foreign session.
//!
//! The one module on this side that knows what kind of table that is. Only the
//! agent writes it, and only one agent can hold a [`super::Datapath`], so the
//! count of entries kept here is exact.
//!
//! Some room may be kept apart ([`Owners::keep`]) for sessions whose packets do come
//! here while the table is full: of these the oldest make way for others.

use std::{collections::BTreeMap, io, os::fd::AsFd as _};

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
    kept: u32,
    guests: Guests,
}

/// The sessions in the room that is kept apart.
#[derive(Default)]
struct Guests {
    came: BTreeMap<SessionId, u64>,
    order: BTreeMap<u64, SessionId>,
    next: u64,
}

impl Guests {
    fn len(&self) -> u32 {
        self.came.len() as u32
    }

    fn holds(&self, session: SessionId) -> bool {
        self.came.contains_key(&session)
    }

    fn oldest(&self) -> Option<SessionId> {
        self.order.values().next().copied()
    }

    /// The latest of all, be it there or not.
    fn add(&mut self, session: SessionId) {
        self.remove(session);
        self.came.insert(session, self.next);
        self.order.insert(self.next, session);
        self.next += 1;
    }

    fn remove(&mut self, session: SessionId) {
        if let Some(came) = self.came.remove(&session) {
            self.order.remove(&came);
        }
    }
}

impl Owners {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = HashMap::<_, SessionId, Owner>::try_from(map).map_err(map_io)?;
        let capacity = map.map().info().map_err(map_io)?.max_entries();
        let mut owners = Self {
            map,
            len: 0,
            capacity,
            kept: 0,
            guests: Guests::default(),
        };
        let mut len = 0;
        owners.scan(|_, _| len += 1)?;
        owners.len = len;
        Ok(owners)
    }

    /// Keeps room for so many sessions apart, for [`Owners::set_asked`]. Entries that
    /// are too many for the rest count as being there.
    pub fn keep(&mut self, kept: u32) -> io::Result<()> {
        self.kept = kept.min(self.capacity);
        let mut excess = Vec::new();
        let too_many = self.ordinary().saturating_sub(self.limit()) as usize;
        if too_many > 0 {
            self.scan(|session, _| {
                if excess.len() < too_many {
                    excess.push(session);
                }
            })?;
        }
        excess
            .into_iter()
            .for_each(|session| self.guests.add(session));
        Ok(())
    }

    /// Makes `host` the owner of `session`. Where only the room that is kept apart is
    /// left, an entry there is changed, but none is made, and the table is full.
    pub fn set(&mut self, session: SessionId, host: HostId) -> Result<(), OwnersError> {
        if self.ordinary() < self.limit() {
            self.write(session, host)?;
            self.guests.remove(session);
            return Ok(());
        }
        // Changes it, if it is there.
        match self.insert(session, entry(host), EXIST) {
            Ok(()) if self.guests.holds(session) => Err(self.full()),
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(self.full()),
            Err(error) => Err(error.into()),
        }
    }

    /// The same for a session that found no room and whose packets come here: in the
    /// room that is kept apart, where the one that came first makes way. Says whether
    /// one did.
    pub fn set_asked(&mut self, session: SessionId, host: HostId) -> Result<bool, OwnersError> {
        let is_full = !self.guests.holds(session) && self.guests.len() >= self.kept;
        let gone = self.guests.oldest().filter(|_| is_full);
        if let Some(gone) = gone {
            self.clear(gone)?;
        } else if self.kept == 0 {
            return Err(self.full());
        }
        self.write(session, host)?;
        self.guests.add(session);
        Ok(gone.is_some())
    }

    /// Entries that do not stand in the room that is kept apart.
    fn ordinary(&self) -> u32 {
        self.len - self.guests.len().min(self.len)
    }

    /// How many of these there can be.
    fn limit(&self) -> u32 {
        self.capacity - self.kept
    }

    fn full(&self) -> OwnersError {
        OwnersError::Full {
            capacity: self.limit(),
        }
    }

    fn write(&mut self, session: SessionId, host: HostId) -> Result<(), OwnersError> {
        match self.insert(session, entry(host), NOEXIST) {
            Ok(()) => {
                self.len += 1;
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(self.insert(session, entry(host), 0)?)
            }
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Err(self.full()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the entry of `session`, if there is one.
    pub fn clear(&mut self, session: SessionId) -> io::Result<()> {
        self.guests.remove(session);
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

    /// How many entries there can be, without the room that is kept apart.
    pub fn capacity(&self) -> u32 {
        self.limit()
    }

    fn insert(&mut self, session: SessionId, owner: Owner, flags: u64) -> io::Result<()> {
        self.map.insert(session, owner, flags).map_err(map_io)
    }
}

fn entry(host: HostId) -> Owner {
    Owner {
        host: host.0,
        zero: [0; 3],
    }
}

/// `BPF_NOEXIST`: only if there is no such entry yet.
const NOEXIST: u64 = 1;
/// `BPF_EXIST`: only if there is one.
const EXIST: u64 = 2;
