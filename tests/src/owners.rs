//! What the kernel holds of a program's tables of owners: to be looked at, kept and
//! brought back.

use anyhow::{Context as _, Result};
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use homing_common::owners::{Header, TABLES};
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use crate::program::Program;

/// `BPF_MAP_DELETE_ELEM`, which aya has not for arrays of maps.
const DELETE: libc::c_int = 3;

/// Which tables there are, and the header. What stands in the tables is not copied.
pub struct Tables {
    /// The tables, by their numbers.
    pub tables: [Option<MapData>; TABLES as usize],
    /// The header.
    pub header: Header,
}

impl Tables {
    /// None, as before the first start.
    pub const NONE: Self = Self {
        tables: [None, None],
        header: Header {
            active: 0,
            buckets: [0; TABLES as usize],
            moving: 0,
            moves: [0; 4],
        },
    };

    /// Those of a program.
    pub fn of(program: &mut Program) -> Result<Self> {
        let header = header(program)?;
        let map: &Map = program.map("OWNERS")?;
        let outer: ArrayOfMaps<&MapData, MapData> = map.try_into()?;
        let table = |number| match outer.get(&number, 0) {
            Ok(table) => Ok(Some(table)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        };
        let tables = [table(0)?, table(1)?];
        Ok(Self { tables, header })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tables.iter().flatten().count()
    }

    /// Gives a program these.
    pub fn bring_back(&self, program: &mut Program) -> Result<()> {
        let mut header: Array<&mut MapData, Header> = program.map("OWNERS_HEADER")?.try_into()?;
        header.set(0, self.header, 0)?;
        let map = program.map("OWNERS")?;
        for (number, table) in (0..).zip(&self.tables) {
            match table {
                None => delete(map, number)?,
                Some(table) => {
                    let mut outer: ArrayOfMaps<&mut MapData, MapData> = (&mut *map).try_into()?;
                    outer.set(number, table, 0)?;
                }
            }
        }
        Ok(())
    }
}

/// The header of a program's tables.
pub fn header(program: &mut Program) -> Result<Header> {
    let map: &Map = program.map("OWNERS_HEADER")?;
    let header: Array<&MapData, Header> = map.try_into()?;
    Ok(header.get(&0, 0)?)
}

/// Takes the table with a number out of `OWNERS`, if it is there.
fn delete(map: &Map, number: u32) -> Result<()> {
    let Map::ArrayOfMaps(map) = map else {
        anyhow::bail!("OWNERS is no array of maps");
    };
    // The beginning of `union bpf_attr`: the map, and where the key stands.
    let fd = map.fd().as_fd().as_raw_fd();
    let attr = [fd as u64, (&raw const number) as u64];
    // SAFETY: both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, DELETE, &attr, size_of_val(&attr)) };
    let error = io::Error::last_os_error();
    match result {
        0 => Ok(()),
        _ if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        _ => Err(error).context("cannot delete a table"),
    }
}
