//! `MOVING`: the sessions that are moving between this host and another.
//!
//! The map is this host's journal of moves: it is pinned, and so lives as long as the
//! kernel and the sockets that it speaks of. The programs obey it from the moment that
//! an entry is written: what arrives for the session is parked ([`Phase::parks`]) or
//! diverted to the other host, what would leave is dropped, and what the hooks on
//! sockets see of it is recorded nowhere.
//!
//! An entry is written by one system call, so whoever is killed leaves the old one or
//! the new one. Before the first one a flag in `CONTROL` is set, and it is cleared after
//! the last one has gone: an entry without the flag, which nobody would obey, cannot be,
//! and a flag without an entry costs each packet a look-up until the next start.
//!
//! A packet that was in a program's hands when an entry was written may still go the way
//! that it would have gone before. Whoever freezes a session reads its state once more at
//! the end, and sees what that did.
//!
//! [`park`] holds what is parked, and gives it to the session's new socket.

pub mod lots;
pub mod park;

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use homing_common::{
    host::HostId,
    moving::{MOVING_ENTRIES, Moving, Phase},
    session::Tuple,
};

use super::{clock::monotonic_ns, control::ControlMap, map_io, sys};

/// The journal of moves.
pub struct MovingMap {
    map: HashMap<MapData, Tuple, Moving>,
    control: ControlMap,
    /// How many entries there are. Held while they change.
    entries: Mutex<u32>,
}

/// Which move an entry is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The move, as its source numbers it.
    pub number: u64,
    /// The other host.
    pub peer: HostId,
    /// The session's generation before the move.
    pub generation: u32,
}

/// Why an entry was not written.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The session is moving already.
    #[error(
        "{session:?} is moving already: move {number} with host {peer}; wait for its end",
        number = .found.number, peer = .found.peer
    )]
    Busy {
        /// The session.
        session: Tuple,
        /// What is written of it.
        found: Moving,
    },
    /// There is no room.
    #[error("{MOVING_ENTRIES} sessions are moving on this host, and no more can; try again later")]
    Full,
    /// The session is not in this move, or the move has come too far.
    #[error("{session:?} cannot become {phase:?} in move {number}: {}", found_text(.found))]
    Other {
        /// The session.
        session: Tuple,
        /// The move that was named.
        number: u64,
        /// What it was to become.
        phase: Phase,
        /// What is written of it.
        found: Option<Moving>,
    },
    /// The kernel refused.
    #[error("cannot access MOVING: {0}")]
    Kernel(#[from] io::Error),
}

fn found_text(found: &Option<Moving>) -> String {
    match found {
        Some(found) => match found.phase() {
            Some(phase) => format!("it is {phase:?} in move {}", found.number),
            None => format!(
                "it is in a phase that this build does not know ({})",
                found.phase
            ),
        },
        None => "it is not moving".into(),
    }
}

impl MovingMap {
    pub(super) fn open(map: Map, control: ControlMap) -> io::Result<Self> {
        let map = HashMap::try_from(map).map_err(map_io)?;
        let moving = Self {
            map,
            control,
            entries: Mutex::new(0),
        };
        let mut entries = 0;
        sys::scan(moving.fd(), |_: Tuple, _: Moving| entries += 1)?;
        // Whoever was killed in between may have left it set for nothing.
        moving.control.set_moving(entries > 0);
        *moving.lock() = entries;
        Ok(moving)
    }

    /// Writes that a session moves: from here ([`Phase::Frozen`]) or to here
    /// ([`Phase::Awaiting`]). A former move that has released it may still have its entry,
    /// which this one takes the place of: the session comes back.
    pub fn begin(&self, session: Tuple, of: Move, phase: Phase) -> Result<(), Error> {
        let mut entries = self.lock();
        let found = self.get(&session)?;
        if let Some(found) = found
            && found.phase() != Some(Phase::Released)
        {
            return Err(Error::Busy { session, found });
        }
        if found.is_none() && *entries >= MOVING_ENTRIES {
            return Err(Error::Full);
        }
        if *entries == 0 {
            self.control.set_moving(true);
        }
        let written = self.write(&session, of, phase);
        if written.is_ok() && found.is_none() {
            *entries += 1;
        }
        if *entries == 0 {
            self.control.set_moving(false);
        }
        written
    }

    /// Writes that the move of a session has come further: from [`Phase::Awaiting`] to
    /// [`Phase::Prepared`], or from [`Phase::Frozen`] to [`Phase::Released`].
    pub fn advance(&self, session: Tuple, number: u64, phase: Phase) -> Result<(), Error> {
        let _entries = self.lock();
        let found = self.get(&session)?;
        let follows = |found: &Moving| {
            let from = match phase {
                Phase::Prepared => Phase::Awaiting,
                Phase::Released => Phase::Frozen,
                Phase::Awaiting | Phase::Frozen => return false,
            };
            found.number == number && found.phase() == Some(from)
        };
        let Some(found) = found.filter(follows) else {
            return Err(Error::Other {
                session,
                number,
                phase,
                found,
            });
        };
        let of = Move {
            number,
            peer: found.peer(),
            generation: found.generation,
        };
        self.write(&session, of, phase)
    }

    /// Removes the entry of a move: the session is served here again or for the first
    /// time, or is none of this host's. Returns whether there was one.
    pub fn end(&self, session: &Tuple, number: u64) -> io::Result<bool> {
        let mut entries = self.lock();
        if self
            .get(session)?
            .is_none_or(|found| found.number != number)
        {
            return Ok(false);
        }
        sys::remove(self.fd(), bytes_of(session))?;
        *entries -= 1;
        if *entries == 0 {
            self.control.set_moving(false);
        }
        Ok(true)
    }

    /// What is written of a session.
    pub fn get(&self, session: &Tuple) -> io::Result<Option<Moving>> {
        match self.map.get(session, 0) {
            Ok(found) => Ok(Some(found)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_io(error)),
        }
    }

    /// All that is written: what an agent goes by when it starts.
    pub fn list(&self) -> io::Result<Vec<(Tuple, Moving)>> {
        let mut all = Vec::new();
        sys::scan(self.fd(), |session, moving| all.push((session, moving)))?;
        Ok(all)
    }

    /// How many sessions are moving.
    pub fn len(&self) -> u32 {
        *self.lock()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&self, session: &Tuple, of: Move, phase: Phase) -> Result<(), Error> {
        let moving = Moving {
            number: of.number,
            since_ns: monotonic_ns(),
            generation: of.generation,
            peer: of.peer.0,
            phase: phase as u8,
            zero: 0,
        };
        sys::update(self.fd(), session, &moving, ANY).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOMEM) => Error::Full,
            _ => Error::Kernel(error),
        })
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        // The count is changed in one step, after what it counts.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.map().fd().as_fd()
    }
}

fn bytes_of(session: &Tuple) -> &[u8] {
    // SAFETY: a tuple is made of bytes, without padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(session).cast(), size_of::<Tuple>()) }
}

/// `BPF_ANY`: in the place of an entry that there may be.
const ANY: u64 = 0;
