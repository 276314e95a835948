//! Who does not hold the POP's key reads, makes up, changes and repeats nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use homing_agent::{
    mux::{Fate, GOSSIP, MIGRATION, NotSent, preamble::VERSION},
    pop::keys::{KeyFile, Keys, Use, key_id},
};
use homing_common::host::HostId;
use homing_tests::wire::Fault;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{
    Host, address, collect, eventually, keys, life, members, message, run, until_alone, wire_to_two,
};

/// A connection to a host, from any address.
async fn connect(from: impl Into<IpAddr>, to: u16) -> TcpStream {
    try_connect(from, to).await.unwrap()
}

/// The same; one that is closed at once may be an error already.
async fn try_connect(from: impl Into<IpAddr>, to: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
    socket.connect(address(to)).await
}

/// Reads until the other side ends the connection.
async fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // However it ends.
    let _ = tcp.read_to_end(&mut bytes).await;
    bytes
}

#[test]
fn nothing_of_a_message_can_be_read_on_the_wire() {
    run(|| async {
        let [one, mut two] = [1, 2].map(Host::start);
        let wire = wire_to_two(&one).await;
        let secret = b"nobody but host 2 may read this".repeat(100);
        let fate = one.send(&two, GOSSIP, secret.clone().into()).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        assert_eq!(two.next(GOSSIP).await.body, secret);
        let said = wire.said().concat();
        assert!(said.len() > secret.len());
        for bytes in [said, wire.answered().concat()] {
            let mut windows = bytes.windows(6);
            assert!(!windows.any(|window| secret.windows(6).any(|word| word == window)));
        }
    });
}

#[test]
fn a_carrier_that_was_recorded_says_nothing_the_second_time() {
    run(|| async {
        let [one, mut two] = [1, 2].map(Host::start);
        let wire = wire_to_two(&one).await;
        let fate = one.send(&two, GOSSIP, message(0, 1000)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        two.next(GOSSIP).await;
        let recorded = wire.said()[0].clone();
        for times in 1..=3 {
            let mut tcp = connect([127, 0, 0, 1], 2).await;
            tcp.write_all(&recorded).await.unwrap();
            two.until("it is refused", |counters| {
                counters.handshake_failures == times
            })
            .await;
        }
        // Host 2's part of it, in answer to host 1.
        let answered = wire.answered()[0].clone();
        let impostor = tokio::net::TcpListener::bind(address(3)).await.unwrap();
        let told = one.queue(3, GOSSIP, message(1, 1000)).await;
        let (mut tcp, _) = impostor.accept().await.unwrap();
        tcp.write_all(&answered).await.unwrap();
        one.until("it is not believed", |counters| counters.open_failures > 0)
            .await;
        drop(told);
        let counters = two.counters();
        assert_eq!((counters.messages_received, counters.accepted), (1, 1));
        assert_eq!(one.counters().messages_delivered, 1);
    });
}

#[test]
fn a_byte_that_is_changed_on_the_way_ends_the_carrier_and_reaches_nobody() {
    run(|| async {
        let [one, mut two] = [1, 2].map(|host| {
            Host::with(host, |options| {
                options.limits.idle_after = Duration::ZERO;
                // Where a length was changed, one waits for what does not come.
                options.limits.handshake_timeout = Duration::from_millis(300);
                options.limits.dead_after = Duration::from_millis(500);
            })
        });
        let wire = wire_to_two(&one).await;
        let fate = one.send(&two, GOSSIP, message(0, 100)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        until_alone([&one, &two]).await;
        let whole = wire.said()[0].len();
        let mut bodies = vec![message(0, 100)];
        for at in 0..whole {
            wire.suffer(&[Fault::FlipAt(at)]);
            let body = message(at + 1, 100);
            let fate = one.send(&two, GOSSIP, body.clone()).await;
            wire.suffer(&[]);
            until_alone([&one, &two]).await;
            assert!(!matches!(fate, Fate::NotSent(_)), "byte {at}: {fate:?}");
            bodies.push(body);
        }
        let received = two.counters().messages_received as usize;
        for received in collect(&mut two, GOSSIP, received).await {
            assert!(bodies.contains(&received));
        }
        assert!(one.counters().messages_unknown > 100);
        assert_eq!(two.counters().garbage, 0);
    });
}

#[test]
fn what_is_no_carrier_is_closed_and_counted() {
    run(|| async {
        let [one, two] = [1, 2].map(|host| {
            Host::with(host, |options| {
                options.limits.handshake_timeout = Duration::from_millis(300);
                options.limits.handshakes_per_source = 100;
            })
        });
        let from = [127, 0, 0, 1];
        // Plain text.
        let mut tcp = connect(from, 2).await;
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(rest(&mut tcp).await.is_empty());
        two.until("plain text", |counters| counters.handshake_garbage == 1)
            .await;
        // A preamble, and then no TLS.
        let preamble = [
            b'H',
            b'c',
            VERSION,
            1,
            keys().id(),
            GOSSIP.number,
            0,
            1,
            0,
            2,
        ];
        let mut tcp = connect(from, 2).await;
        tcp.write_all(&preamble).await.unwrap();
        tcp.write_all(&[0x5a; 30_000]).await.unwrap();
        assert_eq!(rest(&mut tcp).await[..4], [b'H', b'c', VERSION, 0]);
        two.until("no TLS", |counters| counters.handshake_failures == 1)
            .await;
        // Every preamble that is refused is told why.
        for (at, byte, why) in [
            (2, 9, 1),
            (3, 2, 2),
            (4, !preamble[4], 3),
            (9, 3, 4),
            (7, 3, 5),
            (5, 77, 6),
        ] {
            let mut refused = preamble;
            refused[at] = byte;
            let mut tcp = connect(from, 2).await;
            tcp.write_all(&refused).await.unwrap();
            assert_eq!(rest(&mut tcp).await, [b'H', b'c', VERSION, why]);
        }
        two.until("each is counted", |counters| {
            let of_each = [
                counters.refused_key,
                counters.refused_another_host,
                counters.refused_strangers,
                counters.refused_channel,
            ];
            of_each == [1; 4] && counters.refused_version == 2
        })
        .await;
        // Cut at every byte, and silent.
        for len in 0..preamble.len() {
            let mut tcp = connect(from, 2).await;
            tcp.write_all(&preamble[..len]).await.unwrap();
            drop(tcp);
        }
        two.until("what is cut", |counters| {
            counters.handshake_garbage == 1 + preamble.len() as u64
        })
        .await;
        let mut silent = connect(from, 2).await;
        assert!(rest(&mut silent).await.is_empty());
        two.until("what is silent", |counters| {
            counters.handshake_timeouts == 1
        })
        .await;
        assert_eq!(two.carriers.status().handshakes, 0);
        let fate = one.send(&two, GOSSIP, message(0, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
    });
}

#[test]
fn strangers_and_crowds_are_turned_away_before_the_handshake() {
    run(|| async {
        let [one, two] =
            [1, 2].map(|host| Host::with(host, |options| options.limits.handshakes_per_source = 4));
        if let Ok(mut stranger) = try_connect([127, 0, 0, 200], 2).await {
            assert!(rest(&mut stranger).await.is_empty());
        }
        two.until("a stranger", |counters| counters.refused_strangers == 1)
            .await;
        let mut crowd = Vec::new();
        for _ in 0..20 {
            crowd.push(try_connect([127, 0, 0, 3], 2).await);
        }
        two.until("a crowd", |counters| counters.refused_crowded == 16)
            .await;
        // Those of other addresses are not in its way.
        let fate = one.send(&two, GOSSIP, message(0, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        assert_eq!(two.carriers.status().handshakes, 4);
    });
}

/// Two keys whose public ids are the same.
fn twins() -> [Keys; 2] {
    let id = key_id(&[7; 32]);
    let other = (0..=u16::MAX).map(|number| {
        let mut key = [1; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        key
    });
    let other = other.into_iter().find(|key| key_id(key) == id).unwrap();
    [[7; 32], other].map(|key| Keys::of(&KeyFile::of(key)))
}

#[test]
fn who_has_another_key_is_refused_and_told_so() {
    run(|| async {
        let [_, twin] = twins();
        for (keys, counted, said) in [
            (
                Keys::of(&KeyFile::of([8; 32])),
                [1, 0],
                "does not have this host's key",
            ),
            (twin, [0, 1], "did not prove the POP's key"),
        ] {
            let one = Host::with(1, |options| {
                options.keys = keys;
                options.limits.give_up_after = Duration::ZERO;
            });
            let two = Host::start(2);
            let sent = one.send(&two, GOSSIP, message(0, 10)).await;
            let Fate::NotSent(NotSent::Unreachable { why, .. }) = sent else {
                panic!("{sent:?}");
            };
            assert!(why.contains(said), "{why}");
            two.until("it is counted", |counters| {
                [counters.refused_key, counters.handshake_failures] == counted
            })
            .await;
            let counters = two.counters();
            assert_eq!((counters.accepted, counters.messages_received), (0, 0));
            one.carriers.stop().await;
            two.carriers.stop().await;
        }
    });
}

#[test]
fn the_key_is_changed_step_by_step_while_messages_flow() {
    run(|| async {
        let [one, mut two] = [1, 2].map(Host::start);
        let first = KeyFile::of([7; 32]);
        let begun = first.begin(Use::Sign).unwrap().unwrap();
        let promoted = begun.promote(Use::Sign).unwrap();
        let finished = promoted.finish(Use::Sign).unwrap();
        let steps = [begun, promoted, finished].map(|file| Keys::of(&file));
        let carriers = one.carriers.clone();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let sending = tokio::spawn(async move {
            let mut number = 0;
            while stopped.try_recv().is_err() {
                let len = [10, 1_000, 200_000][number % 3];
                let fate = carriers.send(HostId(2), GOSSIP, message(number, len)).await;
                assert_eq!(fate, Fate::Delivered(life(1)), "message {number}");
                number += 1;
            }
            number
        });
        let mut came = 0;
        for step in &steps {
            for host in [1, 2] {
                // Some messages between the steps of each host.
                for _ in 0..5 {
                    assert_eq!(two.next(GOSSIP).await.host, one.id);
                    came += 1;
                }
                match host {
                    1 => one.carriers.set_keys(step),
                    _ => two.carriers.set_keys(step),
                }
            }
        }
        // The carriers under the old key are closed in good order.
        while one.counters().closed_key == 0 {
            two.next(GOSSIP).await;
            came += 1;
        }
        assert_eq!(one.carriers.status().key, steps[2].id());
        stop.send(()).unwrap();
        let drained = async {
            loop {
                two.next(GOSSIP).await;
                came += 1;
            }
        };
        let sent = tokio::select! {
            sent = sending => sent.unwrap(),
            () = drained => unreachable!(),
        };
        while two.counters().messages_received > came {
            two.next(GOSSIP).await;
            came += 1;
        }
        assert_eq!(came, sent as u64);
        let counters = one.counters();
        assert_eq!(
            (counters.messages_unknown, counters.messages_not_sent),
            (0, 0)
        );
        assert_eq!((counters.refused_by_peer, counters.broken), (0, 0));
    });
}

#[test]
fn who_still_uses_a_key_that_is_no_longer_accepted_is_asked_to_stop() {
    run(|| async {
        let one = Host::with(1, |options| {
            options.limits.give_up_after = Duration::ZERO;
        });
        let two = Host::with(2, |options| {
            options.limits.retire_within = Duration::from_millis(100);
        });
        let fate = one.send(&two, GOSSIP, message(0, 10)).await;
        assert_eq!(fate, Fate::Delivered(life(1)));
        two.carriers.set_keys(&Keys::of(&KeyFile::of([8; 32])));
        one.until("the dialer ends it", |counters| counters.closed_key == 1)
            .await;
        let fate = one.send(&two, GOSSIP, message(1, 10)).await;
        assert!(matches!(fate, Fate::NotSent(_)), "{fate:?}");
        assert_eq!(two.counters().refused_key, 1);
        // One that does not listen is closed.
        let three = Host::start(3);
        let wire = wire_to_two(&one).await;
        two.carriers.set_keys(&keys());
        wire.suffer(&[Fault::SwallowAfter(100_000)]);
        let told = one.queue(2, MIGRATION, message(2, 1 << 20)).await;
        two.until("it is on its way", |counters| counters.accepted == 2)
            .await;
        let before = two.counters().closed_key;
        two.carriers.set_keys(&Keys::of(&KeyFile::of([8; 32])));
        two.until("it is closed", |counters| counters.closed_key == before + 1)
            .await;
        assert_eq!(two.counters().messages_received, 1);
        drop((told, three));
    });
}

#[test]
fn a_host_that_is_led_to_another_or_to_itself_notices() {
    run(|| async {
        let [one, _two, three] = [1, 2, 3].map(Host::start);
        for (to, said) in [(3, "another host answers"), (1, "another host answers")] {
            let mut peers = members(&[1, 2, 3]);
            let stream = life(1);
            let wrong = homing_agent::mux::Peer {
                address: address(to),
                stream,
            };
            peers.insert(HostId(2), wrong);
            one.carriers.set_peers(&peers);
            let told = one.queue(2, GOSSIP, message(0, 10)).await;
            let problem = || {
                let status = one.carriers.status();
                let known = status.peers.into_iter().find(|peer| peer.host == HostId(2));
                let problem = known.and_then(|peer| peer.lines.first()?.problem.clone());
                problem.is_some_and(|problem| problem.contains(said))
            };
            eventually(said, problem).await;
            drop(told);
            assert_eq!(three.counters().accepted, 0);
            assert_eq!(one.counters().accepted, 0);
        }
    });
}
