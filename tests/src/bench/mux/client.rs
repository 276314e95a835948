//! The sending host's part: does a case's work for some time, until all has arrived.

use std::{
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::{
    case::{BATCH, BULK, Case, SMALL, Work},
    latency::Latency,
    message::{Kind, Label, SHORT, Stream, WHOLE_EVERY, blank, now_ns},
    transport::Pipe,
};

/// Time from one small message under bulk to the next.
const INTERVAL_NS: u64 = 500_000;
/// Of messages up to this length only some say when they were sent: to read the clock
/// takes its time.
const OFTEN: usize = 4 << 10;

/// What was sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sent {
    /// Messages that are not the first or the last of a stream.
    pub messages: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// From the first until the server has said that all has arrived.
    pub elapsed_ns: u64,
    /// Until replies came, where there are some.
    pub latency: Option<Latency>,
}

/// Does the work of a case over its connections.
pub fn run(pipes: Vec<Box<dyn Pipe>>, case: &Case, time: Duration) -> Result<Sent> {
    match case.work {
        Work::SmallUnderBulk => small_under_bulk(pipes, case, time),
        _ => side_by_side(pipes, case, time),
    }
}

/// What one thread did.
struct Part {
    stream: Stream,
    start_ns: u64,
    end_ns: u64,
    latencies: Vec<u64>,
}

/// The same work over each connection, by a thread of its own.
fn side_by_side(pipes: Vec<Box<dyn Pipe>>, case: &Case, time: Duration) -> Result<Sent> {
    let mut ends = Vec::new();
    for (index, pipe) in pipes.into_iter().enumerate() {
        let (mut end, mut stream) = (End::new(pipe), Stream::new(index));
        end.mark(&mut stream, Kind::Begin)?;
        ends.push((end, stream));
    }
    let together = Barrier::new(ends.len());
    let together = &together;
    let parts: Result<Vec<Part>> = thread::scope(|scope| {
        let work = |(mut end, mut stream): (End, Stream)| {
            scope.spawn(move || {
                together.wait();
                let start_ns = now_ns();
                let until = start_ns + time.as_nanos() as u64;
                let latencies = match case.work {
                    Work::RequestReply => end.request_reply(&mut stream, case.len, until)?,
                    Work::OneWayBatched => end.one_way_batched(&mut stream, case.len, until)?,
                    _ => end.one_way(&mut stream, case.len, until)?,
                };
                end.mark(&mut stream, Kind::End)?;
                let end_ns = now_ns();
                anyhow::Ok(Part {
                    stream,
                    start_ns,
                    end_ns,
                    latencies,
                })
            })
        };
        let threads: Vec<_> = ends.into_iter().map(work).collect();
        let parts = threads.into_iter().map(|thread| thread.join());
        parts.map(|part| part.map_err(panicked)?).collect()
    });
    let parts = parts?;
    let start_ns = parts.iter().map(|part| part.start_ns).min();
    let end_ns = parts.iter().map(|part| part.end_ns).max();
    let messages = parts.iter().map(|part| plain(&part.stream)).sum();
    let latencies = parts.into_iter().flat_map(|part| part.latencies);
    Ok(Sent {
        messages,
        bytes: messages * case.len as u64,
        elapsed_ns: end_ns.context("no connection")? - start_ns.context("no connection")?,
        latency: Latency::of(latencies.collect()),
    })
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> anyhow::Error {
    anyhow!("a thread of the client panicked")
}

/// A stream's messages without the first and the last.
fn plain(stream: &Stream) -> u64 {
    stream.count() - 2
}

/// Large messages by one thread, small ones by another. Where both share a connection,
/// the first writes small messages that wait between two large ones.
fn small_under_bulk(mut pipes: Vec<Box<dyn Pipe>>, case: &Case, time: Duration) -> Result<Sent> {
    let mut large_end = End::new(pipes.pop().context("no connection")?);
    let mut small_end = pipes.pop().map(End::new);
    let (mut large, mut small) = (Stream::new(BULK), Stream::new(SMALL));
    let small_begins = small_end.as_mut().unwrap_or(&mut large_end);
    small_begins.mark(&mut small, Kind::Begin)?;
    large_end.mark(&mut large, Kind::Begin)?;
    let start_ns = now_ns();
    let until = start_ns + time.as_nanos() as u64;
    thread::scope(|scope| {
        let (queue, queued) = mpsc::channel();
        let small_thread = scope.spawn(move || {
            if let Some(mut end) = small_end {
                pace(&mut small, until, |message| end.pipe.send(message))?;
                end.mark(&mut small, Kind::End)?;
            } else {
                pace(&mut small, until, |message| {
                    Ok(queue.send(message.to_vec())?)
                })?;
            }
            anyhow::Ok(small)
        });
        let mut message = blank(case.len);
        while now_ns() < until {
            for small in queued.try_iter() {
                large_end.pipe.send(&small)?;
            }
            large.label(&mut message, Kind::OneWay, 0);
            large_end.pipe.send(&message)?;
        }
        // Until the other thread has ended.
        for small in queued {
            large_end.pipe.send(&small)?;
        }
        large_end.mark(&mut large, Kind::End)?;
        let mut small = small_thread.join().map_err(panicked)??;
        if case.connections == 1 {
            large_end.mark(&mut small, Kind::End)?;
        }
        let (large, small) = (plain(&large), plain(&small));
        Ok(Sent {
            messages: large + small,
            bytes: large * case.len as u64 + small * SHORT as u64,
            elapsed_ns: now_ns() - start_ns,
            latency: None,
        })
    })
}

/// Makes a small message each [`INTERVAL_NS`]. It counts from when it was made, or from
/// when it would have been if the one before it had not been held up.
fn pace(
    stream: &mut Stream,
    until: u64,
    mut deliver: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    // Timers of this thread end on time, not up to 50 µs later.
    nix::sys::prctl::set_timerslack(1).context("cannot set the slack of timers")?;
    let mut message = blank(SHORT);
    let mut due = now_ns();
    loop {
        let early = due.saturating_sub(now_ns());
        if early > 0 {
            thread::sleep(Duration::from_nanos(early));
            due = now_ns();
        }
        stream.label(&mut message, Kind::OneWay, due);
        deliver(&message)?;
        due += INTERVAL_NS;
        if due >= until {
            return Ok(());
        }
    }
}

/// The client's end of a connection.
struct End {
    pipe: Box<dyn Pipe>,
    reply: Vec<u8>,
}

impl End {
    fn new(pipe: Box<dyn Pipe>) -> Self {
        let reply = Vec::new();
        Self { pipe, reply }
    }

    /// Sends the first or the last message of a stream, and waits for it to come back.
    fn mark(&mut self, stream: &mut Stream, kind: Kind) -> Result<()> {
        self.exchange(stream, &mut blank(SHORT), kind).map(drop)
    }

    /// Sends a message and waits for it to come back: how long that took, in nanoseconds.
    fn exchange(&mut self, stream: &mut Stream, message: &mut [u8], kind: Kind) -> Result<u64> {
        let sent_ns = now_ns();
        let label = stream.label(message, kind, 0);
        self.pipe.send(message)?;
        self.pipe.receive(&mut self.reply)?;
        let took_ns = now_ns() - sent_ns;
        let came = Label::read(&self.reply)?;
        ensure!(
            came == label && self.reply.len() == message.len(),
            "{came:?} came back as {} bytes, not {label:?} as {}",
            self.reply.len(),
            message.len()
        );
        Ok(took_ns)
    }

    fn request_reply(&mut self, stream: &mut Stream, len: usize, until: u64) -> Result<Vec<u64>> {
        let mut message = blank(len);
        let mut latencies = Vec::new();
        // Once at least, however late this thread had its turn.
        loop {
            latencies.push(self.exchange(stream, &mut message, Kind::Request)?);
            if now_ns() >= until {
                return Ok(latencies);
            }
        }
    }

    /// The server has the latencies.
    fn one_way(&mut self, stream: &mut Stream, len: usize, until: u64) -> Result<Vec<u64>> {
        let mut message = blank(len);
        loop {
            // Not of those that the receiver compares as a whole.
            let turn = stream.count() % WHOLE_EVERY;
            let mut sent_ns = 0;
            if turn == 1 || (turn > 1 && len > OFTEN) {
                sent_ns = now_ns();
            }
            stream.label(&mut message, Kind::OneWay, sent_ns);
            self.pipe.send(&message)?;
            if sent_ns >= until {
                return Ok(Vec::new());
            }
        }
    }

    fn one_way_batched(&mut self, stream: &mut Stream, len: usize, until: u64) -> Result<Vec<u64>> {
        let mut batch = vec![blank(len); BATCH];
        loop {
            let now = now_ns();
            for (index, message) in batch.iter_mut().enumerate() {
                let sent_ns = if index == 0 { now } else { 0 };
                stream.label(message, Kind::OneWay, sent_ns);
            }
            self.pipe.send_batch(&batch)?;
            if now >= until {
                return Ok(Vec::new());
            }
        }
    }
}
