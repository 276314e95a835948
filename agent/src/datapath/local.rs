//! This host's own sessions, as told by a stream of events that may have holes
//! and by scans that fill them.
//!
//! Pure. The kernel side changes `SESSIONS` first and tells of it afterwards, so
//! a scan may know more than the events read so far, and an event may be old news.
//! The cookie of the socket tells the two apart: it is never used twice.

use std::collections::{HashMap, hash_map::Entry};

use homing_common::{
    event::{Event, EventKind},
    session::{Session, SessionId},
};

/// What happened to a session of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalEvent {
    /// It is open.
    Opened {
        /// Which session.
        id: SessionId,
        /// How often it has moved.
        generation: u32,
        /// When it was opened or, after a loss of events, found open:
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// It is no longer open.
    Closed {
        /// Which session.
        id: SessionId,
        /// When it was closed or found closed.
        at_ns: u64,
    },
}

/// The sessions known to be open. Of each, what it tells is `Opened` and `Closed`
/// in turn, beginning with `Opened`.
///
/// Two sessions with one id (a chance of one in 2^64 for each pair) count as one.
#[derive(Default)]
pub struct Tracker {
    open: HashMap<SessionId, Known>,
}

#[derive(Clone, Copy)]
struct Known {
    cookie: u64,
    /// The number of the scan that last saw it.
    scan: u64,
}

impl Tracker {
    /// Takes in an event. Appends what is news to `out`; returns false if the
    /// event is of no known kind.
    pub fn event(&mut self, event: &Event, out: &mut Vec<LocalEvent>) -> bool {
        if event.kind == EventKind::Opened as u32 {
            self.opened(&event.session, event.at_ns, 0, out);
        } else if event.kind == EventKind::Closed as u32 {
            self.closed(&event.session, event.at_ns, out);
        } else {
            return false;
        }
        true
    }

    /// Takes in the end of sessions that were told as open, from another source than
    /// the stream.
    pub fn ended(&mut self, sessions: &[Session], at_ns: u64, out: &mut Vec<LocalEvent>) {
        for session in sessions {
            self.closed(session, at_ns, out);
        }
    }

    /// Takes in a scan of `SESSIONS` that began after every event taken in so far
    /// had been sent, and after every event that was lost.
    pub fn scan(
        &mut self,
        sessions: impl IntoIterator<Item = Session>,
        at_ns: u64,
        out: &mut Vec<LocalEvent>,
    ) {
        let scan = self.open.values().map(|known| known.scan).max();
        let scan = scan.unwrap_or(0) + 1;
        for session in sessions {
            self.opened(&session, at_ns, scan, out);
        }
        self.open.retain(|&id, known| {
            let seen = known.scan == scan;
            if !seen {
                out.push(LocalEvent::Closed { id, at_ns });
            }
            seen
        });
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn opened(&mut self, session: &Session, at_ns: u64, scan: u64, out: &mut Vec<LocalEvent>) {
        let id = session.id;
        let known = Known {
            cookie: session.cookie,
            scan,
        };
        match self.open.entry(id) {
            Entry::Occupied(mut entry) => {
                let same = entry.get().cookie == session.cookie;
                entry.insert(Known {
                    scan: scan.max(entry.get().scan),
                    ..known
                });
                if same {
                    return;
                }
                // The tuple is in use again, and nobody told of the end of its
                // former use.
                out.push(LocalEvent::Closed { id, at_ns });
            }
            Entry::Vacant(entry) => {
                entry.insert(known);
            }
        }
        out.push(LocalEvent::Opened {
            id,
            generation: session.generation,
            at_ns,
        });
    }

    fn closed(&mut self, session: &Session, at_ns: u64, out: &mut Vec<LocalEvent>) {
        let id = session.id;
        if let Entry::Occupied(entry) = self.open.entry(id)
            && entry.get().cookie == session.cookie
        {
            entry.remove();
            out.push(LocalEvent::Closed { id, at_ns });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use homing_common::{
        net::{Address, Port, TCP},
        session::Tuple,
    };
    use proptest::prelude::*;

    use super::*;

    fn session(id: u64, cookie: u64) -> Session {
        Session {
            id: SessionId(id),
            cookie,
            opened_ns: 0,
            seen_ns: 0,
            generation: 0,
            flags: 0,
        }
    }

    fn event(kind: EventKind, session: Session) -> Event {
        let any = Address::v4([0; 4]);
        Event {
            tuple: Tuple::new(any, Port::new(0), any, Port::new(0), TCP),
            session,
            at_ns: 1,
            kind: kind as u32,
            zero: 0,
        }
    }

    fn opened(id: u64) -> LocalEvent {
        LocalEvent::Opened {
            id: SessionId(id),
            generation: 0,
            at_ns: 1,
        }
    }

    fn closed(id: u64) -> LocalEvent {
        LocalEvent::Closed {
            id: SessionId(id),
            at_ns: 1,
        }
    }

    #[test]
    fn an_event_is_told_once() {
        let mut tracker = Tracker::default();
        let mut out = Vec::new();
        tracker.scan([session(7, 1)], 1, &mut out);
        tracker.event(&event(EventKind::Opened, session(7, 1)), &mut out);
        tracker.event(&event(EventKind::Closed, session(7, 1)), &mut out);
        tracker.event(&event(EventKind::Closed, session(7, 1)), &mut out);
        assert_eq!(out, [opened(7), closed(7)]);
    }

    #[test]
    fn the_late_end_of_a_former_use_ends_nothing() {
        let mut tracker = Tracker::default();
        let mut out = Vec::new();
        tracker.event(&event(EventKind::Opened, session(7, 1)), &mut out);
        tracker.event(&event(EventKind::Opened, session(7, 2)), &mut out);
        tracker.event(&event(EventKind::Closed, session(7, 1)), &mut out);
        assert_eq!(out, [opened(7), closed(7), opened(7)]);
        assert_eq!(tracker.len(), 1);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut unknown = event(EventKind::Opened, session(7, 1));
        unknown.kind = 9;
        let mut out = Vec::new();
        assert!(!Tracker::default().event(&unknown, &mut out));
        assert!(out.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u64),
        Close(u64),
        /// The agent reads so many events.
        Read(usize),
        /// The ring is full until the next scan: events are lost.
        Full,
        /// The agent notices, reads all there is, and scans.
        Scan,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u64..6).prop_map(Step::Open),
            4 => (0u64..6).prop_map(Step::Close),
            3 => (1usize..4).prop_map(Step::Read),
            1 => Just(Step::Full),
            2 => Just(Step::Scan),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn after_a_scan_the_view_is_the_truth(steps in steps()) {
            let mut truth = BTreeMap::<u64, u64>::new();
            let mut ring = VecDeque::new();
            let mut full = false;
            let mut cookie = 0;
            let mut tracker = Tracker::default();
            let mut told = BTreeSet::<u64>::new();

            for step in steps.into_iter().chain([Step::Scan]) {
                let mut out = Vec::new();
                match step {
                    Step::Open(id) if !truth.contains_key(&id) => {
                        cookie += 1;
                        truth.insert(id, cookie);
                        if !full {
                            ring.push_back(event(EventKind::Opened, session(id, cookie)));
                        }
                    }
                    Step::Close(id) => {
                        if let Some(cookie) = truth.remove(&id) && !full {
                            ring.push_back(event(EventKind::Closed, session(id, cookie)));
                        }
                    }
                    Step::Open(_) => {}
                    Step::Read(n) => {
                        for event in ring.drain(..n.min(ring.len())) {
                            tracker.event(&event, &mut out);
                        }
                    }
                    Step::Full => full = true,
                    Step::Scan => {
                        for event in ring.drain(..) {
                            tracker.event(&event, &mut out);
                        }
                        let now = truth.iter().map(|(&id, &cookie)| session(id, cookie));
                        tracker.scan(now, 1, &mut out);
                        full = false;
                    }
                }
                for change in out {
                    match change {
                        LocalEvent::Opened { id, .. } => prop_assert!(told.insert(id.0)),
                        LocalEvent::Closed { id, .. } => prop_assert!(told.remove(&id.0)),
                    }
                }
                prop_assert_eq!(told.len(), tracker.len());
            }
            prop_assert_eq!(told, truth.into_keys().collect::<BTreeSet<_>>());
        }
    }
}
