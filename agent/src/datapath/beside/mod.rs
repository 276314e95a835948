//! Further instances of the kernel programs, beside those in force and on the same maps.
//!
//! [`trial`] runs the XDP program on a packet and tells what it did, without a packet or an
//! entry that comes of it; [`capture`] puts one in the place of the XDP program for as long
//! as somebody captures.

pub mod capture;
pub mod trial;

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};

use super::{
    Error, LoadOptions,
    load::{lacks, why, wanted::Wanted},
    pins::Pins,
};

/// The maps in force, and what the programs on them were told at their load.
#[derive(Clone)]
pub struct Ground {
    options: LoadOptions,
    pins: Pins,
}

/// Maps that an instance has for itself, and their entries where those are not the usual.
type Own = BTreeMap<&'static str, Option<u32>>;

impl Ground {
    /// The maps that [`super::Datapath::load`] has put in force, by the same options.
    pub fn new(options: LoadOptions) -> Self {
        let pins = Pins::new(&options.pin_dir);
        Self { options, pins }
    }

    /// Makes an instance of `object`: the maps in `own` new, all others those in force. No
    /// program is loaded yet.
    fn instance(&self, object: &[u8], own: &Own) -> Result<Ebpf, Error> {
        let wanted = Wanted::of(&self.options, object)?;
        let mut loader = EbpfLoader::new();
        for (name, shape) in &wanted.shapes {
            let pin = self.pins.maps().join(name);
            match own.get(name.as_str()) {
                Some(entries) => {
                    let entries = entries.unwrap_or(shape.entries);
                    loader.map_max_entries(name, entries);
                }
                // One that is missing would be made, and pinned.
                None if !pin.exists() => {
                    let error = io::Error::from(io::ErrorKind::NotFound);
                    return Err(Error::pin("open the map", &pin)(error));
                }
                None => {
                    loader.map_pin_path(name, pin);
                }
            }
        }
        loader
            .override_global("SETTINGS", &self.options.settings, true)
            .load(object)
            .map_err(|error| Error::Load { why: why(&error) })
    }
}

/// A map of an instance, whatever its kind.
fn data<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, Error> {
    match ebpf.map(name) {
        Some(
            Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuArray(data),
        ) => Ok(data),
        _ => Err(lacks(name)),
    }
}

fn fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, Error> {
    use std::os::fd::AsFd as _;
    Ok(data(ebpf, name)?.fd().as_fd())
}
