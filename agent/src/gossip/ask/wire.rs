//! Messages on the channel `Ask`, byte by byte. `docs/protocol.md` has the same as
//! tables. All integers are big-endian.

use bytes::{Buf, BufMut};
use homing_common::{
    ask::Question,
    host::HostId,
    net::{Address, Port, TCP},
    session::{SessionId, Tuple},
};

use crate::{gossip::wire::GENERATION_MAX, pop::BODY_LEN_MAX};

const HEAD_LEN: usize = 12;
const V4_LEN: usize = 22;
const V6_LEN: usize = 46;
const ANSWER_LEN: usize = 14;

/// Answers that a report has room for.
pub(super) const ANSWERS_MAX: usize = (BODY_LEN_MAX - HEAD_LEN - 8) / ANSWER_LEN;

mod kind {
    pub(super) const ASK: u8 = 1;
    pub(super) const REPORT: u8 = 2;
}

/// The flag of an ask that is to be passed on.
const PASS_ON: u8 = 1;

/// A message.
pub(super) enum Message {
    Ask(Ask),
    Report(Report),
}

/// "Do you know these sessions?"
#[derive(Clone)]
pub(super) struct Ask {
    /// The asker's number for it; repeats have the same.
    pub number: u64,
    /// Whether the receiver is to ask its whole domain.
    pub pass_on: bool,
    /// The public id of the asker's key of session ids. Answers name sessions by their
    /// ids under that key.
    pub key: u8,
    /// About which segments. Their ids are not on the wire: whoever reads them
    /// computes them.
    pub questions: Vec<Question>,
}

/// What became of asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Report {
    /// The ask that bit 0 of `heard` speaks of.
    pub base: u64,
    /// Bit `n`: the ask `base + n` was put to the sender's kernel, and, where it
    /// was to be passed on, to every kernel of its domain.
    pub heard: u64,
    /// What was found.
    pub answers: Vec<Answer>,
}

/// "That session is mine", or of a host that cannot say so itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub id: SessionId,
    pub host: HostId,
    pub standing: Standing,
    /// How often the session has moved.
    pub generation: u16,
}

const _: () = assert!(
    ANSWERS_MAX >= QUESTIONS_LEN_MAX / V4_LEN,
    "one answer to each question"
);
const _: () = assert!(ANSWERS_MAX <= u8::MAX as usize, "counts are a byte");

/// How a host stands to a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Standing {
    /// It has its socket, or a handshake of it.
    Open = 1,
    /// It claimed it, says another host, and cannot be asked itself.
    Told = 2,
    /// It has closed it and keeps a socket for stragglers.
    Closing = 3,
    /// It closed it a moment ago.
    Closed = 4,
}

/// The bytes that a question takes.
pub(super) fn question_len(question: &Question) -> usize {
    if question.tuple.client.is_v4() {
        V4_LEN
    } else {
        V6_LEN
    }
}

/// The bytes that an ask has for questions.
pub(super) const QUESTIONS_LEN_MAX: usize = BODY_LEN_MAX - HEAD_LEN;

impl Ask {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(BODY_LEN_MAX);
        buf.put_u8(kind::ASK);
        buf.put_u8(if self.pass_on { PASS_ON } else { 0 });
        buf.put_u8(self.key);
        buf.put_u8(self.questions.len() as u8);
        buf.put_u64(self.number);
        for question in &self.questions {
            let tuple = &question.tuple;
            let v4 = tuple.client.as_v4().zip(tuple.service.as_v4());
            buf.put_u8(if v4.is_some() { 4 } else { 6 });
            buf.put_u8(question.flags);
            buf.put_slice(&tuple.client_port.0);
            buf.put_slice(&tuple.service_port.0);
            buf.put_slice(&question.seq);
            buf.put_slice(&question.ack);
            match v4 {
                Some((client, service)) => {
                    buf.put_slice(&client);
                    buf.put_slice(&service);
                }
                None => {
                    buf.put_slice(&tuple.client.0);
                    buf.put_slice(&tuple.service.0);
                }
            }
        }
        debug_assert!(buf.len() <= BODY_LEN_MAX);
        buf
    }
}

impl Report {
    pub(super) fn encode(&self) -> Vec<u8> {
        debug_assert!(self.answers.len() <= ANSWERS_MAX);
        let mut buf = Vec::with_capacity(HEAD_LEN + 8 + self.answers.len() * ANSWER_LEN);
        buf.put_u8(kind::REPORT);
        buf.put_u8(0);
        buf.put_u8(0);
        buf.put_u8(self.answers.len() as u8);
        buf.put_u64(self.base);
        buf.put_u64(self.heard);
        for answer in &self.answers {
            buf.put_u64(answer.id.0);
            buf.put_u16(answer.host.0);
            buf.put_u16(answer.standing as u16);
            buf.put_u16(answer.generation.min(GENERATION_MAX));
        }
        buf
    }

    /// The asks that it calls heard.
    pub(super) fn heard(&self) -> impl Iterator<Item = u64> + use<> {
        let (base, heard) = (self.base, self.heard);
        (0..64)
            .filter(move |n| heard & 1 << n != 0)
            .map(move |n| base.wrapping_add(n))
    }
}

/// Reads a message; none if the bytes are no message.
pub(super) fn decode(body: &[u8]) -> Option<Message> {
    let mut buf = body;
    let kind = buf.try_get_u8().ok()?;
    let flags = buf.try_get_u8().ok()?;
    let key = buf.try_get_u8().ok()?;
    let count = usize::from(buf.try_get_u8().ok()?);
    let number = buf.try_get_u64().ok()?;
    let message = match kind {
        kind::ASK => {
            if count == 0 || count > QUESTIONS_LEN_MAX / V4_LEN {
                return None;
            }
            let questions = (0..count).map(|_| decode_question(&mut buf));
            Message::Ask(Ask {
                number,
                pass_on: flags & PASS_ON != 0,
                key,
                questions: questions.collect::<Option<_>>()?,
            })
        }
        kind::REPORT => {
            let heard = buf.try_get_u64().ok()?;
            if count > ANSWERS_MAX {
                return None;
            }
            let answers = (0..count).map(|_| decode_answer(&mut buf));
            Message::Report(Report {
                base: number,
                heard,
                answers: answers.collect::<Option<_>>()?,
            })
        }
        _ => return None,
    };
    buf.is_empty().then_some(message)
}

fn decode_question(buf: &mut &[u8]) -> Option<Question> {
    let version = buf.try_get_u8().ok()?;
    let flags = buf.try_get_u8().ok()?;
    let client_port = Port(take(buf)?);
    let service_port = Port(take(buf)?);
    let (seq, ack) = (take(buf)?, take(buf)?);
    let (client, service) = match version {
        4 => (Address::v4(take(buf)?), Address::v4(take(buf)?)),
        6 => (Address(take(buf)?), Address(take(buf)?)),
        _ => return None,
    };
    // One form for each address, or one session would have two ids.
    if version == 6 && (client.is_v4() || service.is_v4()) {
        return None;
    }
    Some(Question {
        tuple: Tuple::new(client, client_port, service, service_port, TCP),
        id: 0,
        seq,
        ack,
        flags,
        found: 0,
        zero: [0; 6],
    })
}

fn decode_answer(buf: &mut &[u8]) -> Option<Answer> {
    Some(Answer {
        id: SessionId(buf.try_get_u64().ok()?),
        host: HostId::try_from(buf.try_get_u16().ok()?).ok()?,
        standing: match buf.try_get_u16().ok()? {
            1 => Standing::Open,
            2 => Standing::Told,
            3 => Standing::Closing,
            4 => Standing::Closed,
            _ => return None,
        },
        generation: Some(buf.try_get_u16().ok()?).filter(|&g| g <= GENERATION_MAX)?,
    })
}

fn take<const N: usize>(buf: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = buf.split_first_chunk()?;
    *buf = rest;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question() -> impl Strategy<Value = Question> {
        let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>())
            .prop_map(|(client, service)| (Address::v4(client), Address::v4(service)));
        // A first byte that no IPv4-mapped address has.
        let v6 = (any::<[u8; 15]>(), any::<[u8; 15]>()).prop_map(|(client, service)| {
            let address = |rest: [u8; 15]| {
                let mut bytes = [0xfd; 16];
                bytes[1..].copy_from_slice(&rest);
                Address(bytes)
            };
            (address(client), address(service))
        });
        let rest = any::<([u8; 2], [u8; 2], [u8; 4], [u8; 4], u8)>();
        (prop_oneof![v4, v6], rest).prop_map(|((client, service), (cp, sp, seq, ack, flags))| {
            Question {
                tuple: Tuple::new(client, Port(cp), service, Port(sp), TCP),
                id: 0,
                seq,
                ack,
                flags,
                found: 0,
                zero: [0; 6],
            }
        })
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let standing = prop_oneof![
            Just(Standing::Open),
            Just(Standing::Told),
            Just(Standing::Closing),
            Just(Standing::Closed)
        ];
        (any::<u64>(), 1u16..4096, standing, 0..=GENERATION_MAX).prop_map(
            |(id, host, standing, generation)| Answer {
                id: SessionId(id),
                host: HostId(host),
                standing,
                generation,
            },
        )
    }

    /// Every cut of a message is refused, and so is a byte too many.
    fn assert_exact(body: &[u8]) {
        for len in 0..body.len() {
            assert!(decode(&body[..len]).is_none());
        }
        assert!(decode(&[body, &[0]].concat()).is_none());
        assert!(body.len() <= BODY_LEN_MAX);
    }

    proptest! {
        #[test]
        fn asks_survive_the_wire(
            questions in prop::collection::vec(question(), 1..=QUESTIONS_LEN_MAX / V6_LEN),
            number: u64,
            pass_on: bool,
            key: u8,
        ) {
            let ask = Ask { number, pass_on, key, questions };
            let body = ask.encode();
            let len: usize = ask.questions.iter().map(question_len).sum();
            prop_assert_eq!(body.len(), HEAD_LEN + len);
            assert_exact(&body);
            let Some(Message::Ask(got)) = decode(&body) else { panic!("no ask") };
            prop_assert_eq!((got.number, got.pass_on, got.key), (number, pass_on, key));
            prop_assert!(got.questions == ask.questions);
        }

        #[test]
        fn reports_survive_the_wire(
            answers in prop::collection::vec(answer(), 0..=ANSWERS_MAX),
            base: u64,
            heard: u64,
        ) {
            let report = Report { base, heard, answers };
            let body = report.encode();
            assert_exact(&body);
            let Some(Message::Report(got)) = decode(&body) else { panic!("no report") };
            prop_assert_eq!(got.heard().count(), heard.count_ones() as usize);
            prop_assert_eq!(got, report);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}
