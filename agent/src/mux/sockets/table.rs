//! Message sockets by id. An id holds a place and a random part, so a look-up is a step,
//! and an id that was used once, also by the agent before, hits nothing.

use super::bundle::SocketId;

/// Bits of an id that say the place.
const PLACE_BITS: u32 = 20;

/// Bits of an id: a host's id fits above it into a word.
pub const ID_BITS: u32 = 48;

/// The most that a table can hold.
pub const PLACES: usize = 1 << PLACE_BITS;

/// Values by id.
pub struct Table<T> {
    places: Vec<Option<(SocketId, T)>>,
    free: Vec<usize>,
    random: Box<dyn FnMut() -> u64 + Send>,
}

impl<T> Table<T> {
    /// An empty table, whose ids are made from these numbers.
    pub fn new(random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            random: Box::new(random),
        }
    }

    /// A random number.
    pub fn random(&mut self) -> u64 {
        (self.random)()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds a value; the caller sees to it that there are fewer than [`PLACES`].
    pub fn insert(&mut self, value: T) -> SocketId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        debug_assert!(place < PLACES);
        // Never 0, which stands for none.
        let random = ((self.random)() << PLACE_BITS | 1 << (ID_BITS - 1)) & ((1 << ID_BITS) - 1);
        let id = SocketId(random | place as u64);
        self.places[place] = Some((id, value));
        id
    }

    fn place(id: SocketId) -> usize {
        (id.0 & ((1 << PLACE_BITS) - 1)) as usize
    }

    /// The value with this id.
    pub fn get(&self, id: SocketId) -> Option<&T> {
        let (of, value) = self.places.get(Self::place(id))?.as_ref()?;
        (*of == id).then_some(value)
    }

    /// The value with this id.
    pub fn get_mut(&mut self, id: SocketId) -> Option<&mut T> {
        let (of, value) = self.places.get_mut(Self::place(id))?.as_mut()?;
        (*of == id).then_some(value)
    }

    /// Takes a value out.
    pub fn remove(&mut self, id: SocketId) -> Option<T> {
        self.get(id)?;
        let place = Self::place(id);
        self.free.push(place);
        self.places[place].take().map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (SocketId, &T)> {
        self.places.iter().flatten().map(|(id, value)| (*id, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_was_used_hits_nothing() {
        let mut number = 0;
        let mut table = Table::new(move || {
            number += 1;
            number
        });
        let first = table.insert("first");
        let second = table.insert("second");
        assert_eq!(table.remove(first), Some("first"));
        assert_eq!(table.remove(first), None);
        let third = table.insert("third");
        assert_ne!(third, first);
        assert_eq!(table.get(first), None);
        assert_eq!(
            [table.get(second), table.get(third)],
            [Some(&"second"), Some(&"third")]
        );
        assert_eq!(table.len(), 2);
        assert_eq!(table.iter().count(), 2);
        for (id, _) in table.iter() {
            assert!(id.0 > 0 && id.0 >> ID_BITS == 0);
        }
    }
}
