//! What is held of a session that is in a move on this host: its socket, and how far
//! that is.

use std::os::fd::OwnedFd;

use crate::{
    datapath::repair::{Frozen, Restored, Sequence},
    migration::app::Pending,
};

/// A move's socket, on either side.
#[derive(Debug, Default)]
pub(super) enum Hold {
    /// None is held.
    #[default]
    Nothing,
    /// Source: the application was asked, and goes on with the connection.
    Kept,
    /// Source: it is out of repair mode again, and the application is to have it back.
    Resumed,
    /// Source: the application has given it, and stopped.
    Exported(OwnedFd),
    /// Source: in repair mode, and where it stood when its state was read.
    Frozen(Frozen, Option<Sequence>),
    /// Target: the application has made it.
    Fresh(OwnedFd),
    /// Target: the connection, in repair mode.
    Restored(Box<Restored>),
    /// Target: the connection, out of repair mode.
    Active(OwnedFd),
    /// An application told of it that has outlived its agent.
    Told(Pending, OwnedFd),
}
