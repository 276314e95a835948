//! Who has a member's address but not the POP's key, or has it and says nonsense, gets no
//! message to anybody, and disturbs none.
//!
//! Host 1's part in clear text is written here a second time, after `docs/protocol.md`.

use std::{net::IpAddr, path::Path, time::Duration};

use homing_agent::{
    mux::{MUX, preamble::VERSION, sockets::Limits},
    pop::keys::key_id,
};
use homing_client::message::{Error, Fate, MessageSocket, Outgoing, Received, wire::Refused};
use homing_tests::random::{self, Random};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::{Host, address, body, next, run, wires};

/// The POP's key.
const KEY: [u8; 32] = [7; 32];

/// Bytes of a verdict, of a nonce, and of a hello with its proof.
const VERDICT: usize = 4;
const NONCE: usize = 16;
const HELLO: usize = 17 + 32;

fn start(folder: &Path, id: u16) -> Host {
    Host::with(folder, id, Limits::default(), |options| {
        options.plain = true;
    })
}

/// A message passes from one message socket to the other, and its sender is told.
async fn passes(from: &mut MessageSocket, to: &mut MessageSocket) {
    let message = Outgoing {
        body: &body(1, 100),
        tell: true,
        ..Outgoing::default()
    };
    from.sender.send(&message).await.unwrap();
    assert_eq!(next(to).await.0, message.body);
    let told = from.receiver.receive().await.unwrap();
    let delivered = Some(Fate::Delivered);
    let fate = told.map(|told| match told {
        Received::Fate { fate, .. } => fate,
        other => panic!("{other:?}"),
    });
    assert_eq!(fate, delivered);
}

async fn connect(from: IpAddr, to: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(address(to)).await.unwrap()
}

/// What else is said, until the connection is closed. However it is.
async fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tcp.read_to_end(&mut bytes).await;
    bytes
}

/// Says to host 2 what host 1 would say that has this key, up to its hello.
async fn say(key: [u8; 32]) -> TcpStream {
    let mut tcp = connect(address(1).ip(), 2).await;
    let preamble = [b'H', b'c', VERSION, 2, key_id(&key), MUX.number, 0, 1, 0, 2];
    tcp.write_all(&preamble).await.unwrap();
    let mut verdict = [0; VERDICT];
    tcp.read_exact(&mut verdict).await.unwrap();
    if verdict != [b'H', b'c', VERSION, 0] {
        return tcp;
    }
    let mut nonces = [[0x55; NONCE]; 2];
    tcp.write_all(&nonces[0]).await.unwrap();
    tcp.read_exact(&mut nonces[1]).await.unwrap();
    let secret = blake3::derive_key("homing v1 2026 carrier", &key);
    let secret = blake3::keyed_hash(&secret, &preamble);
    let context = "homing v1 2026 carrier in clear text";
    let secret = blake3::derive_key(context, secret.as_bytes());
    let secret = blake3::keyed_hash(&secret, nonces.as_flattened());
    // Verdict 0; incarnation 1, generation 1.
    let mut hello = [0; 17];
    (hello[8], hello[16]) = (1, 1);
    let said = [&[0][..], &hello].concat();
    let proof = blake3::keyed_hash(secret.as_bytes(), &said);
    tcp.write_all(&hello).await.unwrap();
    tcp.write_all(proof.as_bytes()).await.unwrap();
    tcp
}

/// Opens a carrier to host 2, as host 1 would.
async fn carrier() -> TcpStream {
    let mut tcp = say(KEY).await;
    tcp.read_exact(&mut [0; HELLO]).await.unwrap();
    tcp
}

#[test]
fn garbage_on_a_carrier_ends_that_carrier_and_nothing_else() {
    run(|folder| async move {
        let (one, two) = (start(&folder, 1), start(&folder, 2));
        let mut service = two.offer("sink").await;
        let mut client = one.connect("sink", Some(2)).await;
        passes(&mut client, &mut service).await;
        let accepted = two.carriers.status().accepted;
        let seed = Random::fresh_seed();
        for round in 1..=20 {
            let mut tcp = carrier().await;
            let mut garbage = vec![0; 4096];
            random::stream(seed + round, 0, &mut garbage);
            tcp.write_all(&garbage).await.unwrap();
            assert!(rest(&mut tcp).await.is_empty(), "seed {seed}");
            super::eventually("it is counted, and the carrier closed", || {
                let status = two.carriers.status();
                status.counters.garbage == round && status.accepted == accepted
            })
            .await;
            passes(&mut client, &mut service).await;
        }
        // Nonsense in a message that is none itself is counted as what it is: of an agent.
        let mut tcp = carrier().await;
        for number in 1..=20_u8 {
            let mut frame = vec![1, MUX.number, 0, 0, 0, 0, 0, 50];
            frame.extend(u64::from(number).to_be_bytes());
            frame.extend([0xff - number; 50]);
            tcp.write_all(&frame).await.unwrap();
            let mut ack = [0; 16];
            tcp.read_exact(&mut ack).await.unwrap();
            assert_eq!((ack[0], ack[15]), (3, number));
        }
        assert_eq!(two.counters().garbage, 20);
        passes(&mut client, &mut service).await;
        assert_eq!(two.counters().messages_received, 22);
        let [one, two] = [&one, &two].map(|host| host.carriers.status().counters);
        assert_eq!((one.broken, one.garbage, two.broken), (0, 0, 0));
    });
}

#[test]
fn a_carrier_in_clear_text_that_was_recorded_says_nothing_the_second_time() {
    run(|folder| async move {
        let start = |id| {
            Host::with(&folder, id, Limits::default(), |options| {
                options.plain = true;
                // Carriers that are recorded from beginning to end.
                options.limits.idle_after = Duration::ZERO;
            })
        };
        let (one, two) = (start(1), start(2));
        let [wire, _] = wires(&one, &two).await;
        let mut service = two.offer("sink").await;
        let mut client = one.connect("sink", Some(2)).await;
        one.until_alone().await;
        passes(&mut client, &mut service).await;
        one.until_alone().await;
        let before = two.carriers.status().counters;
        let recorded: Vec<_> = wire.said().into_iter().zip(wire.answered()).collect();
        assert_eq!(recorded.len(), 2, "the request to connect, and a message");
        for (times, (said, answered)) in recorded.iter().enumerate() {
            let mut tcp = connect(address(8).ip(), 2).await;
            tcp.write_all(said).await.unwrap();
            let answer = rest(&mut tcp).await;
            assert_eq!(answer.len(), VERDICT + NONCE, "it is not greeted");
            assert_ne!(
                answer,
                answered[..VERDICT + NONCE],
                "its nonce is used again"
            );
            let failures = before.handshake_failures + 1 + times as u64;
            super::eventually("it is counted", || {
                two.carriers.status().counters.handshake_failures == failures
            })
            .await;
        }
        let counters = two.carriers.status().counters;
        assert_eq!(counters.accepted, before.accepted);
        assert_eq!(counters.messages_received, before.messages_received);
        passes(&mut client, &mut service).await;
        assert_eq!(two.counters().messages_received, 2);
        // Host 2's part of it, in answer to host 1.
        two.stop().await;
        let impostor = TcpListener::bind(address(2)).await.unwrap();
        let agent = one.agent();
        let within = Duration::from_millis(200);
        let asked = tokio::spawn(async move { agent.connect("sink", Some(2), within).await });
        let before = one.carriers.status().counters;
        let (mut tcp, _) = impostor.accept().await.unwrap();
        tcp.write_all(&recorded[0].1).await.unwrap();
        super::eventually("it is not believed", || {
            one.carriers.status().counters.open_failures > before.open_failures
        })
        .await;
        let Err(Error::Refused { refused, .. }) = asked.await.unwrap() else {
            panic!("it is connected");
        };
        assert_eq!(refused, Refused::Timeout);
        let counters = one.carriers.status().counters;
        assert_eq!(counters.opened, before.opened);
        assert_eq!(counters.messages_delivered, before.messages_delivered);
    });
}

/// Another key with the same public id.
fn twin() -> [u8; 32] {
    let mut others = (0..=u16::MAX).map(|number| {
        let mut key = [1; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        key
    });
    others.find(|key| key_id(key) == key_id(&KEY)).unwrap()
}

#[test]
fn who_proves_another_key_is_refused_and_disturbs_nobody() {
    run(|folder| async move {
        let (one, two) = (start(&folder, 1), start(&folder, 2));
        let mut service = two.offer("sink").await;
        let mut client = one.connect("sink", Some(2)).await;
        passes(&mut client, &mut service).await;
        let before = two.carriers.status();
        for (key, counted) in [([8; 32], [1, 0]), (twin(), [1, 1])] {
            let mut tcp = say(key).await;
            assert!(rest(&mut tcp).await.is_empty(), "it is greeted");
            super::eventually("it is counted", || {
                let counters = two.carriers.status().counters;
                [counters.refused_key, counters.handshake_failures] == counted
            })
            .await;
            passes(&mut client, &mut service).await;
        }
        let after = two.carriers.status();
        assert_eq!(after.accepted, before.accepted);
        assert_eq!(after.counters.accepted, before.counters.accepted);
        assert_eq!(after.handshakes, 0);
        // The same with the right key is a carrier.
        let _carrier = carrier().await;
        assert_eq!(
            two.carriers.status().counters.accepted,
            before.counters.accepted + 1
        );
    });
}
