//! Snapshots of this host's sessions for others: who is being given one, and who waits
//! for that. Each gets one part after the other; the next one goes when the last has
//! arrived, so little is on its way however many ask.

use std::{collections::VecDeque, sync::Arc};

use homing_common::host::HostId;

use super::{
    bulk::Bulks,
    log::{Log, Snapshot},
    replica::PULL_PATIENCE,
    wire::bulk::Part,
};
use crate::pop::Stream;

/// Hosts that are given a snapshot at once: as many parts are on their way, and as many
/// snapshots are kept at most, beside the last one made.
pub(super) const SERVED_MAX: usize = 8;

/// A host's request for a snapshot.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub host: HostId,
    /// In which life it asked.
    pub stream: Stream,
    /// The number of the request.
    pub number: u64,
    /// The snapshot must hold the effect of every record below this.
    pub need: u64,
}

/// Those who are being given a snapshot, and the queue: each host at most once.
#[derive(Default)]
pub(super) struct Servings {
    active: Vec<Serving>,
    queue: VecDeque<Asked>,
    /// Before this time no snapshot is made for the first in the queue.
    not_before: u64,
}

/// A host that is being given a snapshot.
struct Serving {
    asked: Asked,
    snapshot: Arc<Snapshot>,
    /// The part that is on its way, the number of that message, and until when its fate
    /// is waited for.
    index: u32,
    bulk: u64,
    until: u64,
}

impl Serving {
    /// Sends the part whose turn it is.
    fn send(&mut self, now: u64, bulks: &mut Bulks) {
        let part = Part {
            number: self.asked.number,
            snapshot: self.snapshot.at,
            index: self.index,
            total: self.snapshot.parts(),
            records: self.snapshot.part(self.index),
        };
        self.bulk = bulks.push(self.asked.host, part.encode());
        self.until = now + PULL_PATIENCE;
    }
}

/// What follows from the fate of a message.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// It was no part that anything hangs on.
    Nothing,
    /// The next part is on its way.
    Next,
    /// The whole snapshot has arrived.
    Done,
    /// It did not arrive, and no more will follow: who asked is to ask again.
    Lost,
}

impl Servings {
    /// A host asks. What it asked for before it wants no more; in the queue it keeps its
    /// place. Says whether others come first.
    pub fn ask(&mut self, asked: Asked) -> bool {
        self.active.retain(|one| one.asked.host != asked.host);
        let mut queue = self.queue.iter_mut();
        match queue.find(|waiting| waiting.host == asked.host) {
            Some(waiting) => *waiting = asked,
            None => self.queue.push_back(asked),
        }
        self.active.len() >= SERVED_MAX
    }

    /// Begins with the first in the queue, if there is room and a snapshot for it. Says
    /// whether it did.
    pub fn begin(&mut self, now: u64, log: &mut Log, bulks: &mut Bulks) -> bool {
        if self.active.len() >= SERVED_MAX {
            return false;
        }
        let Some(&asked) = self.queue.front() else {
            return false;
        };
        match log.snapshot(now, asked.need) {
            Ok(snapshot) => {
                self.queue.pop_front();
                let mut serving = Serving {
                    asked,
                    snapshot,
                    index: 0,
                    bulk: 0,
                    until: 0,
                };
                serving.send(now, bulks);
                self.active.push(serving);
                true
            }
            Err(at) => {
                self.not_before = at;
                false
            }
        }
    }

    /// The fate of a message: the life of its receiver that has it, if one has.
    pub fn told(&mut self, now: u64, number: u64, has: Option<Stream>, bulks: &mut Bulks) -> Told {
        let mut active = self.active.iter_mut().enumerate();
        let Some((place, one)) = active.find(|(_, one)| one.bulk == number) else {
            return Told::Nothing;
        };
        let arrived = has == Some(one.asked.stream);
        if arrived && one.index + 1 < one.snapshot.parts() {
            one.index += 1;
            one.send(now, bulks);
            return Told::Next;
        }
        self.active.swap_remove(place);
        match arrived {
            true => Told::Done,
            false => Told::Lost,
        }
    }

    /// Drops those of whose part nobody has said for long that it arrived. Says how many.
    pub fn give_up(&mut self, now: u64) -> usize {
        let before = self.active.len();
        self.active.retain(|one| now < one.until);
        before - self.active.len()
    }

    /// When there is something to begin or to give up.
    pub fn next_time(&self) -> u64 {
        let may_begin = !self.queue.is_empty() && self.active.len() < SERVED_MAX;
        let begin = may_begin.then_some(self.not_before);
        let give_up = self.active.iter().map(|one| one.until);
        give_up.chain(begin).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;

    use super::{
        super::wire::bulk::{self, Message, PART_RECORDS_MAX},
        *,
    };
    use crate::pop::MS;

    const LIFE: Stream = Stream {
        incarnation: 1,
        generation: 1,
    };

    struct Case {
        servings: Servings,
        log: Log,
        bulks: Bulks,
    }

    impl Case {
        /// A host with so many sessions.
        fn new(sessions: u64) -> Self {
            Self {
                servings: Servings::default(),
                log: Log::new(0, (0..sessions).map(|n| (SessionId(n), 0))),
                bulks: Bulks::new(100),
            }
        }

        fn ask(&mut self, host: u16, number: u64, need: u64) -> bool {
            self.servings.ask(Asked {
                host: HostId(host),
                stream: LIFE,
                number,
                need,
            })
        }

        /// Begins with all for whom there is room; gives each part sent: to whom, for
        /// which request, which part, and the number of the message.
        fn begin(&mut self, now: u64) -> Vec<(u16, u64, u32, u64)> {
            while self.servings.begin(now, &mut self.log, &mut self.bulks) {}
            self.sent()
        }

        fn sent(&mut self) -> Vec<(u16, u64, u32, u64)> {
            let sent = std::iter::from_fn(|| self.bulks.pop());
            let parts = sent.map(|sent| match bulk::decode(&sent.body) {
                Some(Message::Part(part)) => (sent.to.0, part.number, part.index, sent.number),
                other => panic!("{other:?}"),
            });
            parts.collect()
        }

        fn told(&mut self, now: u64, number: u64, has: Option<Stream>) -> Told {
            self.servings.told(now, number, has, &mut self.bulks)
        }
    }

    #[test]
    fn a_part_follows_when_the_one_before_has_arrived() {
        let mut case = Case::new(2 * PART_RECORDS_MAX as u64);
        assert_eq!(case.servings.next_time(), u64::MAX);
        case.ask(2, 7, 1);
        assert_eq!(case.servings.next_time(), 0);
        assert_eq!(case.begin(0), [(2, 7, 0, 100)]);
        assert_eq!(case.told(0, 99, Some(LIFE)), Told::Nothing);
        assert_eq!(case.told(0, 100, Some(LIFE)), Told::Next);
        assert_eq!(case.sent(), [(2, 7, 1, 101)]);
        assert_eq!(case.told(0, 100, Some(LIFE)), Told::Nothing);
        assert_eq!(case.told(0, 101, Some(LIFE)), Told::Done);
        assert_eq!(case.servings.next_time(), u64::MAX);
    }

    #[test]
    fn who_did_not_get_a_part_gets_no_more_of_them_until_it_asks_again() {
        let mut case = Case::new(2 * PART_RECORDS_MAX as u64);
        let later = Stream {
            generation: 2,
            ..LIFE
        };
        for (n, has) in [None, Some(later)].into_iter().enumerate() {
            case.ask(2, n as u64, 1);
            assert_eq!(case.begin(0).len(), 1);
            assert_eq!(case.told(0, 100 + n as u64, has), Told::Lost);
            assert_eq!(case.sent(), []);
        }
        case.ask(2, 3, 1);
        assert_eq!(case.begin(0), [(2, 3, 0, 102)]);
        assert_eq!(case.servings.give_up(PULL_PATIENCE - 1), 0);
        assert_eq!(case.servings.give_up(PULL_PATIENCE), 1);
        assert_eq!(case.told(PULL_PATIENCE, 102, Some(LIFE)), Told::Nothing);
    }

    #[test]
    fn so_many_at_once_and_each_once_the_rest_in_order() {
        let mut case = Case::new(1);
        let limit = SERVED_MAX as u16;
        for host in 0..limit {
            assert!(!case.ask(host, 1, 1));
            case.begin(0);
        }
        for host in limit..2 * limit {
            assert!(case.ask(host, 1, 1));
        }
        assert_eq!(case.begin(0), []);
        // Who asks again keeps its place, with the last thing it asked for; who is being
        // served and does so stands at the end.
        assert!(case.ask(limit, 2, 1));
        assert!(!case.ask(0, 2, 1));
        assert_eq!(case.begin(0), [(limit, 2, 0, 108)]);
        let mut order = Vec::new();
        for number in 101..200 {
            case.told(0, number, Some(LIFE));
            order.extend(case.begin(0).into_iter().map(|(host, ..)| host));
        }
        assert!((limit + 1..2 * limit).chain([0]).eq(order));
        assert!(case.servings.active.is_empty());
    }

    #[test]
    fn all_that_waited_share_the_snapshot_that_is_made_next() {
        let mut case = Case::new(1);
        case.ask(2, 1, 1);
        case.begin(0);
        for host in 3..6 {
            case.log.open(SessionId(host.into()), 0, 0);
            let need = case.log.needed(0);
            case.ask(host, 1, need);
            assert_eq!(case.begin(MS), []);
        }
        let at = case.servings.next_time();
        assert_eq!(at, 10 * MS);
        assert_eq!(case.begin(at).len(), 3);
        let made = case.servings.active.iter().map(|one| one.snapshot.at);
        assert_eq!(made.collect::<Vec<_>>(), [1, 4, 4, 4]);
    }
}
