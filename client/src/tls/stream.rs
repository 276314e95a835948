//! A TLS connection over TCP, for whoever reads and writes.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use s2n_tls::enums::Version;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    Session, Unmovable,
    engine::{Came, Engine},
    plaintext::Plaintext,
    wire::PLAINTEXT_MAX,
};
use crate::Blob;

/// The server's side of a TLS connection that can move.
///
/// What is written is encrypted at once and sent as far as the socket takes it: flush it.
/// Reading sends what is left, too. All futures of tokio's extensions that may be dropped
/// for other streams may be for this one, and then it can be exported: no byte is in
/// between.
///
/// An end of the TCP connection that the client did not announce is
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): what was read may be a part of what
/// it had to say.
pub struct Stream {
    pub(super) tcp: TcpStream,
    pub(super) engine: Engine,
    session: Session,
    plaintext: Plaintext,
    /// Who waits for room in the socket.
    writer: Option<Waker>,
    failure: Option<Failure>,
    /// The client sends no more.
    has_ended: bool,
    /// This side sends no more.
    is_shut: bool,
}

/// A connection that was not exported.
pub struct NotExported {
    /// It, as it was.
    pub stream: Stream,
    /// Why not.
    pub why: Unmovable,
}

/// What went wrong, on its way to whoever reads or writes.
struct Failure {
    /// None once it was told.
    error: Option<io::Error>,
    kind: io::ErrorKind,
    /// What the client may learn from how fast it hears of it is hidden by this (see
    /// `s2n_connection_set_blinding`).
    delay: Pin<Box<Sleep>>,
}

impl Stream {
    pub(super) fn new(
        tcp: TcpStream,
        engine: Engine,
        session: Session,
        plaintext: Plaintext,
    ) -> Self {
        Self {
            tcp,
            engine,
            session,
            plaintext,
            writer: None,
            failure: None,
            has_ended: false,
            is_shut: false,
        }
    }

    /// The handshake.
    pub(super) async fn accept(engine: Engine, tcp: TcpStream) -> io::Result<Self> {
        let mut stream = Self::new(tcp, engine, Session::default(), Plaintext::default());
        poll_fn(|cx| stream.poll_negotiate(cx)).await?;
        stream.session = stream.engine.session()?;
        Ok(stream)
    }

    /// What the handshake found out.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The version of TLS.
    ///
    /// # Errors
    ///
    /// s2n-tls knows none.
    pub fn version(&self) -> io::Result<Version> {
        Ok(self.engine.version()?)
    }

    /// The cipher suite, as OpenSSL calls it.
    ///
    /// # Errors
    ///
    /// s2n-tls knows none.
    pub fn cipher_suite(&self) -> io::Result<&str> {
        Ok(self.engine.cipher_suite()?)
    }

    /// The TCP connection. Who reads from it, or writes to it, breaks the TLS connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Takes the connection apart: the TCP connection, and a state with which it goes on,
    /// [here](super::Acceptor::begin) or elsewhere, with the application's own
    /// part. Its keys are nowhere in this process then but in the state.
    ///
    /// # Errors
    ///
    /// It cannot be exported now, or at all, and goes on.
    pub fn export(mut self, application: &[u8]) -> Result<(TcpStream, Blob), Box<NotExported>> {
        let plaintext = self.plaintext.left();
        let state = match self.failure {
            None => self.engine.serialize(&self.session, plaintext, application),
            Some(_) => Err(Unmovable::Closing),
        };
        match state {
            Ok(state) => Ok((self.tcp, state)),
            Err(why) => Err(Box::new(NotExported { stream: self, why })),
        }
    }

    fn poll_negotiate(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_failure(cx))?;
            let done = match self.engine.negotiate(cx) {
                Ok(done) => done,
                Err(error) => {
                    self.fail(error.into());
                    continue;
                }
            };
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            if done {
                return Poll::Ready(Ok(()));
            }
            let input = &mut self.engine.wire.input;
            if !input.left().is_empty() {
                // It waits for something else than the client.
                return Poll::Pending;
            }
            if ready!(input.poll_fill(&mut self.tcp, cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Sends what is encrypted. Ready: all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.engine.wire.output.poll_send(&mut self.tcp, cx);
        self.writer = sent.is_pending().then(|| cx.waker().clone());
        sent
    }

    /// Sends what is encrypted on behalf of a reader.
    fn send_along(&mut self, cx: &mut Context<'_>) {
        if self.engine.wire.output.left().is_empty() {
            return;
        }
        let writer = self.writer.take();
        // What cannot be sent is told to who writes.
        let _ = self.poll_send(cx);
        // The socket knows one writer: now that is this task. Any other tries again.
        if let Some(writer) = writer.filter(|writer| !writer.will_wake(cx.waker())) {
            writer.wake();
        }
    }

    /// Tells of what went wrong, once the client may know, too.
    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(failure) = &mut self.failure else {
            return Poll::Ready(Ok(()));
        };
        let Some(error) = failure.error.take() else {
            return Poll::Ready(Err(failure.kind.into()));
        };
        if failure.delay.as_mut().poll(cx).is_pending() {
            failure.error = Some(error);
            return Poll::Pending;
        }
        // As well as it can be done: the client hears what was wrong.
        if self.engine.close().is_ok() {
            let _ = self.poll_send(cx);
        }
        Poll::Ready(Err(error))
    }

    fn fail(&mut self, error: io::Error) {
        self.failure = Some(Failure {
            kind: error.kind(),
            error: Some(error),
            delay: Box::pin(sleep(self.engine.delay())),
        });
    }

    /// Reads into the caller's buffer if that has room for any record, else into this
    /// one's own.
    fn decrypt(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<Came> {
        if buffer.remaining() >= PLAINTEXT_MAX {
            let came = self.engine.decrypt(buffer.initialize_unfilled())?;
            if let Came::Data(len) = came {
                buffer.advance(len);
            }
            return Ok(came);
        }
        let came = self.engine.decrypt(self.plaintext.room());
        let len = match came {
            Ok(Came::Data(len)) => len,
            _ => 0,
        };
        self.plaintext.put(len);
        self.plaintext.read(buffer);
        came
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.plaintext.left().is_empty() || buffer.remaining() == 0 {
            this.plaintext.read(buffer);
            return Poll::Ready(Ok(()));
        }
        this.send_along(cx);
        loop {
            ready!(this.poll_failure(cx))?;
            if this.has_ended {
                return Poll::Ready(Ok(()));
            }
            match this.decrypt(buffer) {
                Ok(Came::Data(_)) => return Poll::Ready(Ok(())),
                Ok(Came::Nothing) => {}
                Ok(Came::Close) => this.has_ended = true,
                Ok(Came::Incomplete) => {
                    let filled = this.engine.wire.input.poll_fill(&mut this.tcp, cx);
                    if filled.is_pending() {
                        // Most connections are idle most of the time.
                        this.plaintext = Plaintext::default();
                    }
                    if ready!(filled)? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Err(error) => this.fail(error),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_failure(cx))?;
        if self.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.engine.wire.output.is_full() {
            // All of it, or part: it is not full then.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            if self.engine.wire.output.is_full() {
                return Poll::Pending;
            }
        }
        let data = &data[..data.len().min(PLAINTEXT_MAX)];
        self.engine.encrypt(data)?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(data.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_failure(cx))?;
        if !self.is_shut {
            self.engine.close()?;
            self.is_shut = true;
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
