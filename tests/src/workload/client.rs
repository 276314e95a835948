//! The clients: many connections from one machine, each with a record of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use super::connection::{End, Record, Stop, connection};
use crate::lab::{Lab, Node, node, wait_until};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// What the clients are to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many connections, spread evenly over `targets`.
    pub connections: u32,
    /// Where to connect to.
    pub targets: Vec<SocketAddr>,
    /// Decides all lengths, pauses and bytes.
    pub seed: u64,
    /// The mean pause between two exchanges of a connection.
    pub interval: Duration,
    /// A connection without progress for so long is broken.
    pub deadline: Duration,
}

/// Clients at work, on a thread of their own.
#[derive(Debug)]
pub struct Clients {
    records: Arc<Vec<Record>>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Result<Vec<End>>>>,
}

/// What became of the connections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many connections were to be made.
    pub connections: u64,
    /// Those that could not be established.
    pub not_opened: u64,
    /// Those that were established and then broke, for any of the reasons below.
    pub broken: u64,
    /// … because the client saw a reset.
    pub resets: u64,
    /// … because nothing came any more.
    pub silences: u64,
    /// … because wrong bytes came.
    pub mismatches: u64,
    /// … because the other side ended it.
    pub early_ends: u64,
    /// … because of another error.
    pub other: u64,
    /// Exchanges that went well.
    pub exchanges: u64,
    /// Bytes that a server checked.
    pub bytes_up: u64,
    /// Bytes that a client checked.
    pub bytes_down: u64,
    /// Exchanges that took more than half a second.
    pub stalls: u64,
    /// The slowest exchange that went well, in milliseconds.
    pub slowest_ms: f64,
    /// The first few reasons in words.
    pub reasons: Vec<String>,
}

impl Clients {
    /// Starts clients on a machine of the lab.
    pub fn start(lab: &Lab, machine: Node, options: Options) -> Result<Self> {
        Self::start_in(
            Some(node::open_namespace(&lab.namespace(machine))?),
            options,
        )
    }

    /// Starts clients in a network namespace, or in this process's own.
    pub fn start_in(namespace: Option<std::fs::File>, options: Options) -> Result<Self> {
        ensure!(!options.targets.is_empty(), "clients need a target");
        let records: Arc<Vec<Record>> = Arc::new(
            (0..options.connections)
                .map(|_| Record::default())
                .collect(),
        );
        let stop = Arc::new(Stop::default());
        let (theirs, their_stop) = (Arc::clone(&records), Arc::clone(&stop));
        let thread = spawn(namespace, move |runtime| {
            runtime.block_on(run(options, theirs, their_stop))
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
        self.live_records().count() as u64
    }

    /// Waits until every connection is open. One that cannot be opened is an error.
    pub fn wait_open(&self, timeout: Duration) -> Result<()> {
        let all = self.records.len();
        let count = |of: fn(&Record) -> bool| self.records.iter().filter(|r| of(r)).count();
        let done = wait_until(timeout, || {
            if count(|r| r.over.load(Relaxed)) > 0 {
                bail!("connections ended before all {all} were open");
            }
            Ok(count(|r| r.open.load(Relaxed)) == all)
        })?;
        ensure!(
            done,
            "only {} of {all} connections were open after {timeout:?}",
            count(|r| r.open.load(Relaxed))
        );
        Ok(())
    }

    /// Waits until every unbroken connection has had `rounds` more exchanges, or has
    /// broken. Returns how many are unbroken.
    pub fn wait_rounds(&self, rounds: u64, timeout: Duration) -> Result<u64> {
        let before: Vec<u64> = self
            .records
            .iter()
            .map(|r| r.exchanges.load(Relaxed))
            .collect();
        let done = wait_until(timeout, || {
            Ok(self.records.iter().zip(&before).all(|(record, before)| {
                record.over.load(Relaxed) || record.exchanges.load(Relaxed) >= before + rounds
            }))
        })?;
        ensure!(
            done,
            "some connections neither went on nor broke within {timeout:?}"
        );
        Ok(self.live())
    }

    /// Lets every connection finish its exchange and close, and sums up.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.set.store(true, Relaxed);
        self.stop.notify.notify_waiters();
        let ends = join(self.thread.take())?;
        Ok(self.sum_up(&ends))
    }

    fn live_records(&self) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(|r| r.open.load(Relaxed) && !r.over.load(Relaxed))
    }

    fn sum_up(&self, ends: &[End]) -> Report {
        let mut report = Report {
            connections: self.total(),
            ..Report::default()
        };
        for record in self.records.iter() {
            report.exchanges += record.exchanges.load(Relaxed);
            report.bytes_up += record.bytes_up.load(Relaxed);
            report.bytes_down += record.bytes_down.load(Relaxed);
            report.stalls += record.stalls.load(Relaxed);
            report.slowest_ms = report
                .slowest_ms
                .max(record.slowest_us.load(Relaxed) as f64 / 1000.0);
        }
        for (number, end) in ends.iter().enumerate() {
            let counter = match end {
                End::Closed => continue,
                End::NotOpened(_) => &mut report.not_opened,
                End::Reset => &mut report.resets,
                End::Silence => &mut report.silences,
                End::Mismatch => &mut report.mismatches,
                End::Ended => &mut report.early_ends,
                End::Other(_) => &mut report.other,
            };
            *counter += 1;
            if !matches!(end, End::NotOpened(_)) {
                report.broken += 1;
            }
            if report.reasons.len() < 5 {
                report.reasons.push(format!("connection {number}: {end:?}"));
            }
        }
        report
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // The thread ends by itself; nothing is left to wait for.
        self.stop.set.store(true, Relaxed);
        self.stop.notify.notify_waiters();
    }
}

/// Runs clients on a thread of their own, in a network namespace or in this process's own.
pub(crate) fn spawn(
    namespace: Option<std::fs::File>,
    work: impl FnOnce(&tokio::runtime::Runtime) -> Result<Vec<End>> + Send + 'static,
) -> Result<JoinHandle<Result<Vec<End>>>> {
    let work = move || {
        if let Some(namespace) = namespace {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .context("cannot enter the clients' network namespace")?;
        }
        // One thread: it alone is in the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        work(&runtime)
    };
    let thread = std::thread::Builder::new().name("clients".to_owned());
    Ok(thread.spawn(work)?)
}

/// How the connections of such a thread ended, once it has.
pub(crate) fn join(thread: Option<JoinHandle<Result<Vec<End>>>>) -> Result<Vec<End>> {
    let thread = thread.context("the clients have finished already")?;
    let joined = thread.join();
    joined.map_err(|_| anyhow::anyhow!("the clients' thread panicked"))?
}

async fn run(options: Options, records: Arc<Vec<Record>>, stop: Arc<Stop>) -> Result<Vec<End>> {
    let options = Arc::new(options);
    let tasks: Vec<_> = (0..records.len())
        .map(|number| {
            let (options, records, stop) = (
                Arc::clone(&options),
                Arc::clone(&records),
                Arc::clone(&stop),
            );
            tokio::spawn(async move {
                let record = &records[number];
                let end = connection(&options, number, record, &stop).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::sleep,
    };

    fn options(target: SocketAddr) -> Options {
        Options {
            connections: 8,
            targets: vec![target],
            seed: 5,
            interval: Duration::from_millis(5),
            deadline: Duration::from_millis(500),
        }
    }

    /// Serves on a free port of the loopback with `answer` on a thread that ends
    /// with the test program.
    fn server<F: Future<Output = ()> + 'static>(
        answer: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::task::spawn_local(answer(stream));
                }
            });
        });
        address
    }

    #[test]
    fn good_connections_are_counted_as_good() {
        let address = server(|stream| async move {
            super::super::server::answer(stream).await.unwrap();
        });
        let clients = Clients::start_in(None, options(address)).unwrap();
        clients.wait_open(Duration::from_secs(5)).unwrap();
        assert_eq!(clients.wait_rounds(5, Duration::from_secs(5)).unwrap(), 8);
        let report = clients.finish().unwrap();
        assert_eq!((report.broken, report.not_opened), (0, 0), "{report:?}");
        assert!(report.exchanges >= 40 && report.bytes_up > 0 && report.bytes_down > 0);
    }

    #[test]
    fn every_way_to_break_is_noticed() {
        let broken = |address| {
            let clients = Clients::start_in(None, options(address)).unwrap();
            clients.wait_rounds(1, Duration::from_secs(5)).unwrap();
            clients.finish().unwrap()
        };
        let report = broken(server(|mut stream| async move {
            stream.read_exact(&mut [0; 8]).await.unwrap();
            let _ = stream.set_zero_linger();
        }));
        assert_eq!((report.broken, report.resets), (8, 8), "{report:?}");
        // Servers that keep still: the clients' deadline ends the wait, long before this.
        let report = broken(server(|stream| async move {
            sleep(Duration::from_secs(60)).await;
            drop(stream);
        }));
        assert_eq!((report.broken, report.silences), (8, 8), "{report:?}");
        let report = broken(server(|mut stream| async move {
            stream.write_all(&[1; 64 * 1024]).await.ok();
            sleep(Duration::from_secs(60)).await;
        }));
        assert_eq!((report.broken, report.mismatches), (8, 8), "{report:?}");
        let report = broken(server(|mut stream| async move {
            let mut all = vec![0; 64 * 1024];
            while stream.read(&mut all).await.is_ok_and(|n| n == all.len()) {}
            stream.shutdown().await.ok();
            while stream.read(&mut all).await.is_ok_and(|n| n > 0) {}
        }));
        assert_eq!((report.broken, report.early_ends), (8, 8), "{report:?}");
        let unused = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let report = broken(unused);
        assert_eq!((report.broken, report.not_opened), (0, 8), "{report:?}");
    }
}
