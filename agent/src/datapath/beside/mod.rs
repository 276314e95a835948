//! Further instances of the kernel programs, beside those in force and on the same maps.
//!
//! [`trial`] runs the XDP program on a packet and tells what it did, without a packet or an
//! entry that comes of it; [`capture`] puts one in the place of the XDP program for as long
//! as somebody captures.

pub mod capture;
pub mod trial;

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{Ebpf, maps::Map};

use super::{Error, load::lacks};

/// A map of an instance, of a kind that has entries.
fn map<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data)) => {
            Ok(data.fd().as_fd())
        }
        _ => Err(lacks(name)),
    }
}
