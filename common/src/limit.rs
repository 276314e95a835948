//! Limits of what the kernel side does for strangers: so many times within each
//! window of time, counted in the map `LIMITS`.
//!
//! A counter is one word: the window's number above, the count below. Programs on
//! several CPUs change it without a lock, so that now and then one of two counts
//! that come at once is lost: a limit may be exceeded by as many packets as CPUs
//! meet on it, and never grows with what is sent.

use crate::{
    host::{HostId, MAX_HOSTS},
    net::Address,
    session::{SessionKey, Sip},
};

/// A window is 2 to this power nanoseconds long: 134 ms.
pub const WINDOW_SHIFT: u32 = 27;

/// Counters for sources of packets. Sources that share one share its limit; the
/// keyed hash keeps anyone from choosing whom to share with.
const SOURCES: u32 = 1 << 14;

/// What is limited, and with it the counter's index in `LIMITS`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Packets parked for one source: an IPv4 address, an IPv6 /64.
    Source(u32),
    /// Echoes answered to one host.
    Echo(HostId),
    /// Packets parked because nobody knows their session.
    Unknown,
    /// Fragments parked.
    Fragments,
    /// Senders told that their packets are too large for the tunnel.
    TooBig,
    /// Flows made sessions.
    Flows,
}

impl Limit {
    /// The limit of packets from a source.
    #[inline(always)]
    pub const fn source(address: &Address, key: &SessionKey) -> Self {
        let mut hash = Sip::new(key);
        if address.is_v4() {
            hash.word(address.word(1));
        } else {
            hash.word(address.word(0));
        }
        Self::Source(hash.finish() as u32 & (SOURCES - 1))
    }

    /// The index of the counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Source(bucket) => bucket,
            Self::Echo(host) => SOURCES + host.0 as u32,
            Self::Unknown => SOURCES + MAX_HOSTS,
            Self::Fragments => SOURCES + MAX_HOSTS + 1,
            Self::Flows => SOURCES + MAX_HOSTS + 2,
            Self::TooBig => SOURCES + MAX_HOSTS + 3,
        }
    }

    /// How often within a window.
    #[inline(always)]
    pub const fn max(self) -> u32 {
        match self {
            // Some 1,900 a second: a client, or the clients behind one address,
            // whose sessions all come to a host that has not heard of them.
            Self::Source(_) => 256,
            // Some 1,900 a second, of which a host needs a few.
            Self::Echo(_) => 256,
            // Some 15,000 a second: what the agent takes without falling behind.
            Self::Unknown | Self::Fragments => 2048,
            // Some 7,600 a second, of which a sender needs one.
            Self::TooBig => 1024,
            // Some 15,000 a second: what a flood of forged clients that each send
            // several packets can make of gossip.
            Self::Flows => 2048,
        }
    }
}

/// Entries of `LIMITS`.
pub const LIMITS_ENTRIES: u32 = SOURCES + MAX_HOSTS + 4;

/// A counter after one more event: its new value, and whether the event is within
/// the limit.
#[inline(always)]
pub const fn count(counter: u64, now_ns: u64, max: u32) -> (u64, bool) {
    let window = now_ns >> WINDOW_SHIFT & u32::MAX as u64;
    let count = if counter >> 32 == window {
        counter & u32::MAX as u64
    } else {
        0
    };
    if count < max as u64 {
        (window << 32 | count + 1, true)
    } else {
        (counter, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_so_many_and_the_next_one_again() {
        let mut counter = 0;
        let mut take = |now_ns| {
            let (next, within) = count(counter, now_ns, 3);
            counter = next;
            within
        };
        let window = 1 << WINDOW_SHIFT;
        for first in [0, window, 7 * window] {
            let taken: Vec<bool> = (0..5).map(|n| take(first + n)).collect();
            assert_eq!(taken, [true, true, true, false, false]);
        }
    }

    #[test]
    fn counters_are_apart() {
        let limits = [
            Limit::Source(0),
            Limit::Source(SOURCES - 1),
            Limit::Echo(HostId(0)),
            Limit::Echo(HostId(MAX_HOSTS as u16 - 1)),
            Limit::Unknown,
            Limit::Fragments,
            Limit::Flows,
            Limit::TooBig,
        ];
        let indices = limits.map(Limit::index);
        assert!(indices.is_sorted_by(|a, b| a < b));
        assert_eq!(indices[indices.len() - 1], LIMITS_ENTRIES - 1);
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_prefix() {
        let key = SessionKey([1, 2]);
        let bucket = |address| Limit::source(&address, &key).index();
        let v6 = |prefix, low| {
            let mut bytes = [0x20; 16];
            (bytes[7], bytes[15]) = (prefix, low);
            Address(bytes)
        };
        assert_eq!(bucket(v6(1, 1)), bucket(v6(1, 2)));
        assert_ne!(bucket(v6(1, 1)), bucket(v6(2, 1)));
        let v4 = |low| Address::v4([198, 51, 100, low]);
        assert_ne!(bucket(v4(1)), bucket(v4(2)));
    }
}
