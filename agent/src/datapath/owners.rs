//! `OWNERS`: which host owns each foreign session.
//!
//! The one module on this side that knows what kind of table that is: see
//! [`homing_common::owners`]. Only the agent writes it, and only one agent can hold a
//! [`super::Datapath`], so the count of entries kept here is exact.
//!
//! Some room may be kept apart ([`Owners::keep`]) for sessions whose packets do come
//! here while the table is full: of these the oldest make way for others.
//!
//! A table that cannot grow, for want of memory, is full when 95 of 100 of its slots
//! are taken, whatever it was to hold ([`Owners::growth`]).

mod growing;
mod memory;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::maps::Map;
use homing_common::{
    host::HostId,
    owners::{Memory as _, TABLES, active, table::Full},
    session::SessionId,
};

use growing::Growing;
pub use growing::{AGAIN_AFTER, Growth, Shortage};
use memory::SharedHeader;
pub use memory::Tables;

/// The maps `OWNERS` and `OWNERS_HEADER`, and where tables are pinned.
#[derive(Clone, Copy)]
pub struct Maps<'a> {
    outer: &'a Map,
    header: &'a Map,
    pins: Option<&'a Path>,
}

impl<'a> Maps<'a> {
    /// These maps. No table is pinned, so that only with CAP_SYS_ADMIN can one be opened
    /// again.
    pub fn new(outer: &'a Map, header: &'a Map) -> Self {
        Self {
            outer,
            header,
            pins: None,
        }
    }

    /// Those that `find` finds by their names.
    pub fn find<E>(find: impl Fn(&'static str) -> Result<&'a Map, E>) -> Result<Self, E> {
        Ok(Self::new(find("OWNERS")?, find("OWNERS_HEADER")?))
    }

    /// The same maps, with tables pinned in this folder, by their ids.
    pub fn pinned_in(self, folder: &'a Path) -> Self {
        Self {
            pins: Some(folder),
            ..self
        }
    }

    fn outer(&self) -> io::Result<BorrowedFd<'a>> {
        match self.outer {
            Map::ArrayOfMaps(map) => Ok(map.fd().as_fd()),
            _ => Err(io::Error::other("OWNERS is no array of maps")),
        }
    }

    fn header(&self) -> io::Result<BorrowedFd<'a>> {
        match self.header {
            Map::Array(map) => Ok(map.fd().as_fd()),
            _ => Err(io::Error::other("OWNERS_HEADER is no array")),
        }
    }
}

/// Sees to it that there is a table: there must be before programs look for one.
pub fn provide(maps: &Maps<'_>) -> io::Result<()> {
    growing::open_or_create(maps).map(drop)
}

/// The memory of the table in force, to be read; none if there is none.
pub fn read(maps: &Maps<'_>) -> io::Result<Option<Tables>> {
    let header = SharedHeader::open(maps)?;
    for number in 0..TABLES {
        let tables = Tables::of(header.clone(), maps, number)?;
        let is_active = |tables: &Tables| {
            let active = tables.header().and_then(active::<Tables>);
            active.is_some_and(|(active, _)| active == number)
        };
        if let Some(tables) = tables.filter(is_active) {
            return Ok(Some(tables));
        }
    }
    Ok(None)
}

/// There is no room for another entry. One that exists can still be changed.
#[derive(Debug, thiserror::Error)]
#[error("OWNERS is full ({capacity} entries); raise `limits.owners`, or give it memory to grow")]
pub struct OwnersFull {
    /// How many entries there can be.
    pub capacity: u32,
}

/// The table of foreign sessions' owners.
pub struct Owners {
    table: Growing,
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

    fn retain(&mut self, stays: impl Fn(SessionId) -> bool) {
        self.came.retain(|session, _| stays(*session));
        self.order.retain(|_, session| stays(*session));
    }

    fn remove(&mut self, session: SessionId) {
        if let Some(came) = self.came.remove(&session) {
            self.order.remove(&came);
        }
    }
}

impl Owners {
    /// The table in force, or a new one. `capacity`: how many entries there can be.
    pub fn open(maps: &Maps<'_>, capacity: u32) -> io::Result<Self> {
        Ok(Self {
            table: Growing::open(maps, capacity)?,
            capacity,
            kept: 0,
            guests: Guests::default(),
        })
    }

    /// Keeps room for so many sessions apart, for [`Owners::set_asked`]. Entries that
    /// are too many for the rest count as being there.
    pub fn keep(&mut self, kept: u32) {
        self.kept = kept.min(self.capacity);
        let mut too_many = self.ordinary().saturating_sub(self.limit());
        if too_many > 0 {
            self.table.each(|session, _| {
                if too_many > 0 {
                    self.guests.add(session);
                    too_many -= 1;
                }
            });
        }
    }

    /// Makes `host` the owner of `session`. Where only the room that is kept apart is
    /// left, an entry there is changed, but none is made, and the table is full.
    pub fn set(&mut self, session: SessionId, host: HostId) -> Result<(), OwnersFull> {
        if self.ordinary() >= self.limit() {
            // There may be memory for more by now.
            self.table.go_on();
        }
        if self.ordinary() < self.limit() {
            self.write(session, host)?;
            self.guests.remove(session);
            return Ok(());
        }
        // Changes it, if it is there.
        if self.table.get(session).is_none() {
            return Err(self.full());
        }
        self.write(session, host)?;
        match self.guests.holds(session) {
            true => Err(self.full()),
            false => Ok(()),
        }
    }

    /// The same for a session that found no room and whose packets come here: in the
    /// room that is kept apart, where the one that came first makes way. Says whether
    /// one did.
    pub fn set_asked(&mut self, session: SessionId, host: HostId) -> Result<bool, OwnersFull> {
        let is_full = self.guests.len() >= self.kept || self.len() >= self.most();
        let gone = match is_full && !self.guests.holds(session) {
            true => Some(self.guests.oldest().ok_or_else(|| self.full())?),
            false => None,
        };
        if let Some(gone) = gone {
            self.clear(gone);
        }
        self.write(session, host)?;
        self.guests.add(session);
        Ok(gone.is_some())
    }

    /// Entries that do not stand in the room that is kept apart.
    fn ordinary(&self) -> u32 {
        self.len() - self.guests.len().min(self.len())
    }

    /// How many of these there can be.
    fn limit(&self) -> u32 {
        self.most().saturating_sub(self.kept)
    }

    /// How many entries there can be in all.
    fn most(&self) -> u32 {
        self.capacity.min(self.table.room())
    }

    fn full(&self) -> OwnersFull {
        OwnersFull {
            capacity: self.limit(),
        }
    }

    fn write(&mut self, session: SessionId, host: HostId) -> Result<(), OwnersFull> {
        match self.table.set(session, host) {
            Ok(_) => Ok(()),
            Err(Full) => Err(self.full()),
        }
    }

    /// Removes the entry of `session`, if there is one.
    pub fn clear(&mut self, session: SessionId) {
        self.guests.remove(session);
        self.table.clear(session);
    }

    /// Removes all entries of a host; says how many there were.
    pub fn void(&mut self, host: HostId) -> u32 {
        let gone = self.table.void(host);
        let Self { table, guests, .. } = self;
        guests.retain(|session| table.get(session).is_some());
        gone
    }

    /// The owner of `session`, if it has an entry.
    pub fn get(&self, session: SessionId) -> Option<HostId> {
        self.table.get(session)
    }

    /// Calls `each` with every entry.
    pub fn scan(&self, each: impl FnMut(SessionId, HostId)) {
        self.table.each(each);
    }

    /// What came of tries to make a larger table.
    pub fn growth(&self) -> Growth {
        self.table.growth()
    }

    /// How many bytes of memory the table takes.
    pub fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.table.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries there can be, without the room that is kept apart.
    pub fn capacity(&self) -> u32 {
        self.limit()
    }
}
