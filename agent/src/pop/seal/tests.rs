use proptest::prelude::*;

use super::{
    guard::{NONCE_LIFE, REPLIES_BURST},
    *,
};
use crate::pop::{
    BODY_LEN_MAX,
    keys::{KeyFile, Use},
};

fn address(host: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8], 7946))
}

fn life(incarnation: u64, generation: u64) -> Stream {
    Stream {
        incarnation,
        generation,
    }
}

fn seal(host: u16, stream: Stream) -> Seal {
    seal_at(host, stream, address(host), [9; 32])
}

fn seal_at(host: u16, stream: Stream, address: SocketAddr, key: [u8; 32]) -> Seal {
    let me = Identity {
        host: HostId(host),
        stream,
        address,
    };
    Seal::new(Keys::derive(&key), me, [host as u8; 32])
}

const CHANNEL: Channel = Channel::Gossip;

/// Lets `from` send to `to` and carries the replies to and fro until there are
/// no more; says what came of the last.
fn converse(now: u64, from: &mut Seal, to: &mut Seal, datagram: Vec<u8>) -> Option<String> {
    let (mut sender, mut receiver) = (from, to);
    let mut datagram = datagram;
    loop {
        match receiver.open(now, sender.me.address, &datagram) {
            Ok(Received::Reply { bytes, .. } | Received::Contested { bytes, .. }) => {
                assert!(
                    bytes.len() <= datagram.len(),
                    "a reply is larger than its cause"
                );
                datagram = bytes;
                std::mem::swap(&mut sender, &mut receiver);
            }
            Ok(other) => return Some(format!("{other:?}")),
            Err(Dropped) => return None,
        }
    }
}

/// Opens the windows of `from` at `to`.
fn introduce(now: u64, from: &mut Seal, to: &mut Seal) {
    let hello = from.seal(CHANNEL, To::Host(to.me.host), b"hello");
    let result = converse(now, from, to, hello).unwrap();
    assert_eq!(result, format!("Opened({:?})", from.me.host));
}

fn accepted<'a>(to: &mut Seal, from: &Seal, datagram: &'a [u8]) -> Option<&'a [u8]> {
    match to.open(0, from.me.address, datagram) {
        Ok(Received::Message { body, .. }) => Some(body),
        _ => None,
    }
}

#[test]
fn message_is_accepted_once_and_only_after_an_answer() {
    let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
    let early = a.seal(CHANNEL, To::Host(HostId(2)), b"early");
    introduce(0, &mut a, &mut b);
    assert_eq!(accepted(&mut b, &a, &early), None, "sent before the answer");
    for body in [&b""[..], b"x", &[7; BODY_LEN_MAX]] {
        let datagram = a.seal(CHANNEL, To::Host(HostId(2)), body);
        assert!(datagram.len() <= crate::pop::DATAGRAM_LEN_MAX);
        assert_eq!(accepted(&mut b, &a, &datagram), Some(body));
        assert_eq!(accepted(&mut b, &a, &datagram), None);
    }
    assert_eq!(b.counters.accepted, 3);
    assert_eq!(b.counters.replayed, 4);
    assert_eq!(b.counters.no_window, 1);
}

#[test]
fn keys_change_host_by_host_and_nobody_is_unheard_meanwhile() {
    let first = KeyFile::of([9; 32]);
    let begun = first.begin(Use::Sign).unwrap().unwrap();
    let promoted = begun.promote(Use::Sign).unwrap();
    let finished = promoted.finish(Use::Sign).unwrap();
    let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
    introduce(0, &mut a, &mut b);
    introduce(0, &mut b, &mut a);
    let both_hear = |a: &mut Seal, b: &mut Seal| {
        let datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"x");
        assert_eq!(accepted(b, a, &datagram), Some(&b"x"[..]));
        assert_eq!(b.key_of(HostId(1)), Some(a.keys().id()));
        let datagram = b.seal(CHANNEL, To::Host(HostId(1)), b"y");
        assert_eq!(accepted(a, b, &datagram), Some(&b"y"[..]));
    };
    let old = a.seal(CHANNEL, To::Host(HostId(2)), b"old");
    for step in [begun, promoted, finished] {
        a.rekey(Keys::of(&step));
        both_hear(&mut a, &mut b);
        b.rekey(Keys::of(&step));
        both_hear(&mut a, &mut b);
    }
    // What was signed with the old key is worthless now.
    assert_eq!(accepted(&mut b, &a, &old), None);
    let old_id = Keys::of(&first).id();
    assert_eq!(b.wrong_keys().collect::<Vec<_>>(), [(old_id, 1)]);
    assert_eq!(b.counters.wrong_key, 1);
}

#[test]
fn multicast_has_a_window_of_its_own() {
    let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
    let before = a.seal(CHANNEL, To::Domain, b"before");
    introduce(0, &mut a, &mut b);
    let after = a.seal(CHANNEL, To::Domain, b"after");
    assert_eq!(accepted(&mut b, &a, &before), None);
    assert_eq!(accepted(&mut b, &a, &after), Some(&b"after"[..]));
    assert_eq!(accepted(&mut b, &a, &after), None);
    assert_eq!(a.open(0, address(1), &after), Err(Dropped));
    assert_eq!(a.counters.own, 1);
}

#[test]
fn recording_of_an_earlier_life_is_never_accepted() {
    let mut b = seal(2, life(1, 1));
    let mut old = seal(1, life(1, 1));
    introduce(0, &mut old, &mut b);
    let unseen = old.seal(CHANNEL, To::Host(HostId(2)), b"recorded");
    let mut new = seal(1, life(1, 2));
    introduce(SECOND, &mut new, &mut b);
    // Replayed to a receiver that knows the newer life, and to one that has only
    // just started: both challenge, and the answer comes from the newer life.
    let mut fresh = seal(2, life(1, 2));
    for receiver in [&mut b, &mut fresh] {
        assert_eq!(accepted(receiver, &old, &unseen), None);
        assert_eq!(receiver.counters.accepted, 0);
    }
}

#[test]
fn recorded_answer_opens_nothing_later() {
    let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
    let hello = a.seal(CHANNEL, To::Host(HostId(2)), b"hello");
    let Ok(Received::Reply { bytes, .. }) = b.open(0, address(1), &hello) else {
        panic!("no challenge");
    };
    let Ok(Received::Reply { bytes: answer, .. }) = a.open(0, address(2), &bytes) else {
        panic!("no answer");
    };
    assert_eq!(
        b.open(0, address(3), &answer),
        Err(Dropped),
        "from elsewhere"
    );
    assert_eq!(b.open(3 * NONCE_LIFE, address(1), &answer), Err(Dropped));
    assert_eq!(b.counters.unasked, 2);
    let mut restarted = Seal::new(Keys::derive(&[9; 32]), b.me, [77; 32]);
    assert_eq!(restarted.open(0, address(1), &answer), Err(Dropped));
    assert!(matches!(
        b.open(0, address(1), &answer),
        Ok(Received::Opened(_))
    ));
}

#[test]
fn older_life_is_told_what_to_begin_above() {
    let mut b = seal(2, life(1, 1));
    introduce(0, &mut seal(1, life(50, 3)), &mut b);
    for old in [life(40, 9), life(50, 2)] {
        let mut a = seal(1, old);
        let datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"hello");
        let now = old.incarnation * SECOND;
        let result = converse(now, &mut a, &mut b, datagram).unwrap();
        assert_eq!(result, "Outdated { above: 50, by: host 2 }");
    }
    let mut a = seal(1, life(51, 1));
    introduce(60 * SECOND, &mut a, &mut b);
}

#[test]
fn id_stays_with_the_address_that_is_heard() {
    let mut b = seal(2, life(1, 1));
    introduce(0, &mut seal(1, life(50, 1)), &mut b);
    let mut twin = seal_at(1, life(60, 1), address(99), [9; 32]);
    let datagram = twin.seal(CHANNEL, To::Host(HostId(2)), b"hello");
    let result = converse(SECOND, &mut twin, &mut b, datagram).unwrap();
    assert_eq!(result, "InUse { by: host 2 }");
    assert_eq!(b.counters.contested_refused, 1);
    // Once the first has been silent for long enough, the id is free.
    introduce(ADDRESS_HOLD + SECOND, &mut twin, &mut b);
}

#[test]
fn own_id_at_another_address_is_reported() {
    let mut a = seal(1, life(1, 1));
    let mut twin = seal_at(1, life(2, 1), address(99), [9; 32]);
    let datagram = twin.seal(CHANNEL, To::Domain, b"hello");
    assert_eq!(
        a.open(0, address(99), &datagram),
        Ok(Received::OwnIdElsewhere)
    );
}

#[test]
fn what_this_host_sealed_is_no_second_machines() {
    let mut a = seal(1, life(1, 1));
    let datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"recorded");
    let sent_back = a.open(0, address(99), &datagram);
    assert_eq!(sent_back, Err(Dropped));
    assert_eq!(a.counters.own_returned, 1);
}

#[test]
fn each_kind_of_bad_datagram_has_its_counter() {
    let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
    introduce(0, &mut a, &mut b);
    let good = a.seal(CHANNEL, To::Host(HostId(2)), b"good");
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let mut other_pop = seal_at(1, life(1, 1), address(1), [8; 32]);
    for (datagram, counter) in [
        (with(0, b'h'), "foreign"),
        (b"GET / HTTP/1.1".to_vec(), "foreign"),
        (with(2, 1), "unknown_version"),
        (good[..good.len() - 1].to_vec(), "bad_length"),
        ([&good[..], &[0; 2000]].concat(), "bad_length"),
        (
            other_pop.seal(CHANNEL, To::Host(HostId(2)), b""),
            "wrong_key",
        ),
        (with(40, 0xff), "forged"),
        (with(good.len() - 1, !good[good.len() - 1]), "forged"),
        (
            a.seal(CHANNEL, To::Host(HostId(3)), b""),
            "wrong_destination",
        ),
    ] {
        let before = b.counters;
        assert_eq!(b.open(0, address(1), &datagram), Err(Dropped), "{counter}");
        let changed: Vec<_> = before
            .iter()
            .zip(b.counters.iter())
            .filter(|(old, new)| old.2 != new.2)
            .map(|(old, _)| old.0)
            .collect();
        assert_eq!(changed, [counter]);
    }
    assert_eq!(accepted(&mut b, &a, &good), Some(&b"good"[..]));
}

#[test]
fn challenges_are_limited_per_host_and_altogether() {
    let mut b = seal(2, life(1, 1));
    let mut replies = 0;
    for n in 0..1_000u64 {
        let mut a = seal(3 + (n % 3_000) as u16, life(n, 1));
        let datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"");
        replies += u64::from(b.open(1, a.me.address, &datagram).is_ok());
    }
    assert_eq!(replies, REPLIES_BURST);
    let mut a = seal(1, life(1, 1));
    let datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"");
    let at = |b: &mut Seal, now| b.open(now, address(1), &datagram).is_ok();
    assert!(at(&mut b, SECOND));
    assert!(!at(&mut b, SECOND + CHALLENGE_INTERVAL - 1));
    assert!(at(&mut b, SECOND + CHALLENGE_INTERVAL));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However datagrams are lost, repeated and shuffled: each is accepted at
    /// most once, and each that is no more than a window late exactly once.
    #[test]
    fn nothing_is_accepted_twice(
        order in prop::collection::vec(0usize..40, 1..200),
        multicast: bool,
    ) {
        let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
        introduce(0, &mut a, &mut b);
        let to = if multicast { To::Domain } else { To::Host(HostId(2)) };
        let sent: Vec<_> = (0..40u8).map(|n| a.seal(CHANNEL, to, &[n])).collect();
        let mut seen = [false; 40];
        for n in order {
            let result = accepted(&mut b, &a, &sent[n]);
            let expected = if seen[n] { None } else { Some(&[n as u8][..]) };
            prop_assert_eq!(result, expected);
            seen[n] = true;
        }
    }

    #[test]
    fn no_bytes_panic_and_no_changed_datagram_is_accepted(
        garbage in prop::collection::vec(any::<u8>(), 0..1500),
        at in 0usize..84,
        flip in 1u8..,
    ) {
        let (mut a, mut b) = (seal(1, life(1, 1)), seal(2, life(1, 1)));
        introduce(0, &mut a, &mut b);
        prop_assert!(b.open(0, address(1), &garbage).is_err());
        let mut datagram = a.seal(CHANNEL, To::Host(HostId(2)), b"");
        let at = at % datagram.len();
        datagram[at] ^= flip;
        prop_assert!(b.open(0, address(1), &datagram).is_err());
    }
}

#[test]
fn an_id_stays_with_the_machine_that_has_it_by_membership() {
    let elsewhere: SocketAddr = "10.0.9.9:7946".parse().unwrap();
    let (mut a, mut b) = (seal(1, life(5, 1)), seal(2, life(1, 1)));
    let mut other = seal_at(1, life(9, 1), elsewhere, [9; 32]);
    introduce(0, &mut a, &mut b);
    let holder = |is_up| Holder {
        address: address(1),
        incarnation: 5,
        is_up,
    };
    // Long after it was last heard here.
    let later = 10 * ADDRESS_HOLD;
    for (n, is_up) in [true, false].into_iter().enumerate() {
        let later = later + n as u64 * SECOND;
        b.set_holder(HostId(1), Some(holder(is_up)));
        let hello = other.seal(CHANNEL, To::Host(HostId(2)), b"mine");
        let result = converse(later, &mut other, &mut b, hello).unwrap();
        assert_eq!(result, "InUse { by: host 2 }");
    }
    assert_eq!(b.counters.contested_refused, 2);
    // Its own kernel may come back at another address, once its agent is down.
    let mut moved = seal_at(1, life(5, 2), elsewhere, [9; 32]);
    introduce(2 * later, &mut moved, &mut b);
    b.set_holder(HostId(1), None);
    introduce(3 * later, &mut other, &mut b);
}

#[test]
fn recorded_datagrams_from_elsewhere_keep_nobody_out() {
    let elsewhere: SocketAddr = "10.0.9.9:7946".parse().unwrap();
    let (mut a, mut b) = (seal(1, life(5, 1)), seal(2, life(1, 1)));
    introduce(0, &mut a, &mut b);
    introduce(0, &mut b, &mut a);
    let recorded = a.seal(CHANNEL, To::Host(HostId(2)), b"old");
    // The agent begins anew; a thousand a second of what it sent come from elsewhere,
    // and of challenges that it was sent.
    let mut a = seal(1, life(5, 2));
    introduce(SECOND / 2, &mut b, &mut a);
    let early = seal(1, life(4, 1)).seal(CHANNEL, To::Host(HostId(2)), b"x");
    let challenge = match seal(2, life(1, 1)).open(0, address(1), &early) {
        Ok(Received::Reply { bytes, .. }) => bytes,
        other => panic!("{other:?}"),
    };
    for ms in 0..1_000 {
        let now = SECOND + ms * MS;
        let _ = b.open(now, elsewhere, &recorded);
        let _ = a.open(now, elsewhere, &challenge);
    }
    introduce(2 * SECOND - MS, &mut a, &mut b);
    assert!(b.counters.rate_limited > 900, "{:?}", b.counters);
}
