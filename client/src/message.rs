//! Message sockets: descriptors on which one datagram is one message, to an application
//! on another host of the POP, or on this one.
//!
//! [`record`] is what goes over such a descriptor, [`wire`] how it is asked for. The
//! agent uses both, too.

pub mod record;
pub mod wire;
