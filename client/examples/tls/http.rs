//! As much of HTTP/1.1 as it takes to see whether a connection is whole:
//!
//! | | |
//! |---|---|
//! | `GET /bytes/N` | N bytes: that at offset i is the highest one of i times 0x9e3779b97f4a7c15 |
//! | `GET /bytes/N/RATE` | the same, so many of them a second |
//! | `GET /who` | what the server knows of the connection, and which host it is, as JSON |
//! | `POST /sum` | how many bytes came, and their FNV-1a sum of 64 bits |
//!
//! A [`Talk`] knows no socket: bytes in, bytes out. All of it travels.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    time::Duration,
};

/// The longest head of a request; who sends a longer one is cut off.
const HEAD_MAX: usize = 8 * 1024;
/// A body is made in parts of this length.
const PART_LEN: u64 = 16 * 1024;
/// So often a second, if it is paced.
const PARTS_A_SECOND: u64 = 50;
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// What the server knows of a connection.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Talk {
    /// The connection's, and no other's.
    id: u64,
    moves: u32,
    /// The client wants no more after this.
    closes: bool,
    /// Of the answer's body: what was made of it, its length, bytes a second (0: all).
    made: u64,
    end: u64,
    rate: u64,
    /// Of the request's body: what is still to come, its length, the sum so far.
    to_come: u64,
    len: u64,
    sum: u64,
    /// What came and was not looked at, or is the beginning of a request's head.
    input: Vec<u8>,
    /// What is to be written now.
    output: Vec<u8>,
}

impl Talk {
    /// A connection's beginning.
    pub fn new() -> Self {
        Self {
            // A number that nobody has had: the state is seeded at random.
            id: RandomState::new().build_hasher().finish(),
            ..Self::default()
        }
    }

    /// Fixed numbers, the input after its length, the output.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.moves.to_be_bytes());
        bytes.push(u8::from(self.closes));
        for number in [
            self.made,
            self.end,
            self.rate,
            self.to_come,
            self.len,
            self.sum,
        ] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend((self.input.len() as u32).to_be_bytes());
        bytes.extend(&self.input);
        bytes.extend(&self.output);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk()?;
        let (moves, rest) = rest.split_first_chunk()?;
        let (&closes, mut rest) = rest.split_first()?;
        let mut number = || -> Option<u64> {
            let (number, after) = rest.split_first_chunk()?;
            rest = after;
            Some(u64::from_be_bytes(*number))
        };
        let mut talk = Self {
            id: u64::from_be_bytes(*id),
            moves: u32::from_be_bytes(*moves),
            closes: closes != 0,
            made: number()?,
            end: number()?,
            rate: number()?,
            to_come: number()?,
            len: number()?,
            sum: number()?,
            ..Self::default()
        };
        let (len, rest) = rest.split_first_chunk()?;
        let (input, output) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if talk.made > talk.end {
            return None;
        }
        talk.input = input.to_vec();
        talk.output = output.to_vec();
        Some(talk)
    }

    /// It goes on at another host.
    pub fn has_moved(&mut self) {
        self.moves += 1;
    }

    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    pub fn wrote(&mut self, len: usize) {
        self.output.drain(..len);
    }

    /// Whether the next part of the body has its time.
    pub fn is_paced(&self) -> bool {
        self.made < self.end && self.rate > 0
    }

    /// Makes the next part of the body, if there is one: what comes after it has to wait
    /// for so long.
    pub fn fill(&mut self) -> Option<Duration> {
        if self.made == self.end {
            return None;
        }
        let most = match self.rate {
            0 => PART_LEN,
            rate => (rate / PARTS_A_SECOND).clamp(1, PART_LEN),
        };
        let part = self.made..self.end.min(self.made + most);
        let pause = match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64((part.end - part.start) as f64 / rate as f64),
        };
        self.made = part.end;
        self.output.extend(part.map(byte_at));
        Some(pause)
    }

    /// Whether all was answered that the client wants.
    pub fn is_over(&self) -> bool {
        self.closes && self.to_come == 0 && self.is_quiet()
    }

    /// Whether there is nothing to write, now or when it has its time.
    pub fn is_quiet(&self) -> bool {
        self.output.is_empty() && self.made == self.end
    }

    /// Takes what the client says.
    pub fn take(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }

    /// Looks at what the client said, up to where there is something to write: one request
    /// after the other. None: it is not to be understood.
    pub fn go_on(&mut self, facts: &str) -> Option<()> {
        while self.is_quiet() && !self.is_over() {
            if self.to_come > 0 {
                let part = self.to_come.min(self.input.len() as u64);
                if part == 0 {
                    break;
                }
                for byte in self.input.drain(..part as usize) {
                    self.sum = (self.sum ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
                }
                self.to_come -= part;
                if self.to_come == 0 {
                    self.answer_sum();
                }
                continue;
            }
            let end = self.input.windows(4).position(|four| four == b"\r\n\r\n");
            let Some(end) = end else {
                return (self.input.len() <= HEAD_MAX).then_some(());
            };
            let head: Vec<u8> = self.input.drain(..end + 4).collect();
            self.request(&String::from_utf8_lossy(&head), facts)?;
        }
        Some(())
    }

    fn request(&mut self, head: &str, facts: &str) -> Option<()> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let mut len = 0;
        let mut continues = false;
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => len = value.parse().ok()?,
                "connection" => self.closes = value.eq_ignore_ascii_case("close"),
                "expect" => continues = true,
                _ => {}
            }
        }
        let mut parts = path.split('/').skip(1);
        match (method, parts.next()?, parts.next(), parts.next()) {
            ("GET", "bytes", Some(count), rate) => {
                let rate = rate.map_or(Some(0), |rate| rate.parse().ok())?;
                self.answer("application/octet-stream", count.parse().ok()?, rate);
            }
            ("GET", "who", None, None) => {
                let id = format!("\"id\":\"{:016x}\",\"moves\":{}", self.id, self.moves);
                self.answer_text("200 OK", "application/json", &format!("{{{id},{facts}}}\n"));
            }
            ("POST", "sum", None, None) => {
                (self.to_come, self.len, self.sum) = (len, len, FNV_BASIS);
                if len == 0 {
                    self.answer_sum();
                } else if continues {
                    self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
            }
            _ => self.answer_text("404 Not Found", "text/plain", "no such thing\n"),
        }
        Some(())
    }

    fn answer_sum(&mut self) {
        let text = format!("{} bytes, {:016x}\n", self.len, self.sum);
        self.answer_text("200 OK", "text/plain", &text);
    }

    fn answer_text(&mut self, status: &str, kind: &str, text: &str) {
        let len = text.len();
        self.head_of_answer(status, kind, len as u64);
        self.output.extend(text.as_bytes());
    }

    fn answer(&mut self, kind: &str, len: u64, rate: u64) {
        self.head_of_answer("200 OK", kind, len);
        (self.made, self.end, self.rate) = (0, len, rate);
    }

    fn head_of_answer(&mut self, status: &str, kind: &str, len: u64) {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\r\n");
        self.output.extend(head.as_bytes());
    }
}

/// The byte at this offset of every answer.
fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
