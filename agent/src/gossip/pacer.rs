//! How many datagrams a host sends: a bound that does not depend on the POP's size.
//!
//! A bucket of tokens, one per datagram. All datagrams are charged; those of
//! membership and of the seal, which are few and have limits of their own, are
//! sent in any case, and gossip has what they leave.

use crate::pop::SECOND;

/// A host sends at most so many datagrams a second, whatever the size of the POP,
/// averaged over any time in which it sends more than [`DATAGRAMS_BURST`].
pub const DATAGRAMS_PER_SECOND: u64 = 10_000;
/// So many datagrams may go out at once after a pause.
pub const DATAGRAMS_BURST: u64 = 500;

/// The time in which one datagram is earned.
const INTERVAL: u64 = SECOND / DATAGRAMS_PER_SECOND;

/// The bucket, kept as the time at which it will be full again.
pub(super) struct Pacer {
    full_at: u64,
    /// What sending is compared with.
    now: u64,
}

impl Pacer {
    /// A full bucket.
    pub fn new(now: u64) -> Self {
        Self { full_at: now, now }
    }

    /// Whether a datagram may be sent now.
    pub fn may_send(&mut self, now: u64) -> bool {
        self.now = now;
        self.full_at = self.full_at.max(now);
        self.next_time() <= now
    }

    /// When the next datagram may be sent.
    pub fn next_time(&self) -> u64 {
        (self.full_at + INTERVAL).saturating_sub(INTERVAL * DATAGRAMS_BURST)
    }

    /// A datagram was sent.
    pub fn charge(&mut self) {
        // However many were sent in any case, gossip goes on within two bursts'
        // time.
        let worst = self.now + 2 * INTERVAL * DATAGRAMS_BURST;
        self.full_at = (self.full_at + INTERVAL).min(worst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_bounded_after_a_burst() {
        let mut pacer = Pacer::new(1_000);
        let mut sent = 0;
        let mut now = 1_000;
        while now < 1_000 + SECOND {
            while pacer.may_send(now) {
                pacer.charge();
                sent += 1;
            }
            if now == 1_000 {
                assert_eq!(sent, DATAGRAMS_BURST);
            }
            assert!(pacer.next_time() > now && pacer.next_time() <= now + INTERVAL);
            now = pacer.next_time();
        }
        assert_eq!(sent, DATAGRAMS_BURST + DATAGRAMS_PER_SECOND - 1);
    }

    #[test]
    fn what_is_sent_in_any_case_is_charged_but_not_for_ever() {
        let mut pacer = Pacer::new(0);
        for _ in 0..10 * DATAGRAMS_BURST {
            pacer.charge();
        }
        assert!(!pacer.may_send(0));
        assert!(pacer.next_time() <= 2 * INTERVAL * DATAGRAMS_BURST);
        assert!(pacer.may_send(pacer.next_time()));
    }
}
