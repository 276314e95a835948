//! The lab and the end-to-end tests.

pub mod sandbox;
