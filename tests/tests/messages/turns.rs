//! Message sockets take turns on carriers, and a carrier that has stopped holds up few.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use homing_agent::mux::{Count, sockets::Limits};
use homing_client::message::{Fate, MessageSocket, Outgoing, Received};
use tokio::time::{MissedTickBehavior, interval};

use super::{Host, PATIENCE, body, echo, eventually, next, one_way, run, wires};

fn request(name: u64) -> Outgoing<'static> {
    Outgoing {
        body: b"?",
        name,
        ..Outgoing::default()
    }
}

/// When a request was sent, and how long the answer took; none if its fate is unknown.
type Asked = (Instant, Option<Duration>);

/// Asks every 5 ms for a second, without waiting for the answers; returns when all
/// requests are answered or have a fate.
async fn keep_asking(client: MessageSocket) -> Vec<Asked> {
    const REQUESTS: u64 = 200;
    let MessageSocket {
        mut sender,
        mut receiver,
    } = client;
    let asking = tokio::spawn(async move {
        let mut sent = BTreeMap::new();
        let mut ticks = interval(Duration::from_millis(5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for name in 1..=REQUESTS {
            ticks.tick().await;
            sent.insert(name, Instant::now());
            sender.send(&request(name)).await.unwrap();
        }
        (sent, sender)
    });
    let mut ended = BTreeMap::new();
    while ended.len() < REQUESTS as usize {
        let received = tokio::time::timeout(PATIENCE, receiver.receive()).await;
        let (name, answered) = match received.expect("an answer or a fate").unwrap() {
            Some(Received::Message { name, .. }) => (name, Some(Instant::now())),
            Some(Received::Fate { name, fate, .. }) => {
                assert_eq!(fate, Fate::Unknown);
                (name, None)
            }
            None => panic!("the end"),
        };
        assert!(ended.insert(name, answered).is_none(), "request {name}");
    }
    let (sent, _sender) = asking.await.unwrap();
    let asked = sent.into_iter().zip(ended.into_values());
    let asked = asked.map(|((_, at), answered)| (at, answered.map(|answered| answered - at)));
    asked.collect()
}

#[test]
fn a_carrier_that_has_stopped_holds_up_what_it_has_and_nothing_else() {
    const CLIENTS: usize = 10;
    const LAG: Duration = Duration::from_millis(50);
    for carriers in [Count::UpTo(4), Count::Fixed(3)] {
        run(|folder| async move {
            let start = |id| {
                Host::with(&folder, id, Limits::default(), |options| {
                    options.plain = true;
                    options.limits.carriers_per_peer = carriers;
                    options.limits.lag_after = LAG;
                    options.limits.dead_after = Duration::from_secs(3);
                })
            };
            let (one, two) = (start(1), start(2));
            let [wire, _] = wires(&one, &two).await;
            tokio::spawn(echo(two.offer("echo").await));
            let mut asking = Vec::new();
            for _ in 0..CLIENTS {
                let mut client = one.connect("echo", Some(2)).await;
                let first = Outgoing {
                    tell: true,
                    ..request(0)
                };
                client.sender.send(&first).await.unwrap();
                // The answer and the fate: nothing is on its way any more.
                for _ in 0..2 {
                    client.receiver.receive().await.unwrap();
                }
                asking.push(client);
            }
            let stopped = Instant::now();
            wire.swallow(0);
            let asking: Vec<_> = asking.into_iter().map(keep_asking).collect();
            let asking: Vec<_> = asking.into_iter().map(tokio::spawn).collect();
            let (mut stuck, mut longest) = (0, Duration::ZERO);
            for asked in asking {
                for (at, took) in asked.await.unwrap() {
                    let Some(took) = took else {
                        // It was given to the carrier before that was seen to lag.
                        let after = at - stopped;
                        assert!(after < 10 * LAG, "a request is stuck after {after:?}");
                        stuck += 1;
                        continue;
                    };
                    longest = longest.max(took);
                }
            }
            println!("{carriers:?}: {stuck} stuck, the longest of the others took {longest:?}");
            assert!(stuck > 0, "the carrier has not stopped");
            assert!(longest < Duration::from_secs(1), "{longest:?}");
            let counters = one.carriers.status().counters;
            assert_eq!((counters.silent, counters.broken), (1, 0));
        });
    }
}

#[test]
fn a_greedy_sender_delays_others_by_its_turn_and_not_by_its_backlog() {
    const LEN: usize = 10_000;
    const BACKLOG: usize = 32 << 20;
    run(|folder| async move {
        let limits = Limits {
            held_per_socket: BACKLOG,
            ..Limits::default()
        };
        let start = |id| {
            Host::with(&folder, id, limits, |options| {
                options.limits.carriers_per_peer = Count::Fixed(1);
            })
        };
        let (one, two) = (start(1), start(2));
        tokio::spawn(echo(two.offer("echo").await));
        let mut sink = two.offer("sink").await;
        let arrived = Arc::new(AtomicUsize::new(0));
        let counted = arrived.clone();
        tokio::spawn(async move {
            loop {
                let len = next(&mut sink).await.0.len();
                counted.fetch_add(len, Ordering::Relaxed);
            }
        });
        let mut greedy = one.connect("sink", Some(2)).await;
        tokio::spawn(async move {
            let message = body(0, LEN);
            while greedy.sender.send(&one_way(&message)).await.is_ok() {}
        });
        let mut modest = one.connect("echo", Some(2)).await;
        let held = || {
            let counters = one.counters();
            counters.sent_bytes - counters.messages_delivered * LEN as u64
        };
        let mut most = 0;
        for name in 1..=30 {
            eventually("the backlog is long", || held() > BACKLOG as u64 / 2).await;
            let before = arrived.load(Ordering::Relaxed);
            modest.sender.send(&request(name)).await.unwrap();
            assert_eq!(next(&mut modest).await.1, name);
            most = most.max(arrived.load(Ordering::Relaxed) - before);
        }
        println!("at most {most} bytes went first");
        // What is on its way, what waits for its reader, and a turn or two.
        assert!(most < BACKLOG / 4, "{most} bytes went first");
    });
}
