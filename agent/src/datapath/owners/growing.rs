//! The table in force, and the larger one that takes its place when it is all but full.
//!
//! A larger table is filled in small steps, some with each change of the present one,
//! and hears of every change meanwhile; then it is put beside the present one and into
//! force, and that one goes when no program looks at it any more.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use homing_common::{
    host::HostId,
    owners::{
        BUCKETS_MIN, SLOTS, TABLES,
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

/// The tables.
pub(super) struct Growing {
    outer: OwnedFd,
    header: SharedHeader,
    table: Table<Tables>,
    next: Option<Next>,
    /// Buckets at most.
    most: u32,
    /// No larger table could be made; nothing is tried again before so many sessions
    /// have an entry.
    not_before: u32,
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
    let (outer, header) = (maps.outer()?, SharedHeader::open(maps)?);
    for number in 0..TABLES {
        let Some(tables) = Tables::of(header.clone(), outer, number)? else {
            continue;
        };
        // None, if it is not in force.
        if let Some(table) = Table::open(tables) {
            // One that its writer did not come to put in force, or to remove.
            remove(outer, other(number))?;
            return Ok(table);
        }
    }
    let (map, mut table) = create(header, 0, BUCKETS_MIN)?;
    put(outer, 0, &map)?;
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

/// Puts a table where readers look for it by its number.
fn put(outer: BorrowedFd<'_>, number: u32, map: &OwnedFd) -> io::Result<()> {
    let value = (map.as_raw_fd() as u32).to_ne_bytes();
    sys::update_bytes(outer, &number.to_ne_bytes(), &value, 0)
}

/// Removes a table that is not in force, if there is one. Returns when no program uses
/// it any more: `maybe_wait_bpf_programs` in kernel/bpf/syscall.c.
fn remove(outer: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    sys::remove(outer, &number.to_ne_bytes())
}

impl Growing {
    /// The table in force, or a new one, to hold so many entries at most.
    pub fn open(maps: &Maps<'_>, entries: u32) -> io::Result<Self> {
        let slots = u64::from(entries) * 100 / FULL_AT;
        let most = slots.div_ceil(SLOTS as u64) as u32;
        Ok(Self {
            table: open_or_create(maps)?,
            header: SharedHeader::open(maps)?,
            outer: maps.outer()?.try_clone_to_owned()?,
            next: None,
            most: most.max(BUCKETS_MIN),
            not_before: 0,
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
        if done.is_err() && self.next.is_some() {
            while self.next.is_some() {
                self.copy();
            }
            done = self.try_set(id, host);
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
                    self.give_up();
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

    /// A step of growth, where one is due.
    fn go_on(&mut self) {
        if self.next.is_some() {
            self.copy();
            return;
        }
        let buckets = self.table.shape().buckets();
        let slots = u64::from(buckets) * SLOTS as u64;
        let len = self.table.len();
        if u64::from(len) * 100 < slots * GROW_AT || buckets >= self.most || len < self.not_before {
            return;
        }
        let larger = (u64::from(buckets) * GROW_TO / 100).min(self.most.into()) as u32;
        match create(self.header.clone(), other(self.table.number()), larger) {
            Ok((map, table)) => {
                let copied = 0;
                self.next = Some(Next { map, table, copied });
            }
            Err(error) => {
                tracing::error!(buckets = larger, %error, "cannot make a larger table of owners");
                self.not_before = len + len / 64;
            }
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
            return self.give_up();
        }
        if end < self.table.shape().buckets() {
            return;
        }
        let Some(next) = self.next.take() else {
            return;
        };
        if let Err(error) = self.switch(next) {
            tracing::error!(%error, "cannot put a larger table of owners in force");
            self.give_up();
        }
    }

    /// Puts the larger table in force, and lets the former one go.
    fn switch(&mut self, mut next: Next) -> io::Result<()> {
        put(self.outer.as_fd(), next.table.number(), &next.map)?;
        next.table.activate();
        let former = std::mem::replace(&mut self.table, next.table);
        tracing::info!(
            buckets = self.table.shape().buckets(),
            entries = self.table.len(),
            "the table of owners has grown"
        );
        remove(self.outer.as_fd(), former.number())
    }

    /// Goes on with the present table alone.
    fn give_up(&mut self) {
        self.next = None;
        self.not_before = self.table.len() + self.table.len() / 64;
    }
}
