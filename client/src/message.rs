//! Message sockets: descriptors on which one datagram is one message, to an application
//! on another host of the POP, or on this one.
//!
//! ```no_run
//! use std::time::Duration;
//! use homing_client::message::{Agent, Outgoing, Received};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = Agent::at("/run/homing/homing.mux.sock");
//! let mut orders = agent.connect("orders", None, Duration::from_secs(5)).await?;
//! let request = Outgoing { body: b"one, please", name: 1, ..Outgoing::default() };
//! orders.sender.send(&request).await?;
//! while let Some(received) = orders.receiver.receive().await? {
//!     match received {
//!         Received::Message { name: 1, body, .. } => println!("{} bytes", body.len()),
//!         Received::Message { .. } => {}
//!         Received::Fate { number, fate, .. } => println!("message {number}: {fate:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A message arrives whole or not at all. There is no order between messages. What could
//! not be delivered is told ([`Received::Fate`]), with the number that
//! [`Sender::send`] gave; what was delivered is told to whoever asks for it. Delivered
//! means that the agent of the other host has it: whether its application reads it, only a
//! reply says.
//!
//! [`record`] is what goes over such a descriptor, [`wire`] how it is asked for:
//! `docs/protocol.md` has both byte by byte, and `client/examples/messages.py` speaks them
//! with Python's standard library. The agent uses both modules, too.

pub mod record;
mod socket;
pub mod wire;

pub use record::{Fate, NotSent};
pub use socket::{Agent, Batch, Error, MessageSocket, Outgoing, Received, Receiver, Sender};
