//! Members that are down or have left, told to hosts that join.
//!
//! The library tells who joins of members that are up. But the sessions of a host
//! whose agent is down stand while its kernel lives, so whoever starts meanwhile
//! must know where that kernel can be asked, and that not all have been heard. So
//! every announcement is answered with those that are absent, too.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use homing_common::host::HostId;

use super::{Change, Membership, Outgoing, State};
use crate::pop::{BODY_LEN_MAX, MS, Member, Stream, member::DecodeError};

/// Datagrams by which one announcement is answered at most: the next answer goes on
/// where this one ended.
const DATAGRAMS_MAX: usize = 4;
/// What stands before the members: a zero where the library's messages begin with a
/// host id, and how many there are.
const HEAD_LEN: usize = 4;
/// What stands behind each member: its SWIM incarnation and its age.
const TAIL_LEN: usize = 6;

/// A member that is down or has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Absent {
    /// The member; one that left says so itself.
    pub member: Member,
    /// The library's incarnation of it.
    pub swim: u16,
    /// For how long it has been absent, in milliseconds.
    pub age_ms: u32,
}

impl Membership {
    /// Answers an announcement with the members that are absent.
    pub(super) fn tell_absent(&mut self, now: u64, to: &Member) {
        let after = self.absent_told.0 + 1;
        let later = self.entries.range(HostId(after)..);
        let round = later.chain(self.entries.range(..HostId(after)));
        let absent: Vec<_> = round
            .map(|(_, entry)| entry)
            .filter(|entry| matches!(entry.state, State::Down | State::Left))
            .filter(|entry| entry.member.host != to.host)
            .map(|entry| Absent {
                member: entry.member,
                swim: self.swim_incarnation(&entry.member),
                age_ms: u32::try_from((now - entry.since) / MS).unwrap_or(u32::MAX),
            })
            .collect();
        let mut rest = &absent[..];
        for _ in 0..DATAGRAMS_MAX {
            let (body, n) = encode_absent(rest);
            let Some(last) = n.checked_sub(1).and_then(|n| rest.get(n)) else {
                break;
            };
            self.absent_told = last.member.host;
            self.counters.absent_told += n as u64;
            self.outgoing.push(Outgoing {
                to: to.host,
                address: to.address,
                body,
            });
            rest = &rest[n..];
        }
    }

    /// The library's incarnation of a member that it knows in the same life.
    fn swim_incarnation(&self, member: &Member) -> u16 {
        let known = self.foca.iter_membership_state();
        let mut known = known.filter(|known| known.id() == member);
        known.next().map_or(0, foca::Member::incarnation)
    }

    /// Hears of members that are absent. Those that are known here already are
    /// left as they are, unless they had a later life since.
    pub(super) fn hear_absent(&mut self, now: u64, origin: HostId, stream: Stream, body: &[u8]) {
        // What an earlier life of a host says was overtaken.
        let teller = self.entries.get(&origin);
        let is_old = teller.is_some_and(|entry| entry.member.stream > stream);
        let Some(absent) = decode_absent(body).filter(|_| !is_old) else {
            self.counters.messages_refused += 1;
            return;
        };
        self.counters.messages_heard += 1;
        for absent in absent {
            if self.is_news(&absent.member) {
                self.take_absent(now, absent);
            }
        }
    }

    fn is_news(&mut self, member: &Member) -> bool {
        if member.host == self.me.host || !self.is_of_this_pop(member) || self.is_contested(member)
        {
            return false;
        }
        let mut library = self.foca.iter_membership_state();
        let in_library = library.find(|known| known.id().host == member.host);
        if in_library.is_some_and(|known| {
            known.state() != foca::State::Down || known.id().is_later_than(member)
        }) {
            return false;
        }
        let entry = self.entries.get(&member.host);
        entry.is_none_or(|known| member.is_later_than(&known.member))
    }

    fn take_absent(&mut self, now: u64, absent: Absent) {
        let member = absent.member;
        // The library keeps it to itself: nobody whom it knew to be up went away.
        // From now on it calls it now and then.
        let down = foca::Member::new(member, absent.swim, foca::State::Down);
        let down = std::iter::once(down);
        let result = self.foca.apply_many(down, false, &mut self.runtime);
        self.note(result);
        self.settle(now);
        self.counters.told_absent += 1;
        let age = u64::from(absent.age_ms) * MS;
        let (state, change) = match member.leaving {
            Some(hold) => {
                let left = hold.saturating_sub(std::time::Duration::from_micros(age));
                (State::Left, Change::Left(member, left))
            }
            None => (State::Down, Change::Down(member)),
        };
        self.set(now, member, state);
        if let Some(entry) = self.entries.get_mut(&member.host) {
            entry.since = now.saturating_sub(age);
        }
        self.changes.push_back(change);
    }
}

/// As many as one datagram has room for, and how many that is.
fn encode_absent(absent: &[Absent]) -> (Bytes, usize) {
    let mut len = HEAD_LEN;
    let fitting = absent.iter().take_while(|absent| {
        len += absent.member.encoded_len() + TAIL_LEN;
        len <= BODY_LEN_MAX
    });
    let n = fitting.count();
    let mut body = BytesMut::with_capacity(BODY_LEN_MAX);
    body.put_u16(0);
    body.put_u16(n as u16);
    for absent in &absent[..n] {
        absent.member.encode(&mut body);
        body.put_u16(absent.swim);
        body.put_u32(absent.age_ms);
    }
    (body.freeze(), n)
}

fn decode_absent(mut body: &[u8]) -> Option<Vec<Absent>> {
    let (zero, n) = (body.try_get_u16().ok()?, body.try_get_u16().ok()?);
    let mut one = || -> Result<Absent, DecodeError> {
        Ok(Absent {
            member: Member::decode(&mut body)?,
            swim: body.try_get_u16()?,
            age_ms: body.try_get_u32()?,
        })
    };
    let absent: Result<Vec<_>, _> = (0..n).map(|_| one()).collect();
    let absent = absent.ok()?;
    (zero == 0 && n > 0 && body.is_empty()).then_some(absent)
}

/// Whether a message is one that [`Membership::hear_absent`] is for, and not the
/// library's.
pub(super) fn is_absent(body: &[u8]) -> bool {
    body.starts_with(&[0, 0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pop::{Domain, Fingerprint};

    fn absent(host: u16, domain: &str) -> Absent {
        let stream = Stream {
            incarnation: 5,
            generation: u64::from(host),
        };
        let address = "[fd00::1]:7946".parse().unwrap();
        let domain = Domain::try_from(domain).unwrap();
        Absent {
            member: Member::starting(
                HostId(host),
                stream,
                address,
                domain,
                Fingerprint::default(),
            ),
            swim: host,
            age_ms: u32::from(host) * 1_000,
        }
    }

    proptest! {
        #[test]
        fn what_has_room_survives_the_wire_and_no_cut_does(n in 1u16..80, domain in "[a-z]{1,32}") {
            let all: Vec<_> = (1..=n).map(|host| absent(host, &domain)).collect();
            let mut rest = &all[..];
            let mut heard = Vec::new();
            while !rest.is_empty() {
                let (body, told) = encode_absent(rest);
                prop_assert!(told > 0 && body.len() <= BODY_LEN_MAX && is_absent(&body));
                for len in 0..body.len() {
                    prop_assert_eq!(decode_absent(&body[..len]), None);
                }
                heard.extend(decode_absent(&body).unwrap());
                rest = &rest[told..];
            }
            prop_assert_eq!(heard, all);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_absent(&bytes);
            let _ = decode_absent(&[&[0, 0], &bytes[..]].concat());
        }
    }
}
