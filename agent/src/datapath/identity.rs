//! `IDENTITY`: which life of the kernel, and which start of the agent, this is.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, Map, MapData};
use homing_common::maps::Identity;

use super::map_io;

/// The place where the identity outlives the agent.
pub struct IdentityCell {
    map: Array<MapData, Identity>,
}

impl IdentityCell {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = Array::try_from(map).map_err(map_io)?;
        Ok(Self { map })
    }

    /// Begins a generation: to be called once per start of the agent. The first
    /// one in a kernel's life also begins an incarnation, named by the clock.
    pub fn begin(&mut self) -> io::Result<Identity> {
        let next = begin(self.get()?, unix_ms());
        self.set(next)?;
        Ok(next)
    }

    /// Begins an incarnation above `above`: for a host whose clock was set back,
    /// so that the POP remembers a greater one than it has.
    pub fn raise(&mut self, above: u64) -> io::Result<Identity> {
        let next = raise(self.get()?, above, unix_ms());
        self.set(next)?;
        Ok(next)
    }

    /// The identity in force.
    pub fn get(&self) -> io::Result<Identity> {
        self.map.get(&0, 0).map_err(map_io)
    }

    fn set(&mut self, identity: Identity) -> io::Result<()> {
        self.map.set(0, identity, 0).map_err(map_io)
    }
}

fn begin(old: Identity, now_ms: u64) -> Identity {
    Identity {
        incarnation: match old.incarnation {
            0 => now_ms.max(1),
            incarnation => incarnation,
        },
        generation: old.generation + 1,
    }
}

fn raise(old: Identity, above: u64, now_ms: u64) -> Identity {
    Identity {
        incarnation: old.incarnation.max(above).saturating_add(1).max(now_ms),
        generation: old.generation,
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(incarnation: u64, generation: u64) -> Identity {
        Identity {
            incarnation,
            generation,
        }
    }

    #[test]
    fn the_first_start_takes_its_incarnation_from_the_clock() {
        let first = begin(Identity::default(), 1_700_000_000_000);
        assert!(first == identity(1_700_000_000_000, 1));
    }

    #[test]
    fn later_starts_keep_the_incarnation() {
        assert!(begin(identity(5, 1), 1_700_000_000_000) == identity(5, 2));
    }

    #[test]
    fn a_clock_at_zero_still_gives_an_incarnation() {
        assert!(begin(Identity::default(), 0) == identity(1, 1));
    }

    #[test]
    fn raising_always_goes_above_both() {
        assert!(raise(identity(5, 3), 9, 0) == identity(10, 3));
        assert!(raise(identity(9, 3), 5, 0) == identity(10, 3));
        assert!(raise(identity(5, 3), 9, 100) == identity(100, 3));
    }
}
