//! States of applications: bytes that may hold secrets, whole and in parts.

use std::{fmt, ops::Deref};

use zeroize::Zeroizing;

/// What an application knows of a connection, in a form that only applications of its
/// kind understand. It may hold keys: it is wiped when it is dropped, and never
/// printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(Zeroizing<Vec<u8>>);

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

/// A part that does not continue what came before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a part of a state does not continue the one before it")]
pub struct WrongPart;

/// A state that comes in parts, in order.
pub struct Assembly {
    // With room for the whole from the beginning: a vector that grows leaves copies
    // behind that nobody wipes.
    bytes: Zeroizing<Vec<u8>>,
    total: u32,
}

impl Assembly {
    /// Begins a state of so many bytes. The caller has seen to it that this is not too
    /// many.
    pub fn new(total: u32) -> Self {
        Self {
            bytes: Zeroizing::new(Vec::with_capacity(total as usize)),
            total,
        }
    }

    /// How many bytes it will have.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Takes the next part. A part is empty only where the whole state is.
    ///
    /// # Errors
    ///
    /// It is not the next part of this state.
    pub fn push(&mut self, total: u32, offset: u32, part: &[u8]) -> Result<(), WrongPart> {
        let left = (self.total - self.bytes.len() as u32) as usize;
        let fits = total == self.total
            && offset as usize == self.bytes.len()
            && part.len() <= left
            && (!part.is_empty() || total == 0);
        if !fits {
            return Err(WrongPart);
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// Whether all parts are there.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.total as usize
    }

    /// The state, once it [is whole](Self::is_whole).
    pub fn finish(self) -> Blob {
        debug_assert!(self.is_whole());
        Blob(self.bytes)
    }
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assembly({} of {})", self.bytes.len(), self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_order_make_the_state() {
        let mut assembly = Assembly::new(5);
        assembly.push(5, 0, b"abc").expect("the first");
        assert!(!assembly.is_whole());
        assembly.push(5, 3, b"de").expect("the second");
        assert!(assembly.is_whole());
        assert_eq!(*assembly.finish(), *b"abcde");
    }

    #[test]
    fn other_parts_are_refused() {
        let mut assembly = Assembly::new(5);
        for (total, offset, part) in [
            (4, 0, &b"abc"[..]),
            (5, 1, b"abc"),
            (5, 0, b"abcdef"),
            (5, 0, b""),
        ] {
            assert_eq!(assembly.push(total, offset, part), Err(WrongPart));
        }
        assembly.push(5, 0, b"abcde").expect("all of it");
        assert_eq!(assembly.push(5, 5, b""), Err(WrongPart));
        assert_eq!(assembly.push(5, 5, b"f"), Err(WrongPart));
    }

    #[test]
    fn an_empty_state_is_whole_at_once() {
        let mut assembly = Assembly::new(0);
        assembly.push(0, 0, b"").expect("its only part");
        assert!(assembly.is_whole());
    }

    #[test]
    fn a_state_is_never_printed() {
        let blob = Blob::from(b"secret".to_vec());
        assert_eq!(format!("{blob:?}"), "Blob(6 bytes)");
    }
}
