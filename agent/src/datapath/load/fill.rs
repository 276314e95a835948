//! Entries of one map carried over into another.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{MapInfo, MapType};

use super::layout::Conversion;
use crate::datapath::{map_io, sys};

/// How entries are carried over.
#[derive(Clone, Debug)]
pub(super) struct Carry {
    pub kind: Kind,
    pub key: Conversion,
    pub value: Conversion,
}

/// How a map's entries are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Hash,
    Array,
}

impl Kind {
    /// The kind of a map whose entries can be carried over: one that has entries of
    /// its own, and not one for each CPU.
    pub fn of(map_type: u32) -> Option<Self> {
        let is = |known: MapType| map_type == known as u32;
        if is(MapType::Hash) || is(MapType::LruHash) {
            Some(Self::Hash)
        } else if is(MapType::Array) {
            Some(Self::Array)
        } else {
            None
        }
    }
}

/// What was carried over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Carried {
    /// Entries that are new in the new map.
    pub copied: u64,
    /// Entries that found no room there.
    pub no_room: u64,
    /// Entries whose fields have become too narrow.
    pub no_fit: u64,
}

/// Carries over what the new map lacks. Entries that it has stay as they are, so this
/// may be done again and again, also while both maps are in use.
pub(super) fn fill(old: &Path, new: &Path, carry: &Carry) -> io::Result<Carried> {
    let (from, to) = (Opened::new(old)?, Opened::new(new)?);
    let mut carried = Carried::default();
    match carry.kind {
        Kind::Hash => {
            let mut failure = Ok(());
            sys::scan_bytes(
                from.fd.as_fd(),
                from.key_size,
                from.value_size,
                |key, value| {
                    if failure.is_ok() {
                        failure = carry.entry(key, value, &to, &mut carried);
                    }
                },
            )?;
            failure?;
        }
        Kind::Array => carry.array(&from, &to, &mut carried)?,
    }
    Ok(carried)
}

impl Carry {
    fn entry(
        &self,
        key: &[u8],
        value: &[u8],
        to: &Opened,
        carried: &mut Carried,
    ) -> io::Result<()> {
        let (Some(key), Some(value)) = (self.key.convert(key), self.value.convert(value)) else {
            carried.no_fit += 1;
            return Ok(());
        };
        to.check(&key, &value)?;
        match sys::update_bytes(to.fd.as_fd(), &key, &value, NOEXIST) {
            Ok(()) => carried.copied += 1,
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => {}
                Some(libc::E2BIG | libc::ENOMEM) => carried.no_room += 1,
                _ => return Err(error),
            },
        }
        Ok(())
    }

    /// An array has all its entries from the start: those that are not zero are
    /// copied.
    fn array(&self, from: &Opened, to: &Opened, carried: &mut Carried) -> io::Result<()> {
        let mut value = vec![0; from.value_size];
        for index in 0..from.entries {
            let key = index.to_ne_bytes();
            sys::get_bytes(from.fd.as_fd(), &key, &mut value)?;
            if value.iter().all(|byte| *byte == 0) {
                continue;
            }
            match self.value.convert(&value) {
                Some(_) if index >= to.entries => carried.no_room += 1,
                Some(value) => {
                    to.check(&key, &value)?;
                    sys::update_bytes(to.fd.as_fd(), &key, &value, 0)?;
                    carried.copied += 1;
                }
                None => carried.no_fit += 1,
            }
        }
        Ok(())
    }
}

/// A map, and the sizes that the kernel reads and writes.
struct Opened {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    entries: u32,
}

impl Opened {
    fn new(pin: &Path) -> io::Result<Self> {
        let info = MapInfo::from_pin(pin).map_err(map_io)?;
        Ok(Self {
            fd: sys::open_pin(pin)?,
            key_size: info.key_size() as usize,
            value_size: info.value_size() as usize,
            entries: info.max_entries(),
        })
    }

    /// The kernel reads as many bytes as the map's sizes say.
    fn check(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match (key.len(), value.len()) == (self.key_size, self.value_size) {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// `BPF_NOEXIST`: only if there is no such entry yet.
const NOEXIST: u64 = 1;
