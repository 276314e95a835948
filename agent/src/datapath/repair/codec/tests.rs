//! Snapshots of all kinds, and bytes of all kinds.

use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};

use super::*;

fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let address = prop_oneof![
        (any::<u32>(), any::<u32>())
            .prop_map(|(a, b)| (IpAddr::V4(a.into()), IpAddr::V4(b.into()))),
        // Not IPv4-mapped: in 2000::/3.
        (any::<u128>(), any::<u128>()).prop_map(|(a, b)| {
            let global = |bits: u128| IpAddr::V6((bits >> 3 | 1 << 125).into());
            (global(a), global(b))
        }),
    ];
    let port = 1..=u16::MAX;
    (address, port.clone(), port).prop_map(|((local, peer), local_port, peer_port)| {
        (
            SocketAddr::new(local, local_port),
            SocketAddr::new(peer, peer_port),
        )
    })
}

/// A state, and what of the send queue may go with it.
fn states() -> impl Strategy<Value = (State, Vec<u8>, Vec<u8>, bool)> {
    let data = || vec(any::<u8>(), 0..40);
    prop_oneof![
        (data(), data()).prop_map(|(sent, unsent)| (State::Established, sent, unsent, false)),
        (data(), data()).prop_map(|(sent, unsent)| (State::CloseWait, sent, unsent, false)),
        (data(), data()).prop_map(|(sent, unsent)| (State::FinWait1, sent, unsent, true)),
        data().prop_map(|sent| (State::FinWait1, sent, Vec::new(), false)),
        Just((State::FinWait2, Vec::new(), Vec::new(), false)),
    ]
}

fn settings() -> impl Strategy<Value = Vec<Setting>> {
    let value = proptest::option::of(any::<i64>());
    vec(value, options::MAX).prop_map(|values| {
        let all = (1..).zip(values);
        all.filter_map(|(id, value)| value.map(|value| Setting { id, value }))
            .collect()
    })
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    let agreed = (
        proptest::option::of((0..=SCALE_MAX, 0..=SCALE_MAX)),
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of((any::<u32>(), any::<bool>())),
    );
    let buffers = any::<[(u32, bool); 2]>();
    let rest = (
        any::<[u32; 8]>(),
        any::<bool>(),
        "[a-z0-9_]{1,15}",
        settings(),
    );
    let received = vec(any::<u8>(), 0..40);
    (ends(), states(), received, agreed, buffers, rest).prop_map(
        |(
            (local, peer),
            (state, sent, unsent, fin_unsent),
            received,
            (scales, mss, sack, ecn, clock),
            [receive, send],
            (words, read_shut, congestion, settings),
        )| {
            let [
                written,
                expected,
                told_at,
                window,
                peer_max,
                own,
                own_at,
                window_clamp,
            ] = words;
            let buffer = |(bytes, locked)| Buffer { bytes, locked };
            Snapshot {
                local,
                peer,
                state,
                written,
                expected,
                sent,
                unsent,
                received,
                fin_unsent,
                read_shut: read_shut && state != State::CloseWait,
                window: Window {
                    told_at,
                    peer: window,
                    peer_max,
                    own,
                    own_at,
                },
                window_clamp,
                scales,
                mss,
                sack,
                ecn,
                clock: clock.map(|(value, micros)| Clock { value, micros }),
                receive_buffer: buffer(receive),
                send_buffer: buffer(send),
                congestion,
                settings,
            }
        },
    )
}

proptest! {
    #[test]
    fn a_snapshot_comes_back_whole_and_no_part_of_it_is_one(snapshot in snapshots()) {
        let bytes = snapshot.encode();
        let data = snapshot.sent.len() + snapshot.unsent.len() + snapshot.received.len();
        prop_assert!(bytes.len() - data <= FIXED_MAX);
        let back = Snapshot::decode(&bytes);
        // Debug leaves most of it out, so the comparison is not printed.
        prop_assert!(back == Ok(snapshot));
        for len in 0..bytes.len() {
            prop_assert!(Snapshot::decode(&bytes[..len]).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_eq!(Snapshot::decode(&longer), Err(Malformed::Length(longer.len())));
    }

    /// Whatever the bytes are, they are refused, or are the form of what they are taken for.
    #[test]
    fn any_bytes_are_a_snapshots_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(snapshot) = Snapshot::decode(&bytes) {
            prop_assert_eq!(snapshot.encode(), bytes);
        }
    }

    /// The same for bytes that are nearly right.
    #[test]
    fn so_are_bytes_of_which_some_were_changed(
        snapshot in snapshots(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = snapshot.encode();
        for (index, byte) in changes {
            *index.get_mut(&mut bytes) = byte;
        }
        if let Ok(snapshot) = Snapshot::decode(&bytes) {
            prop_assert_eq!(snapshot.encode(), bytes);
        }
    }

    #[test]
    fn another_version_is_refused_whatever_follows(
        version in any::<u16>(),
        rest in vec(any::<u8>(), 0..100),
    ) {
        prop_assume!(version != VERSION);
        let bytes = [&version.to_be_bytes()[..], &rest].concat();
        prop_assert_eq!(Snapshot::decode(&bytes), Err(Malformed::Version(version)));
    }
}

#[test]
fn queues_have_a_limit() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut snapshot = snapshots().new_tree(&mut runner).unwrap().current();
    snapshot.state = State::Established;
    snapshot.fin_unsent = false;
    snapshot.sent = vec![1; QUEUE_MAX as usize - 10];
    snapshot.unsent = vec![2; 10];
    snapshot.received = vec![3; QUEUE_MAX as usize];
    assert!(Snapshot::decode(&snapshot.encode()).is_ok());
    snapshot.unsent.push(2);
    let refused = Snapshot::decode(&snapshot.encode());
    assert_eq!(refused, Err(Malformed::Field("send queue")));
    snapshot.unsent.pop();
    snapshot.received.push(3);
    let refused = Snapshot::decode(&snapshot.encode());
    assert_eq!(refused, Err(Malformed::Field("receive queue")));
}
