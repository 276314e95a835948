//! Limits of what the kernel side does for strangers: so many times within each
//! window of time, counted in the map `LIMITS`. In the same way it counts how many
//! entries are made in the maps in which the oldest make room ([`Room`]).
//!
//! A counter is one word: the window's number above, the count below. Programs on
//! several CPUs change it without a lock, so that now and then one of two counts
//! that come at once is lost: a limit may be exceeded by as many packets as CPUs
//! meet on it, and never grows with what is sent.

use crate::{
    control::CLOSED_NS,
    flow::Flow,
    host::{HostId, MAX_HOSTS},
    net::Address,
    park::Course,
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
    /// Packets of moving sessions parked.
    Moving,
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
            Self::Moving => SOURCES + MAX_HOSTS + 7,
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
            // Some 60,000 a second: a few sessions at full speed, for as long as a move
            // takes.
            Self::Moving => 8192,
        }
    }
}

/// A map in which the oldest entries make room for new ones, and whose entries count
/// for a stated time.
///
/// The kernel does not say what it removes. But of entries that were made within one
/// such time no more than fit are still there, so what was made beyond that, be it of
/// the first or of the last, went before its time: at least so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// `CLOSED`.
    Closed = 0,
    /// `FRAGMENTS`.
    Fragments = 1,
    /// `FLOWS`.
    Flows = 2,
}

impl Room {
    /// How long an entry counts, nanoseconds.
    #[inline(always)]
    pub const fn life_ns(self) -> u64 {
        match self {
            Self::Closed => CLOSED_NS,
            Self::Fragments => Course::LIFE_MS as u64 * 1_000_000,
            Self::Flows => Flow::KEPT_NS,
        }
    }

    /// The index of the counter of entries made.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        SOURCES + MAX_HOSTS + 4 + self as u32
    }

    /// The counter after one more entry, and whether there was room for it.
    #[inline(always)]
    pub const fn count(self, counter: u64, now_ns: u64, entries: u32) -> (u64, bool) {
        count_in(counter, now_ns / self.life_ns(), entries)
    }
}

/// Entries of `LIMITS`.
pub const LIMITS_ENTRIES: u32 = SOURCES + MAX_HOSTS + 8;

/// A counter after one more event: its new value, and whether the event is within
/// the limit.
#[inline(always)]
pub const fn count(counter: u64, now_ns: u64, max: u32) -> (u64, bool) {
    count_in(counter, now_ns >> WINDOW_SHIFT, max)
}

#[inline(always)]
const fn count_in(counter: u64, window: u64, max: u32) -> (u64, bool) {
    let window = window & u32::MAX as u64;
    let count = if counter >> 32 == window {
        counter & u32::MAX as u64
    } else {
        0
    };
    if count < max as u64 {
        ((window << 32) | (count + 1), true)
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
        let rooms = [Room::Closed, Room::Fragments, Room::Flows].map(Room::index);
        let last = [Limit::Moving.index()];
        let indices = [&limits.map(Limit::index)[..], &rooms, &last].concat();
        assert!(indices.is_sorted_by(|a, b| a < b));
        assert_eq!(indices[indices.len() - 1], LIMITS_ENTRIES - 1);
    }

    #[test]
    fn what_is_made_beyond_the_room_within_one_life_is_too_much() {
        for room in [Room::Closed, Room::Fragments, Room::Flows] {
            let (mut counter, life_ns) = (0, room.life_ns());
            let mut make = |now_ns| {
                let (next, fits) = room.count(counter, now_ns, 2);
                counter = next;
                fits
            };
            let times = [0, 1, 2, life_ns - 1, life_ns, life_ns + 1, 2 * life_ns - 1];
            let fits = times.map(&mut make);
            assert_eq!(fits, [true, true, false, false, true, true, false]);
        }
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
