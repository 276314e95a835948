//! The connection under a carrier, protected or not.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};

use super::{
    plain::{Proof, Role},
    preamble::{HELLO_LEN, MODE_TLS, Preamble},
    tls::{Protected, Tls},
};
use crate::pop::keys::Key;

/// The connection under a carrier.
pub(super) enum Connection {
    Tls(Protected),
    Plain(TcpStream),
}

/// A connection on which each side still has to say which life it is.
pub(super) enum Unintroduced {
    Tls(Protected),
    Plain(TcpStream, Proof),
}

impl Unintroduced {
    /// Proves the key, in the way that the preamble asks for.
    pub async fn begin(
        tls: &Tls,
        mut tcp: TcpStream,
        role: Role,
        preamble: &Preamble,
        key: &Key,
    ) -> io::Result<Self> {
        if preamble.mode != MODE_TLS {
            let proof = Proof::begin(&mut tcp, role, preamble, key).await?;
            return Ok(Self::Plain(tcp, proof));
        }
        let stream = match role {
            Role::Dialer => tls.connect(preamble, key, tcp).await?,
            Role::Acceptor => tls.accept(preamble, key, tcp).await?,
        };
        Ok(Self::Tls(stream))
    }

    pub async fn say(&mut self, hello: &[u8; HELLO_LEN]) -> io::Result<()> {
        match self {
            Self::Tls(stream) => {
                stream.write_all(hello).await?;
                stream.flush().await
            }
            Self::Plain(tcp, proof) => proof.say(tcp, hello).await,
        }
    }

    pub async fn hear(&mut self) -> io::Result<[u8; HELLO_LEN]> {
        match self {
            Self::Tls(stream) => {
                let mut hello = [0; HELLO_LEN];
                stream.read_exact(&mut hello).await?;
                Ok(hello)
            }
            Self::Plain(tcp, proof) => proof.hear(tcp).await,
        }
    }

    pub fn introduced(self) -> Connection {
        match self {
            Self::Tls(stream) => Connection::Tls(stream),
            Self::Plain(tcp, _) => Connection::Plain(tcp),
        }
    }
}

impl Connection {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tls(stream) => stream.get_ref(),
            Self::Plain(tcp) => tcp,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}
