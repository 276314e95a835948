//! What happened to this host's own sessions, on its way into the node.

use super::{Running, Table, monotonic_ns};
use crate::datapath::local::{LocalEvent, News};

impl<T: Table> Running<T> {
    /// Takes in what happened to this host's sessions.
    pub(super) fn local(&mut self, news: News) {
        let now = self.clock.now();
        // The kernel side stamps events with the monotonic clock; others can only
        // make sense of the time of day.
        let monotonic_us = monotonic_ns() / 1_000;
        let wall = self.clock.wall();
        let to_wall = |at_ns: u64| wall - wall.min(monotonic_us.saturating_sub(at_ns / 1_000));
        for event in news.events {
            match event {
                LocalEvent::Opened {
                    ids,
                    generation,
                    at_ns,
                } => {
                    for id in ids.each() {
                        self.node.open(now, id, narrow(generation), to_wall(at_ns));
                    }
                }
                LocalEvent::Closed { ids, at_ns } => {
                    for id in ids.each() {
                        self.node.close(now, id, to_wall(at_ns));
                    }
                }
            }
        }
        for (ids, done) in news.done {
            // Whoever waits for it does not wait for the routes of others.
            for id in ids.each() {
                self.applier.apply(id, self.node.gossip().route(id));
            }
            let _ = done.send(());
        }
    }
}

/// A session's generation as announced: what is beyond counts as the largest.
pub(super) fn narrow(generation: u32) -> u16 {
    u16::try_from(generation).unwrap_or(u16::MAX)
}
