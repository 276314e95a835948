//! Array maps in this process's own memory: what the agent writes there the
//! programs see at once, without a system call.
//!
//! The kernel reads while the agent writes, so entries are only ever touched by
//! atomic accesses to the fields that change together.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::NonNull,
};

use aya::maps::{Array, IterableMap as _, Map, MapData};
use nix::unistd::{SysconfVar, sysconf};

use super::map_io;

/// An array map that was made with `BPF_F_MMAPABLE`.
pub(super) struct Mapped<T> {
    base: NonNull<u8>,
    len_bytes: usize,
    entries: u32,
    of: PhantomData<fn() -> T>,
}

// SAFETY: the memory is shared with the kernel anyway, and all accesses to it are
// atomic.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

/// Entries of array maps begin at multiples of this (`array_map_alloc`).
const ALIGN: usize = 8;

impl<T: aya::Pod> Mapped<T> {
    /// Maps all entries. The map lives on as long as this does.
    pub fn open(map: Map) -> io::Result<Self> {
        let map = Array::<MapData, T>::try_from(map).map_err(map_io)?;
        let entries = map.map().info().map_err(map_io)?.max_entries();
        let fd = map.map().fd().as_fd().as_raw_fd();
        Self::map(entries, fd, libc::MAP_SHARED)
    }

    /// The same, of a map that is held by its file descriptor alone.
    pub fn of_fd(map: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        Self::map(entries, map.as_raw_fd(), libc::MAP_SHARED)
    }

    /// Memory of the same form with no kernel behind it, all zero.
    #[cfg(test)]
    pub fn anonymous(entries: u32) -> Self {
        Self::map(entries, -1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).expect("memory")
    }

    fn map(entries: u32, fd: i32, flags: i32) -> io::Result<Self> {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as usize;
        let len_bytes = (Self::STRIDE * entries as usize).next_multiple_of(page_bytes);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory
        // that is in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, access, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?,
            len_bytes,
            entries,
            of: PhantomData,
        })
    }
}

impl<T> Mapped<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(ALIGN);

    /// How many entries there are.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Where an entry begins: valid as long as `self`, aligned to eight bytes, and
    /// to be read and written by atomic accesses alone.
    pub fn entry(&self, index: u32) -> *mut T {
        assert!(index < self.entries, "there are {} entries", self.entries);
        // SAFETY: all entries lie within the mapping.
        unsafe { self.base.as_ptr().add(index as usize * Self::STRIDE).cast() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nobody has a
        // pointer into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}
