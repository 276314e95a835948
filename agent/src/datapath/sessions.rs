//! `SESSIONS`: this host's own open sessions, as the hooks on sockets record
//! them.
//!
//! A session that was closed while no program was attached leaves its entry
//! behind, and one that was opened then has none. A scan of this map cannot tell;
//! the kernel's sockets can ([`super::sockets`]).

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

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
        sys::scan(self.fd(), each)
    }

    /// Records a session, unless there is one of its tuple. Nobody is told.
    pub fn record(&self, tuple: &Tuple, session: Session) -> io::Result<Recorded> {
        match sys::update(self.fd(), tuple, &session, NOEXIST) {
            Ok(()) => Ok(Recorded::New),
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(Recorded::Present),
                Some(libc::E2BIG | libc::ENOMEM) => Ok(Recorded::Full),
                _ => Err(error),
            },
        }
    }

    /// Removes the session of a tuple if it has this cookie, and returns it. Nobody is
    /// told.
    pub fn forget(&self, tuple: &Tuple, cookie: u64) -> io::Result<Option<Session>> {
        match self.get(tuple)? {
            Some(session) if session.cookie == cookie => {}
            _ => return Ok(None),
        }
        match sys::take::<Tuple, Session>(self.fd(), tuple)? {
            Some(session) if session.cookie != cookie => {
                // The tuple came into use again just now.
                self.record(tuple, session)?;
                Ok(None)
            }
            session => Ok(session),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.map().fd().as_fd()
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

/// How recording a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// It is recorded now.
    New,
    /// There is a session of that tuple already.
    Present,
    /// There is no room.
    Full,
}

/// `BPF_NOEXIST`: only if there is no such entry yet.
const NOEXIST: u64 = 1;
/// `BPF_EXIST`: only if there is such an entry.
const EXIST: u64 = 2;
