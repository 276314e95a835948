//! The memory of tables of owners: array maps, mapped.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use homing_common::owners::{Bucket, Header, Memory, SLOTS, table::Writable};

use super::Maps;
use crate::datapath::{mapped::Mapped, sys};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "Homing runs on x86-64 only: elsewhere the kernel programs' loads are not in order, and they could miss an owner"
);

/// `BPF_F_MMAPABLE | BPF_F_INNER_MAP`: the flags of what `OWNERS` holds.
const FLAGS: u32 = 1 << 10 | 1 << 12;

/// The header, for all who look at the tables.
#[derive(Clone)]
pub(super) struct SharedHeader(Arc<Mapped<Header>>);

impl SharedHeader {
    pub fn open(maps: &Maps<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(Mapped::of_fd(maps.header()?, 1)?)))
    }
}

/// The buckets of one table, and the header.
pub struct Tables {
    header: SharedHeader,
    number: u32,
    id: u32,
    buckets: Mapped<Bucket>,
}

impl Tables {
    /// Makes a map of so many buckets, all free, for the table with a number.
    pub(super) fn create(
        header: SharedHeader,
        number: u32,
        buckets: u32,
    ) -> io::Result<(OwnedFd, Self)> {
        let btf = sys::load_btf(&types::bytes())?;
        let value = (size_of::<Bucket>(), types::BUCKET);
        let map = sys::create_array("owners", value, buckets, FLAGS, (btf.as_fd(), types::U32))?;
        let tables = Self::mapped(header, number, map.as_fd())?;
        Ok((map, tables))
    }

    fn mapped(header: SharedHeader, number: u32, map: BorrowedFd<'_>) -> io::Result<Self> {
        let (id, buckets) = sys::id_and_entries_of(map)?;
        Ok(Self {
            header,
            number,
            id,
            buckets: Mapped::of_fd(map, buckets)?,
        })
    }

    /// The table that `OWNERS` holds at a number, if it holds one.
    pub(super) fn of(
        header: SharedHeader,
        maps: &Maps<'_>,
        number: u32,
    ) -> io::Result<Option<Self>> {
        let mut id = [0; 4];
        if !sys::get_bytes(maps.outer()?, &number.to_ne_bytes(), &mut id)? {
            return Ok(None);
        }
        let id = u32::from_ne_bytes(id);
        let map = match maps.pins {
            Some(folder) => sys::open_pin(&folder.join(id.to_string())),
            None => sys::map_by_id(id),
        };
        Self::mapped(header, number, map?.as_fd()).map(Some)
    }

    /// The map's id, by which it is pinned.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// How many bytes the buckets take.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.buckets.entries()) * size_of::<Bucket>() as u64
    }
}

/// The words of an entry.
///
/// # Safety
///
/// The entry must be mapped for as long as the words are used, and touched by atomic
/// accesses alone.
unsafe fn words<'a, T>(entry: *mut T) -> &'a [AtomicU64; SLOTS] {
    const { assert!(size_of::<T>() == SLOTS * size_of::<u64>()) };
    // SAFETY: as long, and as the caller says.
    unsafe { &*entry.cast() }
}

impl Memory for Tables {
    type Line<'a> = &'a [AtomicU64; SLOTS];

    fn header(&self) -> Option<Self::Line<'_>> {
        // SAFETY: mapped as long as this; nobody accesses it in another way.
        Some(unsafe { words(self.header.0.entry(0)) })
    }

    fn bucket(&self, table: u32, number: u32) -> Option<Self::Line<'_>> {
        let is_there = table == self.number && number < self.buckets.entries();
        // SAFETY: as above.
        is_there.then(|| unsafe { words(self.buckets.entry(number)) })
    }

    fn load(line: Self::Line<'_>, word: usize) -> u64 {
        line[word].load(Acquire)
    }
}

impl Writable for Tables {
    fn store(line: Self::Line<'_>, word: usize, value: u64) {
        line[word].store(value, Release);
    }
}

/// The types of a bucket for the kernel, so that `bpftool` names its fields: in BTF
/// (Documentation/bpf/btf.rst), written out, since a table is made while no object is
/// at hand that describes it.
mod types {
    /// The number of the key's type.
    pub const U32: u32 = 1;
    const U16: u32 = 2;
    const SLOT: u32 = 3;
    const SLOTS: u32 = 4;
    /// The number of the value's type.
    pub const BUCKET: u32 = 5;

    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    const BIT_FIELDS: u32 = 1 << 31;

    /// All of it.
    pub fn bytes() -> Vec<u8> {
        let names = [
            "u32", "u16", "Slot", "Bucket", "low", "high", "host", "away", "slots",
        ];
        let mut strings = vec![0];
        let names = names.map(|name| {
            let at = strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            at
        });
        let [u32, u16, slot, bucket, low, high, host, away, slots] = names;
        #[rustfmt::skip]
        let words = [
            // Name, kind and count of members, size; then what the kind wants.
            u32, INT, 4, 32,
            u16, INT, 2, 16,
            // Where members may be bit fields, their place is how many bits (0: all of
            // the type's), then where they begin.
            slot, BIT_FIELDS | STRUCT | 4, 8,
                low, U32, 0,
                high, U16, 32,
                host, U16, 12 << 24 | 48,
                away, U16, 4 << 24 | 60,
            0, ARRAY, 0, SLOT, U32, homing_common::owners::SLOTS as u32,
            bucket, STRUCT | 1, 64,
                slots, SLOTS, 0,
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
        let header = [24, 0, types_len, types_len, strings_len];
        let magic = 0xeb9f_u16.to_ne_bytes();
        let mut bytes = [magic[0], magic[1], 1, 0].to_vec();
        bytes.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
    };

    use homing_common::{
        host::HostId,
        owners::{BUCKETS_MIN, Found, look_up, table::Table},
        session::SessionId,
    };

    use super::*;

    /// A table without a kernel behind it, for a writer and a reader.
    #[derive(Clone)]
    struct Both(Arc<Tables>);

    impl Both {
        fn new() -> Self {
            Self(Arc::new(Tables {
                header: SharedHeader(Arc::new(Mapped::anonymous(1))),
                number: 0,
                id: 0,
                buckets: Mapped::anonymous(BUCKETS_MIN),
            }))
        }
    }

    impl Memory for Both {
        type Line<'a> = <Tables as Memory>::Line<'a>;

        fn header(&self) -> Option<Self::Line<'_>> {
            self.0.header()
        }

        fn bucket(&self, table: u32, number: u32) -> Option<Self::Line<'_>> {
            self.0.bucket(table, number)
        }

        fn load(line: Self::Line<'_>, word: usize) -> u64 {
            Tables::load(line, word)
        }
    }

    impl Writable for Both {
        fn store(line: Self::Line<'_>, word: usize, value: u64) {
            Tables::store(line, word, value);
        }
    }

    #[test]
    fn a_table_has_its_buckets_and_no_more() {
        let tables = Both::new();
        let last = BUCKETS_MIN - 1;
        assert!(tables.bucket(1, 0).is_none() && tables.bucket(0, last + 1).is_none());
        for (number, value) in [(0, 7), (1, 8), (last, 9)] {
            let line = tables.bucket(0, number).unwrap();
            Tables::store(line, SLOTS - 1, value);
        }
        let read = |number| Tables::load(tables.bucket(0, number).unwrap(), SLOTS - 1);
        assert_eq!([0, 1, last].map(read), [7, 8, 9]);
        assert_eq!(tables.0.bytes(), 64 << 17);
    }

    #[test]
    fn a_reader_finds_what_stays_while_others_come_and_go() {
        let tables = Both::new();
        let mut table = Table::create(tables.clone(), 0, BUCKETS_MIN).unwrap();
        table.activate();
        // All in one bucket, and what stays behind the others: the reader passes by them.
        let (stays, others) = (SessionId(1), (2..8).map(SessionId));
        let come = |table: &mut Table<Both>| {
            others.clone().for_each(|id| {
                table.set(id, HostId(6)).unwrap();
            });
        };
        let go = |table: &mut Table<Both>| {
            others.clone().for_each(|id| assert!(table.clear(id)));
        };
        come(&mut table);
        table.set(stays, HostId(5)).unwrap();
        go(&mut table);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    assert_eq!(look_up(&tables, stays), Found::Owner(5));
                }
            });
            for _ in 0..10 {
                come(&mut table);
                go(&mut table);
            }
            stop.store(true, Relaxed);
        });
        assert_eq!(table.len(), 1);
    }
}
