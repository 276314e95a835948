//! Pages of sessions: the smallest tuples after a cursor.

use std::{collections::BinaryHeap, net::SocketAddr, str::FromStr};

use homing_common::{
    net::{TCP, UDP},
    session::{Session, Tuple},
};

use super::api;

/// The most sessions that one request gets.
pub const MAX_LIMIT: usize = 10_000;

/// Picks one page out of sessions that come in any order, as from a BPF hash.
///
/// It holds at most one page, however many sessions there are. Pages are by the
/// order of tuples and not by position, so a session that is open all the while
/// is in exactly one of them, whatever opens or closes meanwhile.
pub struct Page {
    after: Option<Tuple>,
    limit: usize,
    total: u64,
    /// How many are after the cursor.
    behind: u64,
    /// The smallest so far, the greatest of them on top.
    smallest: BinaryHeap<Entry>,
}

struct Entry(Tuple, Session);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl Page {
    /// An empty page of up to `limit` sessions after `after`.
    pub fn new(after: Option<Tuple>, limit: usize) -> Self {
        let limit = limit.clamp(1, MAX_LIMIT);
        Self {
            after,
            limit,
            total: 0,
            behind: 0,
            smallest: BinaryHeap::with_capacity(limit + 1),
        }
    }

    /// Offers a session; each once.
    pub fn offer(&mut self, tuple: Tuple, session: Session) {
        self.total += 1;
        if self.after.is_some_and(|after| tuple <= after) {
            return;
        }
        self.behind += 1;
        self.smallest.push(Entry(tuple, session));
        if self.smallest.len() > self.limit {
            self.smallest.pop();
        }
    }

    /// The page; `now_ns` is `CLOCK_MONOTONIC`, for the sessions' ages.
    pub fn finish(self, now_ns: u64) -> api::Sessions {
        let more = self.behind > self.smallest.len() as u64;
        let picked = self.smallest.into_sorted_vec();
        let last = picked.last().filter(|_| more);
        let next = last.map(|Entry(tuple, _)| cursor(tuple));
        let sessions = picked.into_iter().map(|Entry(tuple, session)| {
            let age_ns = now_ns.saturating_sub(session.opened_ns);
            api::Session {
                name: name(&tuple, session.id),
                age_s: age_ns as f64 / 1e9,
                generation: session.generation,
            }
        });
        api::Sessions {
            sessions: sessions.collect(),
            total: self.total,
            next,
        }
    }
}

/// How a session is named in answers.
pub fn name(tuple: &Tuple, id: homing_common::session::SessionId) -> api::SessionName {
    api::SessionName {
        client: tuple.client_endpoint(),
        service: tuple.service_endpoint(),
        protocol: protocol_label(tuple.protocol),
        id: id.to_string(),
    }
}

/// The name of an IP protocol number.
pub fn protocol_label(protocol: u8) -> String {
    match protocol {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// The IP protocol number of a name.
pub fn parse_protocol(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        _ => None,
    }
}

/// The place of a session in the order of all, as text.
pub fn cursor(tuple: &Tuple) -> String {
    format!(
        "{},{},{}",
        tuple.client_endpoint(),
        tuple.service_endpoint(),
        protocol_label(tuple.protocol)
    )
}

/// The session that [`cursor`] named.
pub fn parse_cursor(text: &str) -> Option<Tuple> {
    let mut parts = text.split(',');
    let client = SocketAddr::from_str(parts.next()?).ok()?;
    let service = SocketAddr::from_str(parts.next()?).ok()?;
    let protocol = parse_protocol(parts.next()?)?;
    let tuple = Tuple::between(client, service, protocol);
    parts.next().is_none().then_some(tuple)
}

#[cfg(test)]
mod tests {
    use homing_common::session::SessionId;
    use proptest::prelude::*;

    use super::*;

    fn tuple(n: u16) -> Tuple {
        let client = SocketAddr::from(([198, 51, 100, (n >> 12) as u8], n));
        Tuple::between(client, SocketAddr::from(([203, 0, 113, 10], 443)), TCP)
    }

    fn session(n: u16) -> Session {
        Session {
            id: SessionId(n.into()),
            cookie: 0,
            opened_ns: 1_000_000_000,
            seen_ns: 0,
            generation: 0,
            flags: 0,
        }
    }

    proptest! {
        #[test]
        fn pages_hold_every_session_once_and_in_order(
            numbers in prop::collection::hash_set(any::<u16>(), 0..200),
            limit in 1usize..50,
        ) {
            let mut wanted: Vec<_> = numbers.iter().map(|n| tuple(*n)).collect();
            wanted.sort();
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let mut page = Page::new(after, limit);
                for n in &numbers {
                    page.offer(tuple(*n), session(*n));
                }
                let page = page.finish(2_500_000_000);
                prop_assert_eq!(page.total, numbers.len() as u64);
                prop_assert!(page.sessions.len() <= limit);
                for session in page.sessions {
                    prop_assert_eq!(session.age_s, 1.5);
                    found.push(Tuple::between(session.name.client, session.name.service, TCP));
                }
                let Some(next) = page.next else { break };
                after = Some(parse_cursor(&next).expect("cursor"));
                prop_assert!(found.len() <= wanted.len());
            }
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_cursor_survives_text() {
        let v6 = Tuple::between(
            "[2001:db8::7]:40312".parse().expect("client"),
            "[2001:db8:113::10]:443".parse().expect("service"),
            TCP,
        );
        assert_eq!(
            cursor(&v6),
            "[2001:db8::7]:40312,[2001:db8:113::10]:443,tcp"
        );
        assert!(parse_cursor(&cursor(&v6)) == Some(v6));
        for wrong in [
            "",
            "x",
            "1.2.3.4:5",
            "1.2.3.4:5,6.7.8.9:1,tcp,",
            "1.2.3.4:5,6.7.8.9:1,sctp",
        ] {
            assert!(parse_cursor(wrong).is_none(), "{wrong}");
        }
    }
}
