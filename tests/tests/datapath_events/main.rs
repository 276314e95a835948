//! This host's own sessions: what the hooks on sockets record and tell, and what is
//! found in the kernel's socket tables.

mod common;
mod events;
mod sockets;
