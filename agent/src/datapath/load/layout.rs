//! How the keys and values of maps are laid out, and how an entry of one layout
//! becomes one of another. Pure.
//!
//! A field is known by its name. So fields may change places, come and go between
//! builds, and entries are carried over: what both have is copied, what is new is
//! zero, what is gone is dropped. Hence two rules for whoever changes a type that
//! stands in a map: zero in a new field means that nothing is known, and a field that
//! changes its meaning changes its name.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// A key or a value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// Its length in bytes.
    pub size: u32,
    /// Its fields, down to integers and arrays of integers, in order.
    pub fields: Vec<Field>,
}

/// An integer or an array of integers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name, with those of the structures that it is in.
    pub path: String,
    /// Where it begins.
    pub offset: u32,
    /// Its length in bytes.
    pub size: u32,
}

/// The layouts of a map; none where the map's definition does not say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapLayout {
    /// Its keys.
    pub key: Layout,
    /// Its values. Of a ring buffer: its records.
    pub value: Layout,
}

/// The layouts of a build's maps, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layouts(pub BTreeMap<String, MapLayout>);

/// What turns an entry's key or value from one layout into another.
#[derive(Clone, Debug)]
pub struct Conversion {
    size: usize,
    /// Bytes to copy: from where, to where, how many.
    copies: Vec<(usize, usize, usize)>,
    /// Bytes that have no place any more: from where, how many. Where they are not
    /// zero, there is no way to convert.
    lost: Vec<(usize, usize)>,
}

impl Conversion {
    /// From one layout to another.
    pub fn between(old: &Layout, new: &Layout) -> Self {
        let mut conversion = Self {
            size: new.size as usize,
            copies: Vec::new(),
            lost: Vec::new(),
        };
        if old == new {
            conversion.copies.push((0, 0, new.size as usize));
            return conversion;
        }
        let by_path: BTreeMap<&str, &Field> = old
            .fields
            .iter()
            .map(|field| (&*field.path, field))
            .collect();
        for field in &new.fields {
            let Some(from) = by_path.get(&*field.path) else {
                continue;
            };
            // The low bytes come first: a wider integer has zeros behind them.
            let len = from.size.min(field.size) as usize;
            let (start, end) = (from.offset as usize, (from.offset + from.size) as usize);
            conversion.copies.push((start, field.offset as usize, len));
            if start + len < end {
                conversion.lost.push((start + len, end - start - len));
            }
        }
        conversion
    }

    /// Converts; `None` if a field has become too narrow for what it holds.
    pub fn convert(&self, old: &[u8]) -> Option<Vec<u8>> {
        let mut new = vec![0; self.size];
        for &(from, len) in &self.lost {
            if old.get(from..from + len)?.iter().any(|byte| *byte != 0) {
                return None;
            }
        }
        for &(from, to, len) in &self.copies {
            new.get_mut(to..to + len)?
                .copy_from_slice(old.get(from..from + len)?);
        }
        Some(new)
    }
}

/// One line per map: `NAME key SIZE FIELD… value SIZE FIELD…`, each field as
/// `path@offset+size`.
impl fmt::Display for Layouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, map) in &self.0 {
            writeln!(f, "{name} key {} value {}", map.key, map.value)?;
        }
        Ok(())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        for field in &self.fields {
            write!(f, " {}@{}+{}", field.path, field.offset, field.size)?;
        }
        Ok(())
    }
}

/// A text that does not describe layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotLayouts;

impl FromStr for Layouts {
    type Err = NotLayouts;

    fn from_str(text: &str) -> Result<Self, NotLayouts> {
        let mut layouts = Self::default();
        for line in text.lines() {
            let (name, rest) = line.split_once(" key ").ok_or(NotLayouts)?;
            let (key, value) = rest.split_once(" value ").ok_or(NotLayouts)?;
            let map = MapLayout {
                key: key.parse()?,
                value: value.parse()?,
            };
            layouts.0.insert(name.to_owned(), map);
        }
        Ok(layouts)
    }
}

impl FromStr for Layout {
    type Err = NotLayouts;

    fn from_str(text: &str) -> Result<Self, NotLayouts> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| NotLayouts);
        let mut words = text.split(' ');
        let size = number(words.next().ok_or(NotLayouts)?)?;
        let fields = words.map(|word| {
            let (path, place) = word.rsplit_once('@').ok_or(NotLayouts)?;
            let (offset, len) = place.split_once('+').ok_or(NotLayouts)?;
            let (offset, len) = (number(offset)?, number(len)?);
            match offset.checked_add(len) {
                Some(end) if end <= size => Ok(Field {
                    path: path.to_owned(),
                    offset,
                    size: len,
                }),
                _ => Err(NotLayouts),
            }
        });
        Ok(Self {
            size,
            fields: fields.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(text: &str) -> Layout {
        text.parse().unwrap()
    }

    fn convert(old: &str, new: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        Conversion::between(&layout(old), &layout(new)).convert(bytes)
    }

    #[test]
    fn the_same_layout_is_copied_with_its_padding() {
        let same = "4 a@0+1";
        assert_eq!(convert(same, same, &[1, 2, 3, 4]), Some(vec![1, 2, 3, 4]));
    }

    #[test]
    fn fields_change_places_come_and_go() {
        assert_eq!(
            convert("4 a@0+2 b@2+2", "6 b@0+2 new@2+2 a@4+2", &[1, 2, 3, 4]),
            Some(vec![3, 4, 0, 0, 1, 2])
        );
        assert_eq!(
            convert("4 a@0+2 b@2+2", "2 b@0+2", &[1, 2, 3, 4]),
            Some(vec![3, 4])
        );
    }

    #[test]
    fn fields_become_wider_and_narrower() {
        assert_eq!(
            convert("2 a@0+2", "4 a@0+4", &[1, 2]),
            Some(vec![1, 2, 0, 0])
        );
        assert_eq!(
            convert("4 a@0+4", "2 a@0+2", &[1, 2, 0, 0]),
            Some(vec![1, 2])
        );
        assert_eq!(convert("4 a@0+4", "2 a@0+2", &[1, 2, 0, 1]), None);
    }

    #[test]
    fn what_is_shorter_than_its_layout_is_not_converted() {
        assert_eq!(convert("4 a@0+4", "8 a@0+4 b@4+4", &[1, 2]), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "A key 4",
            "A key x value 4",
            "A key 4 a value 4",
            "A key 4 a@1+4 value 0",
        ] {
            assert_eq!(text.parse::<Layouts>(), Err(NotLayouts), "{text}");
        }
    }

    fn any_layout() -> impl Strategy<Value = Layout> {
        prop::collection::vec((0u8..6, 1u32..9), 0..6).prop_map(|fields| {
            let mut layout = Layout::default();
            for (name, size) in fields {
                let path = format!("a.b{name}");
                if layout.fields.iter().all(|field| field.path != path) {
                    let offset = layout.size;
                    layout.fields.push(Field { path, offset, size });
                    layout.size += size;
                }
            }
            layout
        })
    }

    fn get(layout: &Layout, bytes: &[u8], path: &str) -> Option<u64> {
        let field = layout.fields.iter().find(|field| field.path == path)?;
        let mut number = [0; 8];
        let at = field.offset as usize;
        number[..field.size as usize].copy_from_slice(&bytes[at..at + field.size as usize]);
        Some(u64::from_le_bytes(number))
    }

    proptest! {
        #[test]
        fn text_and_back(maps in prop::collection::btree_map("[A-Z_]{1,9}", (any_layout(), any_layout()), 0..5)) {
            let maps = maps.into_iter().map(|(name, (key, value))| (name, MapLayout { key, value }));
            let layouts = Layouts(maps.collect());
            prop_assert_eq!(layouts.to_string().parse(), Ok(layouts));
        }

        #[test]
        fn every_field_keeps_its_value(
            old in any_layout(),
            new in any_layout(),
            bytes in prop::collection::vec(0u8..3, 64),
        ) {
            let bytes = &bytes[..old.size as usize];
            let fits = new.fields.iter().all(|field| {
                let value = get(&old, bytes, &field.path).unwrap_or(0);
                field.size >= 8 || value >> (field.size * 8) == 0
            });
            let converted = Conversion::between(&old, &new).convert(bytes);
            prop_assert_eq!(converted.is_some(), fits || old == new);
            if let Some(converted) = converted {
                prop_assert_eq!(converted.len(), new.size as usize);
                for field in &new.fields {
                    let expected = get(&old, bytes, &field.path).unwrap_or(0);
                    prop_assert_eq!(get(&new, &converted, &field.path), Some(expected));
                }
            }
        }
    }
}
