//! Carriers are cut at every byte, there and back: the fates that applications are told
//! are true.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use homing_agent::mux::sockets::Limits;
use homing_client::message::{Fate, MessageSocket, NotSent, Outgoing, Received};
use homing_tests::{
    random::{Random, cases},
    wire::{Fault, Wire},
};

use super::{Host, PATIENCE, body, run, wires};

/// A message, and what is cut while it is on its way.
#[derive(Clone, Copy, Debug)]
struct Case {
    plain: bool,
    /// It may be sent again.
    repeatable: bool,
    len: usize,
    /// Every how manieth byte is one to cut at, at random; of a long message far fewer.
    every: u64,
}

/// How often a fate was told, and how often the message had arrived then.
#[derive(Default, Debug)]
struct Told {
    delivered: u32,
    not_sent: u32,
    unknown: u32,
    unknown_and_arrived: u32,
}

/// Two hosts with a service and who is connected to it.
struct Ends {
    one: Host,
    two: Host,
    wire: Wire,
    service: MessageSocket,
    client: MessageSocket,
    /// Messages sent so far.
    sent: usize,
}

impl Ends {
    async fn start(folder: PathBuf, case: Case) -> Self {
        let start = |id| {
            Host::with(&folder, id, Limits::default(), |options| {
                options.plain = case.plain;
                // One carrier for each message: nothing else is to be cut.
                options.limits.idle_after = Duration::ZERO;
                if !case.repeatable {
                    // That none could be opened is told at once.
                    options.limits.give_up_after = Duration::ZERO;
                }
            })
        };
        let (one, two) = (start(1), start(2));
        let [wire, _] = wires(&one, &two).await;
        let service = two.offer("sink").await;
        let client = one.connect("sink", Some(2)).await;
        Self {
            one,
            two,
            wire,
            service,
            client,
            sent: 0,
        }
    }

    /// Waits until there are no carriers: nothing is on its way.
    async fn until_alone(&self) {
        self.one.until_alone().await;
        self.two.until_alone().await;
    }

    /// Sends the next message and waits for its fate, while its carrier suffers that.
    async fn send(&mut self, case: Case, fault: Fault) -> Fate {
        self.until_alone().await;
        self.wire.suffer(&[fault]);
        self.sent += 1;
        let message = Outgoing {
            body: &body(self.sent, case.len),
            name: self.sent as u64,
            repeatable: case.repeatable,
            tell: true,
            ..Outgoing::default()
        };
        self.client.sender.send(&message).await.unwrap();
        let told = tokio::time::timeout(PATIENCE, self.client.receiver.receive()).await;
        let told = told.expect("a fate is told").unwrap();
        let Some(Received::Fate { number, fate, .. }) = told else {
            panic!("{told:?}");
        };
        assert_eq!(number, self.sent as u64);
        self.until_alone().await;
        self.wire.suffer(&[]);
        fate
    }

    /// How often each message has arrived since the last time this was asked, until the
    /// last one that was sent.
    async fn arrived(&mut self, len: usize) -> BTreeMap<usize, usize> {
        let mut arrived = BTreeMap::new();
        while !arrived.contains_key(&self.sent) {
            let (received, name, _) = super::next(&mut self.service).await;
            assert!(received == body(name as usize, len), "message {name}");
            *arrived.entry(name as usize).or_default() += 1;
        }
        arrived
    }
}

/// Cuts a message's carrier at every byte of what the dialer says and of what it is
/// answered, each time for a message of its own.
async fn cut_everywhere(folder: PathBuf, case: Case) {
    let mut ends = Ends::start(folder, case).await;
    ends.until_alone().await;
    let before = ends.wire.said().len();
    assert_eq!(ends.send(case, Fault::None).await, Fate::Delivered);
    let whole = ends.wire.said()[before].len();
    let answer = ends.wire.answered()[before].len();
    assert_eq!(ends.arrived(case.len).await, [(1, 1)].into());
    let there = (0..=whole).map(|at| (at, whole, Fault::CutAfter(at)));
    let back = (0..=answer).map(|at| (at, answer, Fault::CutAnswerAfter(at)));
    let seed = Random::fresh_seed();
    let mut random = Random::new(seed);
    let mut told = Told::default();
    for (at, len, fault) in there.chain(back) {
        // The first and the last bytes always, few of those in the middle of a long message.
        let within = (1000..len.saturating_sub(20)).contains(&at);
        let every = if within { case.every * 100 } else { case.every };
        if at > 0 && at + 2 < len && random.below(every) != 0 {
            continue;
        }
        let said = format!("{fault:?}, {case:?}, seed {seed}");
        let fate = ends.send(case, fault).await;
        let cut = ends.sent;
        // The next one takes another carrier, and is not harmed.
        let after = ends.send(case, Fault::None).await;
        assert_eq!(after, Fate::Delivered, "{said}");
        let mut arrived = ends.arrived(case.len).await;
        assert_eq!(arrived.remove(&ends.sent), Some(1), "{said}");
        let times = arrived.remove(&cut).unwrap_or(0);
        assert!(arrived.is_empty(), "{said}: {arrived:?}");
        match fate {
            Fate::Delivered => {
                told.delivered += 1;
                assert_eq!(times, 1, "{said}: delivered");
            }
            Fate::NotSent(why) => {
                told.not_sent += 1;
                assert_eq!(why, NotSent::Unreachable, "{said}");
                assert_eq!(times, 0, "{said}: not sent");
            }
            Fate::Unknown => {
                told.unknown += 1;
                told.unknown_and_arrived += times as u32;
                assert!(times <= 1, "{said}: it came {times} times");
            }
        }
        if case.repeatable {
            assert_eq!((fate, times), (Fate::Delivered, 1), "{said}");
        }
    }
    println!("{case:?}: {told:?}");
    let [one, two] = [&ends.one, &ends.two].map(Host::counters);
    if case.repeatable {
        assert!(one.messages_repeated > 0, "none was sent again");
        assert!(two.messages_again > 0, "none came again");
    } else {
        assert!(told.delivered > 0 && told.not_sent > 0, "{told:?}");
        // Some of which the acknowledgement was cut, and some that were cut themselves.
        let some = 0..told.unknown;
        assert!(told.unknown_and_arrived > 0 && some.contains(&told.unknown_and_arrived));
        assert_eq!((one.messages_repeated, two.messages_again), (0, 0));
    }
}

/// The cases of plain runs; `cargo xtask test --full` cuts at more places.
fn case(plain: bool, repeatable: bool, len: usize, every: u64) -> Case {
    let every = (every / cases(1)).max(1);
    Case {
        plain,
        repeatable,
        len,
        every,
    }
}

#[test]
fn fates_are_true_wherever_a_carrier_in_clear_text_is_cut() {
    run(|folder| cut_everywhere(folder, case(true, false, 20, 1)));
}

#[test]
fn a_repeatable_message_arrives_once_wherever_its_carrier_is_cut() {
    run(|folder| cut_everywhere(folder, case(true, true, 20, 1)));
}

#[test]
fn fates_are_true_wherever_a_protected_carrier_is_cut() {
    for repeatable in [false, true] {
        run(|folder| cut_everywhere(folder, case(false, repeatable, 20, 8)));
    }
}

#[test]
fn fates_are_true_wherever_a_carrier_is_cut_with_a_long_message_on_it() {
    for (plain, repeatable) in [(true, false), (true, true), (false, false)] {
        run(|folder| cut_everywhere(folder, case(plain, repeatable, 90_000, 16)));
    }
}
