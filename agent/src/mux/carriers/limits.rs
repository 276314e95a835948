//! What bounds carriers. Each bound has a stated behaviour where it is reached.

use std::time::Duration;

use super::outgoing::{Pace, cost};

/// A channel: who shares a carrier. Carriers belong to one, so that whoever reads one
/// slowly delays no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// Its number on the wire.
    pub number: u8,
    /// The longest message, in bytes.
    pub message_max: usize,
    /// It may go without encryption where the operator trusts the fabric.
    pub may_be_plain: bool,
    /// A carrier of it that had no message for so long is closed, if not sooner
    /// ([`Limits::idle_after`]).
    pub idle_max: Duration,
}

/// Messages of moves.
pub const MIGRATION: Channel = Channel {
    number: 1,
    message_max: 32 << 20,
    may_be_plain: false,
    idle_max: Duration::MAX,
};

/// The longest message that a message socket can be allowed, in bytes. With its header it
/// fits into one datagram of a Unix socket, whose ceiling is 4,263,616 bytes.
pub const MESSAGE_CEILING: usize = 4 << 20;

/// Messages of message sockets, with what is said about them.
pub const MUX: Channel = Channel {
    number: 2,
    message_max: MESSAGE_CEILING + (4 << 10),
    may_be_plain: true,
    idle_max: Duration::MAX,
};

/// Snapshots of gossip. A host that joins has carriers to and from every other one, and
/// will hardly need them again.
pub const GOSSIP: Channel = Channel {
    number: 3,
    message_max: 256 << 10,
    may_be_plain: false,
    idle_max: Duration::from_secs(2),
};

/// All channels.
pub const CHANNELS: [Channel; 3] = [MIGRATION, MUX, GOSSIP];

impl Channel {
    /// The channel with this number.
    pub fn by_number(number: u8) -> Option<Self> {
        CHANNELS
            .into_iter()
            .find(|channel| channel.number == number)
    }
}

/// How many carriers there are to one host on one channel while messages flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Another one is opened when a message waits and all are busy, up to so many.
    UpTo(usize),
    /// So many.
    Fixed(usize),
}

impl Count {
    /// The most there are.
    pub const fn most(self) -> usize {
        match self {
            Self::UpTo(count) | Self::Fixed(count) => count,
        }
    }
}

/// What bounds the carriers of a host. Bounds in bytes count a message with 256 bytes
/// more than it has, for what is kept about it: so they bound messages, too.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What may wait or be under way to one host on one channel; beyond, senders wait.
    pub queued_per_peer: usize,
    /// What may wait or be under way to all hosts; beyond, senders wait.
    pub queued_total: usize,
    /// What has arrived from one host on one channel and was not dropped by its reader;
    /// beyond, that host's messages wait there.
    pub received_per_peer: usize,
    /// What has arrived from all hosts on one channel; beyond, messages wait where they
    /// come from.
    pub received_total: usize,
    /// Carriers to one host on one channel.
    pub carriers_per_peer: Count,
    /// Carriers that one host may have to this one; beyond, it is refused.
    pub accepted_per_peer: usize,
    /// Carriers that all hosts may have to this one; beyond, they are refused.
    pub accepted_total: usize,
    /// Connections of one address within the handshake; beyond, they are closed.
    pub handshakes_per_source: usize,
    /// Connections of all addresses within the handshake; beyond, they are closed.
    pub handshakes_total: usize,
    /// A handshake that takes longer, connecting included, has failed.
    pub handshake_timeout: Duration,
    /// A carrier that had no message for so long is closed.
    pub idle_after: Duration,
    /// A carrier with messages that are not acknowledged, on which nothing was heard for
    /// so long, gets no more: others take what waits.
    pub lag_after: Duration,
    /// A carrier on which nothing was heard for so long is dead. Both sides speak at
    /// least every quarter of it.
    pub dead_after: Duration,
    /// A host that asked for another carrier waits so long for the old one to be closed.
    pub retire_within: Duration,
    /// The pause after the first failure to open a carrier; it doubles up to the second.
    pub back_off: [Duration; 2],
    /// A message is not sent if no carrier could be opened for so long.
    pub give_up_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_per_peer: 64 << 20,
            queued_total: 512 << 20,
            received_per_peer: 64 << 20,
            received_total: 256 << 20,
            carriers_per_peer: Count::UpTo(4),
            accepted_per_peer: 16,
            accepted_total: 4096,
            handshakes_per_source: 8,
            handshakes_total: 256,
            handshake_timeout: Duration::from_secs(3),
            idle_after: Duration::from_secs(60),
            lag_after: Duration::from_millis(100),
            dead_after: Duration::from_secs(10),
            retire_within: Duration::from_secs(10),
            back_off: [Duration::from_millis(50), Duration::from_secs(2)],
            give_up_after: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// When carriers speak and give up.
    pub(super) fn pace(&self) -> Pace {
        let dead_after = self.dead_after.as_micros() as u64;
        Pace {
            ping_every: dead_after / 4,
            lag_after: self.lag_after.as_micros() as u64,
            dead_after,
        }
    }

    /// The longest message of a channel that finds room within these bounds.
    pub(super) fn message_max(&self, channel: Channel) -> usize {
        let bounds = [
            self.queued_per_peer,
            self.queued_total,
            self.received_per_peer,
            self.received_total,
        ];
        let least = bounds.into_iter().min().unwrap_or_default();
        let room = least.saturating_sub(cost(0));
        channel.message_max.min(room)
    }

    /// How long a carrier of a channel may be idle.
    pub(super) fn idle_of(&self, channel: Channel) -> Duration {
        channel.idle_max.min(self.idle_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_of_every_channel_fits_into_all_bounds() {
        let limits = Limits::default();
        for channel in CHANNELS {
            assert_eq!(limits.message_max(channel), channel.message_max);
            assert_eq!(Channel::by_number(channel.number), Some(channel));
        }
        let narrow = Limits {
            received_per_peer: 10_000,
            ..limits
        };
        assert_eq!(cost(narrow.message_max(MUX)), 10_000);
    }

    #[test]
    fn carriers_of_gossip_are_closed_early() {
        let mut limits = Limits::default();
        assert_eq!(limits.idle_of(MUX), limits.idle_after);
        assert_eq!(limits.idle_of(GOSSIP), GOSSIP.idle_max);
        limits.idle_after = Duration::ZERO;
        assert_eq!(limits.idle_of(GOSSIP), Duration::ZERO);
    }
}
