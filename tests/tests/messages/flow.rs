//! Messages flow, whole, with and without encryption.

use std::{collections::BTreeSet, time::Duration};

use homing_agent::mux::{Count, sockets::Limits};
use homing_client::message::{Batch, Fate, NotSent, Outgoing, Received};

use super::{HOSTS, Host, body, echo, next, one_way, run};

#[test]
fn requests_get_their_replies_with_and_without_encryption() {
    for plain in [[false, false], [true, true], [true, false], [false, true]] {
        run(|folder| async move {
            let start = |id: u16| {
                let mode = plain[usize::from(id - 1)];
                Host::with(&folder, id, Limits::default(), |options| {
                    options.plain = mode
                })
            };
            let (one, two) = (start(1), start(2));
            let service = two.offer("echo").await;
            tokio::spawn(echo(service));
            let mut client = one.connect("echo", Some(2)).await;
            let sizes = [0, 1, 64, 1000, 65_536, 81_000, 82_000, 300_000, 1 << 20];
            for (number, size) in sizes.into_iter().enumerate() {
                let body = body(number, size);
                let request = Outgoing {
                    body: &body,
                    name: number as u64 + 1,
                    ..Outgoing::default()
                };
                client.sender.send(&request).await.unwrap();
                let (received, name, peer) = next(&mut client).await;
                assert!(received == body, "{size} bytes");
                assert_eq!((name, peer), (number as u64 + 1, client.sender.peer()));
            }
        });
    }
}

#[test]
fn one_over_the_limit_is_refused_and_the_message_socket_lives_on() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let mut service = two.offer("sink").await;
        let mut client = one.connect("sink", None).await;
        let max = client.sender.message_max();
        let refused = client.sender.send(&one_way(&vec![0; max + 1])).await;
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        client.sender.send(&one_way(&vec![1; max])).await.unwrap();
        assert_eq!(next(&mut service).await.0, vec![1; max]);
    });
}

#[test]
fn messages_of_many_message_sockets_over_many_carriers_arrive_once_each() {
    const CLIENTS: usize = 24;
    const EACH: usize = 60;
    for carriers in [Count::UpTo(4), Count::Fixed(1), Count::Fixed(8)] {
        run(|folder| async move {
            let start = |id| {
                Host::with(&folder, id, Limits::default(), |options| {
                    options.limits.carriers_per_peer = carriers;
                })
            };
            let [one, two, three] = HOSTS.map(start);
            let mut service = three.offer("sink").await;
            for client in 0..CLIENTS {
                let host = [&one, &two, &three][client % 3];
                let mut socket = host.connect("sink", Some(3)).await;
                tokio::spawn(async move {
                    for number in 0..EACH {
                        let number = client * EACH + number;
                        let len = [10, 3000, 100_000][number % 3] + number;
                        let body = body(number, len);
                        let message = Outgoing {
                            body: &body,
                            name: number as u64,
                            tell: true,
                            ..Outgoing::default()
                        };
                        socket.sender.send(&message).await.unwrap();
                    }
                    for _ in 0..EACH {
                        let told = socket.receiver.receive().await.unwrap();
                        let Some(Received::Fate { fate, .. }) = told else {
                            panic!("{told:?}");
                        };
                        assert_eq!(fate, Fate::Delivered);
                    }
                });
            }
            let mut names = BTreeSet::new();
            for _ in 0..CLIENTS * EACH {
                let (received, name, _) = next(&mut service).await;
                let len = [10, 3000, 100_000][name as usize % 3] + name as usize;
                assert!(received == body(name as usize, len), "message {name}");
                assert!(names.insert(name), "message {name} came twice");
            }
            three
                .until("all are counted", |counters| {
                    counters.messages_received == (CLIENTS * EACH) as u64
                })
                .await;
        });
    }
}

#[test]
fn a_batch_is_many_messages() {
    run(|folder| async move {
        let (one, two) = (Host::start(&folder, 1), Host::start(&folder, 2));
        let mut service = two.offer("sink").await;
        let mut client = one.connect("sink", None).await;
        let mut batch = Batch::default();
        let (mut number, mut sent) = (0, 0);
        while number < 5000 {
            let body = body(number, number % 90);
            if batch.push(&one_way(&body)) {
                number += 1;
            } else {
                let numbers = client.sender.send_batch(&mut batch).await.unwrap();
                assert_eq!(numbers, sent + 1..number as u64 + 1);
                sent = number as u64;
            }
        }
        client.sender.send_batch(&mut batch).await.unwrap();
        let mut left: Vec<_> = (0..5000).map(|number| body(number, number % 90)).collect();
        left.sort();
        let mut received = Vec::new();
        while received.len() < 5000 {
            received.push(next(&mut service).await.0);
        }
        received.sort();
        assert!(received == left);
    });
}

#[test]
fn a_slow_reader_blocks_its_senders_and_nobody_else() {
    run(|folder| async move {
        let limits = Limits {
            unread_per_socket: 100_000,
            held_per_socket: 100_000,
            ..Limits::default()
        };
        let start = |id| Host::with(&folder, id, limits, |_| {});
        let (one, two) = (start(1), start(2));
        let mut slow = two.offer("slow").await;
        tokio::spawn(echo(two.offer("fast").await));
        let mut sender = one.connect("slow", None).await;
        let mut sent = 0_u64;
        let blocked = loop {
            let message = body(sent as usize, 10_000);
            let message = one_way(&message);
            let send = sender.sender.send(&message);
            match tokio::time::timeout(Duration::from_millis(500), send).await {
                Ok(result) => sent = result.unwrap(),
                Err(_) => break sent,
            }
        };
        assert!((50..2000).contains(&blocked), "blocked after {blocked}");
        let mut fast = one.connect("fast", None).await;
        for number in 0..100 {
            let request = Outgoing {
                body: b"?",
                name: number,
                ..Outgoing::default()
            };
            fast.sender.send(&request).await.unwrap();
            assert_eq!(next(&mut fast).await.1, number);
        }
        for number in 0..blocked {
            let (received, ..) = next(&mut slow).await;
            assert_eq!(received.len(), 10_000, "message {number}");
        }
        assert_eq!(one.counters().messages_not_sent, 0);
    });
}

#[test]
fn a_datagram_that_is_no_record_is_refused() {
    run(|folder| async move {
        let one = Host::start(&folder, 1);
        let _service = one.offer("sink").await;
        let mut client = one.connect("sink", None).await;
        // A name that no message may have: the fate of what came tells that it was one.
        let message = Outgoing {
            body: b"",
            peer: 77,
            tell: true,
            ..Outgoing::default()
        };
        client.sender.send(&message).await.unwrap();
        let told = client.receiver.receive().await.unwrap();
        let fate = Fate::NotSent(NotSent::Gone);
        assert_eq!(
            told,
            Some(Received::Fate {
                number: 1,
                name: 0,
                fate
            })
        );
    });
}
