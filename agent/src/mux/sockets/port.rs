//! The agent's end of a message socket, as the core sees it.

use std::io;

/// What came over a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Came {
    /// A datagram of so many bytes.
    Datagram(usize),
    /// A datagram that did not fit; it is lost.
    TooLong,
    /// The application has closed its end.
    End,
}

/// The agent's end of a message socket. Nothing waits: [`io::ErrorKind::WouldBlock`].
pub trait Port {
    /// Reads the next datagram.
    ///
    /// # Errors
    ///
    /// There is none now, or never again.
    fn receive(&self, into: &mut [u8]) -> io::Result<Came>;

    /// Sends a datagram, of two parts.
    ///
    /// # Errors
    ///
    /// There is no room now, or nobody to read it.
    fn send(&self, parts: [&[u8]; 2]) -> io::Result<()>;

    /// Whether the application has closed its end, whatever is still to be read.
    fn is_hung_up(&self) -> bool;
}
