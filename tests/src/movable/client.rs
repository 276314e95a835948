//! The clients: thousands of connections from one machine, each with a record of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::{connection::Talk, raise_file_limit, record::Record};
use crate::{
    lab::{Lab, Node, node, wait_until},
    random::Random,
    workload::{End, client},
};

/// How many connections are being opened at any time: no SYN is to be lost because a
/// server cannot keep up.
const OPENING: usize = 64;
/// How many reasons a report names.
const REASONS: usize = 5;

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Checked data both ways at once, so many bytes a second (0: as fast as it goes).
    Bulk {
        /// To the server.
        up: u64,
        /// From the server.
        down: u64,
    },
    /// So many bytes, which come back; then a pause.
    Echo {
        /// The pause.
        every: Duration,
        /// The bytes.
        len: usize,
    },
    /// A line, which is answered; then a pause.
    Lines {
        /// The pause.
        every: Duration,
    },
    /// The client ends its half, and the server, in `CLOSE_WAIT`, sends so many bytes;
    /// then another such connection.
    CloseWait {
        /// The bytes.
        len: u64,
        /// How many in a second.
        rate: u64,
    },
    /// The server sends so many bytes and ends its half; in `FIN_WAIT2` it goes on
    /// reading.
    FinWait {
        /// The bytes.
        len: u64,
        /// How many the client sends in a second.
        up: u64,
    },
}

impl Work {
    /// Whether there is another connection after one that has ended as it should.
    pub(super) fn repeats(self) -> bool {
        matches!(self, Self::CloseWait { .. })
    }
}

/// What the clients are to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What each connection does: there are as many as this says.
    pub work: Vec<Work>,
    /// Where they connect to, in turn.
    pub targets: Vec<SocketAddr>,
    /// Decides all bytes.
    pub seed: u64,
    /// A connection without progress for so long is broken.
    pub deadline: Duration,
}

/// Clients at work, on a thread of their own.
#[derive(Debug)]
pub struct Clients {
    records: Arc<Vec<Record>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<Vec<End>>>>,
}

/// One connection, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The client's end of it and the server's; none if none was ever open.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// It is open and unbroken.
    pub live: bool,
    /// How often bytes have gone both ways.
    pub rounds: u64,
    /// The longest time it waited for bytes: of an exchange, or between two arrivals.
    pub longest: Duration,
}

/// What became of the connections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many were held at the same time.
    pub connections: u64,
    /// How many were opened: more, where one comes after another.
    pub opened: u64,
    /// Those that could not be established.
    pub not_opened: u64,
    /// Those that were established and then broke, for any of the reasons below.
    pub broken: u64,
    /// … because the client saw a reset.
    pub resets: u64,
    /// … because nothing came or went any more.
    pub silences: u64,
    /// … because wrong bytes came, or the server says that they did.
    pub mismatches: u64,
    /// … because the server ended it.
    pub early_ends: u64,
    /// … because of another error.
    pub other: u64,
    /// How often bytes have gone both ways.
    pub rounds: u64,
    /// Bytes that the servers checked, and said so.
    pub bytes_up: u64,
    /// Bytes that the clients checked.
    pub bytes_down: u64,
    /// Segments that the clients' kernel sent again, by `TCP_INFO` of each.
    pub retransmits: u64,
    /// The longest time that one of them waited for bytes, in milliseconds.
    pub longest_ms: f64,
    /// The first few reasons in words.
    pub reasons: Vec<String>,
}

impl Clients {
    /// Starts clients on a machine of the lab.
    pub fn start(lab: &Lab, machine: Node, options: Options) -> Result<Self> {
        let namespace = node::open_namespace(&lab.namespace(machine))?;
        Self::start_in(Some(namespace), options)
    }

    /// Starts clients in a network namespace, or in this process's own.
    pub fn start_in(namespace: Option<std::fs::File>, options: Options) -> Result<Self> {
        ensure!(!options.targets.is_empty(), "clients need a target");
        raise_file_limit();
        let records: Vec<_> = options.work.iter().map(|_| Record::default()).collect();
        let records = Arc::new(records);
        let (stop, stopped) = watch::channel(false);
        let theirs = Arc::clone(&records);
        let thread = client::spawn(namespace, move |runtime| {
            tokio::task::LocalSet::new().block_on(runtime, run(options, theirs, stopped))
        })?;
        Ok(Self {
            records,
            stop,
            thread: Some(thread),
        })
    }

    /// How many connections there are, open or not.
    pub fn total(&self) -> u64 {
        self.records.len() as u64
    }

    /// How many connections are open and unbroken.
    pub fn live(&self) -> u64 {
        let live = |record: &&Record| record.open.load(Relaxed) && !record.over.load(Relaxed);
        self.records.iter().filter(live).count() as u64
    }

    /// How many connections have ended, as they should or not.
    pub fn over(&self) -> u64 {
        let over = |record: &&Record| record.over.load(Relaxed);
        self.records.iter().filter(over).count() as u64
    }

    /// The connections, in the order of [`Options::work`].
    pub fn seen(&self) -> Vec<Seen> {
        let seen = |record: &Record| Seen {
            ends: record.ends(),
            live: record.open.load(Relaxed) && !record.over.load(Relaxed),
            rounds: record.rounds.load(Relaxed),
            longest: Duration::from_micros(record.longest_us.load(Relaxed)),
        };
        self.records.iter().map(seen).collect()
    }

    /// Forgets the longest waits so far.
    pub fn forget_waits(&self) {
        for record in self.records.iter() {
            record.longest_us.store(0, Relaxed);
        }
    }

    /// Waits until every connection is open, bytes having gone both ways. One that has
    /// ended is an error.
    pub fn wait_open(&self, timeout: Duration) -> Result<()> {
        let all = self.total();
        let done = wait_until(timeout, || {
            if self.over() > 0 {
                bail!("connections ended before all {all} were open");
            }
            Ok(self.live() == all)
        })?;
        let live = self.live();
        ensure!(
            done,
            "only {live} of {all} connections were open after {timeout:?}"
        );
        Ok(())
    }

    /// Waits until bytes have gone both ways `rounds` more times on each connection that
    /// has not ended. Returns how many have not.
    pub fn wait_rounds(&self, rounds: u64, timeout: Duration) -> Result<u64> {
        let now = |record: &Record| record.rounds.load(Relaxed);
        let wanted: Vec<u64> = self.records.iter().map(|r| now(r) + rounds).collect();
        let done = wait_until(timeout, || {
            let mut pairs = self.records.iter().zip(&wanted);
            Ok(pairs.all(|(record, wanted)| record.over.load(Relaxed) || now(record) >= *wanted))
        })?;
        ensure!(
            done,
            "some connections neither went on nor broke within {timeout:?}"
        );
        Ok(self.live())
    }

    /// What became of them so far. How connections ended is known once they
    /// [have finished](Self::finish).
    pub fn report(&self) -> Report {
        let sum = |field: fn(&Record) -> &std::sync::atomic::AtomicU64| -> u64 {
            self.records.iter().map(|r| field(r).load(Relaxed)).sum()
        };
        let longest = self
            .records
            .iter()
            .map(|r| r.longest_us.load(Relaxed))
            .max();
        Report {
            connections: self.total(),
            opened: sum(|r| &r.opened),
            rounds: sum(|r| &r.rounds),
            bytes_up: sum(|r| &r.up),
            bytes_down: sum(|r| &r.down),
            retransmits: sum(|r| &r.retransmits),
            longest_ms: longest.unwrap_or_default() as f64 / 1000.0,
            ..Report::default()
        }
    }

    /// Lets every connection end as it should, and sums up.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.send_replace(true);
        let ends = client::join(self.thread.take())?;
        let mut report = self.report();
        report.add(&ends);
        Ok(report)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // The thread ends by itself; nothing is left to wait for.
        self.stop.send_replace(true);
    }
}

impl Report {
    fn add(&mut self, ends: &[End]) {
        for (number, end) in ends.iter().enumerate() {
            let counter = match end {
                End::Closed => continue,
                End::NotOpened(_) => &mut self.not_opened,
                End::Reset => &mut self.resets,
                End::Silence => &mut self.silences,
                End::Mismatch => &mut self.mismatches,
                End::Ended => &mut self.early_ends,
                End::Other(_) => &mut self.other,
            };
            *counter += 1;
            if !matches!(end, End::NotOpened(_)) {
                self.broken += 1;
            }
            if self.reasons.len() < REASONS {
                self.reasons.push(format!("connection {number}: {end:?}"));
            }
        }
    }
}

async fn run(
    options: Options,
    records: Arc<Vec<Record>>,
    stop: watch::Receiver<bool>,
) -> Result<Vec<End>> {
    let opening = Arc::new(Semaphore::new(OPENING));
    let tasks: Vec<_> = options
        .work
        .iter()
        .enumerate()
        .map(|(number, &work)| {
            let (records, stop, opening) = (Arc::clone(&records), stop.clone(), opening.clone());
            let target = options.targets[number % options.targets.len()];
            let deadline = options.deadline;
            let random = Random::new(options.seed ^ (number as u64) << 32);
            tokio::task::spawn_local(async move {
                let record = &records[number];
                let mut talk = Talk {
                    work,
                    target,
                    deadline,
                    record,
                    stop,
                    random,
                };
                let end = talk.hold(&opening).await;
                record.over.store(true, Relaxed);
                end
            })
        })
        .collect();
    let mut ends = Vec::with_capacity(tasks.len());
    for task in tasks {
        ends.push(task.await?);
    }
    Ok(ends)
}
