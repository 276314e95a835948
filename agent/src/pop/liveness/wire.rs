//! Messages of liveness, byte by byte. `docs/protocol.md` has the same as a table.

use bytes::{Buf as _, BufMut as _, Bytes, TryGetError};
use homing_common::host::HostId;

/// Judgements in one message at most.
pub(super) const JUDGEMENTS_MAX: usize = 80;
const JUDGEMENT_LEN: usize = 16;

const _: () = assert!(4 + JUDGEMENTS_MAX * JUDGEMENT_LEN <= crate::pop::BODY_LEN_MAX);

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// "Do you hear this kernel?"
    Ask(Asked),
    /// The answer.
    Say(Asked, Voice),
    /// What the POP holds of kernels.
    Judgements(Vec<Judgement>),
    /// "What do you hold of this kernel? I hold this." With the number of the poll.
    Poll(u32, Judgement),
    /// The answer, and for how long that agent has run, in microseconds.
    Polled(u32, Judgement, u64),
}

/// What is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub host: HostId,
    pub incarnation: u64,
    /// Tells apart the rounds of one asker.
    pub number: u32,
}

/// What one host can say of another's kernel.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Voice {
    /// I hear it.
    Hears = 1,
    /// I do not hear it, and never did in this life.
    Silent = 2,
    /// I do not hear it; I did before.
    Lost = 3,
    /// I cannot tell: I reach too few, or do not know the host.
    CannotTell = 4,
    /// I am that host, and my agent is up.
    Myself = 5,
}

/// What the POP holds of one life of a kernel. The greater one holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Judgement {
    pub host: HostId,
    /// Who said it first.
    pub by: HostId,
    pub incarnation: u64,
    pub standing: Standing,
}

/// Judgements on one life in the order in which they replace each other: each
/// judgement has the next number, and who hears the kernel takes it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Standing {
    pub number: u16,
    pub heard: bool,
}

impl Standing {
    pub fn is_dead(self) -> bool {
        self.number > 0 && !self.heard
    }
}

pub(super) fn encode_ask(asked: &Asked) -> Bytes {
    encode(1, 0, asked)
}

pub(super) fn encode_say(asked: &Asked, voice: Voice) -> Bytes {
    encode(2, voice as u8, asked)
}

fn encode(kind: u8, voice: u8, asked: &Asked) -> Bytes {
    let mut out = Vec::with_capacity(16);
    out.put_u8(kind);
    out.put_u8(voice);
    out.put_u16(asked.host.0);
    out.put_u64(asked.incarnation);
    out.put_u32(asked.number);
    out.into()
}

/// At most [`JUDGEMENTS_MAX`] of them.
pub(super) fn encode_judgements(judgements: &[Judgement]) -> Bytes {
    debug_assert!(judgements.len() <= JUDGEMENTS_MAX);
    let mut out = Vec::with_capacity(4 + judgements.len() * JUDGEMENT_LEN);
    out.put_u8(3);
    out.put_u8(judgements.len() as u8);
    out.put_u16(0);
    for judgement in judgements {
        put_judgement(&mut out, judgement);
    }
    out.into()
}

pub(super) fn encode_poll(number: u32, judgement: &Judgement) -> Bytes {
    encode_about(4, number, judgement).into()
}

pub(super) fn encode_polled(number: u32, judgement: &Judgement, age: u64) -> Bytes {
    let mut out = encode_about(5, number, judgement);
    out.put_u64(age);
    out.into()
}

fn encode_about(kind: u8, number: u32, judgement: &Judgement) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + JUDGEMENT_LEN);
    out.put_u8(kind);
    out.put_bytes(0, 3);
    out.put_u32(number);
    put_judgement(&mut out, judgement);
    out
}

fn put_judgement(out: &mut Vec<u8>, judgement: &Judgement) {
    out.put_u16(judgement.host.0);
    out.put_u16(judgement.by.0);
    out.put_u64(judgement.incarnation);
    out.put_u16(judgement.standing.number);
    out.put_u8(judgement.standing.heard.into());
    out.put_u8(0);
}

/// Reads a message; none if it makes no sense.
pub(super) fn decode(body: &[u8]) -> Option<Message> {
    read(body).ok().flatten()
}

fn read(mut body: &[u8]) -> Result<Option<Message>, TryGetError> {
    let body = &mut body;
    let (kind, second) = (body.try_get_u8()?, body.try_get_u8()?);
    let message = match kind {
        1 | 2 => {
            let host = body.try_get_u16()?;
            let (incarnation, number) = (body.try_get_u64()?, body.try_get_u32()?);
            let Ok(host) = HostId::try_from(host) else {
                return Ok(None);
            };
            let asked = Asked {
                host,
                incarnation,
                number,
            };
            match (kind, voice(second)) {
                (1, None) if second == 0 => Message::Ask(asked),
                (2, Some(voice)) => Message::Say(asked, voice),
                _ => return Ok(None),
            }
        }
        3 => {
            body.try_get_u16()?;
            let mut judgements = Vec::new();
            for _ in 0..second {
                let Some(judgement) = read_judgement(body)? else {
                    return Ok(None);
                };
                judgements.push(judgement);
            }
            Message::Judgements(judgements)
        }
        4 | 5 => {
            body.try_get_u16()?;
            let number = body.try_get_u32()?;
            match (kind, read_judgement(body)?) {
                (4, Some(judgement)) => Message::Poll(number, judgement),
                (5, Some(judgement)) => Message::Polled(number, judgement, body.try_get_u64()?),
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(body.is_empty().then_some(message))
}

fn read_judgement(body: &mut &[u8]) -> Result<Option<Judgement>, TryGetError> {
    let (host, by) = (body.try_get_u16()?, body.try_get_u16()?);
    let incarnation = body.try_get_u64()?;
    let number = body.try_get_u16()?;
    let heard = body.try_get_u8()?;
    body.try_get_u8()?;
    let (Ok(host), Ok(by), 0..=1) = (HostId::try_from(host), HostId::try_from(by), heard) else {
        return Ok(None);
    };
    Ok(Some(Judgement {
        host,
        by,
        incarnation,
        standing: Standing {
            number,
            heard: heard == 1,
        },
    }))
}

fn voice(byte: u8) -> Option<Voice> {
    [
        Voice::Hears,
        Voice::Silent,
        Voice::Lost,
        Voice::CannotTell,
        Voice::Myself,
    ]
    .into_iter()
    .find(|voice| *voice as u8 == byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked() -> impl Strategy<Value = Asked> {
        (1u16..4096, any::<u64>(), any::<u32>()).prop_map(|(host, incarnation, number)| Asked {
            host: HostId(host),
            incarnation,
            number,
        })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let judgement = (
            1u16..4096,
            1u16..4096,
            any::<u64>(),
            any::<u16>(),
            any::<bool>(),
        );
        let judgement = judgement.prop_map(|(host, by, incarnation, number, heard)| Judgement {
            host: HostId(host),
            by: HostId(by),
            incarnation,
            standing: Standing { number, heard },
        });
        prop_oneof![
            asked().prop_map(Message::Ask),
            (asked(), 1u8..=5).prop_map(|(asked, n)| Message::Say(asked, voice(n).unwrap())),
            prop::collection::vec(judgement.clone(), 0..=JUDGEMENTS_MAX)
                .prop_map(Message::Judgements),
            (any::<u32>(), judgement.clone()).prop_map(|(n, j)| Message::Poll(n, j)),
            (any::<u32>(), judgement, any::<u64>()).prop_map(|(n, j, a)| Message::Polled(n, j, a)),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire_and_no_cut_or_longer_one_does(message in messages()) {
            let bytes = match &message {
                Message::Ask(asked) => encode_ask(asked),
                Message::Say(asked, voice) => encode_say(asked, *voice),
                Message::Judgements(list) => encode_judgements(list),
                Message::Poll(number, judgement) => encode_poll(*number, judgement),
                Message::Polled(number, judgement, age) => encode_polled(*number, judgement, *age),
            };
            prop_assert!(bytes.len() <= crate::pop::BODY_LEN_MAX);
            for len in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..len]), None);
            }
            prop_assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
            prop_assert_eq!(decode(&bytes), Some(message));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn who_hears_a_kernel_takes_the_judgement_back_and_the_next_one_replaces_that() {
        let standing = |number, heard| Standing { number, heard };
        assert!(standing(1, false) < standing(1, true));
        assert!(standing(1, true) < standing(2, false));
        assert!(!Standing::default().is_dead());
        assert!(standing(2, false).is_dead() && !standing(2, true).is_dead());
    }
}
