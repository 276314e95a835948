//! Types as BTF describes them: just enough to tell where the fields of a map's keys
//! and values are.
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`. What is read here
//! is in the object that this very binary carries, or would be refused by the
//! loader; an error says that it is not understood, never that it is attacked.

use super::layout::{Field, Layout};

/// BTF as it stands in an object.
pub struct Btf<'a> {
    /// By type id less one: the type's header and what follows it.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    /// Whether members are bit fields.
    bits: bool,
    vlen: usize,
    /// A size or a type id.
    word: u32,
    rest: &'a [u8],
}

const HEADER_LEN: usize = 24;
const MAGIC: u16 = 0xeb9f;
/// Structures within structures that are followed, and fields of one type.
const DEPTH_MAX: usize = 16;
const FIELDS_MAX: usize = 512;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

impl<'a> Btf<'a> {
    /// Reads the types. `None` if that cannot be done.
    pub fn parse(blob: &'a [u8]) -> Option<Self> {
        if blob.len() < HEADER_LEN || u16::from_le_bytes([blob[0], blob[1]]) != MAGIC {
            return None;
        }
        let section = |at: usize| {
            let start = (word(blob, 4)? as usize).checked_add(word(blob, at)? as usize)?;
            let end = start.checked_add(word(blob, at + 4)? as usize)?;
            blob.get(start..end)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let len = match kind {
                // INT, VAR, DECL_TAG: a word; ARRAY: three.
                1 | 14 | 17 => 4,
                ARRAY => 12,
                STRUCT | UNION | 15 | ENUM64 => vlen * 12,
                ENUM | 13 => vlen * 8,
                _ => 0,
            };
            types.push(Type {
                kind,
                bits: info >> 31 != 0,
                vlen,
                word: word(rest, 8)?,
                rest: rest.get(12..12 + len)?,
            });
            rest = &rest[12 + len..];
        }
        Some(Self { types, strings })
    }

    /// The layout of a type. `None` if it has none that can be told.
    pub fn layout(&self, id: u32) -> Option<Layout> {
        let mut fields = Vec::new();
        self.collect(id, String::new(), 0, 0, &mut fields)?;
        Some(Layout {
            size: self.size(id, 0)?,
            fields,
        })
    }

    fn collect(
        &self,
        id: u32,
        path: String,
        offset: u32,
        depth: usize,
        fields: &mut Vec<Field>,
    ) -> Option<()> {
        let (id, ty) = self.resolve(id, depth)?;
        match ty.kind {
            STRUCT if !ty.bits => {
                for member in 0..ty.vlen {
                    let at = member * 12;
                    let name = self.name(word(ty.rest, at)?)?;
                    let bits = word(ty.rest, at + 8)?;
                    let path = match path.is_empty() {
                        true => name.to_owned(),
                        false => format!("{path}.{name}"),
                    };
                    let member = word(ty.rest, at + 4)?;
                    self.collect(member, path, offset + bits / 8, depth + 1, fields)?;
                }
            }
            ARRAY => {
                let (element, count) = (word(ty.rest, 0)?, word(ty.rest, 8)?);
                let size = self.size(element, depth + 1)?;
                match self.resolve(element, depth + 1)?.1.kind {
                    STRUCT | ARRAY => {
                        for index in 0..count {
                            let at = offset + index * size;
                            self.collect(
                                element,
                                format!("{path}[{index}]"),
                                at,
                                depth + 1,
                                fields,
                            )?;
                        }
                    }
                    _ => fields.push(Field {
                        path: root(path),
                        offset,
                        size: size * count,
                    }),
                }
            }
            // A union is one field: which of its members is in force, nobody can tell.
            INT | ENUM | ENUM64 | PTR | UNION => fields.push(Field {
                path: root(path),
                offset,
                size: self.size(id, depth)?,
            }),
            _ => return None,
        }
        (fields.len() <= FIELDS_MAX).then_some(())
    }

    fn size(&self, id: u32, depth: usize) -> Option<u32> {
        let (_, ty) = self.resolve(id, depth)?;
        match ty.kind {
            PTR => Some(8),
            ARRAY => {
                let element = self.size(word(ty.rest, 0)?, depth + 1)?;
                element.checked_mul(word(ty.rest, 8)?)
            }
            INT | STRUCT | UNION | ENUM | ENUM64 => Some(ty.word),
            _ => None,
        }
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, mut id: u32, depth: usize) -> Option<(u32, Type<'a>)> {
        for _ in depth..DEPTH_MAX {
            let ty = *self.types.get((id as usize).checked_sub(1)?)?;
            match ty.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = ty.word,
                _ => return Some((id, ty)),
            }
        }
        None
    }

    fn name(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let len = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..len]).ok()
    }
}

/// What a field is called that is not in any structure.
fn root(path: String) -> String {
    match path.is_empty() {
        true => ".".to_owned(),
        false => path,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
