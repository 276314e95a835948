//! What an application links so that its connections can move to another host.
//!
//! Homing moves a live TCP connection from one host of a POP to another while the
//! client notices nothing. The kernel's part of the connection is the agent's
//! business; what the application knows of it is the application's. So the process
//! that owns the sockets **registers** its service with the agent of its host, and is
//! then asked, for single connections:
//!
//! - to **export** one: stop every reader and writer of it at a boundary, and give its
//!   descriptor and a **state**, bytes that only the application understands. It keeps
//!   what it has until it is told that the move is *committed* or that it is to *resume*;
//! - to **import** one that an application of the same kind exported elsewhere: look
//!   whether it can go on from the state, and later **adopt** the connection, live.
//!
//! Implement [`Application`] and run a [`Registration`]:
//!
//! ```no_run
//! use std::{os::fd::OwnedFd, sync::Arc, time::Duration};
//! use homing_client::{
//!     Application, Blob, Connection, Exported, Protocol, Reason, Refusal, Registration,
//! };
//!
//! struct Server { /* its connections */ }
//!
//! impl Application for Server {
//!     /// What is kept of a connection while it is being moved away.
//!     type Kept = std::net::TcpStream;
//!     /// What a connection that comes begins with.
//!     type Begun = u64;
//!
//!     async fn export(
//!         &self,
//!         connection: Connection,
//!         within: Duration,
//!     ) -> Result<Exported<Self::Kept>, Refusal> {
//! #       let stop = |_: Connection, _: Duration| None::<(std::net::TcpStream, u64)>;
//!         let (stream, count) = stop(connection, within).ok_or(Reason::Unknown)?;
//!         let descriptor = stream.try_clone().map_err(Refusal::failed)?.into();
//!         let state = Blob::from(count.to_be_bytes().to_vec());
//!         Ok(Exported { descriptor, state, kept: stream })
//!     }
//!
//!     async fn resume(&self, connection: Connection, kept: Self::Kept, state: Blob) {
//!         // Serve it again, from where it was.
//!     }
//!
//!     async fn begin(&self, _: Connection, state: Blob) -> Result<Self::Begun, Refusal> {
//!         let bytes = (*state).try_into().map_err(Refusal::failed)?;
//!         Ok(u64::from_be_bytes(bytes))
//!     }
//!
//!     async fn adopt(
//!         &self,
//!         connection: Connection,
//!         begun: Self::Begun,
//!         socket: OwnedFd,
//!     ) -> Result<(), Refusal> {
//!         // Serve it: the next byte that the client sends comes from this socket.
//!         Ok(())
//!     }
//! }
//!
//! # async fn run() -> Result<(), homing_client::Error> {
//! Registration::new("/run/homing/homing.app.sock", Protocol::new("counter", 1))
//!     .service("203.0.113.10:443".parse().unwrap())
//!     .serve(Arc::new(Server {}))
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! The crate promises: every request of the agent is answered once; an agent that
//! restarts is found again, and told which moves are pending, with their descriptors;
//! states are wiped from memory once they are of no use. It does not serve connections,
//! and it does not know what is in a state.
//!
//! An application in another language speaks the same protocol; `docs/migration.md`
//! has it byte by byte, and `client/examples/movable.py` is one with Python's standard
//! library alone. [`wire`], [`seqpacket`] and [`outbox`] are the protocol's two ends'
//! common ground: the agent uses them, too.
//!
//! With the feature `s2n` there is the module `tls`: TLS connections that the application
//! terminates, and that go on elsewhere without a new handshake.

mod application;
mod blob;
mod driver;
pub mod message;
mod moves;
pub mod outbox;
mod reasons;
mod registration;
pub mod seqpacket;
#[cfg(feature = "s2n")]
pub mod tls;
pub mod wire;

pub use application::{Application, Exported, Refusal};
pub use blob::{Assembly, Blob, WrongPart};
pub use registration::{Error, Registration};
pub use wire::{Connection, Protocol, Reason};
