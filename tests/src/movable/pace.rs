//! So many bytes a second.

use std::time::Duration;

use tokio::time::Instant;

/// How much is made at once: what so long a time brings …
const TURN: Duration = Duration::from_millis(100);
/// … or what a longer one does, where that is not more than a segment holds: thousands
/// of slow streams are not to wake their process all the time.
const TURN_MAX: Duration = Duration::from_millis(500);
const SEGMENT: u64 = 1400;

/// How much of a stream may be sent by now. It begins anew with each stream, and on each
/// host.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    stream: u64,
    since: Instant,
    sent: u64,
}

/// What may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// So many bytes.
    Bytes(u64),
    /// Nothing before this.
    NotBefore(Instant),
}

impl Pace {
    /// The pace of a stream: so many bytes a second; 0 is as fast as it goes.
    pub fn new(rate: u64, stream: u64) -> Self {
        Self {
            rate,
            stream,
            since: Instant::now(),
            sent: 0,
        }
    }

    /// Whether it is the pace of this stream.
    pub fn is_of(&self, rate: u64, stream: u64) -> bool {
        (self.rate, self.stream) == (rate, stream)
    }

    /// How much may be sent now.
    pub fn allowed(&self) -> Allowed {
        if self.rate == 0 {
            return Allowed::Bytes(u64::MAX);
        }
        // At least a byte, at most what fits a turn.
        let in_time = |time: Duration| (self.rate as u128 * time.as_millis() / 1000) as u64;
        let turn = in_time(TURN).max(in_time(TURN_MAX).min(SEGMENT)).max(1);
        let due_ns = (self.sent + turn) as u128 * 1_000_000_000 / self.rate as u128;
        let due = self.since + Duration::from_nanos(due_ns as u64);
        if Instant::now() >= due {
            Allowed::Bytes(turn)
        } else {
            Allowed::NotBefore(due)
        }
    }

    /// So much was.
    pub fn sent(&mut self, len: u64) {
        self.sent += len;
    }
}
