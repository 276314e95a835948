//! `STATS`: what became of packets and sessions, summed over the CPUs.

use std::io;

use aya::maps::{Map, MapData, PerCpuArray};
use homing_common::outcome::{Hook, Outcome, STATS_ENTRIES};

use super::map_io;

/// The counters in the kernel.
pub struct Stats {
    map: PerCpuArray<MapData, u64>,
}

/// What the counters stood at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts(Vec<u64>);

impl Stats {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = PerCpuArray::try_from(map).map_err(map_io)?;
        Ok(Self { map })
    }

    /// All counters. They count from the first load on; a new agent does not
    /// reset them.
    pub fn read(&self) -> io::Result<Counts> {
        let counts = (0..STATS_ENTRIES).map(|index| self.sum(index));
        counts.collect::<io::Result<_>>().map(Counts)
    }

    /// One counter of the hooks on sockets.
    pub fn hook(&self, hook: Hook) -> io::Result<u64> {
        self.sum(hook.index())
    }

    fn sum(&self, index: u32) -> io::Result<u64> {
        let per_cpu = self.map.get(&index, 0).map_err(map_io)?;
        Ok(per_cpu.iter().sum())
    }
}

impl Counts {
    /// Packets that ended in `outcome`.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.0[outcome.index() as usize]
    }

    /// What the hooks on sockets counted.
    pub fn hook(&self, hook: Hook) -> u64 {
        self.0[hook.index() as usize]
    }
}
