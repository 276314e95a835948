//! Reads and writes a connection at once, within one task.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf},
    task::yield_now,
    time::timeout,
};

use super::connection::Connection;

/// Bytes gathered to be written at once.
pub(super) const WRITE_LEN: usize = 64 << 10;

/// Bytes read at once: a record of TLS has no more.
const READ_LEN: usize = 16 << 10;

/// Bytes moved by one carrier before others of the thread have their turn.
const TURN_LEN: usize = 64 << 10;

/// How long the other side is given to take the last words.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection, with what was read and what is to be written.
pub(super) struct Duplex {
    stream: Connection,
    read: Box<[u8]>,
    read_len: usize,
    /// What is to be written: bytes may be appended at any time.
    pub write: BytesMut,
    flushed: bool,
    /// Bytes moved in this turn.
    moved: usize,
}

impl Duplex {
    pub fn new(stream: Connection) -> Self {
        Self {
            stream,
            read: vec![0; READ_LEN].into(),
            read_len: 0,
            write: BytesMut::new(),
            flushed: true,
            moved: 0,
        }
    }

    /// Lets others have their turn if this carrier has had its own. As long as a
    /// connection takes and gives bytes, nothing else would end it.
    pub async fn rest(&mut self) {
        if self.moved >= TURN_LEN {
            self.moved = 0;
            yield_now().await;
        }
    }

    /// Waits until something was read or written. May be dropped at any time: nothing
    /// gets lost.
    ///
    /// # Errors
    ///
    /// The connection is broken; or it has ended, in good order, and that is the kind
    /// `UnexpectedEof`.
    pub async fn exchange(&mut self) -> io::Result<()> {
        self.read_len = 0;
        poll_fn(|cx| self.poll(cx)).await
    }

    /// What the last exchange has read.
    pub fn heard(&self) -> &[u8] {
        &self.read[..self.read_len]
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut progress = false;
        if !self.write.is_empty() {
            self.flushed = false;
            if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, &self.write)? {
                self.write.advance(written);
                self.moved += written;
                progress = true;
            }
        }
        if self.write.is_empty() && !self.flushed {
            self.flushed = Pin::new(&mut self.stream).poll_flush(cx)?.is_ready();
        }
        let mut buffer = ReadBuf::new(&mut self.read);
        if Pin::new(&mut self.stream)
            .poll_read(cx, &mut buffer)?
            .is_ready()
        {
            self.read_len = buffer.filled().len();
            if self.read_len == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.moved += self.read_len;
            progress = true;
        }
        match progress {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    /// Ends the connection in good order.
    pub async fn close(mut self) {
        let _ = timeout(FAREWELL, self.stream.shutdown()).await;
    }

    /// Ends the connection at once: the kernel keeps nothing of it.
    pub fn abort(self) {
        let _ = self.stream.tcp().set_zero_linger();
    }
}
