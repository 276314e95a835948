//! Connections of a client, from their start to their end: those that stay open at both
//! ends. `half` has the others.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::consume_budget,
    time::{sleep, sleep_until, timeout},
};

use super::{
    ENDLESS, RIGHT, TRAILER_LEN, Work, down,
    half::{close_wait, fin_wait},
    kernel,
    pace::{Allowed, Pace},
    record::Record,
};
use crate::{
    random::{Random, stream as fill},
    workload::{End, end_of},
};

/// How much is written at once.
const CHUNK: u64 = 16 * 1024;
/// How much is read at once.
const READ: usize = 16 * 1024;

/// What a connection needs to know.
pub(super) struct Talk<'a> {
    pub work: Work,
    pub target: SocketAddr,
    /// Without progress for so long it is broken.
    pub deadline: Duration,
    pub record: &'a Record,
    pub stop: watch::Receiver<bool>,
    pub random: Random,
}

impl Talk<'_> {
    /// Holds a connection, or one after another, until it is told to stop.
    /// `opening` bounds how many are being opened.
    pub async fn hold(&mut self, opening: &Semaphore) -> End {
        loop {
            let place = opening.acquire().await;
            let stream = match self.open().await {
                Ok(stream) => stream,
                Err(end) => return end,
            };
            drop(place);
            let end = self.one(&stream).await.err().unwrap_or(End::Closed);
            if let Ok(info) = kernel::info(&stream) {
                let all = &self.record.retransmits;
                all.fetch_add(info.retransmits, Relaxed);
            }
            if end != End::Closed || self.stopped() || !self.work.repeats() {
                return end;
            }
        }
    }

    async fn open(&self) -> Result<TcpStream, End> {
        let failed = |why: String| End::NotOpened(format!("{}: {why}", self.target));
        let stream = match timeout(self.deadline, TcpStream::connect(self.target)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("no answer".to_owned())),
        };
        stream.set_nodelay(true).ok();
        let own = stream
            .local_addr()
            .map_err(|error| failed(error.to_string()))?;
        self.record.begin((own, self.target));
        Ok(stream)
    }

    async fn one(&mut self, stream: &TcpStream) -> Result<(), End> {
        let seed = self.random.next();
        match self.work {
            Work::Bulk { up, down } => self.bulk(stream, seed, up, down).await,
            Work::Echo { every, len } => self.echo(stream, seed, every, len).await,
            Work::Lines { every } => self.lines(stream, every).await,
            Work::CloseWait { len, rate } => close_wait(self, stream, seed, len, rate).await,
            Work::FinWait { len, up } => fin_wait(self, stream, seed, len, up).await,
        }
    }

    pub fn stopped(&self) -> bool {
        // If nobody can say so any more, that says it.
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    async fn bulk(&self, stream: &TcpStream, seed: u64, up: u64, down: u64) -> Result<(), End> {
        let greeting = format!("bulk {seed} {ENDLESS} {down}\n");
        self.write(stream, greeting.as_bytes()).await?;
        let sent = Cell::new(0);
        let reads = async {
            let mut check = Check::new(seed, TRAILER_LEN);
            while let Some(bytes) = self.read(stream, true).await? {
                self.record.news_down(check.take(&bytes)?);
            }
            if !self.stopped() && !check.is_trailer() {
                return Err(End::Ended);
            }
            self.trailer(&check, sent.get())
        };
        tokio::try_join!(self.write_stream(stream, seed, up, &sent), reads).map(drop)
    }

    /// What the server says at the end must be that all was right.
    pub fn trailer(&self, check: &Check, sent: u64) -> Result<(), End> {
        let (count, verdict) = check.trailer().ok_or(End::Ended)?;
        if (count, verdict) != (sent, RIGHT) {
            return Err(End::Mismatch);
        }
        let up = &self.record.up;
        up.fetch_add(sent, Relaxed);
        Ok(())
    }

    /// Sends the stream of the seed, until it is told to stop; then ends its half.
    pub async fn write_stream(
        &self,
        stream: &TcpStream,
        seed: u64,
        rate: u64,
        sent: &Cell<u64>,
    ) -> Result<(), End> {
        let mut pace = Pace::new(rate, 0);
        let mut stop = self.stop.clone();
        let mut confirmed = 0;
        let mut confirmed_at = Instant::now();
        while !self.stopped() {
            match pace.allowed() {
                Allowed::Bytes(allowed) => {
                    let mut chunk = vec![0; allowed.min(CHUNK) as usize];
                    fill(seed, sent.get(), &mut chunk);
                    self.write(stream, &chunk).await?;
                    pace.sent(chunk.len() as u64);
                    sent.set(sent.get() + chunk.len() as u64);
                }
                Allowed::NotBefore(time) => {
                    tokio::select! {
                        () = sleep_until(time) => {}
                        _ = stop.changed() => {}
                    }
                }
            }
            let left = kernel::unconfirmed(stream).map_err(|error| end_of(&error))?;
            let now = sent.get().saturating_sub(left);
            if now > confirmed {
                confirmed = now;
                confirmed_at = Instant::now();
                self.record.news_up();
            } else if left == 0 {
                confirmed_at = Instant::now();
            } else if confirmed_at.elapsed() > self.deadline {
                return Err(End::Silence);
            }
        }
        half_close(stream)
    }

    async fn echo(
        &self,
        stream: &TcpStream,
        seed: u64,
        every: Duration,
        len: usize,
    ) -> Result<(), End> {
        self.write(stream, b"echo\n").await?;
        let mut wanted = vec![0; len];
        let mut offset = 0;
        while !self.stopped() {
            fill(seed, offset, &mut wanted);
            offset += len as u64;
            self.exchange(stream, &wanted, &wanted).await?;
            self.pause(every).await;
        }
        self.finish(stream).await
    }

    async fn lines(&self, stream: &TcpStream, every: Duration) -> Result<(), End> {
        let mut number = 0u64;
        while !self.stopped() {
            number += 1;
            let line = format!("line {number}\n");
            let answer = format!("{number}: {line}");
            self.exchange(stream, line.as_bytes(), answer.as_bytes())
                .await?;
            self.pause(every).await;
        }
        self.finish(stream).await
    }

    /// Says something, and gets what it should.
    async fn exchange(&self, stream: &TcpStream, say: &[u8], wanted: &[u8]) -> Result<(), End> {
        let started = Instant::now();
        self.write(stream, say).await?;
        let mut got = Vec::with_capacity(wanted.len());
        while got.len() < wanted.len() {
            let Some(bytes) = self.read(stream, false).await? else {
                return Err(End::Ended);
            };
            got.extend(bytes);
        }
        if got != wanted {
            return Err(End::Mismatch);
        }
        self.record.waited(started.elapsed());
        let len = got.len() as u64;
        let (up, down) = (&self.record.up, &self.record.down);
        // What came back was right, and so was what went.
        up.fetch_add(say.len() as u64, Relaxed);
        down.fetch_add(len, Relaxed);
        self.record.round();
        Ok(())
    }

    async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            let mut stop = self.stop.clone();
            tokio::select! {
                () = sleep(time) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Ends its half; the server's end of it comes only if it has read everything.
    async fn finish(&self, stream: &TcpStream) -> Result<(), End> {
        half_close(stream)?;
        match self.read(stream, false).await? {
            None => Ok(()),
            Some(_) => Err(End::Mismatch),
        }
    }

    pub async fn write(&self, stream: &TcpStream, bytes: &[u8]) -> Result<(), End> {
        match timeout(self.deadline, write_all(stream, bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(end_of(&error)),
            Err(_) => Err(End::Silence),
        }
    }

    /// What comes next; none at the end. `counts`: how long it took counts as a gap.
    pub async fn read(&self, stream: &TcpStream, counts: bool) -> Result<Option<Vec<u8>>, End> {
        let mut buffer = vec![0; READ];
        let started = Instant::now();
        match timeout(self.deadline, read(stream, &mut buffer)).await {
            Ok(Ok(0)) => Ok(None),
            Ok(Ok(len)) => {
                if counts {
                    self.record.waited(started.elapsed());
                }
                buffer.truncate(len);
                Ok(Some(buffer))
            }
            Ok(Err(error)) => Err(end_of(&error)),
            Err(_) => Err(End::Silence),
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        // One that can always be written is not to keep the others waiting.
        consume_budget().await;
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read(stream: &TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        consume_budget().await;
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

pub(super) fn half_close(stream: &TcpStream) -> Result<(), End> {
    let shut = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
    shut.map_err(|error| end_of(&error))
}

/// What a bulk connection's server sent, checked as it comes; the last bytes are held
/// back, for they may be the trailer.
pub(super) struct Check {
    seed: u64,
    offset: u64,
    held: Vec<u8>,
    hold: usize,
}

impl Check {
    /// A check that holds so many bytes back.
    pub fn new(seed: u64, hold: usize) -> Self {
        Self {
            seed: down(seed),
            offset: 0,
            held: Vec::new(),
            hold,
        }
    }

    /// Takes what came; says how many bytes were right.
    pub fn take(&mut self, bytes: &[u8]) -> Result<u64, End> {
        self.held.extend(bytes);
        let len = self.held.len().saturating_sub(self.hold);
        let mut wanted = vec![0; len];
        fill(self.seed, self.offset, &mut wanted);
        if self.held[..len] != wanted {
            return Err(End::Mismatch);
        }
        self.held.drain(..len);
        self.offset += len as u64;
        Ok(len as u64)
    }

    /// How many bytes were right.
    pub fn len(&self) -> u64 {
        self.offset
    }

    fn is_trailer(&self) -> bool {
        self.trailer()
            .is_some_and(|(_, verdict)| [RIGHT, super::WRONG].contains(&verdict))
    }

    fn trailer(&self) -> Option<(u64, u64)> {
        let (count, rest) = self.held.split_first_chunk()?;
        let verdict = rest.try_into().ok()?;
        Some((u64::from_be_bytes(*count), u64::from_be_bytes(verdict)))
    }
}
