//! The maps that a build wants, and how they differ from those that are pinned.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, path::Path};

use aya::maps::{MapInfo, MapType};

use super::{
    LoadOptions,
    btf::Btf,
    fill::{Carry, Kind},
    layout::{Conversion, Layout, Layouts, MapLayout},
};
use crate::datapath::{Error, map_io, sys};

/// The maps of an object, in the sizes that are configured.
pub(super) struct Wanted {
    pub shapes: BTreeMap<String, Shape>,
    pub layouts: Layouts,
}

/// What can be compared of a map without looking into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: u32,
}

impl Wanted {
    pub fn of(options: &LoadOptions, object: &[u8]) -> Result<Self, Error> {
        let object = aya_obj::Object::parse(object).map_err(|error| Error::Load {
            why: error.to_string(),
        })?;
        let blob = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes);
        let btf = blob.as_deref().and_then(Btf::parse);
        let mut wanted = Self {
            shapes: BTreeMap::new(),
            layouts: Layouts::default(),
        };
        for (name, map) in &object.maps {
            if name.starts_with('.') {
                continue;
            }
            let entries = match name.as_str() {
                "SESSIONS" => options.sessions_entries,
                "CLOSED" => options.settings.closed_entries,
                "FRAGMENTS" => options.settings.fragments_entries,
                _ => map.max_entries(),
            };
            let shape = Shape {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                entries,
            };
            wanted.shapes.insert(name.clone(), shape);
            if let (aya_obj::Map::Btf(map), Some(btf)) = (map, &btf) {
                let layout = |id| btf.layout(id).unwrap_or_default();
                let layout = MapLayout {
                    key: layout(map.def.btf_key_type_id),
                    value: layout(map.def.btf_value_type_id),
                };
                wanted.layouts.0.insert(name.clone(), layout);
            }
        }
        Ok(wanted)
    }

    /// A map that was made already, as if it were wanted: for what an interrupted load
    /// left.
    pub fn found(name: &str, pin: &Path, layouts: &Layouts) -> Result<Self, Error> {
        let shape = Shape::of_pin(pin).map_err(Error::pin("examine the map", pin))?;
        Ok(Self {
            shapes: [(name.to_owned(), shape)].into(),
            layouts: layouts.clone(),
        })
    }

    /// How the map pinned at `pin` is made into the one that is wanted. `None`: it is
    /// that already. `old`: the layouts of the pinned maps, as far as they are known;
    /// a map without is taken for what its sizes say.
    pub fn change(&self, name: &str, pin: &Path, old: &Layouts) -> Result<Option<Change>, Error> {
        let unknown = MapLayout::default();
        let wanted = self.shapes[name];
        let found = Shape::of_pin(pin).map_err(Error::pin("examine the map", pin))?;
        let new = self.layouts.0.get(name).unwrap_or(&unknown);
        let old = old.0.get(name).unwrap_or(new);
        if found == wanted && old == new {
            return Ok(None);
        }
        let kinds = (Kind::of(found.map_type), Kind::of(wanted.map_type));
        let known = |layout: &Layout, size: u32| layout.size == size;
        let carry = match kinds {
            (Some(kind), Some(new_kind))
                if kind == new_kind
                    && known(&old.key, found.key_size)
                    && known(&old.value, found.value_size)
                    && known(&new.key, wanted.key_size)
                    && known(&new.value, wanted.value_size) =>
            {
                Some(Carry {
                    kind,
                    key: Conversion::between(&old.key, &new.key),
                    value: Conversion::between(&old.value, &new.value),
                })
            }
            _ => None,
        };
        Ok(Some(Change { carry }))
    }
}

/// A pinned map must give way to a new one.
#[derive(Debug)]
pub(super) struct Change {
    /// How its entries get there; none if the new one begins empty.
    pub carry: Option<Carry>,
}

impl Shape {
    fn of_pin(pin: &Path) -> io::Result<Self> {
        let info = MapInfo::from_pin(pin).map_err(map_io)?;
        Ok(Self {
            map_type: info.map_type().map_or(MapType::Unspecified, |kind| kind) as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: info.max_entries(),
        })
    }
}

/// The pinned map that says how the others are laid out, because the kernel tells
/// that to nobody but an administrator. It holds a text, then zeros.
pub(super) const LAYOUT: &str = "LAYOUT";
/// Room for the text.
const LAYOUT_BYTES: usize = 16 << 10;

/// What the map pinned at `pin` says. Nothing, if there is none, or if it is not
/// understood.
pub(super) fn read_layouts(pin: &Path) -> io::Result<Layouts> {
    if !pin.exists() {
        return Ok(Layouts::default());
    }
    let info = MapInfo::from_pin(pin).map_err(map_io)?;
    let mut text = vec![0; info.value_size() as usize];
    let cell = sys::open_pin(pin)?;
    sys::get_bytes(cell.as_fd(), &0u32.to_ne_bytes(), &mut text)?;
    let len = text.iter().position(|byte| *byte == 0);
    text.truncate(len.unwrap_or(text.len()));
    let layouts = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok());
    Ok(layouts.unwrap_or_default())
}

/// Pins a map at `pin` that says `layouts`.
pub(super) fn write_layouts(pin: &Path, layouts: &Layouts) -> io::Result<()> {
    let mut text = layouts.to_string().into_bytes();
    if text.len() > LAYOUT_BYTES {
        return Err(io::Error::other("the description of the maps is too long"));
    }
    text.resize(LAYOUT_BYTES, 0);
    let cell = sys::create_cell(LAYOUT, LAYOUT_BYTES)?;
    sys::update_bytes(cell.as_fd(), &0u32.to_ne_bytes(), &text, 0)?;
    sys::pin(cell.as_fd(), pin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::OBJECT;

    /// Layouts of the object that this build carries.
    fn layouts() -> Layouts {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let blob = object.btf.as_ref().unwrap().to_bytes();
        let btf = Btf::parse(&blob).unwrap();
        let maps = object.maps.iter().filter_map(|(name, map)| match map {
            aya_obj::Map::Btf(map) => Some((
                name.clone(),
                MapLayout {
                    key: btf.layout(map.def.btf_key_type_id).unwrap_or_default(),
                    value: btf.layout(map.def.btf_value_type_id).unwrap_or_default(),
                },
            )),
            aya_obj::Map::Legacy(_) => None,
        });
        Layouts(maps.collect())
    }

    #[test]
    fn the_layouts_of_this_build_are_understood() {
        let layouts = layouts();
        let text = |name: &str| {
            let map = &layouts.0[name];
            (map.key.to_string(), map.value.to_string())
        };
        assert_eq!(
            text("SESSIONS"),
            (
                "40 client.__0@0+16 service.__0@16+16 client_port.__0@32+2 \
                 service_port.__0@34+2 protocol@36+1 zero@37+3"
                    .to_owned(),
                "40 id.__0@0+8 cookie@8+8 opened_ns@16+8 seen_ns@24+8 generation@32+4 flags@36+4"
                    .to_owned()
            )
        );
        assert!(text("HOSTS").1.contains(" templates[1].header@"));
        // Nobody but this says what stands in a ring buffer.
        assert!(text("EVENTS").1.starts_with("96 tuple.client.__0@0+16 "));
        assert_eq!(text("STATS").1, "8 .@0+8");
    }

    #[test]
    fn there_is_room_for_their_description() {
        let text = layouts().to_string();
        assert!(text.len() < LAYOUT_BYTES / 2, "{} bytes", text.len());
    }

    /// What has no layout is replaced by an empty map when anything about it changes.
    #[test]
    fn every_map_with_entries_has_a_layout_of_its_size() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let layouts = layouts();
        for (name, map) in &object.maps {
            if Kind::of(map.map_type()).is_some() && !name.starts_with('.') {
                let layout = &layouts.0[name];
                assert_eq!(layout.key.size, map.key_size(), "{name}");
                assert_eq!(layout.value.size, map.value_size(), "{name}");
                assert!(!layout.value.fields.is_empty(), "{name}");
            }
        }
    }
}
