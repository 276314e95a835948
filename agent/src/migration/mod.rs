//! Moves: one session's connection goes from a source host to a target host while its
//! client notices nothing.
//!
//! [`app`] is how applications take part: they give up connections, and take them over.

pub mod app;
