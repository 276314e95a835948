//! The receiving host's part: takes messages, looks at each, and sends back what is to
//! come back.

use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::{
    case::Case,
    latency::Latency,
    message::{Kind, Label, SHORT, now_ns},
    transport::{Listener, Pipe},
};

/// What has arrived.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arrived {
    /// Messages, without the first and the last of streams.
    pub messages: u64,
    /// From sending to receiving, of messages that say when they were sent.
    pub latency: Option<Latency>,
}

/// Serves all streams of a case to their ends.
pub fn serve(listener: Box<dyn Listener>, case: &Case) -> Result<Arrived> {
    let pipes = listener.accept()?;
    let streams_each = case.streams() / pipes.len();
    let (mut messages, mut latencies) = (0, Vec::new());
    thread::scope(|scope| {
        let serve = |pipe| scope.spawn(move || serve_pipe(pipe, case, streams_each));
        let threads: Vec<_> = pipes.into_iter().map(serve).collect();
        for thread in threads {
            let joined = thread.join();
            let seen = joined.map_err(|_| anyhow!("a thread of the server panicked"))??;
            messages += seen.messages;
            latencies.extend(seen.latencies);
        }
        anyhow::Ok(())
    })?;
    Ok(Arrived {
        messages,
        latency: Latency::of(latencies),
    })
}

fn serve_pipe(mut pipe: Box<dyn Pipe>, case: &Case, streams: usize) -> Result<Seen> {
    let mut seen = Seen::new(case.streams());
    let mut message = Vec::new();
    let mut open = streams;
    while open > 0 {
        pipe.receive(&mut message)?;
        let kind = seen.take(&message, case)?;
        if kind != Kind::OneWay {
            pipe.send(&message)?;
        }
        if kind == Kind::End {
            open -= 1;
        }
    }
    Ok(seen)
}

/// What has come over a pipe.
struct Seen {
    /// By stream: the number of the next message.
    next: Vec<u64>,
    messages: u64,
    latencies: Vec<u64>,
}

impl Seen {
    fn new(streams: usize) -> Self {
        Self {
            next: vec![0; streams],
            messages: 0,
            latencies: Vec::new(),
        }
    }

    /// Takes a message, which must be the next of its stream and of the right length.
    fn take(&mut self, message: &[u8], case: &Case) -> Result<Kind> {
        let label = Label::read(message)?;
        let stream = label.stream as usize;
        let next = self.next.get_mut(stream);
        let next = next.with_context(|| format!("there is no stream {stream}"))?;
        ensure!(
            label.number == *next,
            "message {} of stream {stream} came, not {next}",
            label.number
        );
        *next += 1;
        let len = match label.kind {
            Kind::Begin | Kind::End => SHORT,
            Kind::OneWay | Kind::Request => {
                self.messages += 1;
                case.len_of(stream)
            }
        };
        ensure!(
            message.len() == len,
            "a message of {} bytes came, not of {len}",
            message.len()
        );
        if label.sent_ns > 0 {
            self.latencies.push(now_ns().saturating_sub(label.sent_ns));
        }
        Ok(label.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        case::{BULK, SMALL, Work},
        message::{Stream, blank},
    };
    use super::*;

    const CASE: Case = Case {
        work: Work::SmallUnderBulk,
        len: 1 << 10,
        connections: 1,
    };

    /// So many messages of a stream, the first and the last of which say so.
    fn messages(stream: usize, count: usize) -> Vec<Vec<u8>> {
        let mut labels = Stream::new(stream);
        let mut make = |number| {
            let (kind, len) = match number {
                0 => (Kind::Begin, SHORT),
                _ if number == count - 1 => (Kind::End, SHORT),
                _ => (Kind::OneWay, CASE.len_of(stream)),
            };
            let mut message = blank(len);
            labels.label(&mut message, kind, 0);
            message
        };
        (0..count).map(&mut make).collect()
    }

    fn take_all(messages: &[Vec<u8>]) -> Result<Seen> {
        let mut seen = Seen::new(CASE.streams());
        for message in messages {
            seen.take(message, &CASE)?;
        }
        Ok(seen)
    }

    #[test]
    fn streams_are_taken_in_order_each_for_itself() {
        let (small, bulk) = (messages(SMALL, 5), messages(BULK, 5));
        let both: Vec<_> = small
            .iter()
            .zip(&bulk)
            .flat_map(|(a, b)| [a, b])
            .cloned()
            .collect();
        assert_eq!(take_all(&both).unwrap().messages, 6);
    }

    #[test]
    fn what_is_lost_doubled_swapped_or_of_another_length_is_an_error() {
        let good = messages(SMALL, 5);
        assert!(take_all(&good).is_ok());
        let mut lost = good.clone();
        lost.remove(2);
        let mut doubled = good.clone();
        doubled.insert(2, good[2].clone());
        let mut swapped = good.clone();
        swapped.swap(2, 3);
        let mut longer = good.clone();
        longer[2] = messages(BULK, 5)[2].clone();
        longer[2][16..20].copy_from_slice(&(SMALL as u32).to_le_bytes());
        for bad in [lost, doubled, swapped, longer] {
            assert!(take_all(&bad).is_err());
        }
    }
}
