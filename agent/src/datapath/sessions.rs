//! `SESSIONS`: this host's own open sessions, as the hooks on sockets record
//! them.
//!
//! A session that was closed while no program was attached leaves its entry
//! behind: a scan of this map cannot tell. Comparing with the kernel's sockets
//! can, and would belong to [`Sessions::scan`].

use std::{io, os::fd::AsFd as _};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use homing_common::session::{Session, SessionKey, Tuple};

use super::{map_io, sys};

/// The record of open sessions.
pub struct Sessions {
    map: HashMap<MapData, Tuple, Session>,
}

impl Sessions {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = HashMap::try_from(map).map_err(map_io)?;
        Ok(Self { map })
    }

    /// What is recorded of a session.
    pub fn get(&self, tuple: &Tuple) -> io::Result<Option<Session>> {
        match self.map.get(tuple, 0) {
            Ok(session) => Ok(Some(session)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_io(error)),
        }
    }

    /// Calls `each` with every session. A session that is open throughout is
    /// seen; one that is opened or closed meanwhile may be.
    pub fn scan(&self, each: impl FnMut(Tuple, Session)) -> io::Result<()> {
        sys::scan(self.map.map().fd().as_fd(), each)
    }

    /// Gives every session the id that it has under `key`, if it was recorded
    /// under another one. Returns how many were changed.
    pub(super) fn rekey(&mut self, key: &SessionKey) -> io::Result<usize> {
        let mut stale = Vec::new();
        self.scan(|tuple, session| {
            let id = tuple.id(key);
            if id != session.id {
                stale.push((tuple, Session { id, ..session }));
            }
        })?;
        let mut changed = 0;
        for (tuple, session) in stale {
            match self.map.insert(tuple, session, EXIST).map_err(map_io) {
                Ok(()) => changed += 1,
                // Closed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }
}

/// `BPF_EXIST`: only if there is such an entry.
const EXIST: u64 = 2;
