//! Further instances of programs, on the maps in force.

use std::{collections::BTreeMap, io};

use aya::{Ebpf, EbpfLoader};

use super::{LoadOptions, programs, wanted::Wanted};
use crate::datapath::{Error, pins::Pins};

/// The maps in force, and what the programs on them were told at their load.
#[derive(Clone)]
pub struct Ground {
    pub(in crate::datapath) options: LoadOptions,
    pub(in crate::datapath) pins: Pins,
}

/// Maps that an instance has for itself, and their entries where those are not the usual.
pub(in crate::datapath) type Own = BTreeMap<&'static str, Option<u32>>;

impl Ground {
    /// The maps that [`super::Datapath::load`] has put in force, by the same options.
    pub fn new(options: LoadOptions) -> Self {
        let pins = Pins::new(&options.pin_dir);
        Self { options, pins }
    }

    /// Makes an instance of an XDP program of `object`: the maps in `own` are its own and
    /// new, all others those in force. It is attached to nothing.
    pub(in crate::datapath) fn instance(
        &self,
        object: &[u8],
        program: &str,
        own: &Own,
    ) -> Result<Ebpf, Error> {
        let wanted = Wanted::of(&self.options, object)?;
        let mut loader = EbpfLoader::new();
        for (name, shape) in &wanted.shapes {
            let pin = self.pins.maps().join(name);
            match own.get(name.as_str()) {
                Some(entries) => {
                    loader.map_max_entries(name, entries.unwrap_or(shape.entries));
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
        let mut ebpf = loader
            .override_global("SETTINGS", &self.options.settings, true)
            .load(object)
            .map_err(|error| Error::Load {
                why: programs::why(&error),
            })?;
        programs::load_xdp(&mut ebpf, program)?;
        Ok(ebpf)
    }
}
