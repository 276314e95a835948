//! The kernel's own socket tables: the last word on which sessions this host has.
//!
//! The hooks on sockets record sessions in `SESSIONS` as they open and close, but
//! they can miss some: sockets that are older than the first load, sessions that
//! found no room, and what ended while the programs were not attached. So the
//! [`Watcher`] compares `SESSIONS` with what the kernel has ([`audit`]) at each
//! start, once a minute, and soon after `SESSIONS` was full.
//!
//! A session without a socket is forgotten. A socket of a service without an entry
//! is *adopted*: the agent records it, and hears of its end from the kernel's
//! notices of destroyed sockets, because the hooks may not tell of it.
//!
//! A socket's cookie is the same here and in the hooks, and is never used twice.
//!
//! Only TCP, and only this network namespace: the one that XDP looks for sockets
//! in, too.

pub mod audit;
mod diag;
mod standing;
mod watch;

pub use diag::{Diag, Socket};
pub use standing::{Standing, Stands};
pub use watch::{WatchCounters, Watcher};
