//! The lab (a POP in network namespaces) and what the end-to-end tests share.

pub mod bench;
pub mod packet;
pub mod program;
pub mod sandbox;
