//! What is said of one session on the wires, and whether it is as it must be.

use std::{net::SocketAddr, ops::Range};

use anyhow::{Result, bail, ensure};

use super::{Heard, Place};
use crate::packet::flags;

/// All that was heard of one session.
#[derive(Debug)]
pub struct Talk {
    client: SocketAddr,
    heard: Vec<Heard>,
}

/// What a session that is as it must be has in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The hosts that spoke, in order: two that follow each other differ.
    pub speakers: Vec<u16>,
    /// Segments that their sender had sent before: the client's, and the hosts'.
    pub repeated: [usize; 2],
}

/// One direction: how far it is, counted from its first number.
#[derive(Clone, Copy, Default)]
struct Side {
    first: Option<u32>,
    /// Behind the last byte, and the last acknowledgement.
    end: i64,
    acknowledged: i64,
    clock: Option<u32>,
    repeated: usize,
}

impl Side {
    /// The offset of a number, nearest to where its sender is.
    fn offset(&mut self, number: u32) -> i64 {
        let first = *self.first.get_or_insert(number);
        let here = first.wrapping_add(self.end as u32);
        self.end + i64::from(number.wrapping_sub(here) as i32)
    }
}

impl Talk {
    /// Nothing yet of this client's session.
    pub fn new(client: SocketAddr) -> Self {
        Self {
            client,
            heard: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, heard: Heard) {
        self.heard.push(heard);
    }

    /// What was heard, in order.
    pub fn heard(&self) -> &[Heard] {
        &self.heard
    }

    /// When a client or host sent its last segment, in nanoseconds since 1970.
    pub fn last_of(&self, place: Place) -> Option<u64> {
        let mut heard = self.heard.iter().rev();
        Some(heard.find(|heard| heard.place == place)?.time_ns)
    }

    /// Insists that no host resets the session; that hosts speak one after another, in
    /// the order of `path`, of which some may keep still: never does one speak again
    /// once the next has; and that what they say goes on where the one before was, with
    /// its numbers, its acknowledgements and its clock.
    pub fn judge(&self, path: &[u16]) -> Result<Report> {
        let mut speakers: Vec<u16> = Vec::new();
        let (mut client, mut hosts) = (Side::default(), Side::default());
        for (number, heard) in self.heard.iter().enumerate() {
            if let Err(error) = one(&mut speakers, &mut client, &mut hosts, heard) {
                bail!("{error}:\n{}", self.around(number));
            }
            if !goes_along(&speakers, path) {
                bail!(
                    "hosts {speakers:?} spoke, and the session went {path:?}:\n{}",
                    self.around(number)
                );
            }
        }
        Ok(Report {
            speakers,
            repeated: [client.repeated, hosts.repeated],
        })
    }

    /// The segments around one of them, a line each.
    fn around(&self, number: usize) -> String {
        self.lines(number.saturating_sub(15)..number + 5, number)
    }

    /// The last so many segments, a line each.
    pub fn end(&self, count: usize) -> String {
        let all = self.heard.len();
        self.lines(all.saturating_sub(count)..all, all)
    }

    fn lines(&self, range: Range<usize>, marked: usize) -> String {
        let (from, to) = (range.start, range.end.min(self.heard.len()));
        let start_ns = self.heard[0].time_ns;
        let mut text = format!("the session of {}:\n", self.client);
        for (at, heard) in self.heard[from..to].iter().enumerate() {
            let header = &heard.header;
            text += &format!(
                "{}{:12.6} {:<9} seq {} len {} ack {} clock {} flags {:#04x}\n",
                if from + at == marked { '>' } else { ' ' },
                heard.time_ns.saturating_sub(start_ns) as f64 / 1e9,
                format!("{:?}", heard.place),
                header.seq,
                header.len,
                header.ack,
                header
                    .clock
                    .map_or("-".to_owned(), |clock| clock.to_string()),
                header.flags,
            );
        }
        text
    }
}

/// Takes in one segment.
fn one(speakers: &mut Vec<u16>, client: &mut Side, hosts: &mut Side, heard: &Heard) -> Result<()> {
    let header = &heard.header;
    let (own, other) = match heard.place {
        Place::Client => (client, hosts),
        Place::Host(host) => {
            if speakers.last() != Some(&host) {
                speakers.push(host);
            }
            ensure!(!header.has(flags::RST), "h{host} resets the session");
            (hosts, client)
        }
        // What was sent has been looked at where it was sent.
        Place::AtClient => {
            ensure!(!header.has(flags::RST), "the client hears a reset");
            return Ok(());
        }
    };
    if header.has(flags::RST) {
        // The client may, and then no number counts.
        return Ok(());
    }
    let span = i64::from(header.span());
    let offset = own.offset(header.seq);
    own.repeated += usize::from(span > 0 && offset < own.end);
    let acknowledged = header.has(flags::ACK).then(|| other.offset(header.ack));
    if let Place::Host(host) = heard.place {
        ensure!(
            offset <= own.end,
            "h{host} leaves out {} bytes",
            offset - own.end
        );
        if let Some(acknowledged) = acknowledged {
            ensure!(
                acknowledged <= other.end,
                "h{host} acknowledges {} bytes that the client did not send",
                acknowledged - other.end
            );
            ensure!(
                acknowledged >= own.acknowledged,
                "h{host} takes back an acknowledgement of {} bytes",
                own.acknowledged - acknowledged
            );
        }
        if let (Some(before), Some(now)) = (own.clock, header.clock) {
            let step = now.wrapping_sub(before) as i32;
            ensure!(step >= 0, "h{host} has a clock that goes back by {}", -step);
        }
    }
    own.end = own.end.max(offset + span);
    own.acknowledged = acknowledged.unwrap_or(0).max(own.acknowledged);
    own.clock = header.clock.or(own.clock);
    Ok(())
}

/// Whether the hosts are some of the path, in its order.
fn goes_along(speakers: &[u16], path: &[u16]) -> bool {
    let mut path = path.iter();
    speakers.iter().all(|host| path.any(|next| next == host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::segment::Header;

    const CLIENT: &str = "10.2.1.2:4000";
    const SERVICE: &str = "203.0.113.10:443";

    struct Script(Talk, u64);

    impl Script {
        fn new() -> Self {
            let mut script = Self(Talk::new(CLIENT.parse().unwrap()), 0);
            script.say(Place::Client, flags::SYN, [99, 0], 0, 5);
            script.say(Place::Host(1), flags::SYN | flags::ACK, [999, 100], 0, 50);
            script.say(Place::Client, flags::ACK, [100, 1000], 10, 6);
            script.say(Place::Host(1), flags::ACK, [1000, 110], 20, 51);
            script
        }

        fn say(&mut self, place: Place, flags: u8, [seq, ack]: [u32; 2], len: u32, clock: u32) {
            let ends = [CLIENT, SERVICE].map(|text| text.parse().unwrap());
            let [from, to] = match place {
                Place::Client => ends,
                Place::Host(_) | Place::AtClient => [ends[1], ends[0]],
            };
            let header = Header {
                from,
                to,
                flags,
                seq,
                ack,
                len,
                clock: Some(clock),
            };
            self.1 += 1;
            self.0.push(Heard {
                time_ns: self.1,
                place,
                header,
            });
        }

        /// Says one thing more of host 2, to which the session went.
        fn ends_with(mut self, flags: u8, numbers: [u32; 2], len: u32, clock: u32) -> String {
            self.say(Place::Host(2), flags, numbers, len, clock);
            self.0.judge(&[1, 2]).unwrap_err().to_string()
        }
    }

    #[test]
    fn a_session_that_moves_as_it_must_is_right() {
        let mut script = Script::new();
        script.say(Place::Host(2), flags::ACK, [1020, 110], 30, 60);
        script.say(Place::Client, flags::ACK, [100, 1050], 10, 7);
        let report = script.0.judge(&[1, 2]).unwrap();
        assert_eq!(report.speakers, [1, 2]);
        assert_eq!(report.repeated, [1, 0]);
        // Who kept still in between is not missed.
        assert!(script.0.judge(&[1, 3, 2]).is_ok());
        assert!(script.0.judge(&[2, 1]).is_err());
    }

    #[test]
    fn two_hosts_that_speak_in_turn_are_found() {
        let mut script = Script::new();
        script.say(Place::Host(2), flags::ACK, [1020, 110], 30, 60);
        script.say(Place::Host(1), flags::ACK, [1020, 110], 30, 61);
        let error = script.0.judge(&[1, 2]).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 1] spoke"), "{error}");
        // It came back.
        assert!(script.0.judge(&[1, 2, 1]).is_ok());
    }

    #[test]
    fn whatever_does_not_go_on_where_it_was_is_found() {
        let says = |flags, numbers, len, clock, what: &str| {
            let error = Script::new().ends_with(flags, numbers, len, clock);
            assert!(error.contains(what), "{error}");
        };
        says(flags::ACK, [1021, 110], 5, 60, "leaves out 1 bytes");
        says(flags::ACK, [1020, 111], 0, 60, "1 bytes that the client");
        says(flags::ACK, [1020, 109], 0, 60, "takes back");
        says(
            flags::ACK,
            [1020, 110],
            5,
            40,
            "a clock that goes back by 11",
        );
        says(flags::RST, [1020, 110], 0, 60, "h2 resets");
        let mut script = Script::new();
        script.say(Place::AtClient, flags::RST, [1020, 0], 0, 60);
        let error = script.0.judge(&[1]).unwrap_err().to_string();
        assert!(error.contains("hears a reset"), "{error}");
    }
}
