//! The kernel object as another build would have it: with types of other layouts.
//!
//! What is changed is what the object says of its types (BTF), and so how maps are
//! made and understood. The programs stay: they must not mind, because they do not
//! reach the fields that change.

use anyhow::{Context as _, Result, ensure};

/// An object whose types can be changed.
pub struct Object {
    elf: Vec<u8>,
    /// Where the header of the section stands.
    section: usize,
    header: Vec<u8>,
    types: Vec<Vec<u8>>,
    strings: Vec<u8>,
}

const STRUCT: u32 = 4;
const INT: u32 = 1;

impl Object {
    /// Reads an ELF object.
    pub fn parse(elf: &[u8]) -> Result<Self> {
        let section = find_section(elf, b".BTF").context("the object has no .BTF")?;
        let [at, len] = place(elf, section)?;
        let btf = elf.get(at..at + len).context("cut short")?;
        let header_len = u32_at(btf, 4)? as usize;
        let part = |field: usize| -> Result<&[u8]> {
            let start = header_len + u32_at(btf, field)? as usize;
            let len = u32_at(btf, field + 4)? as usize;
            btf.get(start..start + len).context("cut short")
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = u32_at(rest, 4)?;
            let vlen = (info & 0xffff) as usize;
            let len = 12
                + match info >> 24 & 0x1f {
                    INT | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | 5 | 15 | 19 => vlen * 12,
                    6 | 13 => vlen * 8,
                    _ => 0,
                };
            types.push(rest.get(..len).context("cut short")?.to_vec());
            rest = &rest[len..];
        }
        Ok(Self {
            elf: elf.to_vec(),
            section,
            header: btf[..header_len].to_vec(),
            types,
            strings: strings.to_vec(),
        })
    }

    /// Exchanges the names of two fields of a structure.
    pub fn exchange(&mut self, structure: &str, one: &str, other: &str) -> Result<()> {
        let ty = self.find(structure)?;
        let (one, other) = (self.member(ty, one)?, self.member(ty, other)?);
        for byte in 0..4 {
            self.types[ty].swap(one + byte, other + byte);
        }
        Ok(())
    }

    /// Appends a field of eight bytes to a structure.
    pub fn append(&mut self, structure: &str, name: &str) -> Result<()> {
        let ty = self.find(structure)?;
        let number = self
            .types
            .iter()
            .position(|ty| kind(ty) == INT && u32_of(ty, 8) == 8)
            .context("the object has no integer of eight bytes")?;
        let name_at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        let ty = &mut self.types[ty];
        let (vlen, size) = (u32_of(ty, 4) + 1, u32_of(ty, 8));
        ty[4..8].copy_from_slice(&vlen.to_le_bytes());
        ty[8..12].copy_from_slice(&(size + 8).to_le_bytes());
        for word in [name_at, number as u32 + 1, size * 8] {
            ty.extend(word.to_le_bytes());
        }
        Ok(())
    }

    /// The object with its changed types.
    pub fn build(mut self) -> Vec<u8> {
        let types = self.types.concat();
        let words = [
            0,
            types.len() as u32,
            types.len() as u32,
            self.strings.len() as u32,
        ];
        for (at, word) in (8..).step_by(4).zip(words) {
            self.header[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let btf = [self.header, types, self.strings].concat();
        if let Ok([at, len]) = place(&self.elf, self.section)
            && len == btf.len()
        {
            self.elf[at..at + len].copy_from_slice(&btf);
            return self.elf;
        }
        // A new section at the end; the old one's bytes stay, and nobody reads them.
        self.elf.resize(self.elf.len().next_multiple_of(8), 0);
        let at = self.elf.len() as u64;
        self.elf[self.section + 24..][..8].copy_from_slice(&at.to_le_bytes());
        self.elf[self.section + 32..][..8].copy_from_slice(&(btf.len() as u64).to_le_bytes());
        self.elf.extend(btf);
        self.elf
    }

    /// The program `homing` as another build would have it: with this object in the
    /// place of the one that it carries. Fields must only have been exchanged, so that
    /// it has the same length.
    pub fn build_into(self, program: &[u8], old: &[u8]) -> Result<Vec<u8>> {
        let new = self.build();
        ensure!(new.len() == old.len(), "the object has become longer");
        let last = program.len().saturating_sub(old.len());
        // It is aligned, in memory and so in the file.
        let at = (0..=last)
            .step_by(8)
            .find(|at| program[*at..].starts_with(old))
            .context("the program does not carry this object; build it anew")?;
        let mut program = program.to_vec();
        program[at..at + new.len()].copy_from_slice(&new);
        Ok(program)
    }

    fn find(&self, structure: &str) -> Result<usize> {
        let found = self
            .types
            .iter()
            .position(|ty| kind(ty) == STRUCT && self.name(u32_of(ty, 0)) == structure.as_bytes());
        found.with_context(|| format!("the object has no structure {structure}"))
    }

    /// Where a member's entry begins, with its name, in a structure's.
    fn member(&self, ty: usize, name: &str) -> Result<usize> {
        let ty = &self.types[ty];
        let mut entries = (12..ty.len()).step_by(12);
        let found = entries.find(|at| self.name(u32_of(ty, *at)) == name.as_bytes());
        found.with_context(|| format!("the structure has no field {name}"))
    }

    fn name(&self, offset: u32) -> &[u8] {
        let rest = &self.strings[offset as usize..];
        let len = rest.iter().position(|byte| *byte == 0);
        &rest[..len.unwrap_or(rest.len())]
    }
}

/// Where a section begins, and its length.
fn place(elf: &[u8], section: usize) -> Result<[usize; 2]> {
    Ok([
        u64_at(elf, section + 24)? as usize,
        u64_at(elf, section + 32)? as usize,
    ])
}

/// Where the header of a section stands.
fn find_section(elf: &[u8], name: &[u8]) -> Result<usize> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no 64-bit ELF");
    let table = u64_at(elf, 0x28)? as usize;
    let (size, count, names) = (
        u16_at(elf, 0x3a)? as usize,
        u16_at(elf, 0x3c)? as usize,
        u16_at(elf, 0x3e)? as usize,
    );
    let strings = u64_at(elf, table + names * size + 24)? as usize;
    for section in (0..count).map(|number| table + number * size) {
        let at = strings + u32_at(elf, section)? as usize;
        let found = elf.get(at..at + name.len() + 1).context("cut short")?;
        if found == [name, b"\0"].concat() {
            return Ok(section);
        }
    }
    anyhow::bail!("no such section")
}

fn kind(ty: &[u8]) -> u32 {
    u32_of(ty, 4) >> 24 & 0x1f
}

/// Of what has been checked to be long enough.
fn u32_of(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let bytes = bytes.get(at..at + 2).context("cut short")?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    ensure!(bytes.len() >= at + 4, "cut short");
    Ok(u32_of(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from(u32_at(bytes, at)?) | u64::from(u32_at(bytes, at + 4)?) << 32)
}
