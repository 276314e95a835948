//! TLS connections that this process terminates with s2n-tls, and that can move.
//!
//! An [`Acceptor`] makes a [`Stream`] of a TCP connection: the server's side of TLS 1.2
//! or 1.3, to be read and written like any of tokio's. [`Stream::export`] takes it apart
//! into the TCP connection and a state, with which [`Acceptor::begin`] and
//! [`Begun::adopt`] go on at another host: in the middle of whatever the client does, and
//! without a new handshake.
//!
//! ```no_run
//! # use homing_client::{Application, Blob, Connection, Exported, Reason, Refusal};
//! # use homing_client::tls::{Acceptor, Begun, Stream};
//! # use std::{os::fd::{AsFd as _, OwnedFd}, time::Duration};
//! # use tokio::net::TcpStream;
//! # struct Server { acceptor: Acceptor }
//! # impl Server {
//! #     async fn stop(&self, _: Connection) -> Option<(Stream, u64)> { None }
//! #     fn start(&self, _: Connection, _: Stream, _: u64) {}
//! # }
//! # impl Application for Server {
//! # type Kept = TcpStream;
//! # type Begun = (Begun, u64);
//! async fn export(
//!     &self,
//!     connection: Connection,
//!     _within: Duration,
//! ) -> Result<Exported<TcpStream>, Refusal> {
//!     let (stream, count) = self.stop(connection).await.ok_or(Reason::Unknown)?;
//!     match stream.export(&count.to_be_bytes()) {
//!         Ok((tcp, state)) => Ok(Exported {
//!             descriptor: tcp.as_fd().try_clone_to_owned().map_err(Refusal::failed)?,
//!             state,
//!             kept: tcp,
//!         }),
//!         Err(refused) => {
//!             self.start(connection, refused.stream, count);
//!             Err(refused.why.into())
//!         }
//!     }
//! }
//!
//! async fn resume(&self, connection: Connection, kept: TcpStream, state: Blob) {
//!     if let Ok((begun, count)) = self.begin(connection, state).await {
//!         self.start(connection, begun.adopt(kept), count);
//!     }
//! }
//!
//! async fn begin(&self, _: Connection, state: Blob) -> Result<(Begun, u64), Refusal> {
//!     let begun = self.acceptor.begin(&state)?;
//!     let count = begun.application().try_into().map_err(Refusal::failed)?;
//!     Ok((begun, u64::from_be_bytes(count)))
//! }
//!
//! async fn adopt(
//!     &self,
//!     connection: Connection,
//!     (begun, count): (Begun, u64),
//!     socket: OwnedFd,
//! ) -> Result<(), Refusal> {
//!     let tcp = TcpStream::from_std(socket.into()).map_err(Refusal::failed)?;
//!     self.start(connection, begun.adopt(tcp), count);
//!     Ok(())
//! }
//! # }
//! ```
//!
//! What s2n-tls serializes is the record layer: keys, sequence numbers, the version and the
//! cipher. It can do so between two records only, and once: the connection that was
//! serialized is closed. So this module keeps the bytes of the wire itself, and gives s2n-tls
//! whole records alone. What travels beside the record layer: what came of a record that is not
//! whole, records that were not decrypted, what was decrypted and not read, what was
//! encrypted and not sent, and what only the handshake could say (the names in
//! [`Session`]).
//!
//! The state holds the keys of the connection. Agents encrypt it on its way;
//! whoever else keeps one can read and write as the server. It has no checksum, for the same reason
//! that it needs none: it comes from an agent of the POP.
//!
//! What does not move, and is refused by [`Stream::export`], with the connection as it was:
//! one in which either side has said that it will send no more, or that failed; one in
//! the middle of a message of the handshake protocol that the client has split. What is lost by
//! a move: exporters of keying material, and tickets to be sent. kTLS is not used.

mod engine;
mod plaintext;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::io;

pub use s2n_tls;
use s2n_tls::{
    config::{self, Config},
    enums::SerializationVersion,
    error::Error,
};
use tokio::net::TcpStream;

use crate::{Blob, Reason, Refusal};
use engine::Engine;
use plaintext::Plaintext;
use state::State;
pub use stream::{NotExported, Stream};

/// What the handshake found out about a connection, and who the client is. It stays the
/// same for as long as the connection lives, wherever that is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Session {
    /// The name of the server that the client asked for (SNI).
    pub server_name: Option<String>,
    /// The application's protocol that was agreed on (ALPN).
    pub application_protocol: Option<Vec<u8>>,
    /// The certificates that the client has proven to be its own, and that were found
    /// valid: DER, its own first. None if it showed none.
    pub client_certificates: Vec<Vec<u8>>,
}

/// Why a connection cannot be exported. It goes on where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unmovable {
    /// One of both sides has said that it sends no more, or the connection failed.
    #[error("the TLS connection is being closed")]
    Closing,
    /// The client has sent a part of a message of the handshake protocol, or something
    /// that cannot be told from it: the next data that it sends settles that.
    #[error("the client may be in the middle of a handshake message")]
    NoBoundary,
    /// It is of a version before TLS 1.2.
    #[error("only TLS 1.2 and TLS 1.3 can be moved")]
    Version,
    /// s2n-tls says no.
    #[error("s2n-tls cannot serialize the connection: {0}")]
    Refused(&'static str),
}

impl From<Unmovable> for Refusal {
    fn from(why: Unmovable) -> Self {
        let reason = match why {
            Unmovable::Closing => Reason::Busy,
            Unmovable::NoBoundary => Reason::NoBoundary,
            Unmovable::Version | Unmovable::Refused(_) => Reason::Failed,
        };
        let text = why.to_string();
        Self { reason, text }
    }
}

/// A state from which no connection can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the state of the TLS connection makes no sense: {0}")]
pub struct Unusable(pub(crate) &'static str);

impl From<Unusable> for Refusal {
    fn from(why: Unusable) -> Self {
        Self::failed(why)
    }
}

/// Makes movable TLS connections: of TCP connections by handshakes, and of states.
#[derive(Clone)]
pub struct Acceptor {
    config: Config,
}

impl Acceptor {
    /// An acceptor with certificates, ALPN, and everything else as `config` says; that
    /// its connections can be moved is added to it. States fit every acceptor: what it
    /// has been configured for counts in handshakes only.
    ///
    /// # Errors
    ///
    /// s2n-tls refuses the configuration.
    pub fn new(mut config: config::Builder) -> Result<Self, Error> {
        config.set_serialization_version(SerializationVersion::V1)?;
        let config = config.build()?;
        Ok(Self { config })
    }

    /// The server's side of a handshake. It may be dropped at any time, and the
    /// connection with it. It has no time limit.
    ///
    /// # Errors
    ///
    /// The handshake failed, or the TCP connection did.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        Stream::accept(Engine::new(&self.config)?, tcp).await
    }

    /// Looks at the state of a connection that was [exported](Stream::export), here or
    /// elsewhere.
    ///
    /// # Errors
    ///
    /// It is none, or of another form.
    pub fn begin(&self, state: &Blob) -> Result<Begun, Unusable> {
        let state = State::decode(state)?;
        Ok(Begun {
            engine: Engine::restore(&self.config, &state)?,
            session: state.session,
            plaintext: Plaintext::of(state.plaintext),
            application: state.application.to_vec().into(),
        })
    }
}

/// A connection that can go on as soon as it has its TCP connection.
pub struct Begun {
    engine: Engine,
    session: Session,
    plaintext: Plaintext,
    application: Blob,
}

impl Begun {
    /// What the handshake found out.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The application's part of the state.
    pub fn application(&self) -> &[u8] {
        &self.application
    }

    /// Goes on with the connection.
    pub fn adopt(self, tcp: TcpStream) -> Stream {
        Stream::new(tcp, self.engine, self.session, self.plaintext)
    }
}
