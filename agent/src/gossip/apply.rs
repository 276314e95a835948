//! Routes into the kernel's table, and what to do when it is full.

use std::collections::BTreeSet;

use homing_common::{host::HostId, session::SessionId};

use crate::pop::counters::counters;

/// Where routes go: the map `OWNERS`, or a stand-in for it in tests.
pub trait Table: Send + 'static {
    /// Packets of this session go to this host from now on.
    fn set(&mut self, id: SessionId, owner: HostId) -> Result<(), TableFull>;

    /// The same for a session that found no room, and whose packets come here: a
    /// table may keep some room for such. Says whether another one had to make way.
    fn set_asked(&mut self, id: SessionId, owner: HostId) -> Result<bool, TableFull> {
        self.set(id, owner).map(|()| false)
    }

    /// Packets of this session are not sent anywhere from now on. There may have
    /// been no route.
    fn clear(&mut self, id: SessionId);

    /// Packets of no session are sent to this host from now on: all at once, where a
    /// table can do that, before they are cleared one by one. Says how many there were.
    fn void(&mut self, _owner: HostId) -> u32 {
        0
    }
}

/// There is no room for another session.
#[derive(Debug, thiserror::Error)]
#[error("the table of owners is full")]
pub struct TableFull;

counters! {
    /// What happened to routes.
    Counters {
        /// Routes written.
        routes_set,
        /// Routes removed.
        routes_cleared,
        /// Routes not written because the table was full.
        table_full,
        /// Routes of sessions without a place whose packets came here, written into the room kept for such.
        routes_kept,
        /// Routes written into that room for which another one there had to make way.
        routes_made_way,
    }
}

/// Routes tried again in one go.
const RETRIES: usize = 1024;

/// Writes routes, and remembers which could not be written: each belongs to a
/// claim, or could not be removed with its claim, so they are no more than the
/// claims that there ever were at once.
pub struct Applier<T> {
    table: T,
    unplaced: BTreeSet<SessionId>,
    /// Room has appeared since the last try.
    room: bool,
    /// What happened so far.
    pub counters: Counters,
}

impl<T: Table> Applier<T> {
    /// Writes into a table.
    pub fn new(table: T) -> Self {
        Self {
            table,
            unplaced: BTreeSet::new(),
            room: false,
            counters: Counters::default(),
        }
    }

    /// Puts the route of a session in force whose packets come here, though there be
    /// no room for others.
    pub fn apply_asked(&mut self, id: SessionId, owner: Option<HostId>) {
        self.apply(id, owner);
        let Some(owner) = owner.filter(|_| self.unplaced.contains(&id)) else {
            return;
        };
        // It has found no place for good, and is tried again with the others.
        if let Ok(made_way) = self.table.set_asked(id, owner) {
            self.counters.routes_kept += 1;
            self.counters.routes_made_way += u64::from(made_way);
        }
    }

    /// Puts a route in force, or removes it.
    pub fn apply(&mut self, id: SessionId, owner: Option<HostId>) {
        match owner {
            Some(owner) => {
                if self.table.set(id, owner).is_err() {
                    self.counters.table_full += 1;
                    self.unplaced.insert(id);
                    return;
                }
                self.counters.routes_set += 1;
            }
            None => {
                self.table.clear(id);
                self.counters.routes_cleared += 1;
                self.room = true;
            }
        }
        if !self.unplaced.is_empty() {
            self.unplaced.remove(&id);
        }
    }

    /// All routes to a host are over. Says how many the table removed.
    pub fn void(&mut self, owner: HostId) -> u32 {
        self.room = true;
        self.table.void(owner)
    }

    /// Tries again what could not be written, if there may be room by now, or in
    /// any case if `anyway`. `route` says where each session's packets go now.
    pub fn retry(&mut self, anyway: bool, route: impl Fn(SessionId) -> Option<HostId>) {
        if self.unplaced.is_empty() || !(self.room || anyway) {
            return;
        }
        self.room = false;
        let some: Vec<_> = self.unplaced.iter().copied().take(RETRIES).collect();
        let full = self.counters.table_full;
        for id in some {
            self.apply(id, route(id));
            if self.counters.table_full > full {
                // Still full: no use in trying the others.
                self.room = false;
                return;
            }
        }
        self.room = !self.unplaced.is_empty();
    }

    /// How many routes wait for room.
    pub fn unplaced(&self) -> usize {
        self.unplaced.len()
    }

    /// The table.
    pub fn table(&self) -> &T {
        &self.table
    }

    /// The table itself, to hand it on.
    pub fn into_table(self) -> T {
        self.table
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A table in memory with a limit.
    pub struct Memory {
        pub routes: BTreeMap<SessionId, HostId>,
        pub limit: usize,
    }

    impl Table for Memory {
        fn set(&mut self, id: SessionId, owner: HostId) -> Result<(), TableFull> {
            if !self.routes.contains_key(&id) && self.routes.len() >= self.limit {
                return Err(TableFull);
            }
            self.routes.insert(id, owner);
            Ok(())
        }

        fn clear(&mut self, id: SessionId) {
            self.routes.remove(&id);
        }
    }

    /// A table without any room but what is kept for one session.
    #[derive(Default)]
    struct OneGuest(Option<SessionId>);

    impl Table for OneGuest {
        fn set(&mut self, _: SessionId, _: HostId) -> Result<(), TableFull> {
            Err(TableFull)
        }

        fn set_asked(&mut self, id: SessionId, _: HostId) -> Result<bool, TableFull> {
            Ok(self.0.replace(id).is_some())
        }

        fn clear(&mut self, id: SessionId) {
            self.0.take_if(|guest| *guest == id);
        }
    }

    #[test]
    fn who_is_asked_for_gets_the_room_kept_for_that_and_stays_without_a_place() {
        let mut applier = Applier::new(OneGuest::default());
        let host = Some(HostId(2));
        applier.apply(SessionId(1), host);
        assert_eq!(applier.table().0, None);
        applier.apply_asked(SessionId(1), host);
        applier.apply_asked(SessionId(2), host);
        assert_eq!(applier.table().0, Some(SessionId(2)));
        let counters = applier.counters;
        assert_eq!((counters.routes_kept, counters.routes_made_way), (2, 1));
        assert_eq!(applier.unplaced(), 2);
        applier.apply_asked(SessionId(2), None);
        assert_eq!((applier.table().0, applier.unplaced()), (None, 1));
    }

    #[test]
    fn what_did_not_fit_is_written_once_there_is_room() {
        let mut applier = Applier::new(Memory {
            routes: BTreeMap::new(),
            limit: 3,
        });
        let host = Some(HostId(2));
        for n in 0..5 {
            applier.apply(SessionId(n), host);
        }
        assert_eq!((applier.unplaced(), applier.counters.table_full), (2, 2));
        applier.retry(false, |_| host);
        assert_eq!(applier.counters.table_full, 2, "no room: not even tried");
        applier.apply(SessionId(0), None);
        applier.retry(false, |_| host);
        assert_eq!(applier.unplaced(), 1);
        // The other one is closed before there is room for it.
        applier.retry(true, |_| None);
        assert_eq!(applier.unplaced(), 0);
        let ids: Vec<_> = applier.table().routes.keys().map(|id| id.0).collect();
        assert_eq!(ids, [1, 2, 3]);
    }
}
