//! Moves in the middle of things.

use s2n_tls::enums::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    super::{
        Session, Unmovable,
        wire::{OUTPUT_FULL, Record},
    },
    pair::{NAME, Pair, VERSIONS, within},
};

#[tokio::test]
async fn a_connection_goes_on_after_any_number_of_moves() {
    for (version, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        pair.talk("before").await;
        assert_eq!(pair.server.version().unwrap(), version);
        let suite = pair.server.cipher_suite().unwrap().to_owned();
        let session = Session {
            server_name: Some(NAME.to_owned()),
            application_protocol: Some(b"echo/1".to_vec()),
            client_certificates: Vec::new(),
        };
        for number in 0..20 {
            assert_eq!(*pair.server.session(), session);
            assert_eq!(pair.server.version().unwrap(), version);
            assert_eq!(pair.server.cipher_suite().unwrap(), suite);
            pair = pair.moved();
            // At once again, every other time.
            if number % 2 == 0 {
                pair.talk(&format!("after {number}")).await;
            }
        }
        pair.talk("to the end").await;
        let close = pair.client.encrypt_close();
        pair.client.send_bytes(&close).await;
        assert!(pair.read(10).await.is_empty());
    }
}

#[tokio::test]
async fn who_the_client_is_travels() {
    for (_, policy) in VERSIONS {
        let mut pair = Pair::new(policy, true).await;
        pair.talk("before").await;
        let session = pair.server.session().clone();
        assert!(!session.client_certificates.is_empty());
        pair = pair.moved().moved();
        assert_eq!(*pair.server.session(), session);
        pair.talk("after").await;
    }
}

#[tokio::test]
async fn a_record_may_be_cut_by_a_move_anywhere() {
    for (_, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        let whole = pair.client.encrypt(b"some text").len();
        // That one was never sent; so it begins anew.
        pair = Pair::new(policy, false).await;
        for cut in 0..=whole {
            let text = format!("text {cut:04}");
            let record = pair.client.encrypt(text.as_bytes());
            assert_eq!(record.len(), whole);
            pair.client.send_bytes(&record[..cut]).await;
            if cut < whole {
                pair.read_nothing(cut).await;
            }
            pair = pair.moved();
            pair.client.send_bytes(&record[cut..]).await;
            pair.expect(text.as_bytes()).await;
        }
        pair.talk("all of them").await;
    }
}

#[tokio::test]
async fn what_was_decrypted_and_not_read_travels() {
    for (_, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        let text: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
        let records = pair.client.encrypt(&text);
        pair.client.send_bytes(&records).await;
        let mut read = Vec::new();
        // Some in the middle of a record, some at its end, and none twice.
        for most in [1, 10, 1000, 5000].into_iter().cycle() {
            read.extend(pair.read(most).await);
            if read.len() == text.len() {
                break;
            }
            pair = pair.moved();
        }
        assert!(read == text);
        pair.talk("after").await;
    }
}

#[tokio::test]
async fn what_was_encrypted_and_not_sent_travels() {
    for (_, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        let text: Vec<u8> = (0..9_999_999u32).map(|n| (n >> 3) as u8).collect();
        let mut written = 0;
        for _ in 0..3 {
            // Until nobody takes any more.
            while written < text.len() {
                tokio::select! {
                    biased;
                    len = pair.server.write(&text[written..]) => written += len.unwrap(),
                    () = std::future::ready(()) => break,
                }
            }
            assert!(pair.server.engine.wire.output.left().len() >= OUTPUT_FULL);
            pair = pair.moved();
        }
        assert!(written < text.len(), "a socket without an end");
        let Pair { client, server, .. } = &mut pair;
        let rest = async {
            server.write_all(&text[written..]).await.unwrap();
            server.flush().await.unwrap();
        };
        within(async { tokio::join!(rest, client.expect(&text)) }).await;
        pair.talk("after").await;
    }
}

/// Who reads need not write, nor flush.
#[tokio::test]
async fn what_was_not_sent_is_sent_by_a_reader_too() {
    let mut pair = Pair::new(VERSIONS[1].1, false).await;
    let text = vec![7; 9_999_999];
    let mut written = 0;
    loop {
        tokio::select! {
            biased;
            len = pair.server.write(&text[written..]) => written += len.unwrap(),
            () = std::future::ready(()) => break,
        }
    }
    pair = pair.moved();
    let Pair { client, server, .. } = &mut pair;
    let mut buffer = [0; 100];
    let read = server.read(&mut buffer);
    let talk = async {
        client.expect(&text[..written]).await;
        client.send(b"all of it").await;
    };
    let (read, ()) = within(async { tokio::join!(read, talk) }).await;
    assert_eq!(buffer[..read.unwrap()], *b"all of it");
}

#[tokio::test]
async fn keys_change_before_and_after() {
    let mut pair = Pair::new(VERSIONS[1].1, false).await;
    assert_eq!(pair.server.version().unwrap(), Version::TLS13);
    for number in 0..10 {
        pair.client.update_keys();
        let update = pair.client.encrypt(b"with new keys");
        // The record of the update, alone.
        let end = 5 + usize::from(u16::from_be_bytes([update[3], update[4]]));
        pair.client.send_bytes(&update[..end]).await;
        pair.read_nothing(0).await;
        if number % 2 == 0 {
            pair = pair.moved();
        }
        pair.client.send_bytes(&update[end..]).await;
        pair.expect(b"with new keys").await;
        if number % 3 == 0 {
            pair = pair.moved();
        }
        pair.talk("both ways").await;
    }
}

#[tokio::test]
async fn one_that_is_being_closed_stays_and_can_still_answer() {
    for (version, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        pair.talk("before").await;
        let close = pair.client.encrypt_close();
        pair.client.send_bytes(&close).await;
        assert!(pair.read(10).await.is_empty());
        let Err(refused) = pair.server.export(b"") else {
            panic!("exported");
        };
        assert_eq!(refused.why, Unmovable::Closing);
        pair.server = refused.stream;
        // Up to TLS 1.2 both sides close at once (RFC 5246, 7.2.1).
        if version == Version::TLS13 {
            within(pair.server.write_all(b"the last")).await.unwrap();
        }
        within(pair.server.shutdown()).await.unwrap();
        if version == Version::TLS13 {
            pair.client.expect(b"the last").await;
            assert!(pair.client.receive().await.is_empty());
        }
    }
}

/// No client at hand splits messages: what came is said by its record's header.
#[tokio::test]
async fn one_in_the_middle_of_a_message_stays_until_that_is_over() {
    // In TLS 1.2 the type of what came: data, a warning, a handshake message. In TLS 1.3
    // the length, less that of an empty record: nothing, a whole update of keys, less, more.
    let cases: [&[(u8, usize, bool)]; 2] = [
        &[(23, 24, true), (21, 26, false), (22, 28, false)],
        &[
            (23, 17, true),
            (23, 22, true),
            (23, 20, false),
            (23, 39, false),
        ],
    ];
    for ((_, policy), cases) in VERSIONS.into_iter().zip(cases) {
        let mut pair = Pair::new(policy, false).await;
        for &(kind, body_len, is_whole) in cases {
            let record = Record { kind, body_len };
            pair.server.engine.came_nothing(record).unwrap();
            if is_whole {
                pair = pair.moved();
            } else {
                let Err(refused) = pair.server.export(b"") else {
                    panic!("exported after {record:?}");
                };
                assert_eq!(refused.why, Unmovable::NoBoundary);
                pair.server = refused.stream;
            }
            pair.talk("data").await;
            pair = pair.moved();
            pair.talk("after").await;
        }
    }
}

#[tokio::test]
async fn one_that_has_failed_stays_and_says_so() {
    for (_, policy) in VERSIONS {
        let mut pair = Pair::new(policy, false).await;
        let mut record = pair.client.encrypt(b"text");
        *record.last_mut().unwrap() ^= 1;
        pair.client.send_bytes(&record).await;
        let mut buffer = [0; 100];
        within(pair.server.read(&mut buffer)).await.unwrap_err();
        within(pair.server.read(&mut buffer)).await.unwrap_err();
        let Err(refused) = pair.server.export(b"") else {
            panic!("exported");
        };
        assert_eq!(refused.why, Unmovable::Closing);
    }
}

#[tokio::test]
async fn an_end_that_was_not_announced_is_an_error() {
    let mut pair = Pair::new(VERSIONS[1].1, false).await;
    pair.client.tcp.shutdown().await.unwrap();
    let read = within(pair.server.read(&mut [0; 10])).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    // It can still be moved: the other host finds the same end.
    let mut pair = pair.moved();
    within(pair.server.write_all(b"still")).await.unwrap();
    within(pair.server.flush()).await.unwrap();
    pair.client.expect(b"still").await;
    let read = within(pair.server.read(&mut [0; 10])).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_record_that_is_too_long_is_an_error() {
    let mut pair = Pair::new(VERSIONS[1].1, false).await;
    pair.client.send_bytes(&[23, 3, 3, 0xff, 0xff]).await;
    let read = within(pair.server.read(&mut [0; 10])).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}
