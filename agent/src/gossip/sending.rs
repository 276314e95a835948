//! When this host's announcements and heartbeats go out, and to whom.

use super::{machine::Gossip, wire::PassOn};
use crate::pop::MS;

/// After a batch the next one waits this long, for more to come together.
const FLUSH_INTERVAL: u64 = 200;
/// Each datagram beyond the first few that a batch costs adds this much to that:
/// in a large POP a batch is worth its copies, and their rate stays bounded.
const FLUSH_INTERVAL_PER_TARGET: u64 = 400;
const CHEAP_TARGETS: u64 = 4;
/// The most batches that go out at once: some 500 announcements.
const FLUSH_BATCHES: usize = 4;
/// After the last batch a heartbeat follows this soon, then again after twice the
/// time, and so on: it shows receivers what they missed of the end.
const QUICK_HEARTBEAT: u64 = 20 * MS;

impl Gossip {
    pub(super) fn plan_flush(&mut self, now: u64) {
        if self.core.flush_at.is_none() {
            let free_at = self.flushed_at.map_or(0, |at| at + self.flush_interval());
            self.core.flush_at = Some(now.max(free_at));
        }
    }

    pub(super) fn flush_interval(&mut self) -> u64 {
        let dear = (self.targets().len() as u64).saturating_sub(CHEAP_TARGETS);
        FLUSH_INTERVAL + dear * FLUSH_INTERVAL_PER_TARGET
    }

    /// Sends what was not sent yet, up to a limit.
    pub(super) fn flush(&mut self, now: u64) {
        let interval = self.flush_interval();
        if self.core.out.is_congested() {
            // It waits in the log as well.
            self.core.flush_at = Some(now + interval);
            return;
        }
        self.core.flush_at = None;
        self.flushed_at = Some(now);
        self.targets();
        let Some(targets) = self.targets.as_ref().filter(|targets| targets.len() > 0) else {
            // Whoever joins later pulls a snapshot.
            self.core.log.skip_unsent();
            return;
        };
        for _ in 0..FLUSH_BATCHES {
            let Some(batch) = self.core.log.take_batch() else {
                break;
            };
            self.core.counters.batches_sent += 1;
            if targets.group.is_some() {
                self.core.counters.multicast_unheard += targets.unheard.len() as u64;
            }
            for (pass_on, to) in [
                (PassOn::Now, &targets.first_relays),
                (PassOn::Unheard, &targets.other_relays),
            ] {
                if !to.is_empty() {
                    let mut batch = batch.clone();
                    pass_on.put(&mut batch);
                    self.core.send(to, batch);
                }
            }
            self.core.send(&targets.direct(), batch);
        }
        if self.core.log.unsent() > 0 {
            self.core.flush_at = Some(now + interval);
        }
        let after = QUICK_HEARTBEAT.max(2 * interval);
        self.quick = Some((now + after, after));
    }

    /// Tells everyone where the log stands: hosts of this domain by multicast,
    /// those of others by one of their relays, in turns. Says whether it did.
    pub(super) fn beat(&mut self, now: u64) -> bool {
        self.targets();
        let Some(targets) = &self.targets else {
            return false;
        };
        let relays = match (self.beats % 2, targets.other_relays.is_empty()) {
            (1, false) => &targets.other_relays,
            _ => &targets.first_relays,
        };
        let mut direct: Vec<_> = targets.group.into_iter().collect();
        direct.extend(&targets.few);
        if now < self.heartbeat_at {
            // Others get theirs one by one, but not so soon after a batch.
            direct.extend(&targets.unheard);
        }
        let done = self.core.heartbeat(&direct, false, false, PassOn::No)
            && self.core.heartbeat(relays, false, false, PassOn::Now);
        self.beats += usize::from(done);
        done
    }
}
