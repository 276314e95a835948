//! How the SWIM library is set up, and its timers.

use std::{
    cmp::Ordering,
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{PeriodicParams, Timer};

use crate::pop::{BODY_LEN_MAX, Member};

/// The library's settings, for a LAN: a host is probed about twice a second,
/// suspected half a second after it stops, and down one and a half later.
pub(super) fn config() -> foca::Config {
    let few = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    let every = |ms, members| {
        Some(PeriodicParams {
            frequency: Duration::from_millis(ms),
            num_members: few(members),
        })
    };
    foca::Config {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(150),
        num_indirect_probes: few(3),
        // News that each host passes on to k others at random misses a host with
        // probability e^-k: of the million pairs in a POP of 1,000 hosts that start
        // together, 10 would leave some 45 that have not heard of each other, 20
        // leave none.
        max_transmissions: NonZeroU8::new(20).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_millis(1_500),
        // There are at most as many as host ids: none needs to be forgotten.
        remove_down_after: None,
        max_packet_size: few(BODY_LEN_MAX),
        notify_down_members: true,
        periodic_announce: every(10_000, 1),
        periodic_announce_to_down_members: every(3_000, 2),
        periodic_gossip: every(100, 3),
    }
}

/// A timer of the library; ordered by time, then by age.
pub(super) struct Due {
    pub at: u64,
    pub number: u64,
    pub timer: Timer<Member>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
