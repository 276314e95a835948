//! The bytes between s2n-tls and the socket, kept here, so that all of them can travel.

use std::{
    ffi::{c_int, c_void},
    io,
    pin::Pin,
    slice,
    task::{Context, Poll, ready},
};

use s2n_tls::{connection::Connection, error::Error};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

/// A record's header: its type, its version, its length (RFC 8446, 5.1).
pub(super) const HEADER_LEN: usize = 5;
/// The longest record: TLS 1.2 lets ciphers add up to 2,048 bytes to the 16,384 of the
/// content (RFC 5246, 6.2.3), TLS 1.3 fewer.
pub(super) const RECORD_MAX: usize = HEADER_LEN + PLAINTEXT_MAX + 2048;
/// The longest content of a record.
pub(super) const PLAINTEXT_MAX: usize = 16 * 1024;
/// From so many bytes on that wait for the socket, nothing more is encrypted.
pub(super) const OUTPUT_FULL: usize = 64 * 1024;
/// So many can wait then: the last write was a record, and with it may have gone messages
/// of the handshake and an alert.
pub(super) const OUTPUT_MAX: usize = OUTPUT_FULL + RECORD_MAX + 4096;

/// A record that has come whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    /// The type that everybody can see: 23 is application data, or anything in TLS 1.3.
    pub kind: u8,
    /// What follows the header.
    pub body_len: usize,
}

impl Record {
    /// All of it.
    pub fn len(self) -> usize {
        HEADER_LEN + self.body_len
    }
}

/// Between the socket and s2n-tls: one record's worth at most is read ahead.
#[derive(Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// What s2n-tls has taken of them.
    taken: usize,
    /// How much more it may have.
    allowed: usize,
}

impl Input {
    /// What came and was not taken.
    pub fn left(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Takes what another [`Input`] had left. The caller has seen to it that this is not
    /// longer than a record.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The first record, if all of it has come.
    ///
    /// # Errors
    ///
    /// It is longer than records are.
    pub fn record(&self) -> io::Result<Option<Record>> {
        let Some(&[kind, _, _, high, low]) = self.left().first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let body_len = usize::from(u16::from_be_bytes([high, low]));
        if HEADER_LEN + body_len > RECORD_MAX {
            let why = "a TLS record is longer than any may be";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let is_whole = self.left().len() >= HEADER_LEN + body_len;
        Ok(is_whole.then_some(Record { kind, body_len }))
    }

    /// s2n-tls may take so many bytes.
    pub fn allow(&mut self, len: usize) {
        self.allowed = len;
    }

    /// Reads from the socket. 0: that was the end of it.
    pub fn poll_fill(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let len = self.bytes.len();
        debug_assert!(len < RECORD_MAX);
        self.bytes.resize(RECORD_MAX, 0);
        let mut buffer = ReadBuf::new(&mut self.bytes[len..]);
        let polled = Pin::new(tcp).poll_read(cx, &mut buffer);
        let came = buffer.filled().len();
        self.bytes.truncate(len + came);
        if self.bytes.is_empty() {
            // Most connections are idle most of the time.
            self.bytes = Vec::new();
        }
        polled.map_ok(|()| came)
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let len = buffer.len().min(self.allowed).min(self.left().len());
        buffer[..len].copy_from_slice(&self.left()[..len]);
        self.taken += len;
        self.allowed -= len;
        len
    }
}

/// Between s2n-tls and the socket: what is encrypted.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// What the socket has taken of them.
    sent: usize,
}

impl Output {
    /// What was not sent.
    pub fn left(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Takes what s2n-tls wants to send, or what another [`Output`] had left.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether there is enough for now.
    pub fn is_full(&self) -> bool {
        self.left().len() >= OUTPUT_FULL
    }

    /// Writes to the socket what it takes. Ready: all of it.
    pub fn poll_send(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.left().is_empty() {
            let sent = ready!(Pin::new(&mut *tcp).poll_write(cx, self.left()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        *self = Self::default();
        Poll::Ready(Ok(()))
    }
}

/// Both.
#[derive(Default)]
pub(super) struct Wire {
    pub input: Input,
    pub output: Output,
}

impl Wire {
    /// Has s2n-tls do something with these bytes as its wire.
    pub fn with<T>(
        &mut self,
        connection: &mut Connection,
        what: impl FnOnce(&mut Connection) -> T,
    ) -> Result<T, Error> {
        let context = (&raw mut *self).cast();
        connection.set_receive_callback(Some(receive))?;
        connection.set_send_callback(Some(send))?;
        // SAFETY: callbacks run only in calls of the connection, which `what` alone makes
        // while the context is there: `self` is borrowed until it is taken away below.
        // (`what` calls C, through which nothing unwinds.)
        unsafe {
            connection.set_receive_context(context)?;
            connection.set_send_context(context)?;
        }
        let done = what(connection);
        // SAFETY: the callbacks look whether there is a context.
        unsafe {
            connection.set_receive_context(std::ptr::null_mut())?;
            connection.set_send_context(std::ptr::null_mut())?;
        }
        Ok(done)
    }
}

/// What s2n-tls gets when it reads.
///
/// # Safety
///
/// The context is null or a [`Wire`] that nobody else uses; the buffer has `len` bytes.
unsafe extern "C" fn receive(context: *mut c_void, buffer: *mut u8, len: u32) -> c_int {
    // SAFETY: as the caller promises.
    let Some(wire) = (unsafe { context.cast::<Wire>().as_mut() }) else {
        return fail(libc::ENOTCONN);
    };
    // SAFETY: as the caller promises; bytes have no invalid values.
    let buffer = unsafe { slice::from_raw_parts_mut(buffer, len as usize) };
    match wire.input.take(buffer) {
        0 => fail(libc::EWOULDBLOCK),
        // No longer than the buffer, and so than a record.
        len => len as c_int,
    }
}

/// Takes what s2n-tls writes: all of it, always. How much that can be is limited by what
/// it is asked to encrypt.
///
/// # Safety
///
/// The context is null or a [`Wire`] that nobody else uses; the buffer has `len` bytes.
unsafe extern "C" fn send(context: *mut c_void, buffer: *const u8, len: u32) -> c_int {
    // SAFETY: as the caller promises.
    let Some(wire) = (unsafe { context.cast::<Wire>().as_mut() }) else {
        return fail(libc::ENOTCONN);
    };
    // SAFETY: as the caller promises.
    let bytes = unsafe { slice::from_raw_parts(buffer, len as usize) };
    wire.output.put(bytes);
    len as c_int
}

/// How callbacks say that they cannot.
fn fail(error: c_int) -> c_int {
    // SAFETY: the address is this thread's own `errno`.
    unsafe { *libc::__errno_location() = error };
    -1
}
