//! What goes into membership and comes out of it.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use homing_common::host::HostId;

use crate::pop::{Member, counters::counters};

/// Someone else to join, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Its host id.
    pub host: HostId,
    /// Its fabric address.
    pub address: SocketAddr,
}

/// What became of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is up, or up in a later life than before.
    Up(Member),
    /// Its agent stopped answering.
    Down(Member),
    /// It left, and asks that its sessions be kept for so long.
    Left(Member, Duration),
    /// It is up, but of another POP: it has another tunnel network, or none of our addresses.
    Mismatched(Member),
}

/// A member's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its agent answers.
    Alive,
    /// Its agent stopped answering.
    Down,
    /// It left.
    Left,
    /// Its agent answers, but it is of another POP.
    Mismatched,
}

/// A member and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The member as last heard of.
    pub member: Member,
    /// Its state.
    pub state: State,
    /// Since when.
    pub since: u64,
}

/// A message for a host.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The host.
    pub to: HostId,
    /// Its fabric address.
    pub address: SocketAddr,
    /// The message's body, to be sealed.
    pub body: Bytes,
}

counters! {
    /// What happened to membership.
    Counters {
        /// Messages heard and understood.
        messages_heard,
        /// Messages sent.
        messages_sent,
        /// Messages refused: malformed, or not what they claimed to be.
        messages_refused,
        /// Announcements made to seeds and members, in order to join.
        announcements,
        /// Times that a host that was heard, and not known to be up, was asked who it
        /// is.
        spoken_to,
        /// Times a member came up.
        ups,
        /// Times a member stopped answering.
        downs,
        /// Times a member left.
        lefts,
        /// Times a host was found to be of another POP.
        mismatches,
        /// Times a member reappeared at another fabric address.
        address_changes,
        /// Times this host was falsely reported down and came back.
        rejoins,
        /// Accounts of a second machine with an id that is in use: left out.
        contested,
        /// Members that are down or left that others were told of.
        absent_told,
        /// Members that others said are down or left, and that were not known here.
        told_absent,
        /// Hosts told that a later life of theirs is known.
        outdated_told,
        /// Times that this host was told that a later life of its own is known.
        told_outdated,
        /// Errors of the library, each harmless alone.
        internal_errors,
    }
}
