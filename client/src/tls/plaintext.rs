//! What was decrypted and not read yet.

use tokio::io::ReadBuf;
use zeroize::Zeroizing;

use super::wire::PLAINTEXT_MAX;

/// At most one record's content, wiped when it is dropped. It has memory only from when it
/// is first needed on, and then room for any record: it never grows, which would leave
/// copies behind.
#[derive(Default)]
pub(super) struct Plaintext {
    bytes: Zeroizing<Vec<u8>>,
    read: usize,
}

impl Plaintext {
    /// What another one had left; no more than a record's content.
    pub fn of(left: &[u8]) -> Self {
        let mut this = Self::default();
        this.room()[..left.len()].copy_from_slice(left);
        this.put(left.len());
        this
    }

    /// What was not read.
    pub fn left(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    /// Reads of it what the buffer has room for.
    pub fn read(&mut self, buffer: &mut ReadBuf<'_>) {
        let len = self.left().len().min(buffer.remaining());
        buffer.put_slice(&self.left()[..len]);
        self.read += len;
    }

    /// Room for a record's content, in the place of what was read.
    pub fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.left().is_empty());
        self.read = 0;
        self.bytes.clear();
        self.bytes.reserve_exact(PLAINTEXT_MAX);
        self.bytes.resize(PLAINTEXT_MAX, 0);
        &mut self.bytes
    }

    /// So many bytes are in the [room](Self::room).
    pub fn put(&mut self, len: usize) {
        self.bytes.truncate(len);
    }
}
