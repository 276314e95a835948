//! The module against clients of s2n-tls in this process, over real TCP connections.

mod bytes;
mod moves;
mod pair;
