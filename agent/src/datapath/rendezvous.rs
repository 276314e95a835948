//! `RENDEZVOUS`: where packets go that nobody on this host may decide on.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::maps::Map;
use homing_common::control::Rendezvous;

use super::mapped::Mapped;

/// The table in the kernel. Clones write the same one.
#[derive(Clone)]
pub struct RendezvousMap(Arc<Mapped<Rendezvous>>);

impl RendezvousMap {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        Ok(Self(Arc::new(Mapped::open(map)?)))
    }

    /// A table with no kernel behind it, all zero.
    #[cfg(test)]
    pub(crate) fn anonymous() -> Self {
        let entries = homing_common::control::RENDEZVOUS_ENTRIES;
        Self(Arc::new(Mapped::anonymous(entries)))
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.0.entries()
    }

    /// The hosts of a slot.
    pub fn get(&self, slot: u32) -> Rendezvous {
        let [a, b, c, d] = self.word(slot).load(Ordering::Acquire).to_ne_bytes();
        Rendezvous {
            first: u16::from_ne_bytes([a, b]),
            second: u16::from_ne_bytes([c, d]),
        }
    }

    /// Changes a slot, both hosts at once.
    pub fn set(&self, slot: u32, hosts: Rendezvous) {
        let [a, b] = hosts.first.to_ne_bytes();
        let [c, d] = hosts.second.to_ne_bytes();
        let word = u32::from_ne_bytes([a, b, c, d]);
        self.word(slot).store(word, Ordering::Release);
    }

    fn word(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: the entry is four bytes long and aligned, and this process touches
        // it by atomic accesses alone.
        unsafe { AtomicU32::from_ptr(self.0.entry(slot).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_what_was_set() {
        let map = RendezvousMap(Arc::new(Mapped::anonymous(3)));
        let hosts = Rendezvous {
            first: 4095,
            second: 2,
        };
        map.set(1, hosts);
        // SAFETY: nobody writes meanwhile.
        assert_eq!(unsafe { *map.0.entry(1) }, hosts);
        assert_eq!(map.get(1), hosts);
        assert_eq!(map.get(0), Rendezvous::default());
        assert_eq!(map.get(2), Rendezvous::default());
    }
}
