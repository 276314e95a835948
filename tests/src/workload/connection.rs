//! One connection of a client, from its start to its end.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};

use super::{MAGIC, Options, down};
use crate::random::Random;

/// An exchange that takes longer than this counts as a stall: a retransmission
/// or two.
const STALL: Duration = Duration::from_millis(500);

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed it, after a last exchange that went well.
    Closed,
    /// It could not be established.
    NotOpened(String),
    /// The client saw a reset.
    Reset,
    /// Nothing came for as long as the deadline.
    Silence,
    /// Bytes came that the server never sent.
    Mismatch,
    /// The other side ended it.
    Ended,
    /// Another error.
    Other(String),
}

/// One connection's record. The clients' thread writes it, others may read.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) open: AtomicBool,
    pub(super) over: AtomicBool,
    pub(super) exchanges: AtomicU64,
    pub(super) bytes_up: AtomicU64,
    pub(super) bytes_down: AtomicU64,
    pub(super) stalls: AtomicU64,
    pub(super) slowest_us: AtomicU64,
}

/// Tells connections to finish.
#[derive(Debug, Default)]
pub(super) struct Stop {
    pub(super) set: AtomicBool,
    pub(super) notify: Notify,
}

/// One connection, from its start to its end.
pub(super) async fn connection(
    options: &Options,
    number: usize,
    record: &Record,
    stop: &Stop,
) -> End {
    let target = options.targets[number % options.targets.len()];
    let mut random = Random::new(options.seed ^ (number as u64) << 32);
    let mut stream = match timeout(options.deadline, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return End::NotOpened(format!("{target}: {error}")),
        Err(_) => return End::NotOpened(format!("{target}: no answer")),
    };
    let mut talk = Talk {
        seed: random.next(),
        up: 0,
        down: 0,
        greeted: false,
    };
    stream.set_nodelay(true).ok();
    loop {
        let last = stop.set.load(Relaxed);
        let started = Instant::now();
        match timeout(
            options.deadline,
            talk.exchange(&mut stream, &mut random, record),
        )
        .await
        {
            Ok(Ok(())) => {}
            Ok(Err(end)) => return end,
            Err(_) => return End::Silence,
        }
        let took = started.elapsed();
        record
            .slowest_us
            .fetch_max(took.as_micros() as u64, Relaxed);
        record.stalls.fetch_add(u64::from(took > STALL), Relaxed);
        record.exchanges.fetch_add(1, Relaxed);
        record.open.store(true, Relaxed);
        if last {
            return close(stream, options.deadline).await;
        }
        // Half to one and a half of the mean, so that connections do not keep step.
        let mean_us = options.interval.as_micros() as u64;
        let pause = Duration::from_micros(mean_us / 2 + random.below(mean_us + 1));
        let stopped = stop.notify.notified();
        if !stop.set.load(Relaxed) {
            timeout(pause, stopped).await.ok();
        }
    }
}

/// Closes and waits for the server's end of it, which comes only if the server
/// has read everything.
async fn close(mut stream: TcpStream, deadline: Duration) -> End {
    let ending = async {
        stream.shutdown().await?;
        stream.read(&mut [0; 1]).await
    };
    match timeout(deadline, ending).await {
        Ok(Ok(0)) => End::Closed,
        Ok(Ok(_)) => End::Mismatch,
        Ok(Err(error)) => end_of(&error),
        Err(_) => End::Silence,
    }
}

/// Where one connection's two streams stand.
struct Talk {
    seed: u64,
    up: u64,
    down: u64,
    greeted: bool,
}

impl Talk {
    async fn exchange(
        &mut self,
        stream: &mut TcpStream,
        random: &mut Random,
        record: &Record,
    ) -> Result<(), End> {
        let (len, answer_len) = (length(random), length(random));
        let mut request = Vec::with_capacity(24 + len);
        if !self.greeted {
            request.extend(MAGIC);
            request.extend(self.seed.to_be_bytes());
            self.greeted = true;
        }
        request.extend((len as u32).to_be_bytes());
        request.extend((answer_len as u32).to_be_bytes());
        let start = request.len();
        request.resize(start + len, 0);
        crate::random::stream(self.seed, self.up, &mut request[start..]);
        stream
            .write_all(&request)
            .await
            .map_err(|error| end_of(&error))?;
        self.up += len as u64;

        let mut got = vec![0; answer_len];
        stream
            .read_exact(&mut got)
            .await
            .map_err(|error| end_of(&error))?;
        let mut wanted = vec![0; answer_len];
        crate::random::stream(down(self.seed), self.down, &mut wanted);
        if got != wanted {
            return Err(End::Mismatch);
        }
        self.down += answer_len as u64;
        record.bytes_up.fetch_add(len as u64, Relaxed);
        record.bytes_down.fetch_add(answer_len as u64, Relaxed);
        Ok(())
    }
}

/// Mostly one segment, now and then many.
fn length(random: &mut Random) -> usize {
    let bound = if random.below(8) == 0 {
        32 * 1024
    } else {
        1400
    };
    1 + random.below(bound) as usize
}

pub(crate) fn end_of(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
        io::ErrorKind::TimedOut => End::Silence,
        io::ErrorKind::UnexpectedEof => End::Ended,
        _ => End::Other(error.to_string()),
    }
}

/// Opens one connection after another to `target` for `duration` and lets each have
/// one exchange. Returns how many went well and what went wrong with the others.
pub async fn churn(target: SocketAddr, duration: Duration, seed: u64) -> (u64, Vec<End>) {
    let options = Options {
        connections: 1,
        targets: vec![target],
        seed,
        interval: Duration::ZERO,
        deadline: Duration::from_secs(5),
    };
    let stop = Stop::default();
    stop.set.store(true, Relaxed);
    let deadline = Instant::now() + duration;
    let (mut well, mut ends) = (0, Vec::new());
    let mut number = 0;
    while Instant::now() < deadline {
        match connection(&options, number, &Record::default(), &stop).await {
            End::Closed => well += 1,
            end => {
                ends.push(end);
                sleep(Duration::from_millis(10)).await;
            }
        }
        number += 1;
    }
    (well, ends)
}
