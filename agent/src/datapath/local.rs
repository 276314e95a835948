//! This host's own sessions, as told by a stream of events that may have holes
//! and by scans that fill them.
//!
//! Pure. The kernel side changes `SESSIONS` first and tells of it afterwards, so
//! a scan may know more than the events read so far, and an event may be old news.
//! The cookie of the socket tells the two apart: it is never used twice.

use std::collections::{HashMap, hash_map::Entry};

use homing_common::{
    event::{Event, EventKind},
    session::{Session, SessionId, SessionKey, Tuple},
};
use tokio::sync::oneshot;

/// The keys that hash session tuples to ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionKeys {
    /// By ids under it this host looks up whose a session is.
    pub key: SessionKey,
    /// While the key changes: by ids under it this host tells of its sessions as well,
    /// because others may look up by those.
    pub other: Option<SessionKey>,
}

/// The ids that a session is told by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ids {
    /// By this one this host looks it up.
    pub id: SessionId,
    /// While the key changes: that under the other key.
    pub other: Option<SessionId>,
}

impl SessionKeys {
    /// The ids of a session.
    pub fn ids(&self, tuple: &Tuple) -> Ids {
        Ids {
            id: tuple.id(&self.key),
            other: self.other.map(|key| tuple.id(&key)),
        }
    }
}

impl Ids {
    /// All of them.
    pub fn each(self) -> impl Iterator<Item = SessionId> {
        std::iter::once(self.id).chain(self.other)
    }
}

/// What happened to a session of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalEvent {
    /// It is open.
    Opened {
        /// Which session.
        ids: Ids,
        /// How often it has moved.
        generation: u32,
        /// When it was opened or, after a loss of events, found open:
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// It is no longer open.
    Closed {
        /// Which session.
        ids: Ids,
        /// When it was closed or found closed.
        at_ns: u64,
    },
}

/// What is told together.
#[derive(Default, Debug)]
pub struct News {
    /// What happened, in order.
    pub events: Vec<LocalEvent>,
    /// Sessions that live on another host now. That they are closed here was told before,
    /// or is in `events`; it is not to be held back any longer.
    pub at_once: Vec<Ids>,
    /// Who is told when all of that, and all that was told before, is in force for a
    /// session: it is announced, and the route to its owner, or that there is none, is
    /// in `OWNERS`.
    pub done: Vec<(Ids, oneshot::Sender<()>)>,
}

impl News {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.at_once.is_empty() && self.done.is_empty()
    }
}

impl From<Vec<LocalEvent>> for News {
    fn from(events: Vec<LocalEvent>) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }
}

/// The sessions known to be open. Of each, what it tells is `Opened` and `Closed`
/// in turn, beginning with `Opened`.
///
/// Two sessions with one id (a chance of one in 2^64 for each pair) count as one.
///
/// Ids follow from tuples, and not from what the kernel side wrote beside them: that
/// may have been under another key.
pub struct Tracker {
    keys: SessionKeys,
    open: HashMap<SessionId, Known>,
}

#[derive(Clone, Copy)]
struct Known {
    cookie: u64,
    other: Option<SessionId>,
    /// The number of the scan that last saw it.
    scan: u64,
}

impl Tracker {
    /// Knows of no session yet.
    pub fn new(keys: SessionKeys) -> Self {
        Self {
            keys,
            open: HashMap::new(),
        }
    }

    /// Takes in an event. Appends what is news to `out`; returns false if the
    /// event is of no known kind.
    pub fn event(&mut self, event: &Event, out: &mut Vec<LocalEvent>) -> bool {
        let (tuple, session) = (&event.tuple, &event.session);
        if event.kind == EventKind::Opened as u32 {
            self.opened(tuple, session, event.at_ns, 0, out);
        } else if event.kind == EventKind::Closed as u32 {
            self.closed(tuple, session.cookie, event.at_ns, out);
        } else {
            return false;
        }
        true
    }

    /// Takes in the end of sessions that were told as open, from another source than
    /// the stream: their tuples and cookies.
    pub fn ended(&mut self, sessions: &[(Tuple, u64)], at_ns: u64, out: &mut Vec<LocalEvent>) {
        for (tuple, cookie) in sessions {
            self.closed(tuple, *cookie, at_ns, out);
        }
    }

    /// A session came from another host, and the agent recorded it in `SESSIONS`. A scan
    /// may have told it before.
    pub fn adopted(
        &mut self,
        tuple: &Tuple,
        session: &Session,
        at_ns: u64,
        news: &mut News,
    ) -> Ids {
        self.opened(tuple, session, at_ns, 0, &mut news.events);
        self.keys.ids(tuple)
    }

    /// A session went to another host, and the agent removed it from `SESSIONS`. A scan
    /// may have told its end before: then it may still be held back. If its tuple is in
    /// use here again, that session stays.
    pub fn left(&mut self, tuple: &Tuple, cookie: u64, at_ns: u64, news: &mut News) -> Ids {
        self.closed(tuple, cookie, at_ns, &mut news.events);
        let ids = self.keys.ids(tuple);
        if !self.open.contains_key(&ids.id) {
            news.at_once.push(ids);
        }
        ids
    }

    /// Takes in a scan of `SESSIONS` that began after every event taken in so far
    /// had been sent, and after every event that was lost.
    pub fn scan(
        &mut self,
        sessions: impl IntoIterator<Item = (Tuple, Session)>,
        at_ns: u64,
        out: &mut Vec<LocalEvent>,
    ) {
        let scan = self.open.values().map(|known| known.scan).max();
        let scan = scan.unwrap_or(0) + 1;
        for (tuple, session) in sessions {
            self.opened(&tuple, &session, at_ns, scan, out);
        }
        self.open.retain(|&id, known| {
            let seen = known.scan == scan;
            if !seen {
                let ids = known.ids(id);
                out.push(LocalEvent::Closed { ids, at_ns });
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

    fn opened(
        &mut self,
        tuple: &Tuple,
        session: &Session,
        at_ns: u64,
        scan: u64,
        out: &mut Vec<LocalEvent>,
    ) {
        let ids = self.keys.ids(tuple);
        let known = Known {
            cookie: session.cookie,
            other: ids.other,
            scan,
        };
        match self.open.entry(ids.id) {
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
                out.push(LocalEvent::Closed { ids, at_ns });
            }
            Entry::Vacant(entry) => {
                entry.insert(known);
            }
        }
        out.push(LocalEvent::Opened {
            ids,
            generation: session.generation,
            at_ns,
        });
    }

    fn closed(&mut self, tuple: &Tuple, cookie: u64, at_ns: u64, out: &mut Vec<LocalEvent>) {
        let ids = self.keys.ids(tuple);
        if let Entry::Occupied(entry) = self.open.entry(ids.id)
            && entry.get().cookie == cookie
        {
            entry.remove();
            out.push(LocalEvent::Closed { ids, at_ns });
        }
    }
}

impl Known {
    fn ids(&self, id: SessionId) -> Ids {
        Ids {
            id,
            other: self.other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use homing_common::net::{Address, Port, TCP};
    use proptest::prelude::*;

    use super::*;

    const KEYS: SessionKeys = SessionKeys {
        key: SessionKey([1, 2]),
        other: Some(SessionKey([3, 4])),
    };

    fn tuple(number: u16) -> Tuple {
        let any = Address::v4([0; 4]);
        Tuple::new(any, Port::new(number), any, Port::new(0), TCP)
    }

    fn ids(number: u16) -> Ids {
        KEYS.ids(&tuple(number))
    }

    /// As the kernel side recorded it before it had this key.
    fn session(cookie: u64) -> Session {
        Session {
            id: SessionId(0),
            cookie,
            opened_ns: 0,
            seen_ns: 0,
            generation: 0,
            flags: 0,
        }
    }

    fn event(kind: EventKind, number: u16, cookie: u64) -> Event {
        Event {
            tuple: tuple(number),
            session: session(cookie),
            at_ns: 1,
            kind: kind as u32,
            zero: 0,
        }
    }

    fn opened(number: u16) -> LocalEvent {
        LocalEvent::Opened {
            ids: ids(number),
            generation: 0,
            at_ns: 1,
        }
    }

    fn closed(number: u16) -> LocalEvent {
        LocalEvent::Closed {
            ids: ids(number),
            at_ns: 1,
        }
    }

    #[test]
    fn a_session_is_told_by_its_ids_under_both_keys() {
        let all: Vec<_> = ids(7).each().collect();
        let keys = [KEYS.key, KEYS.other.unwrap()];
        assert_eq!(all, keys.map(|key| tuple(7).id(&key)));
        let alone = SessionKeys {
            other: None,
            ..KEYS
        };
        assert_eq!(alone.ids(&tuple(7)).each().count(), 1);
    }

    #[test]
    fn an_event_is_told_once() {
        let mut tracker = Tracker::new(KEYS);
        let mut out = Vec::new();
        tracker.scan([(tuple(7), session(1))], 1, &mut out);
        tracker.event(&event(EventKind::Opened, 7, 1), &mut out);
        tracker.event(&event(EventKind::Closed, 7, 1), &mut out);
        tracker.event(&event(EventKind::Closed, 7, 1), &mut out);
        assert_eq!(out, [opened(7), closed(7)]);
    }

    #[test]
    fn the_late_end_of_a_former_use_ends_nothing() {
        let mut tracker = Tracker::new(KEYS);
        let mut out = Vec::new();
        tracker.event(&event(EventKind::Opened, 7, 1), &mut out);
        tracker.event(&event(EventKind::Opened, 7, 2), &mut out);
        tracker.event(&event(EventKind::Closed, 7, 1), &mut out);
        assert_eq!(out, [opened(7), closed(7), opened(7)]);
        assert_eq!(tracker.len(), 1);
    }

    #[test]
    fn a_session_that_comes_is_told_once_and_one_that_left_at_once() {
        let (here, at) = (tuple(7), 5);
        let moved = Session {
            generation: 3,
            ..session(1)
        };
        let came = LocalEvent::Opened {
            ids: ids(7),
            generation: 3,
            at_ns: at,
        };
        let mut tracker = Tracker::new(KEYS);
        let (mut news, mut out) = (News::default(), Vec::new());
        // A scan after it tells it no second time, and an event of its life here does not.
        assert_eq!(tracker.adopted(&here, &moved, at, &mut news), ids(7));
        tracker.scan([(here, moved)], at, &mut out);
        assert_eq!((news.events.as_slice(), out.len()), (&[came][..], 0));
        // Nor does it after a scan.
        let mut tracker = Tracker::new(KEYS);
        let mut news = News::default();
        tracker.scan([(here, moved)], at, &mut out);
        assert_eq!(out, [came]);
        tracker.adopted(&here, &moved, at, &mut news);
        assert!(news.is_empty());

        // It leaves: another cookie's end is none of its own.
        tracker.left(&here, 9, at, &mut news);
        assert!(news.is_empty() && tracker.len() == 1);
        tracker.left(&here, 1, at, &mut news);
        let gone = LocalEvent::Closed {
            ids: ids(7),
            at_ns: at,
        };
        assert_eq!(
            (news.events.as_slice(), news.at_once.as_slice()),
            (&[gone][..], &[ids(7)][..])
        );
        // A scan before that has told it: the close is not to be held back all the same.
        tracker.adopted(&here, &moved, at, &mut News::default());
        tracker.scan([], at, &mut Vec::new());
        let mut news = News::default();
        tracker.left(&here, 1, at, &mut news);
        assert_eq!(
            (news.events.len(), news.at_once.as_slice()),
            (0, &[ids(7)][..])
        );
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut unknown = event(EventKind::Opened, 7, 1);
        unknown.kind = 9;
        let mut out = Vec::new();
        assert!(!Tracker::new(KEYS).event(&unknown, &mut out));
        assert!(out.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u16),
        Close(u16),
        /// The agent reads so many events.
        Read(usize),
        /// The ring is full until the next scan: events are lost.
        Full,
        /// The agent notices, reads all there is, and scans.
        Scan,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u16..6).prop_map(Step::Open),
            4 => (0u16..6).prop_map(Step::Close),
            3 => (1usize..4).prop_map(Step::Read),
            1 => Just(Step::Full),
            2 => Just(Step::Scan),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn after_a_scan_the_view_is_the_truth(steps in steps()) {
            let mut truth = BTreeMap::<u16, u64>::new();
            let mut ring = VecDeque::new();
            let mut full = false;
            let mut cookie = 0;
            let mut tracker = Tracker::new(KEYS);
            let mut told = BTreeSet::<Ids>::new();

            for step in steps.into_iter().chain([Step::Scan]) {
                let mut out = Vec::new();
                match step {
                    Step::Open(id) if !truth.contains_key(&id) => {
                        cookie += 1;
                        truth.insert(id, cookie);
                        if !full {
                            ring.push_back(event(EventKind::Opened, id, cookie));
                        }
                    }
                    Step::Close(id) => {
                        if let Some(cookie) = truth.remove(&id) && !full {
                            ring.push_back(event(EventKind::Closed, id, cookie));
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
                        let now = truth.iter().map(|(&id, &cookie)| (tuple(id), session(cookie)));
                        tracker.scan(now, 1, &mut out);
                        full = false;
                    }
                }
                for change in out {
                    match change {
                        LocalEvent::Opened { ids, .. } => prop_assert!(told.insert(ids)),
                        LocalEvent::Closed { ids, .. } => prop_assert!(told.remove(&ids)),
                    }
                }
                prop_assert_eq!(told.len(), tracker.len());
            }
            prop_assert_eq!(told, truth.into_keys().map(ids).collect::<BTreeSet<_>>());
        }
    }
}
