//! `CONTROL`: what the agent tells the kernel programs while they run.
//!
//! The map is written in place, field by field, each by one atomic store. It is
//! pinned, so what it says outlives the agent: a host that was draining still is
//! when its next agent starts.

use std::{
    io,
    mem::offset_of,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use aya::maps::Map;
use homing_common::{control::Control, session::SessionKey};

use super::{clock::monotonic_ns, mapped::Mapped};

/// The agent's word to the programs. Clones write the same map.
#[derive(Clone)]
pub struct ControlMap(Arc<Mapped<Control>>);

impl ControlMap {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        Ok(Self(Arc::new(Mapped::open(map)?)))
    }

    /// Says that the agent lives. The programs take one that has not said so for
    /// [`Control::BEAT_MAX_NS`] for dead.
    pub fn beat(&self) {
        self.word(offset_of!(Control, beat_ns))
            .store(monotonic_ns(), Ordering::Release);
    }

    /// When the agent last said that it lives: `CLOCK_MONOTONIC`, nanoseconds.
    pub fn beat_ns(&self) -> u64 {
        self.word(offset_of!(Control, beat_ns))
            .load(Ordering::Acquire)
    }

    /// Whether this host knows the sessions of the whole POP.
    pub fn set_synced(&self, synced: bool) {
        self.set_flag(Control::SYNCED, synced);
    }

    /// Whether this host takes no new sessions.
    pub fn set_draining(&self, draining: bool) {
        self.set_flag(Control::DRAINING, draining);
    }

    /// Whether no more UDP flows are to be made sessions.
    pub fn set_flows_full(&self, full: bool) {
        self.set_flag(Control::FLOWS_FULL, full);
    }

    /// Whether sessions of others found no room in `OWNERS`.
    pub fn set_full(&self, full: bool) {
        self.set_flag(Control::OWNERS_FULL, full);
    }

    /// Whether `MOVING` may have entries.
    pub(super) fn set_moving(&self, moving: bool) {
        self.set_flag(Control::MOVING, moving);
    }

    /// Whether the programs look into `MOVING`.
    pub fn is_moving(&self) -> bool {
        self.flag(Control::MOVING)
    }

    /// What [`ControlMap::set_synced`] said last.
    pub fn is_synced(&self) -> bool {
        self.flag(Control::SYNCED)
    }

    /// What [`ControlMap::set_draining`] said last, be it by an agent before.
    pub fn is_draining(&self) -> bool {
        self.flag(Control::DRAINING)
    }

    /// This life of the host's kernel, for echoes.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.word(offset_of!(Control, incarnation))
            .store(incarnation, Ordering::Release);
    }

    /// The keys of echoes. An echo that is read in the middle of the change is
    /// refused or badly signed; the next one is not.
    pub fn set_echo_keys(&self, keys: [SessionKey; 2]) {
        let words = keys.iter().flat_map(|key| key.0);
        for (n, word) in words.enumerate() {
            self.word(offset_of!(Control, echo_keys) + 8 * n)
                .store(word, Ordering::Release);
        }
    }

    /// The largest MSS that SYN|ACKs of services may offer, over IPv4 and over
    /// IPv6; 0: any.
    pub fn set_mss(&self, v4: u16, v6: u16) {
        let offsets = [offset_of!(Control, mss_v4), offset_of!(Control, mss_v6)];
        for (offset, mss) in offsets.into_iter().zip([v4, v6]) {
            // SAFETY: as in `word`; both fields have 16 bits.
            let field = unsafe { AtomicU16::from_ptr(self.field(offset).cast()) };
            field.store(mss, Ordering::Release);
        }
    }

    fn set_flag(&self, flag: u32, on: bool) {
        if on {
            self.flags().fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags().fetch_and(!flag, Ordering::AcqRel);
        }
    }

    fn flag(&self, flag: u32) -> bool {
        self.flags().load(Ordering::Acquire) & flag != 0
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `word`; the field has 32 bits.
        unsafe { AtomicU32::from_ptr(self.field(offset_of!(Control, flags)).cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the field lies within the entry, is aligned as the entry is, and
        // this process touches it by atomic accesses alone.
        unsafe { AtomicU64::from_ptr(self.field(offset).cast()) }
    }

    fn field(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < size_of::<Control>());
        // SAFETY: the offset is that of a field of the entry.
        unsafe { self.0.entry(0).cast::<u8>().add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry as the programs read it.
    fn read(map: &ControlMap) -> Control {
        // SAFETY: nobody writes meanwhile.
        unsafe { *map.0.entry(0) }
    }

    #[test]
    fn every_field_is_written_alone() {
        let map = ControlMap(Arc::new(Mapped::anonymous(1)));
        let before = monotonic_ns();
        map.beat();
        assert!((before..=monotonic_ns()).contains(&map.beat_ns()));
        map.set_incarnation(7);
        map.set_echo_keys([SessionKey([1, 2]), SessionKey([3, 4])]);
        map.set_mss(1360, 1340);
        map.set_draining(true);
        map.set_synced(true);
        map.set_synced(false);
        map.set_moving(true);
        map.set_moving(false);
        let found = read(&map);
        assert_eq!(found.beat_ns, map.beat_ns());
        assert_eq!((found.incarnation, found.flags), (7, Control::DRAINING));
        assert!(found.echo_keys == [SessionKey([1, 2]), SessionKey([3, 4])]);
        assert_eq!((found.mss_v4, found.mss_v6), (1360, 1340));
        assert!(map.is_draining() && !map.is_synced());
        map.set_mss(0, 0);
        assert_eq!(
            (read(&map).mss_v4, read(&map).flags),
            (0, Control::DRAINING)
        );
    }
}
