//! Both halves of a carrier against each other, without a connection.

mod exchange;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    frame::{Garbage, HEADER_LEN, HINT_LEN, Header, Hint, Kind, NOTE_MAX},
    incoming::{ACK_WITHIN, First, Incoming},
    outgoing::{Ended, Message, Outgoing, Pace, SHORT_MAX, Said, Silent, WINDOW, cost},
};

const CHANNEL: u8 = 1;
const LIMIT: usize = 1 << 20;
const PACE: Pace = Pace {
    ping_every: 100,
    lag_after: 40,
    dead_after: 400,
};

/// A message whose content says which one it is.
fn message(number: usize, len: usize) -> Message<usize> {
    let seed = blake3::hash(&number.to_le_bytes());
    let body = seed.as_bytes().iter().copied().cycle().take(len).collect();
    let mut hint = Hint::default();
    hint[..8].copy_from_slice(&number.to_be_bytes());
    let tag = number;
    Message { body, hint, tag }
}

/// Both halves.
struct Pair {
    outgoing: Outgoing<usize>,
    incoming: Incoming,
    waiting: Vec<Message<usize>>,
    received: Vec<Bytes>,
    delivered: Vec<usize>,
    /// Bytes that still go through, each way, before the connection breaks.
    left: [usize; 2],
}

impl Pair {
    fn new(lens: &[usize], left: [usize; 2]) -> Self {
        let waiting = lens.iter().enumerate().rev();
        Self {
            outgoing: Outgoing::new(CHANNEL, PACE, 0),
            incoming: Incoming::new(CHANNEL, LIMIT, PACE, 0),
            waiting: waiting.map(|(number, &len)| message(number, len)).collect(),
            received: Vec::new(),
            delivered: Vec::new(),
            left,
        }
    }

    /// Moves what can be moved, at most `piece` bytes at once; the reader takes
    /// messages only if `reads`. Whether anything moved.
    fn step(&mut self, piece: usize, reads: bool) -> bool {
        let mut moved = false;
        while let Some(message) = self
            .waiting
            .pop_if(|message| self.outgoing.has_room(message.body.len()))
        {
            self.outgoing.give(message);
            moved = true;
        }
        let mut there = BytesMut::new();
        let max = piece.min(self.left[0]);
        self.outgoing.take(&mut there, max, 0);
        self.left[0] -= there.len();
        moved |= !there.is_empty();
        self.incoming.hear(&there, 0).unwrap();
        while reads && let Some(first) = self.incoming.first() {
            moved = true;
            match first {
                First::Offer { len, hint } => {
                    let mut number = [0; 8];
                    number.copy_from_slice(&hint[..8]);
                    let number = usize::from_be_bytes(number);
                    assert_eq!(message(number, len).hint, hint);
                    self.incoming.grant();
                }
                First::Message { len, .. } => {
                    self.received.extend(self.incoming.accept(0));
                    self.incoming.hurry();
                    if len % 3 == 0 {
                        self.incoming.note(&len.to_be_bytes());
                    }
                }
            }
        }
        let mut back = BytesMut::new();
        self.incoming.take(&mut back, 0);
        let heard = back.split_to(back.len().min(self.left[1]));
        self.left[1] -= heard.len();
        moved |= !heard.is_empty();
        let mut said = Vec::new();
        self.outgoing.hear(&heard, 0, &mut said).unwrap();
        for said in said {
            let Said::Delivered(message, note) = said else {
                panic!("nothing was declined");
            };
            let len = message.body.len();
            let noted = (len % 3 == 0).then(|| Bytes::copy_from_slice(&len.to_be_bytes()));
            assert_eq!(note, noted, "{len} bytes");
            self.delivered.push(message.tag);
        }
        moved
    }

    fn run(&mut self, piece: usize) {
        while self.step(piece, true) {}
    }
}

#[test]
fn messages_of_every_length_arrive_whole() {
    let lens = [
        0,
        1,
        2,
        SHORT_MAX - 1,
        SHORT_MAX,
        SHORT_MAX + 1,
        300_000,
        LIMIT,
        0,
        5,
    ];
    let mut pair = Pair::new(&lens, [usize::MAX; 2]);
    pair.run(usize::MAX);
    assert_eq!(pair.delivered, (0..lens.len()).collect::<Vec<_>>());
    for (number, &len) in lens.iter().enumerate() {
        assert_eq!(pair.received[number], message(number, len).body);
    }
    assert!(pair.outgoing.is_idle() && !pair.incoming.is_within());
}

/// What may be said of messages when the connection breaks after so many bytes.
fn fates_are_true(lens: &[usize], left: [usize; 2]) {
    let mut pair = Pair::new(lens, left);
    pair.run(usize::MAX);
    // Those without a byte are all alike, so alike ones are counted.
    let count = |bodies: &mut dyn Iterator<Item = &[u8]>, wanted: &[u8]| {
        bodies.filter(|body| *body == wanted).count()
    };
    let all: Vec<_> = (0..lens.len())
        .map(|number| message(number, lens[number]).body)
        .collect();
    let Ended { unknown, unsent } = pair.outgoing.end();
    for body in &all {
        let received = count(&mut pair.received.iter().map(|body| &body[..]), body);
        let delivered = pair.delivered.iter().map(|number| &all[*number][..]);
        let delivered = count(&mut { delivered }, body);
        let unsent = unsent.iter().chain(&pair.waiting);
        let unsent = count(&mut unsent.map(|message| &message.body[..]), body);
        let there = count(&mut all.iter().map(|body| &body[..]), body);
        let said = format!("{} bytes, cut at {left:?}", body.len());
        assert!(delivered <= received, "{said}: delivered, but not received");
        assert!(received + unsent <= there, "{said}: not sent, but received");
    }
    let total = pair.delivered.len() + unknown.len() + unsent.len() + pair.waiting.len();
    assert_eq!(
        total,
        lens.len(),
        "cut at {left:?}: every message has one fate"
    );
}

#[test]
fn fates_are_true_wherever_the_connection_breaks() {
    let lens = [3, 0, 70, 1];
    let bytes = lens.iter().sum::<usize>() + lens.len() * HEADER_LEN;
    for there in 0..=bytes {
        for back in 0..=2 * (HEADER_LEN + 8) {
            fates_are_true(&lens, [there, back]);
        }
    }
    // Two that are alike, of which one is sent.
    fates_are_true(&[0, SHORT_MAX + 1, 0], [45_212, 0]);
}

#[test]
fn a_message_that_was_only_offered_was_not_sent() {
    let mut pair = Pair::new(&[SHORT_MAX + 1], [usize::MAX; 2]);
    pair.step(usize::MAX, false);
    let len = SHORT_MAX + 1;
    let hint = message(0, len).hint;
    assert_eq!(pair.incoming.first(), Some(First::Offer { len, hint }));
    let ended = pair.outgoing.end();
    assert!(ended.unknown.is_empty());
    assert_eq!(ended.unsent.len(), 1);
}

#[test]
fn a_message_that_is_declined_comes_back_and_others_go_on() {
    let mut pair = Pair::new(&[SHORT_MAX + 1, 10], [usize::MAX; 2]);
    let long = pair.waiting.pop().unwrap();
    pair.outgoing.give(long);
    assert!(pair.outgoing.is_busy() && !pair.outgoing.has_room(10));
    let mut bytes = BytesMut::new();
    pair.outgoing.take(&mut bytes, usize::MAX, 0);
    pair.incoming.hear(&bytes, 0).unwrap();
    pair.incoming.decline();
    assert_eq!(pair.incoming.first(), None);
    let mut back = BytesMut::new();
    pair.incoming.take(&mut back, 0);
    let mut said = Vec::new();
    pair.outgoing.hear(&back, 0, &mut said).unwrap();
    assert!(matches!(&said[..], [Said::Declined(message)] if message.tag == 0));
    assert!(!pair.outgoing.is_busy() && pair.outgoing.is_idle());
    pair.run(usize::MAX);
    assert_eq!(pair.delivered, [1]);
}

#[test]
fn who_does_not_read_stops_messages_and_not_the_connection() {
    let mut pair = Pair::new(&[1000; 1000], [usize::MAX; 2]);
    while pair.step(usize::MAX, false) {}
    let sent = 1000 - pair.waiting.len();
    assert_eq!(sent, WINDOW / cost(1000));
    // Both go on speaking and hearing.
    for now in (0..2000).step_by(100) {
        pair.outgoing.tick(now).unwrap();
        pair.incoming.tick(now).unwrap();
        let (mut there, mut back) = (BytesMut::new(), BytesMut::new());
        pair.outgoing.take(&mut there, usize::MAX, now);
        pair.incoming.take(&mut back, now);
        pair.incoming.hear(&there, now).unwrap();
        pair.outgoing.hear(&back, now, &mut Vec::new()).unwrap();
    }
    pair.run(usize::MAX);
    assert_eq!(pair.delivered.len(), 1000);
}

#[test]
fn an_acknowledgement_waits_for_more_unless_somebody_waits_for_it() {
    let mut pair = Pair::new(&[], [usize::MAX; 2]);
    let pace = Pace {
        ping_every: 1_000_000,
        lag_after: 1_000_000,
        dead_after: 4_000_000,
    };
    pair.incoming = Incoming::new(CHANNEL, LIMIT, pace, 0);
    let now = 5_000;
    let mut acknowledges = |lens: &[usize], now: u64, act: &dyn Fn(&mut Incoming)| {
        let mut there = BytesMut::new();
        for (number, &len) in lens.iter().enumerate() {
            pair.outgoing.give(message(number, len));
        }
        pair.outgoing.take(&mut there, usize::MAX, now);
        pair.incoming.hear(&there, now).unwrap();
        while pair.incoming.accept(now).is_some() {}
        act(&mut pair.incoming);
        let mut back = BytesMut::new();
        pair.incoming.take(&mut back, now);
        let mut said = Vec::new();
        pair.outgoing.hear(&back, now, &mut said).unwrap();
        (said.len(), pair.incoming.due())
    };
    let nothing: &dyn Fn(&mut Incoming) = &|_| {};
    // Nobody waits: all of a moment are acknowledged at its end.
    assert_eq!(acknowledges(&[10], now, nothing), (0, now + ACK_WITHIN));
    let later = now + ACK_WITHIN - 1;
    assert_eq!(acknowledges(&[10], later, nothing), (0, now + ACK_WITHIN));
    let (count, due) = acknowledges(&[], now + ACK_WITHIN, nothing);
    assert!(count == 2 && due > now + 2 * ACK_WITHIN);
    // Somebody waits.
    assert_eq!(acknowledges(&[10, 10], now, &Incoming::hurry).0, 2);
    // They take much of the window.
    assert_eq!(acknowledges(&[WINDOW / 5], now, nothing).0, 0);
    assert_eq!(acknowledges(&[WINDOW / 5], now, nothing).0, 2);
}

#[test]
fn silence_is_told_in_time_on_both_sides() {
    let mut outgoing = Outgoing::<()>::new(CHANNEL, PACE, 1000);
    let mut incoming = Incoming::new(CHANNEL, LIMIT, PACE, 1000);
    assert_eq!([outgoing.due(), incoming.due()], [1100; 2]);
    let dead_at = 1000 + PACE.dead_after;
    assert_eq!(outgoing.tick(dead_at - 1), Ok(()));
    assert_eq!(incoming.tick(dead_at - 1), Ok(()));
    assert_eq!([outgoing.due(), incoming.due()], [dead_at; 2]);
    assert_eq!(outgoing.tick(dead_at), Err(Silent));
    assert_eq!(incoming.tick(dead_at), Err(Silent));
}

#[test]
fn a_carrier_that_lags_takes_no_more_until_it_is_heard() {
    let mut outgoing = Outgoing::new(CHANNEL, PACE, 1000);
    // One that has nothing to wait for does not lag.
    outgoing.tick(1099).unwrap();
    assert!(outgoing.has_room(10));
    assert_eq!(outgoing.due(), 1100);
    outgoing.give(message(0, 10));
    outgoing.take(&mut BytesMut::new(), usize::MAX, 1050);
    outgoing.give(message(1, 10));
    outgoing.take(&mut BytesMut::new(), usize::MAX, 1060);
    assert_eq!(outgoing.due(), 1090);
    outgoing.tick(1089).unwrap();
    assert!(outgoing.has_room(10));
    outgoing.tick(1090).unwrap();
    assert!(!outgoing.has_room(10));
    assert_eq!(outgoing.due(), 1160, "the next ping");
    // What it says of the first lets it go on, and the second is waited for anew.
    let ack = |number| header(Kind::Ack, CHANNEL, 0, number);
    outgoing.hear(&ack(1), 1100, &mut Vec::new()).unwrap();
    assert!(outgoing.has_room(10));
    assert_eq!(outgoing.due(), 1140);
    outgoing.hear(&ack(2), 1110, &mut Vec::new()).unwrap();
    assert_eq!(outgoing.due(), 1160);
}

#[test]
fn a_carrier_that_is_retired_finishes_what_it_has_and_takes_no_more() {
    let mut pair = Pair::new(&[10, 10], [usize::MAX; 2]);
    let first = pair.waiting.pop().unwrap();
    pair.outgoing.give(first);
    let second = pair.waiting.pop();
    pair.incoming.retire();
    pair.step(usize::MAX, false);
    assert!(pair.outgoing.is_retired() && !pair.outgoing.is_idle());
    pair.waiting.extend(second);
    pair.run(usize::MAX);
    assert_eq!(pair.delivered, [0]);
    assert!(pair.outgoing.is_retired() && pair.outgoing.is_idle());
    assert!(!pair.outgoing.has_room(10));
}

fn header(kind: Kind, channel: u8, len: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        kind,
        channel,
        len,
        number,
    };
    header.encode(&mut bytes);
    bytes
}

#[test]
fn an_acceptor_takes_no_nonsense() {
    let offer = (SHORT_MAX + 1) as u32;
    let offered = [header(Kind::Offer, CHANNEL, offer, 1), vec![0; HINT_LEN]].concat();
    let nonsense: [&[Vec<u8>]; 15] = [
        &[header(Kind::Message, 2, 0, 1)],
        &[header(Kind::Message, CHANNEL, 0, 2)],
        &[header(Kind::Message, CHANNEL, 0, 0)],
        &[
            header(Kind::Message, CHANNEL, 0, 1),
            header(Kind::Message, CHANNEL, 0, 1),
        ],
        &[header(Kind::Message, CHANNEL, offer, 1)],
        &[header(Kind::Offer, CHANNEL, 5, 1)],
        &[header(Kind::Offer, CHANNEL, LIMIT as u32 + 1, 1)],
        &[offered.clone(), header(Kind::Message, CHANNEL, offer, 1)],
        &[offered.clone(), header(Kind::Offer, CHANNEL, offer, 1)],
        &[header(Kind::Note, CHANNEL, 5, 1)],
        &[header(Kind::Decline, CHANNEL, 0, 1)],
        &[header(Kind::Ping, CHANNEL, 1, 0)],
        &[header(Kind::Ack, CHANNEL, 0, 1)],
        &[header(Kind::Go, CHANNEL, 0, 1)],
        &[vec![0; HEADER_LEN]],
    ];
    for (which, frames) in nonsense.into_iter().enumerate() {
        let mut incoming = Incoming::new(CHANNEL, LIMIT, PACE, 0);
        let heard = incoming.hear(&frames.concat(), 0);
        assert!(heard.is_err(), "nonsense {which}");
    }
    // More than the window holds.
    let mut incoming = Incoming::new(CHANNEL, LIMIT, PACE, 0);
    let refused = (1..=10_000).find(|&number| {
        let frame = header(Kind::Message, CHANNEL, 0, number);
        incoming.hear(&frame, 0).is_err()
    });
    assert_eq!(refused, Some((WINDOW / cost(0)) as u64 + 1));
    // Another length than the one that there is room for.
    let mut incoming = Incoming::new(CHANNEL, LIMIT, PACE, 0);
    assert_eq!(incoming.hear(&offered, 0), Ok(()));
    incoming.grant();
    let more = incoming.hear(&header(Kind::Message, CHANNEL, offer + 1, 1), 0);
    assert_eq!(more, Err(Garbage("another message than the one offered")));
}

#[test]
fn a_dialer_takes_no_nonsense() {
    for frame in [
        header(Kind::Message, CHANNEL, 0, 1),
        header(Kind::Offer, CHANNEL, 0, 1),
        header(Kind::Ack, 2, 0, 1),
        header(Kind::Ack, CHANNEL, 1, 1),
        header(Kind::Ack, CHANNEL, 0, 2),
        header(Kind::Go, CHANNEL, 0, 2),
        header(Kind::Go, CHANNEL, 0, 1),
        header(Kind::Decline, CHANNEL, 0, 1),
        header(Kind::Note, CHANNEL, NOTE_MAX as u32 + 1, 1),
        [header(Kind::Note, CHANNEL, 1, 2), vec![0]].concat(),
        [header(Kind::Note, CHANNEL, 1, 0), vec![0]].concat(),
        vec![7; HEADER_LEN],
    ] {
        let mut outgoing = Outgoing::new(CHANNEL, PACE, 0);
        outgoing.give(message(0, 10));
        outgoing.take(&mut BytesMut::new(), usize::MAX, 0);
        let mut said = Vec::new();
        assert!(outgoing.hear(&frame, 0, &mut said).is_err());
        assert!(said.is_empty());
    }
    // What was acknowledged before its last byte was sent.
    let mut outgoing = Outgoing::new(CHANNEL, PACE, 0);
    outgoing.give(message(0, 10));
    outgoing.take(&mut BytesMut::new(), HEADER_LEN + 9, 0);
    let ack = header(Kind::Ack, CHANNEL, 0, 1);
    assert!(outgoing.hear(&ack, 0, &mut Vec::new()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_messages_in_any_pieces_with_any_reader_arrive_whole(
        lens in prop::collection::vec(
            prop_oneof![0..50usize, 1000..SHORT_MAX + 100, Just(200_000)], 1..30),
        steps in prop::collection::vec((1..100_000usize, any::<bool>()), 0..100),
    ) {
        let mut pair = Pair::new(&lens, [usize::MAX; 2]);
        for (piece, reads) in steps {
            pair.step(piece, reads);
        }
        pair.run(usize::MAX);
        prop_assert_eq!(&pair.delivered, &(0..lens.len()).collect::<Vec<_>>());
        for (number, &len) in lens.iter().enumerate() {
            prop_assert_eq!(&pair.received[number], &message(number, len).body);
        }
    }

    #[test]
    fn fates_are_true_with_any_messages(
        lens in prop::collection::vec(prop_oneof![0..50usize, Just(SHORT_MAX + 1)], 1..8),
        there in 0..140_000usize,
        back in 0..100usize,
    ) {
        fates_are_true(&lens, [there, back]);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut incoming = Incoming::new(CHANNEL, LIMIT, PACE, 0);
        let _ = incoming.hear(&bytes, 0);
        let mut outgoing = Outgoing::new(CHANNEL, PACE, 0);
        outgoing.give(message(0, 10));
        let _ = outgoing.hear(&bytes, 0, &mut Vec::new());
    }
}
