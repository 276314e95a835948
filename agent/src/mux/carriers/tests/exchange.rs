//! Any history of an exchange over real carriers: what was pulled ends once, what was
//! offered and wanted comes or is withdrawn, and what was delivered has come.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use homing_common::host::HostId;
use proptest::prelude::*;
use tokio::{
    runtime::{self, Runtime},
    sync::Notify,
    task::yield_now,
    time::timeout,
};

use crate::{
    mux::{
        Answer, Carriers, Exchange, Fate, Hint, Limits, MUX, Options, Outcome, Peer, Pulled,
        SHORT_MAX, Size,
    },
    pop::{Stream, keys::Keys},
};

const SOURCES: usize = 4;

const STREAM: Stream = Stream {
    incarnation: 1,
    generation: 1,
};

/// What happens next, at one of two hosts.
#[derive(Clone, Debug)]
enum Event {
    /// A source has another message of this length.
    Put { source: usize, len: usize },
    /// A source takes back what it has.
    TakeBack { source: usize },
    /// There is room for what is offered, or none.
    Room(bool),
    /// All carriers of the other host break.
    Cut,
    /// The other host is no member for a moment.
    Leave,
    /// Others are let run.
    Pass(usize),
    /// All messages get their end.
    Settle,
}

fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
    let len = prop_oneof![
        6 => 8..300_usize,
        1 => Just(SHORT_MAX),
        3 => SHORT_MAX + 1..SHORT_MAX + 20_000,
    ];
    let event = prop_oneof![
        12 => (0..SOURCES, len).prop_map(|(source, len)| Event::Put { source, len }),
        2 => (0..SOURCES).prop_map(|source| Event::TakeBack { source }),
        3 => any::<bool>().prop_map(Event::Room),
        2 => Just(Event::Cut),
        1 => Just(Event::Leave),
        8 => (1..200_usize).prop_map(Event::Pass),
        2 => Just(Event::Settle),
    ];
    prop::collection::vec((0..2_usize, event), 1..80)
}

/// Where a message is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    /// Its source has it.
    Waits,
    /// A carrier has it.
    Pulled,
    /// Its source has taken it back, or given it up.
    Back,
    Ended(Fate),
}

struct Message {
    len: usize,
    state: State,
    /// How often it has come.
    received: usize,
}

/// What a source has of one size.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<u64>,
    /// Carriers know that there is something.
    named: bool,
}

#[derive(Default)]
struct Side {
    sources: [[Queue; 2]; SOURCES],
    room: bool,
    /// What was offered and wanted, and is open.
    expected: BTreeMap<(Hint, usize), usize>,
}

/// Both sides, and all messages by number.
#[derive(Default)]
struct World {
    sides: [Side; 2],
    messages: Vec<Message>,
    /// What must not be: a panic in a carrier's task would be seen by nobody.
    wrong: Vec<String>,
}

impl World {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }
}

/// One host's part.
#[derive(Clone)]
struct End {
    which: usize,
    world: Arc<Mutex<World>>,
    ended: Arc<Notify>,
}

impl End {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The sources that have something which carriers do not know of. They do now.
    fn unnamed(&self) -> Vec<(u64, Size)> {
        let mut world = self.world();
        let mut unnamed = Vec::new();
        for (source, queues) in world.sides[self.which].sources.iter_mut().enumerate() {
            for (queue, size) in queues.iter_mut().zip([Size::Short, Size::Long]) {
                if !queue.waiting.is_empty() && !std::mem::replace(&mut queue.named, true) {
                    unnamed.push((source as u64, size));
                }
            }
        }
        unnamed
    }

    /// Gives back what sources have.
    fn give_back(&self, of: impl Fn(usize) -> bool, unname: bool) {
        let world = &mut *self.world();
        let sources = world.sides[self.which].sources.iter_mut().enumerate();
        for (_, queues) in sources.filter(|(source, _)| of(*source)) {
            for queue in queues {
                queue.named &= !unname;
                for number in queue.waiting.drain(..) {
                    world.messages[number as usize].state = State::Back;
                }
            }
        }
    }
}

/// The number of a message, and what it is to be.
fn number_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().unwrap())
}

fn body_of(number: u64, len: usize) -> Bytes {
    let mut body = vec![number as u8; len];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body.into()
}

fn hint_of(number: u64) -> Hint {
    let mut hint = Hint::default();
    hint[..8].copy_from_slice(&number.to_be_bytes());
    hint
}

/// Something is said of every third message.
fn note_of(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => number.to_be_bytes().to_vec(),
        _ => Vec::new(),
    }
}

impl Exchange for End {
    fn pull(&self, _: HostId, source: u64, size: Size) -> Option<Pulled> {
        let mut world = self.world();
        let queue = &mut world.sides[self.which].sources[source as usize][size as usize];
        let number = queue.waiting.pop_front();
        queue.named = number.is_some() && !queue.waiting.is_empty();
        let (number, more) = (number?, queue.named);
        let message = &mut world.messages[number as usize];
        message.state = State::Pulled;
        Some(Pulled {
            body: body_of(number, message.len),
            hint: hint_of(number),
            more,
        })
    }

    fn ended(&self, _: HostId, source: u64, body: Bytes, outcome: Outcome) {
        let world = &mut *self.world();
        let number = number_of(&body);
        let message = &mut world.messages[number as usize];
        let (state, received) = (message.state.clone(), message.received);
        let is_long = message.len > SHORT_MAX;
        message.state = match &outcome {
            Outcome::Declined => State::Waits,
            Outcome::Fate(fate, _) => State::Ended(fate.clone()),
        };
        world.check(state == State::Pulled, || {
            format!("message {number} ends with {outcome:?}, and was {state:?}")
        });
        match outcome {
            Outcome::Declined => {
                world.check(is_long, || format!("{number} was declined, a short one"));
                let queues = &mut world.sides[self.which].sources[source as usize];
                queues[Size::Long as usize].waiting.push_front(number);
            }
            Outcome::Fate(Fate::Delivered(stream), note) => {
                world.check(received == 1 && stream == STREAM, || {
                    format!("{number} was delivered to {stream:?}, and came {received} times")
                });
                let note = note.unwrap_or_default();
                world.check(note == note_of(number), || {
                    format!("{number} was delivered with a wrong note: {note:?}")
                });
            }
            Outcome::Fate(..) => {}
        }
        self.ended.notify_one();
    }

    fn offered(&self, _: HostId, hint: &Hint, len: usize) -> bool {
        let side = &mut self.world().sides[self.which];
        if side.room {
            *side.expected.entry((*hint, len)).or_default() += 1;
        }
        side.room
    }

    fn withdrawn(&self, hint: &Hint, len: usize) {
        let world = &mut *self.world();
        let expected = world.sides[self.which].expected.entry((*hint, len));
        let expected = expected.or_default();
        let was = *expected;
        *expected = was.saturating_sub(1);
        world.check(was > 0, || {
            format!("{hint:?} is withdrawn, and was not expected")
        });
    }

    fn receive(&self, host: HostId, stream: Stream, body: Bytes) -> Answer {
        let world = &mut *self.world();
        let number = number_of(&body);
        let message = &mut world.messages[number as usize];
        message.received += 1;
        let is_right = body == body_of(number, message.len);
        world.check(is_right, || format!("message {number} came changed"));
        let from = (HostId(2 - self.which as u16), STREAM);
        world.check((host, stream) == from, || {
            format!("message {number} came from {host:?}, {stream:?}")
        });
        if body.len() > SHORT_MAX {
            let expected = world.sides[self.which]
                .expected
                .entry((hint_of(number), body.len()));
            let expected = expected.or_default();
            let was = *expected;
            *expected = was.saturating_sub(1);
            world.check(was > 0, || {
                format!("message {number} came, and was not expected")
            });
        }
        Answer {
            note: note_of(number),
            // Acknowledgements that wait, too.
            is_awaited: number.is_multiple_of(2),
        }
    }

    fn left(&self, _: HostId) {
        self.give_back(|_| true, true);
    }
}

/// An address that no other test uses: each process has some of 127.0.0.0/8.
fn address(host: u16) -> SocketAddr {
    let pid = std::process::id();
    let ip = Ipv4Addr::new(127, 213, (pid >> 4) as u8, (pid << 4) as u8 | host as u8);
    SocketAddr::from((ip, 17_947))
}

/// A host.
struct Host {
    end: End,
    carriers: Carriers,
}

impl Host {
    fn start(which: usize, world: &Arc<Mutex<World>>, ended: &Arc<Notify>, plain: bool) -> Self {
        let end = End {
            which,
            world: world.clone(),
            ended: ended.clone(),
        };
        let id = which as u16 + 1;
        let options = Options {
            host: HostId(id),
            stream: STREAM,
            address: address(id),
            keys: Keys::derive(&[7; 32]),
            limits: Limits {
                back_off: [Duration::from_millis(1), Duration::from_millis(5)],
                ..Limits::default()
            },
            plain,
        };
        let exchange = Arc::new(end.clone());
        let (carriers, _) = Carriers::open(options, Some(exchange)).unwrap();
        let host = Self { end, carriers };
        host.meet(Some(host.other()));
        host
    }

    fn other(&self) -> u16 {
        2 - self.end.which as u16
    }

    /// The other host is at that one's address, or is no member.
    fn meet(&self, at: Option<u16>) {
        let peer = |at| {
            let (address, stream) = (address(at), STREAM);
            (HostId(self.other()), Peer { address, stream })
        };
        self.carriers.set_peers(&at.map(peer).into_iter().collect());
    }

    /// Tells carriers what there is that they do not know of.
    fn name(&self) {
        for (source, size) in self.end.unnamed() {
            let other = HostId(self.other());
            self.carriers.ready(other, MUX, source, size);
        }
    }

    async fn happen(&self, event: Event) {
        match event {
            Event::Put { source, len } => {
                let world = &mut *self.end.world();
                let number = world.messages.len() as u64;
                world.messages.push(Message {
                    len,
                    state: State::Waits,
                    received: 0,
                });
                let size = usize::from(len > SHORT_MAX);
                let queue = &mut world.sides[self.end.which].sources[source][size];
                queue.waiting.push_back(number);
            }
            Event::TakeBack { source } => self.end.give_back(|of| of == source, false),
            Event::Room(room) => self.end.world().sides[self.end.which].room = room,
            Event::Cut => {
                // A host that has moved loses its carriers.
                self.meet(Some(3));
                self.meet(Some(self.other()));
            }
            Event::Leave => {
                self.meet(None);
                self.meet(Some(self.other()));
            }
            Event::Pass(times) => {
                for _ in 0..times {
                    yield_now().await;
                }
            }
            // That takes both.
            Event::Settle => {}
        }
    }
}

/// Waits until all messages have their end: there is room for all.
async fn settle(hosts: &[Host; 2]) {
    let end = &hosts[0].end;
    end.world()
        .sides
        .iter_mut()
        .for_each(|side| side.room = true);
    let all = async {
        loop {
            hosts.iter().for_each(Host::name);
            let is_open = |message: &Message| matches!(message.state, State::Waits | State::Pulled);
            if !end.world().messages.iter().any(is_open) {
                break;
            }
            end.ended.notified().await;
        }
    };
    if timeout(Duration::from_secs(8), all).await.is_err() {
        let status = hosts.each_ref().map(|host| host.carriers.status());
        end.world()
            .wrong
            .push(format!("some messages have no end: {status:?}"));
    }
}

/// Lets a history happen. If they do not end early, all messages get their end first.
async fn history(events: Vec<(usize, Event)>, plain: [bool; 2], early: bool) {
    let world = Arc::<Mutex<World>>::default();
    let ended = Arc::<Notify>::default();
    let hosts = [0, 1].map(|which| Host::start(which, &world, &ended, plain[which]));
    for (which, event) in events {
        match event {
            Event::Settle => settle(&hosts).await,
            event => hosts[which].happen(event).await,
        }
        hosts[which].name();
    }
    if !early {
        settle(&hosts).await;
    }
    // However it went: the next history has the same addresses.
    for host in &hosts {
        host.carriers.stop().await;
    }
    let world = world.lock().unwrap();
    assert!(world.wrong.is_empty(), "{:?}", world.wrong);
    for (number, message) in world.messages.iter().enumerate() {
        let Message {
            state, received, ..
        } = message;
        let may_be = match state {
            State::Pulled => panic!("message {number} was pulled and has no end"),
            State::Ended(Fate::Delivered(_)) => 1..=1,
            State::Ended(Fate::Unknown(_)) => 0..=1,
            State::Ended(Fate::NotSent(_)) | State::Waits | State::Back => 0..=0,
        };
        assert!(
            may_be.contains(received),
            "message {number}: {state:?}, came {received} times"
        );
    }
    for side in &world.sides {
        let open = side.expected.values().any(|count| *count > 0);
        assert!(!open, "expected, and neither came nor was withdrawn");
    }
}

/// Runs histories one after the other: they share their addresses.
fn run(test: impl FnOnce(&Runtime)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    test(&runtime);
}

#[test]
fn a_source_that_has_more_leaves_its_line_able_to_open_carriers() {
    let put = Event::Put { source: 0, len: 50 };
    // The first carrier is given the first, and finds the second there.
    let events = [put.clone(), put.clone(), Event::Settle, Event::Cut, put];
    let events = events.map(|event| (0, event));
    run(|runtime| runtime.block_on(history(events.into(), [false; 2], false)));
}

fn cases() -> u32 {
    let more = std::env::var("PROPTEST_CASES").ok();
    more.and_then(|more| more.parse().ok()).unwrap_or(48)
}

#[test]
fn whatever_happens_what_is_pulled_ends_once_and_what_is_wanted_comes_or_is_withdrawn() {
    let histories = (events(), any::<[bool; 2]>(), any::<bool>());
    let config = ProptestConfig {
        // One that fails may do so by waiting in vain.
        max_shrink_time: 60_000,
        ..ProptestConfig::with_cases(cases())
    };
    run(|runtime| {
        proptest!(config, |((events, plain, early) in histories)| {
            runtime.block_on(history(events, plain, early));
        });
    });
}
