//! Gossip: every host announces which sessions it owns, and every host knows
//! from that where to send packets of sessions that it does not own.
//!
//! What it promises:
//!
//! - Whatever datagrams are lost, repeated, reordered or delayed, and whichever
//!   agents restart meanwhile: once the POP is quiet, all hosts name one and the
//!   same owner for each open session, and none for a closed one.
//! - A claim is taken back by its origin alone: by `Closed`, by a snapshot that
//!   no longer holds it, by a later incarnation; or else when its origin's kernel
//!   is dead ([`crate::pop::liveness`]), or has left and its hold is over.
//! - A session that is live on this host is never routed away.
//!
//! How: each origin keeps a log of announcements with sequence numbers and sends
//! it in batches, by multicast within its domain (by unicast to those who do not
//! hear that) and to two relays in each other domain, which pass it on there.
//! Receivers apply each
//! origin's log in order, ask for what is missing, and compare a digest of the
//! origin's live set with every heartbeat. Whoever knows too little to go on, or
//! whose digest differs, pulls a snapshot and follows the log from there. All of that
//! goes by datagrams, but for snapshots: they are asked for and given on carriers.
//!
//! Parts: [`wire`] the messages; `log` the origin's side; `replica` the
//! receiver's side of one origin; `pulls` and `serving` how many snapshots are under way;
//! `relay` what is passed on for others; [`targets`] whom to send to; `claims` who says what; [`machine`] the protocol; [`pacer`]
//! the bound on datagrams; [`ask`] what is done about sessions that nobody here
//! knows, and `provisional` the routes that follow; [`node`] seal, membership,
//! gossip and asks of one host in one sans-IO machine; [`task`] that machine driven
//! by tokio.

mod absent;
mod agenda;
mod alarm;
pub mod alerts;
pub mod apply;
pub mod ask;
mod asking;
pub mod bulk;
mod claims;
mod core;
mod doubles;
pub mod fates;
mod handle;
pub mod hosts;
mod inbound;
pub mod latency;
mod listening;
mod log;
pub mod machine;
pub mod node;
mod note;
mod out;
pub mod pacer;
mod provisional;
mod pulls;
mod relay;
mod relaying;
mod replica;
mod report;
mod sending;
mod serving;
pub mod socket;
mod syncing;
mod tally;
pub mod targets;
pub mod task;
pub mod view;
mod vitals;
pub mod wire;

#[cfg(test)]
mod simulation;

pub use apply::{Table, TableFull};
pub use claims::Claim;
#[cfg(test)]
pub(crate) use handle::no_counters;
pub use latency::Latency;
pub use tally::Tally;
pub use vitals::Vitals;
