//! What the server knows of a connection, without the connection: bytes in, bytes out.
//! All of it travels when the connection moves.

use homing_client::Blob;
use serde::{Deserialize, Serialize};

use super::{ENDLESS, RIGHT, TRAILER_LEN, WRONG, down};
use crate::random::stream;

/// The longest line, and the longest head of an HTTP request.
const LINE_MAX: usize = 64 * 1024;
/// How much of a stream is made at once.
const CHUNK: u64 = 16 * 1024;
/// With so much still to be written, nothing more is read.
const OUTPUT_MAX: usize = 64 * 1024;
/// The seed of what fills a state up to a fixed size.
const FILLER: u64 = 7;

/// A connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    kind: Kind,
    /// What was read and makes no whole line yet.
    input: Vec<u8>,
    /// What was not written yet.
    output: Vec<u8>,
    /// The client has ended its half.
    read_over: bool,
    /// This side has ended its half.
    write_over: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// Nobody knows yet.
    #[default]
    New,
    Lines {
        count: u64,
    },
    Echo,
    Bulk(Bulk),
    Http {
        /// Requests that were read.
        requests: u64,
        /// The answer to the last one.
        answer: Option<Answer>,
        /// There will be no other.
        last: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bulk {
    seed: u64,
    len: u64,
    rate: u64,
    /// Bytes that were checked.
    up: u64,
    /// Bytes that were made.
    down: u64,
    wrong: bool,
    /// The trailer was made.
    over: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    seed: u64,
    len: u64,
    rate: u64,
    made: u64,
}

/// What stands at the beginning of a blob, as JSON, after its length.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: Kind,
    input: usize,
    output: usize,
    read_over: bool,
    write_over: bool,
    filler: usize,
}

/// How a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It goes on.
    On,
    /// This side is to end its half.
    HalfOver,
    /// It is to be closed.
    Over,
    /// It is to be reset.
    Reset,
}

impl State {
    /// The state as bytes: at least `size` of them.
    pub fn to_blob(&self, size: usize) -> Blob {
        let mut head = Head {
            kind: self.kind.clone(),
            input: self.input.len(),
            output: self.output.len(),
            read_over: self.read_over,
            write_over: self.write_over,
            filler: 0,
        };
        let write = |head: &Head| serde_json::to_vec(head).unwrap_or_default();
        let short = 4 + write(&head).len() + self.input.len() + self.output.len();
        head.filler = size.saturating_sub(short);
        let head_bytes = write(&head);
        let mut bytes = Vec::with_capacity(short.max(size) + 16);
        bytes.extend((head_bytes.len() as u32).to_be_bytes());
        bytes.extend(head_bytes);
        bytes.extend(&self.input);
        bytes.extend(&self.output);
        let filler = bytes.len();
        bytes.resize(filler + head.filler, 0);
        stream(FILLER, 0, &mut bytes[filler..]);
        bytes.into()
    }

    /// The state of such bytes; none if they are not.
    pub fn from_blob(blob: &Blob) -> Option<Self> {
        let (len, rest) = blob.split_first_chunk()?;
        let (head, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        let head: Head = serde_json::from_slice(head).ok()?;
        let (input, rest) = rest.split_at_checked(head.input)?;
        let (output, filler) = rest.split_at_checked(head.output)?;
        let mut wanted = vec![0; head.filler];
        stream(FILLER, 0, &mut wanted);
        (filler == wanted).then(|| Self {
            kind: head.kind,
            input: input.to_vec(),
            output: output.to_vec(),
            read_over: head.read_over,
            write_over: head.write_over,
        })
    }

    /// Puts it a byte off, to see that somebody notices.
    pub fn spoil(&mut self) {
        match &mut self.kind {
            Kind::Bulk(bulk) => bulk.down += 1,
            Kind::Lines { count } => *count += 1,
            Kind::Http {
                answer: Some(answer),
                ..
            } => answer.seed += 1,
            Kind::New | Kind::Echo | Kind::Http { .. } => self.output.push(b'!'),
        }
    }

    /// Whether more may be read.
    pub fn reads(&self) -> bool {
        !self.read_over && self.output.len() < OUTPUT_MAX && self.input.len() <= LINE_MAX
    }

    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// So much of it was written.
    pub fn written(&mut self, len: usize) {
        self.output.drain(..len);
    }

    /// This side has ended its half.
    pub fn half_closed(&mut self) {
        self.write_over = true;
    }

    /// How many bytes a second it may make, and which answer that is for, while it has
    /// any to make.
    pub fn rate(&self) -> Option<(u64, u64)> {
        match &self.kind {
            Kind::Bulk(bulk) if bulk.makes() => Some((bulk.rate, 0)),
            Kind::Http {
                requests,
                answer: Some(answer),
                ..
            } => Some((answer.rate, *requests)),
            _ => None,
        }
    }

    /// Makes what is to be written next, at most so many bytes; says how many.
    pub fn make(&mut self, allowed: u64) -> u64 {
        let (seed, offset, left) = match &self.kind {
            Kind::Bulk(bulk) if bulk.makes() => (down(bulk.seed), bulk.down, bulk.len - bulk.down),
            Kind::Http {
                answer: Some(answer),
                ..
            } => (answer.seed, answer.made, answer.len - answer.made),
            _ => return 0,
        };
        let len = allowed.min(left).min(CHUNK);
        let start = self.output.len();
        self.output.resize(start + len as usize, 0);
        stream(seed, offset, &mut self.output[start..]);
        match &mut self.kind {
            Kind::Bulk(bulk) => {
                bulk.down += len;
                self.trail();
            }
            Kind::Http {
                answer: Some(answer),
                ..
            } => {
                answer.made += len;
                self.next_request();
            }
            _ => {}
        }
        len
    }

    /// Takes what was read: nothing is the end.
    pub fn take(&mut self, bytes: &[u8]) {
        self.read_over |= bytes.is_empty();
        match &mut self.kind {
            Kind::Echo => self.output.extend(bytes),
            Kind::Bulk(bulk) => bulk.check(bytes),
            Kind::New | Kind::Lines { .. } | Kind::Http { .. } => {
                self.input.extend(bytes);
                self.lines();
            }
        }
        self.trail();
        self.next_request();
    }

    /// How the connection stands, once nothing is left to write.
    pub fn standing(&self) -> Standing {
        if !self.output.is_empty() {
            return Standing::On;
        }
        let over = match &self.kind {
            Kind::New | Kind::Lines { .. } | Kind::Echo => self.read_over,
            Kind::Http { answer, last, .. } => answer.is_none() && (*last || self.read_over),
            Kind::Bulk(bulk) if self.write_over => {
                if bulk.wrong {
                    return Standing::Reset;
                }
                self.read_over
            }
            Kind::Bulk(bulk) if bulk.over => true,
            Kind::Bulk(bulk) if bulk.down >= bulk.len && !self.read_over => {
                return Standing::HalfOver;
            }
            Kind::Bulk(_) => false,
        };
        let answering = matches!(
            &self.kind,
            Kind::Http {
                answer: Some(_),
                ..
            }
        );
        if over || self.input.len() > LINE_MAX && !answering {
            Standing::Over
        } else {
            Standing::On
        }
    }

    /// The bytes that came of a bulk connection and the first that was wrong, in words.
    pub fn wrong(&self) -> Option<String> {
        match &self.kind {
            Kind::Bulk(bulk) if bulk.wrong => Some(format!("wrong bytes before {}", bulk.up)),
            _ => None,
        }
    }

    fn lines(&mut self) {
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            match &mut self.kind {
                Kind::New => self.begin(end),
                Kind::Lines { count } => {
                    *count += 1;
                    self.output.extend(format!("{count}: ").as_bytes());
                    self.output.extend(self.input.drain(..=end));
                }
                // A head is more than a line.
                Kind::Http { .. } => return,
                Kind::Echo | Kind::Bulk(_) => {
                    let rest = std::mem::take(&mut self.input);
                    return self.take_rest(&rest);
                }
            }
        }
        if matches!(self.kind, Kind::Echo | Kind::Bulk(_)) {
            let rest = std::mem::take(&mut self.input);
            self.take_rest(&rest);
        }
    }

    fn take_rest(&mut self, rest: &[u8]) {
        match &mut self.kind {
            Kind::Echo => self.output.extend(rest),
            Kind::Bulk(bulk) => bulk.check(rest),
            _ => {}
        }
    }

    /// The first line says what is to come.
    fn begin(&mut self, end: usize) {
        let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        self.kind = match words.as_slice() {
            ["GET", ..] => Kind::Http {
                requests: 0,
                answer: None,
                last: false,
            },
            ["echo"] => Kind::Echo,
            ["bulk", _, _, _] => match (number(1), number(2), number(3)) {
                (Some(seed), Some(len), Some(rate)) => Kind::Bulk(Bulk {
                    seed,
                    len,
                    rate,
                    up: 0,
                    down: 0,
                    wrong: false,
                    over: false,
                }),
                _ => Kind::Lines { count: 0 },
            },
            _ => Kind::Lines { count: 0 },
        };
        if matches!(self.kind, Kind::Echo | Kind::Bulk(_)) {
            self.input.drain(..=end);
        }
    }

    /// The end of a bulk connection.
    fn trail(&mut self) {
        let Kind::Bulk(bulk) = &mut self.kind else {
            return;
        };
        let sent = bulk.down >= bulk.len || bulk.len == ENDLESS;
        let done = self.read_over && sent || bulk.wrong;
        if done && !bulk.over && !self.write_over {
            bulk.over = true;
            let verdict = if bulk.wrong { WRONG } else { RIGHT };
            let start = self.output.len();
            self.output.extend(bulk.up.to_be_bytes());
            self.output.extend(verdict.to_be_bytes());
            debug_assert_eq!(self.output.len() - start, TRAILER_LEN);
        }
    }

    /// Begins with the next HTTP request, if the last one is answered.
    fn next_request(&mut self) {
        let Kind::Http {
            requests,
            answer,
            last,
        } = &mut self.kind
        else {
            return;
        };
        if answer
            .as_ref()
            .is_some_and(|answer| answer.made >= answer.len)
        {
            *answer = None;
        }
        if answer.is_some() || *last {
            return;
        }
        let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") else {
            return;
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        *requests += 1;
        let asked = Answer::of(&head);
        *last = asked.is_none() || head.to_ascii_lowercase().contains("\r\nconnection: close");
        let (status, len) = match &asked {
            Some(asked) => ("200 OK", asked.len),
            None => ("400 Bad Request", 0),
        };
        let connection = if *last { "close" } else { "keep-alive" };
        self.output.extend(
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len}\r\nConnection: {connection}\r\n\r\n"
            )
            .as_bytes(),
        );
        *answer = asked.filter(|asked| asked.len > 0);
    }
}

impl Bulk {
    /// Whether there is more to make.
    fn makes(&self) -> bool {
        self.down < self.len && !self.over
    }

    fn check(&mut self, bytes: &[u8]) {
        let mut wanted = vec![0; bytes.len()];
        stream(self.seed, self.up, &mut wanted);
        self.wrong |= bytes != wanted;
        self.up += bytes.len() as u64;
    }
}

impl Answer {
    /// What the head of a request asks for: `GET /LEN?rate=RATE&seed=SEED`.
    fn of(head: &str) -> Option<Self> {
        let mut words = head.lines().next()?.split(' ');
        let path = words
            .next()
            .filter(|method| *method == "GET")
            .and(words.next())?;
        let (len, query) = path
            .strip_prefix('/')?
            .split_once('?')
            .unwrap_or((&path[1..], ""));
        let mut answer = Self {
            seed: 0,
            len: len.parse().ok()?,
            rate: 0,
            made: 0,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let value = value.parse().ok()?;
            match name {
                "rate" => answer.rate = value,
                "seed" => answer.seed = value,
                _ => return None,
            }
        }
        Some(answer)
    }
}

#[cfg(test)]
mod tests;
