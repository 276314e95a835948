//! The other hosts as liveness knows them, and the questions that are open to
//! each of them.

use std::{collections::BTreeSet, net::SocketAddr};

use homing_common::host::{HostId, MAX_HOSTS};

use super::wire::Standing;
use crate::pop::{Domain, rendezvous::weight};

/// Questions to one host that may be answered: later ones push out the oldest.
const OPEN_MAX: usize = 4;
/// Every host has one place on the ring, the same for all who look.
const RING: u64 = u64::from_be_bytes(*b"hm-probe");

/// Another host.
pub(super) struct Peer {
    pub address: SocketAddr,
    pub domain: Domain,
    pub incarnation: u64,
    /// Its agent is up, by membership.
    pub agent_up: bool,
    /// When its kernel last answered, in this incarnation.
    pub heard_at: Option<u64>,
    /// When its agent was last heard, in this incarnation.
    pub agent_heard_at: Option<u64>,
    /// Nonces of questions that were not answered, the latest last.
    open: [Option<u64>; OPEN_MAX],
    /// The last question by which it is watched was not answered yet, and how many
    /// before that were not, in a row.
    pub unanswered: bool,
    pub missed: u32,
    /// It missed too many, since then.
    pub silent_since: Option<u64>,
    /// It is watched until then, because a census did not hear it.
    pub watched_until: u64,
    /// What the POP holds of it, who said it first, and since when.
    pub standing: Standing,
    pub judged_by: HostId,
    pub judged_at: u64,
    /// Who last heard it when others did not.
    pub vouched_by: Option<HostId>,
    /// How often it was judged dead of late.
    pub flaps: u32,
}

impl Peer {
    pub fn new(address: SocketAddr, domain: Domain, incarnation: u64) -> Self {
        Self {
            address,
            domain,
            incarnation,
            agent_up: false,
            heard_at: None,
            agent_heard_at: None,
            open: [None; OPEN_MAX],
            unanswered: false,
            missed: 0,
            silent_since: None,
            watched_until: 0,
            standing: Standing::default(),
            judged_by: HostId(0),
            judged_at: 0,
            vouched_by: None,
            flaps: 0,
        }
    }

    /// A question was asked.
    pub fn asked(&mut self, nonce: u64) {
        self.open.rotate_left(1);
        self.open[OPEN_MAX - 1] = Some(nonce);
    }

    /// Whether a nonce is that of an open question; it is closed then, and so are
    /// those before it. Two may be on their way at once, by duty and in turn: the
    /// answer to the second is no forgery.
    pub fn answers(&mut self, nonce: u64) -> bool {
        let Some(at) = self.open.iter().position(|open| *open == Some(nonce)) else {
            return false;
        };
        self.open[..=at].fill(None);
        true
    }

    pub fn is_dead(&self) -> bool {
        self.standing.is_dead()
    }

    /// Kernel or agent were heard at this time or later.
    pub fn heard_since(&self, at: u64) -> bool {
        self.heard_at
            .max(self.agent_heard_at)
            .is_some_and(|heard| heard >= at)
    }

    /// Can be asked for its voice, and counted on to watch others.
    pub fn is_able(&self) -> bool {
        self.agent_up && !self.is_dead() && self.silent_since.is_none()
    }
}

/// All other hosts.
pub(super) struct Peers {
    by_id: Vec<Option<Box<Peer>>>,
    ring: BTreeSet<(u64, HostId)>,
}

impl Peers {
    pub fn new() -> Self {
        Self {
            by_id: std::iter::repeat_with(|| None)
                .take(MAX_HOSTS as usize)
                .collect(),
            ring: BTreeSet::new(),
        }
    }

    pub fn get(&self, host: HostId) -> Option<&Peer> {
        self.by_id.get(usize::from(host.0))?.as_deref()
    }

    pub fn get_mut(&mut self, host: HostId) -> Option<&mut Peer> {
        self.by_id.get_mut(usize::from(host.0))?.as_deref_mut()
    }

    pub fn insert(&mut self, host: HostId, peer: Peer) {
        if let Some(place) = self.by_id.get_mut(usize::from(host.0)) {
            *place = Some(Box::new(peer));
            self.ring.insert(place_of(host));
        }
    }

    pub fn remove(&mut self, host: HostId) {
        if let Some(place) = self.by_id.get_mut(usize::from(host.0)) {
            *place = None;
            self.ring.remove(&place_of(host));
        }
    }

    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// In the order of their places on the ring.
    pub fn iter(&self) -> impl Iterator<Item = (HostId, &Peer)> {
        self.ring
            .iter()
            .filter_map(|&(_, host)| Some((host, self.get(host)?)))
    }

    /// Round the ring once, from a host's own place backwards: first those whose
    /// next hosts it is.
    pub fn before(&self, host: HostId) -> impl Iterator<Item = (HostId, &Peer)> {
        let place = place_of(host);
        let nearer = self.ring.range(..place).rev();
        let farther = self.ring.range(place..).rev();
        nearer
            .chain(farther)
            .filter(move |(_, other)| *other != host)
            .filter_map(|&(_, host)| Some((host, self.get(host)?)))
    }

    /// The next host by id after one, round and round.
    pub fn after(&self, host: HostId) -> Option<HostId> {
        let at = usize::from(host.0) + 1;
        let (first, last) = self.by_id.split_at(at.min(self.by_id.len()));
        let later = last.iter().position(Option::is_some).map(|n| n + at);
        let found = later.or_else(|| first.iter().position(Option::is_some))?;
        Some(HostId(found as u16))
    }
}

fn place_of(host: HostId) -> (u64, HostId) {
    weight(RING, host)
}
