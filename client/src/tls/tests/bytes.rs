//! States as bytes: those that are none.

use proptest::{collection::vec, prelude::*};
use s2n_tls::config::Config;

use super::{
    super::{
        Acceptor, Session,
        state::{State, check_serialized},
    },
    pair::{Pair, VERSIONS},
};
use crate::Blob;

fn acceptor() -> Acceptor {
    Acceptor::new(Config::builder()).expect("an acceptor")
}

/// What s2n-tls would serialize, with this version, cipher suite and secrets.
fn serialized(version: [u8; 2], suite: [u8; 2], secrets: usize) -> Vec<u8> {
    let mut bytes = 1u64.to_be_bytes().to_vec();
    bytes.extend(version);
    bytes.extend(suite);
    bytes.extend([0; 16]);
    bytes.extend(16384u16.to_be_bytes());
    bytes.resize(30 + secrets, 7);
    bytes
}

fn state(serialized: &[u8]) -> Blob {
    let state = State {
        owes_key_update: true,
        serialized,
        session: Session::default(),
        plaintext: b"",
        input: b"",
        output: b"",
        application: b"",
    };
    state.encode()
}

#[tokio::test]
async fn states_are_in_the_form_that_is_written_down() {
    for (_, policy) in VERSIONS {
        let pair = Pair::new(policy, true).await;
        let Ok((_, blob)) = pair.server.export(b"application") else {
            panic!("not exported");
        };
        let decoded = State::decode(&blob).expect("a state");
        check_serialized(decoded.serialized).expect("in form");
        assert_eq!(decoded.application, b"application");
        assert!(decoded.encode() == blob, "another form");
        for len in 0..blob.len() {
            let cut = Blob::from(blob[..len].to_vec());
            assert!(pair.acceptor.begin(&cut).is_err(), "cut at {len}");
        }
        let longer = [&blob[..], b"x"].concat().into();
        assert!(pair.acceptor.begin(&longer).is_err());
    }
}

/// s2n-tls takes any cipher suite that it knows, whatever the version.
#[test]
fn no_version_and_cipher_suite_harms() {
    let acceptor = acceptor();
    let mut begun = 0;
    for suite in 0..=u16::MAX {
        let is_13 = suite >> 8 == 0x13;
        let versions: &[[u8; 2]] = match is_13 {
            true => &[[0, 2], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4], [3, 5]],
            false => &[[3, 3], [3, 4]],
        };
        for version in versions {
            for secrets in [96, 112, 144] {
                let bytes = serialized(*version, suite.to_be_bytes(), secrets);
                begun += usize::from(acceptor.begin(&state(&bytes)).is_ok());
            }
        }
    }
    assert!(begun > 10, "{begun}");
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused(bytes in vec(any::<u8>(), 0..600)) {
        let _ = acceptor().begin(&bytes.into());
    }

    #[test]
    fn states_with_changes_are_taken_or_refused(
        suite in prop::sample::select(vec![[0x13, 1], [0x13, 2], [0x13, 3], [0xc0, 0x2b], [0xc0, 0x2c]]),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (version, secrets) = match suite {
            [0x13, 2] => ([3, 4], 144),
            [0x13, _] => ([3, 4], 96),
            _ => ([3, 3], 112),
        };
        let mut bytes = state(&serialized(version, suite, secrets)).to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(begun) = acceptor().begin(&bytes.into()) {
            prop_assert!(begun.application().is_empty());
        }
    }

    #[test]
    fn what_is_written_is_read(
        owes_key_update in any::<bool>(),
        serialized in vec(any::<u8>(), 0..256),
        server_name in prop::option::of("[a-z.]{1,255}"),
        application_protocol in prop::option::of(vec(any::<u8>(), 1..256)),
        client_certificates in vec(vec(any::<u8>(), 0..2000), 0..5),
        parts in [vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300)],
    ) {
        let session = Session { server_name, application_protocol, client_certificates };
        let [plaintext, input, output, application] = &parts;
        let state = State {
            owes_key_update,
            serialized: &serialized,
            session,
            plaintext,
            input,
            output,
            application,
        };
        let blob = state.encode();
        let decoded = State::decode(&blob).expect("a state");
        prop_assert_eq!(&decoded.session, &state.session);
        prop_assert_eq!(decoded.owes_key_update, owes_key_update);
        prop_assert_eq!(decoded.serialized, &serialized[..]);
        prop_assert_eq!([decoded.plaintext, decoded.input, decoded.output, decoded.application].map(<[u8]>::to_vec), parts);
    }
}
