//! Sessions that are moving, with real sockets and real packets: what their sockets
//! send, what is recorded of them, and what becomes of packets that are parked.

mod common;
mod journal;
mod park;
mod records;
mod silence;
