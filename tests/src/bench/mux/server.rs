//! The receiving host's part: takes messages, looks at each, and sends back what is to
//! come back.

use std::{collections::BTreeSet, thread};

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
pub fn serve(listener: Box<dyn Listener>, case: &Case, ordered: bool) -> Result<Arrived> {
    let pipes = listener.accept()?;
    let streams_each = case.streams() / pipes.len();
    let (mut messages, mut latencies) = (0, Vec::new());
    thread::scope(|scope| {
        let serve = |pipe| scope.spawn(move || serve_pipe(pipe, case, streams_each, ordered));
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

fn serve_pipe(mut pipe: Box<dyn Pipe>, case: &Case, streams: usize, ordered: bool) -> Result<Seen> {
    let mut seen = Seen::new(case.streams(), ordered);
    let mut message = Vec::new();
    // The last messages of streams of which some are still to come.
    let mut ends: Vec<(Label, Vec<u8>)> = Vec::new();
    let mut open = streams;
    while open > 0 {
        pipe.receive(&mut message)?;
        let label = seen.take(&message, case)?;
        match label.kind {
            Kind::OneWay => {}
            Kind::Begin | Kind::Request => pipe.send(&message)?,
            Kind::End => ends.push((label, message.clone())),
        }
        for (_, end) in ends.extract_if(.., |(label, _)| seen.is_complete(label)) {
            pipe.send(&end)?;
            open -= 1;
        }
    }
    Ok(seen)
}

/// What has come over a pipe.
struct Seen {
    ordered: bool,
    streams: Vec<SeenOf>,
    messages: u64,
    latencies: Vec<u64>,
}

impl Seen {
    fn new(streams: usize, ordered: bool) -> Self {
        Self {
            ordered,
            streams: vec![SeenOf::default(); streams],
            messages: 0,
            latencies: Vec::new(),
        }
    }

    /// Takes a message, which must be of the right length, and the next of its stream or
    /// one that was not there yet.
    fn take(&mut self, message: &[u8], case: &Case) -> Result<Label> {
        let label = Label::read(message)?;
        let stream = label.stream as usize;
        let of = self.streams.get_mut(stream);
        let of = of.with_context(|| format!("there is no stream {stream}"))?;
        let (next, is_new) = (of.first_missing, of.take(label.number));
        ensure!(
            is_new && (!self.ordered || label.number == next),
            "message {} of stream {stream} came, not {next}",
            label.number
        );
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
        Ok(label)
    }

    /// Whether all messages of a stream have come up to this one.
    fn is_complete(&self, last: &Label) -> bool {
        self.streams[last.stream as usize].first_missing == last.number + 1
    }
}

/// What has come of a stream.
#[derive(Clone, Default)]
struct SeenOf {
    /// All before have come.
    first_missing: u64,
    /// Of those after it: what has come.
    later: BTreeSet<u64>,
}

impl SeenOf {
    /// Whether a message is new.
    fn take(&mut self, number: u64) -> bool {
        if number != self.first_missing {
            return number > self.first_missing && self.later.insert(number);
        }
        self.first_missing += 1;
        while self.later.remove(&self.first_missing) {
            self.first_missing += 1;
        }
        true
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
        take_all_of(messages, true)
    }

    fn take_all_of(messages: &[Vec<u8>], ordered: bool) -> Result<Seen> {
        let mut seen = Seen::new(CASE.streams(), ordered);
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
        for bad in [&lost, &doubled, &swapped, &longer] {
            assert!(take_all(bad).is_err());
        }
        // Without an order.
        let last = Label::read(&good[4]).unwrap();
        assert!(take_all_of(&swapped, false).unwrap().is_complete(&last));
        assert!(!take_all_of(&lost, false).unwrap().is_complete(&last));
        for bad in [&doubled, &longer] {
            assert!(take_all_of(bad, false).is_err());
        }
    }
}
