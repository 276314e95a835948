//! The table in force, and the larger one that takes its place when it is all but full.
//!
//! A larger table is filled in small steps, some with each change of the present one,
//! and hears of every change meanwhile; then it is put beside the present one and into
//! force, and that one goes when no program looks at it any more.
//!
//! Where there is no memory for a larger one, the present one goes on, with less room
//! than there should be ([`Growing::room`]), and it is tried again at intervals: with the
//! first change, or want of room, after [`AGAIN_AFTER`].

use std::{
    fmt::Display,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use homing_common::{
    host::HostId,
    owners::{
        BUCKETS_MIN, Bucket, SLOTS, TABLES,
        table::{Full, Table},
    },
    session::SessionId,
};

use super::{
    Maps,
    memory::{SharedHeader, Tables},
};
use crate::datapath::sys;

/// A table grows when so many of a hundred slots are taken.
const GROW_AT: u64 = 92;
/// The largest one holds all that it is to hold in so many of a hundred slots: insertions
/// go on well until 99 are taken.
const FULL_AT: u64 = 95;
/// The new number of buckets, in hundredths of the old one.
const GROW_TO: u64 = 150;
/// Buckets that are copied with each change: few enough to go unnoticed, and many enough
/// that all are copied before the present table is full.
const COPIED: u32 = 16;
/// Between two tries to make a larger table where the first one failed: an attempt takes
/// as long as the kernel needs to find out that the memory is not there, tens of
/// milliseconds for 100 MiB.
pub const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Why a larger table is given up that could be made.
const NO_ROOM: &str = "entries found no room in it";

/// What came of tries to make a larger table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Growth {
    /// How many tries failed.
    pub failures: u64,
    /// Why the last one did, if the table still lacks the room.
    pub shortage: Option<Shortage>,
}

/// A larger table that could not be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// The memory that it takes.
    pub bytes: u64,
    /// What the kernel says.
    pub why: String,
}

/// The tables.
pub(super) struct Growing {
    place: Place,
    header: SharedHeader,
    table: Table<Tables>,
    next: Option<Next>,
    /// Buckets at most.
    most: u32,
    /// The last try to make a larger table, if it failed and there was no other since.
    failure: Option<Failure>,
    /// How many such tries there were.
    failures: u64,
}

/// A larger table that could not be made.
struct Failure {
    shortage: Shortage,
    again_at: Instant,
}

/// A larger table that is being filled.
struct Next {
    map: OwnedFd,
    table: Table<Tables>,
    /// Buckets of the present one that have been copied.
    copied: u32,
}

/// The table in force, or a new one.
pub(super) fn open_or_create(maps: &Maps<'_>) -> io::Result<Table<Tables>> {
    let (place, header) = (Place::of(maps)?, SharedHeader::open(maps)?);
    for number in 0..TABLES {
        let Some(tables) = Tables::of(header.clone(), maps, number)? else {
            continue;
        };
        // None, if it is not in force.
        if let Some(table) = Table::open(tables) {
            // One that its writer did not come to put in force, or to remove.
            place.remove(other(number))?;
            return Ok(table);
        }
    }
    let (map, mut table) = create(header, 0, BUCKETS_MIN)?;
    place.put(&map, &table)?;
    table.activate();
    Ok(table)
}

const fn other(number: u32) -> u32 {
    (number + 1) % TABLES
}

fn create(header: SharedHeader, number: u32, buckets: u32) -> io::Result<(OwnedFd, Table<Tables>)> {
    let (map, tables) = Tables::create(header, number, buckets)?;
    let none = || io::Error::other("no table has this shape");
    let table = Table::create(tables, number, buckets).ok_or_else(none)?;
    Ok((map, table))
}

/// Where tables are put.
struct Place {
    outer: OwnedFd,
    /// The folder of their pins. Whatever `outer` holds has one.
    pins: Option<PathBuf>,
}

impl Place {
    fn of(maps: &Maps<'_>) -> io::Result<Self> {
        Ok(Self {
            outer: maps.outer()?.try_clone_to_owned()?,
            pins: maps.pins.map(Path::to_owned),
        })
    }

    /// Puts a table where readers look for it by its number.
    fn put(&self, map: &OwnedFd, table: &Table<Tables>) -> io::Result<()> {
        if let Some(folder) = &self.pins {
            let pin = folder.join(table.memory().id().to_string());
            sys::pin(map.as_fd(), &pin)?;
        }
        let value = (map.as_raw_fd() as u32).to_ne_bytes();
        let number = table.number().to_ne_bytes();
        sys::update_bytes(self.outer.as_fd(), &number, &value, 0)
    }

    /// Removes a table that is not in force, if there is one. Returns when no program uses
    /// it any more: `maybe_wait_bpf_programs` in kernel/bpf/syscall.c.
    fn remove(&self, number: u32) -> io::Result<()> {
        sys::remove(self.outer.as_fd(), &number.to_ne_bytes())
    }

    /// Removes all pins but that of the one table that there is.
    fn unpin_all_but(&self, table: &Table<Tables>) -> io::Result<()> {
        let Some(folder) = &self.pins else {
            return Ok(());
        };
        let kept = folder.join(table.memory().id().to_string());
        for entry in fs::read_dir(folder)? {
            let pin = entry?.path();
            if pin != kept {
                fs::remove_file(pin)?;
            }
        }
        Ok(())
    }
}

impl Growing {
    /// The table in force, or a new one, to hold so many entries at most.
    pub fn open(maps: &Maps<'_>, entries: u32) -> io::Result<Self> {
        let slots = u64::from(entries) * 100 / FULL_AT;
        let most = slots.div_ceil(SLOTS as u64) as u32;
        let (table, place) = (open_or_create(maps)?, Place::of(maps)?);
        // Of a former table, and of a map `OWNERS` that another one has replaced.
        place.unpin_all_but(&table)?;
        Ok(Self {
            table,
            header: SharedHeader::open(maps)?,
            place,
            next: None,
            most: most.max(BUCKETS_MIN),
            failure: None,
            failures: 0,
        })
    }

    /// How many sessions have an entry.
    pub fn len(&self) -> u32 {
        self.table.len()
    }

    /// The owner of a session.
    pub fn get(&self, id: SessionId) -> Option<HostId> {
        self.table.get(id)
    }

    /// Calls `each` with every entry.
    pub fn each(&self, each: impl FnMut(SessionId, HostId)) {
        self.table.each(each);
    }

    /// Makes a host the owner of a session; says whether it had none.
    pub fn set(&mut self, id: SessionId, host: HostId) -> Result<bool, Full> {
        let mut done = self.try_set(id, host);
        if done.is_err() {
            self.go_on();
            if self.next.is_some() {
                while self.next.is_some() {
                    self.copy();
                }
                done = self.try_set(id, host);
            }
        }
        done
    }

    fn try_set(&mut self, id: SessionId, host: HostId) -> Result<bool, Full> {
        let new = match &mut self.next {
            None => self.table.set(id, host)?,
            Some(next) => {
                let mut kept = Ok(true);
                // What changes places may go to a bucket that was copied before.
                let new = self.table.set_and_tell(id, host, |id, host| {
                    kept = kept.and(next.table.set(id, host));
                })?;
                if kept.and(next.table.set(id, host)).is_err() {
                    self.give_up(&NO_ROOM);
                }
                new
            }
        };
        self.go_on();
        Ok(new)
    }

    /// Removes a session's entry; says whether there was one.
    pub fn clear(&mut self, id: SessionId) -> bool {
        if let Some(next) = &mut self.next {
            next.table.clear(id);
        }
        let there = self.table.clear(id);
        self.go_on();
        there
    }

    /// Removes all entries of a host; says how many there were.
    pub fn void(&mut self, host: HostId) -> u32 {
        if let Some(next) = &mut self.next {
            next.table.void(host);
        }
        self.table.void(host)
    }

    /// How many bytes of memory the tables take.
    pub fn bytes(&self) -> u64 {
        let next = self.next.as_ref().map(|next| &next.table);
        let tables = [Some(&self.table), next].into_iter().flatten();
        tables.map(|table| table.memory().bytes()).sum()
    }

    /// How many entries there is room for while no larger table can be made; all that
    /// it is to hold, unless one could not.
    pub fn room(&self) -> u32 {
        match self.failure {
            Some(_) => (self.slots() * FULL_AT / 100) as u32,
            None => u32::MAX,
        }
    }

    /// What came of tries to make a larger table.
    pub fn growth(&self) -> Growth {
        Growth {
            failures: self.failures,
            shortage: self.failure.as_ref().map(|last| last.shortage.clone()),
        }
    }

    fn slots(&self) -> u64 {
        u64::from(self.table.shape().buckets()) * SLOTS as u64
    }

    /// A step of growth, where one is due.
    pub fn go_on(&mut self) {
        if self.next.is_some() {
            return self.copy();
        }
        if let Some(failure) = &self.failure {
            if Instant::now() < failure.again_at {
                return;
            }
            self.failure = None;
        }
        let buckets = self.table.shape().buckets();
        if u64::from(self.len()) * 100 < self.slots() * GROW_AT || buckets >= self.most {
            return;
        }
        let larger = (u64::from(buckets) * GROW_TO / 100).min(self.most.into()) as u32;
        match create(self.header.clone(), other(self.table.number()), larger) {
            Ok((map, table)) => {
                let copied = 0;
                self.next = Some(Next { map, table, copied });
            }
            Err(error) => self.fail(larger, &error),
        }
    }

    /// Copies some buckets; after the last one the larger table comes into force.
    fn copy(&mut self) {
        let Some(next) = &mut self.next else {
            return;
        };
        let end = (next.copied + COPIED).min(self.table.shape().buckets());
        let mut kept = Ok(true);
        self.table.each_of(next.copied..end, |id, host| {
            kept = kept.and(next.table.set(id, host));
        });
        next.copied = end;
        if kept.is_err() {
            return self.give_up(&NO_ROOM);
        }
        if end < self.table.shape().buckets() {
            return;
        }
        if let Some(next) = self.next.take() {
            self.switch(next);
        }
    }

    /// Puts the larger table in force, and lets the former one go.
    fn switch(&mut self, mut next: Next) {
        if let Err(error) = self.place.put(&next.map, &next.table) {
            return self.fail(next.table.shape().buckets(), &error);
        }
        next.table.activate();
        let former = std::mem::replace(&mut self.table, next.table);
        tracing::info!(
            buckets = self.table.shape().buckets(),
            entries = self.table.len(),
            "the table of owners has grown"
        );
        let removed = self.place.remove(former.number());
        if let Err(error) = removed.and_then(|()| self.place.unpin_all_but(&self.table)) {
            // It goes when the next larger one takes its place, or at the next start.
            tracing::warn!(
                %error,
                fix = "nothing: it is freed when the table grows again, or when the agent starts again",
                "the memory of the former table of owners stays in use"
            );
        }
    }

    /// Goes on with the present table alone.
    fn give_up(&mut self, why: &dyn Display) {
        if let Some(next) = self.next.take() {
            self.fail(next.table.shape().buckets(), why);
        }
    }

    /// There is no table of so many buckets.
    fn fail(&mut self, buckets: u32, why: &dyn Display) {
        let bytes = u64::from(buckets) * size_of::<Bucket>() as u64;
        tracing::error!(
            bytes, %why,
            fix = "give the host, or the agent's cgroup (MemoryMax= of the unit), more memory; tried again after 10 s, and the present table goes on",
            "cannot make a larger table of owners"
        );
        let why = why.to_string();
        self.failures += 1;
        self.failure = Some(Failure {
            shortage: Shortage { bytes, why },
            again_at: Instant::now() + AGAIN_AFTER,
        });
    }
}
