//! The relay's side: what hosts of other domains ask this host to pass on in its
//! own, merged into few datagrams.
//!
//! An origin sends each batch to two relays. The first passes it on at once. The
//! other holds it for a moment and listens: what it hears the first one pass on it
//! drops, and the rest it passes on itself. So every announcement crosses a domain
//! once, and a relay that is dead, slow or deaf to an origin costs a moment and
//! nothing else. What both of them miss is repaired by the origin, as any loss is.

use std::collections::{BTreeMap, VecDeque};

use homing_common::host::HostId;

use super::wire::{Heartbeat, PassOn, RECORD_LEN, Records, Writer};
use crate::pop::{BODY_LEN_MAX, MS};

/// Records and heartbeats that wait to be passed on, at most: a second of them at
/// many times the designed load.
const WAITING_MAX: usize = 1 << 15;
/// How much longer than the first relay collects the other one waits for it: that
/// much their datagrams and their hearing may differ.
const HOLD_MARGIN: u64 = 5 * MS;
/// Between two messages at least, however full they are.
const INTERVAL_MIN: u64 = 200;
/// For each host of other domains a relay collects this much longer, so that
/// what it sends is worth a datagram ...
const INTERVAL_PER_HOST: u64 = 10;
/// ... but never longer than this.
const INTERVAL_MAX: u64 = 10 * MS;
/// What fills a datagram.
const FULL_BYTES: usize = BODY_LEN_MAX - 100;

/// An origin in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Source {
    pub host: HostId,
    /// The tag of its life.
    pub tag: u16,
}

/// Something of one origin to be passed on.
struct Piece {
    source: Source,
    content: Content,
}

enum Content {
    Records {
        first: u64,
        opened_us: u64,
        bytes: Box<[u8]>,
    },
    Heartbeat(Heartbeat),
}

/// Records that the other relay may pass on.
struct Held {
    until: u64,
    first: u64,
    opened_us: u64,
    bytes: Box<[u8]>,
}

impl Held {
    fn len(&self) -> u64 {
        (self.bytes.len() / RECORD_LEN) as u64
    }
}

/// Records `from..to` of an origin's log.
struct Heard {
    tag: u16,
    from: u64,
    to: u64,
}

/// What became of records that were given to a relay.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Tallied {
    /// Passed on.
    pub passed: u64,
    /// Among these, because the first relay had not.
    pub in_place: u64,
    /// Not passed on because the first relay had.
    pub covered: u64,
    /// Dropped because too many waited.
    pub dropped: u64,
}

/// One host as a relay.
#[derive(Default)]
pub(super) struct Relay {
    ready: Vec<Piece>,
    ready_bytes: usize,
    held: BTreeMap<Source, VecDeque<Held>>,
    /// When something held of an origin is due, the earliest first.
    due: VecDeque<(u64, Source)>,
    /// What was last heard to be passed on of each origin, without a gap: it may
    /// be heard before it comes from the origin.
    heard: BTreeMap<HostId, Heard>,
    /// Records and heartbeats, ready and held.
    waiting: usize,
    /// Between two messages.
    interval: u64,
    flush_at: Option<u64>,
    flushed_at: Option<u64>,
    /// What happened since this was last taken.
    pub tallied: Tallied,
}

impl Relay {
    /// So many hosts of other domains are up.
    pub fn set_foreign_hosts(&mut self, hosts: usize) {
        let collected = INTERVAL_PER_HOST * hosts as u64;
        self.interval = collected.clamp(INTERVAL_MIN, INTERVAL_MAX);
    }

    /// How long a message of a relay may come after what it tells of was sent to
    /// it, if all goes well.
    pub fn delay(&self) -> u64 {
        2 * self.interval + 2 * HOLD_MARGIN
    }

    /// Records of an origin in another domain, to be passed on.
    pub fn take_records(
        &mut self,
        now: u64,
        pass_on: PassOn,
        source: Source,
        first: u64,
        opened_us: u64,
        records: Records<'_>,
    ) {
        if self.waiting + records.len() > WAITING_MAX {
            self.tallied.dropped += records.len() as u64;
            return;
        }
        self.waiting += records.len();
        let bytes = records.bytes().into();
        match pass_on {
            PassOn::No => self.waiting -= records.len(),
            PassOn::Now => self.make_ready(
                now,
                Piece {
                    source,
                    content: Content::Records {
                        first,
                        opened_us,
                        bytes,
                    },
                },
            ),
            PassOn::Unheard => {
                let until = now + self.interval + HOLD_MARGIN;
                self.due.push_back((until, source));
                self.held.entry(source).or_default().push_back(Held {
                    until,
                    first,
                    opened_us,
                    bytes,
                });
                let heard = self.heard.get(&source.host);
                if let Some(&Heard { tag, from, to }) = heard
                    && tag == source.tag
                    && from < first + records.len() as u64
                    && first < to
                {
                    self.cover(now, source, from, to);
                }
            }
        }
    }

    /// A heartbeat of an origin in another domain, to be passed on.
    pub fn take_heartbeat(&mut self, now: u64, source: Source, heartbeat: Heartbeat) {
        if self.waiting >= WAITING_MAX {
            self.tallied.dropped += 1;
            return;
        }
        self.waiting += 1;
        let content = Content::Heartbeat(heartbeat);
        self.make_ready(now, Piece { source, content });
    }

    /// Another relay has passed on so many records of an origin.
    pub fn heard(&mut self, now: u64, source: Source, first: u64, len: u64) {
        let end = first + len;
        let heard = self.heard.entry(source.host).or_insert(Heard {
            tag: source.tag,
            from: first,
            to: first,
        });
        if (heard.tag, heard.to) != (source.tag, first) {
            heard.tag = source.tag;
            heard.from = first;
        }
        heard.to = end;
        self.cover(now, source, first, end);
    }

    /// Records `first..end` of an origin were passed on by another relay.
    fn cover(&mut self, now: u64, source: Source, first: u64, end: u64) {
        let Some(held) = self.held.get_mut(&source) else {
            return;
        };
        let mut passed_over = Vec::new();
        held.retain_mut(|held| {
            let held_end = held.first + held.len();
            if held.first >= end {
                return true;
            }
            if held_end <= first {
                // What comes later was passed on, and this was not: it did not
                // get there.
                passed_over.push((held.first, held.opened_us, std::mem::take(&mut held.bytes)));
                return false;
            }
            let from = first.max(held.first) - held.first;
            let to = end.min(held_end) - held.first;
            self.tallied.covered += to - from;
            self.waiting -= (to - from) as usize;
            let bytes = &held.bytes;
            let before = &bytes[..from as usize * RECORD_LEN];
            let after = &bytes[to as usize * RECORD_LEN..];
            if !before.is_empty() {
                passed_over.push((held.first, held.opened_us, before.into()));
            }
            if after.is_empty() {
                return false;
            }
            held.first = end;
            held.bytes = after.into();
            true
        });
        if held.is_empty() {
            self.held.remove(&source);
        }
        for (first, opened_us, bytes) in passed_over {
            self.pass_in_place(now, source, first, opened_us, bytes);
        }
        // No need to wake up for what is held no longer.
        while let Some((at, source)) = self.due.front()
            && self.held.get(source).is_none_or(|held| held[0].until > *at)
        {
            self.due.pop_front();
        }
    }

    /// When [`Relay::on_time`] must be called next.
    pub fn next_time(&self) -> u64 {
        let due = self.due.front().map_or(u64::MAX, |due| due.0);
        due.min(self.flush_at.unwrap_or(u64::MAX))
    }

    /// The messages that are due; none while too much waits to be sent.
    pub fn on_time(&mut self, now: u64, congested: bool) -> Vec<Vec<u8>> {
        while let Some(&(at, source)) = self.due.front()
            && at <= now
        {
            self.due.pop_front();
            let Some(held) = self.held.get_mut(&source) else {
                continue;
            };
            if held.front().is_some_and(|held| held.until <= now)
                && let Some(overdue) = held.pop_front()
            {
                if held.is_empty() {
                    self.held.remove(&source);
                }
                let Held {
                    first,
                    opened_us,
                    bytes,
                    ..
                } = overdue;
                self.pass_in_place(now, source, first, opened_us, bytes);
            }
        }
        if self.flush_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        if congested {
            self.flush_at = Some(now + MS);
            return Vec::new();
        }
        self.flush_at = None;
        self.flushed_at = Some(now);
        self.messages()
    }

    fn pass_in_place(
        &mut self,
        now: u64,
        source: Source,
        first: u64,
        opened_us: u64,
        bytes: Box<[u8]>,
    ) {
        self.tallied.in_place += (bytes.len() / RECORD_LEN) as u64;
        let content = Content::Records {
            first,
            opened_us,
            bytes,
        };
        self.make_ready(now, Piece { source, content });
        // It is late already.
        self.plan(now, INTERVAL_MIN);
    }

    fn make_ready(&mut self, now: u64, piece: Piece) {
        self.ready_bytes += match &piece.content {
            Content::Records { bytes, .. } => 8 + bytes.len(),
            Content::Heartbeat(_) => 36,
        };
        self.ready.push(piece);
        let full = self.ready_bytes >= FULL_BYTES;
        self.plan(now, if full { INTERVAL_MIN } else { self.interval });
    }

    /// The next messages go out so long after the last ones, or earlier.
    fn plan(&mut self, now: u64, interval: u64) {
        let free_at = self.flushed_at.map_or(0, |at| at + interval);
        let at = now.max(free_at);
        self.flush_at = Some(self.flush_at.map_or(at, |planned| planned.min(at)));
    }

    /// All that is ready, in as few messages as can be.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut ready = std::mem::take(&mut self.ready);
        self.ready_bytes = 0;
        // One origin's records in order, so that they share sections, and before
        // its heartbeat, which tells of them.
        ready.sort_by_key(|piece| match piece.content {
            Content::Records { first, .. } => (piece.source, first),
            Content::Heartbeat(_) => (piece.source, u64::MAX),
        });
        let mut bodies = Vec::new();
        let mut writer = Writer::new();
        for Piece { source, content } in ready {
            let Source { host: origin, tag } = source;
            match content {
                Content::Heartbeat(heartbeat) => {
                    self.waiting -= 1;
                    if !writer.heartbeat(origin, tag, &heartbeat) {
                        bodies.extend(std::mem::take(&mut writer).finish());
                        writer.heartbeat(origin, tag, &heartbeat);
                    }
                }
                Content::Records {
                    mut first,
                    opened_us,
                    bytes,
                } => {
                    let mut records = Records::from_bytes(&bytes);
                    self.waiting -= records.len();
                    self.tallied.passed += records.len() as u64;
                    loop {
                        let done = writer.records(origin, tag, first, opened_us, records);
                        first += done as u64;
                        records = Records::from_bytes(&records.bytes()[done * RECORD_LEN..]);
                        if records.is_empty() {
                            break;
                        }
                        bodies.extend(std::mem::take(&mut writer).finish());
                    }
                }
            }
        }
        bodies.extend(writer.finish());
        bodies
    }
}

#[cfg(test)]
mod tests;
