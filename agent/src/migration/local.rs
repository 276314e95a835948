//! What the machines look up on their own host.

use homing_common::{host::HostId, net::Service, session::Tuple};

/// The protocol that an application speaks with itself on another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Application {
    /// Its name, of at most [`super::wire::NAME_LEN_MAX`] bytes.
    pub name: String,
    /// Its version.
    pub version: u32,
}

/// This host, as the machines see it. All of it is in the agent's memory or one look-up
/// in a map.
pub trait Local {
    /// Whether the POP has this service here.
    fn has_service(&self, service: &Service) -> bool;

    /// Whether this host drains or leaves, and takes no sessions.
    fn drains(&self) -> bool;

    /// The application that has registered for a service.
    fn application(&self, service: &Service) -> Option<Application>;

    /// The generation of the session of this tuple that lives here, from `SESSIONS`.
    fn session(&self, tuple: &Tuple) -> Option<u32>;

    /// The other members that are up.
    fn members(&self) -> Vec<HostId>;

    /// Since when this host has reached at least half of the POP, itself included,
    /// without a break; none if it does not, or if the POP holds this host's own kernel
    /// for dead.
    fn reached_since(&self) -> Option<u64>;
}
