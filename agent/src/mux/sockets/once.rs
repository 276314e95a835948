//! Messages that may be sent again are taken once.

use std::collections::{BTreeSet, HashMap};

use homing_common::host::HostId;

use super::bundle::SocketId;

/// The most message sockets of other hosts whose repeatable messages are remembered.
pub const SENDERS_MAX: usize = 65_536;

/// Which repeatable messages were taken.
#[derive(Default)]
pub struct Once(HashMap<(HostId, SocketId), Taken>);

#[derive(Default)]
struct Taken {
    /// No message below is sent again.
    settled: u64,
    /// Of those from there on: what was taken.
    numbers: BTreeSet<u64>,
}

/// What is to be done with a message that may have been sent before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is new.
    New,
    /// It was taken before.
    Again,
    /// There are too many senders to remember what one more has sent.
    Crowded,
}

impl Once {
    /// The sender will send nothing again below this number.
    pub fn settled(&mut self, host: HostId, from: SocketId, settled: u64) {
        if let Some(taken) = self.0.get_mut(&(host, from))
            && taken.settled < settled
        {
            taken.settled = settled;
            taken.numbers = taken.numbers.split_off(&settled);
        }
    }

    /// What to do with this message.
    pub fn judge(&self, host: HostId, from: SocketId, number: u64) -> Verdict {
        match self.0.get(&(host, from)) {
            Some(taken) if number < taken.settled || taken.numbers.contains(&number) => {
                Verdict::Again
            }
            None if self.0.len() >= SENDERS_MAX => Verdict::Crowded,
            _ => Verdict::New,
        }
    }

    /// The message was taken.
    pub fn take(&mut self, host: HostId, from: SocketId, number: u64) {
        let taken = self.0.entry((host, from)).or_default();
        taken.numbers.insert(number);
    }

    /// A sender is closed.
    pub fn forget(&mut self, host: HostId, from: SocketId) {
        self.0.remove(&(host, from));
    }

    /// All senders of a host are gone.
    pub fn forget_host(&mut self, host: HostId) {
        self.0.retain(|(of, _), _| *of != host);
    }

    /// Senders that are remembered.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_new_once_and_never_below_what_is_settled() {
        let mut once = Once::default();
        let (host, from) = (HostId(1), SocketId(5));
        assert_eq!(once.judge(host, from, 3), Verdict::New);
        once.take(host, from, 3);
        once.take(host, from, 7);
        assert_eq!(once.judge(host, from, 3), Verdict::Again);
        assert_eq!(once.judge(host, from, 4), Verdict::New);
        once.settled(host, from, 6);
        once.settled(host, from, 2);
        for (number, verdict) in [(3, Verdict::Again), (5, Verdict::Again), (6, Verdict::New)] {
            assert_eq!(once.judge(host, from, number), verdict, "{number}");
        }
        assert_eq!(once.judge(host, from, 7), Verdict::Again);
        once.forget(host, from);
        assert_eq!(once.judge(host, from, 7), Verdict::New);
    }

    #[test]
    fn there_is_a_limit_of_senders() {
        let mut once = Once::default();
        for id in 1..=SENDERS_MAX as u64 {
            once.take(HostId(1), SocketId(id), 1);
        }
        let more = SocketId(SENDERS_MAX as u64 + 1);
        assert_eq!(once.judge(HostId(1), more, 1), Verdict::Crowded);
        assert_eq!(once.judge(HostId(1), SocketId(1), 1), Verdict::Again);
        once.forget_host(HostId(1));
        assert_eq!(once.judge(HostId(1), more, 1), Verdict::New);
    }
}
