//! Connections that carry much data both ways at once, of which both ends check every
//! byte: the client here, and the lab's server, which answers nothing once a byte
//! was wrong.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use homing_tests::{
    lab::{Lab, Node, node::in_namespace},
    random::stream,
    workload::{MAGIC, MAX_LEN, down},
};

/// One connection.
pub struct Bulk {
    stream: TcpStream,
    seed: u64,
    up: u64,
    down: u64,
}

impl Bulk {
    /// Opens one from the lab's client; the seed decides its bytes.
    pub fn open(lab: &Lab, service: SocketAddr, seed: u64) -> io::Result<Self> {
        let mut stream = in_namespace(&lab.namespace(Node::Client(1)), || {
            Ok(TcpStream::connect(service)?)
        })
        .map_err(io::Error::other)?;
        stream.write_all(&MAGIC)?;
        stream.write_all(&seed.to_be_bytes())?;
        Ok(Self {
            stream,
            seed,
            up: 0,
            down: 0,
        })
    }

    /// Sends so many requests of [`MAX_LEN`] bytes, and gets as many answers of as
    /// many, both at once. Bytes that were checked are added to `checked`. Nothing
    /// moving for as long as `patience` is an error.
    pub fn exchange(
        &mut self,
        requests: u64,
        patience: Duration,
        checked: &AtomicU64,
    ) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))?;
        let (seed, up) = (self.seed, self.up);
        let mut writer = self.stream.try_clone()?;
        thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let mut request = vec![0; 8 + MAX_LEN as usize];
                request[..4].copy_from_slice(&MAX_LEN.to_be_bytes());
                request[4..8].copy_from_slice(&MAX_LEN.to_be_bytes());
                for number in 0..requests {
                    stream(seed, up + number * u64::from(MAX_LEN), &mut request[8..]);
                    writer.write_all(&request)?;
                }
                Ok(())
            });
            let read = self.read(requests, checked);
            if read.is_err() {
                // The other thread may wait for room that nobody makes any more.
                self.stream.shutdown(std::net::Shutdown::Both).ok();
            }
            let written = writing.join().expect("no panic");
            self.up += requests * u64::from(MAX_LEN);
            read.and(written)
        })
    }

    fn read(&mut self, requests: u64, checked: &AtomicU64) -> io::Result<()> {
        let mut got = vec![0; MAX_LEN as usize];
        let mut wanted = got.clone();
        for _ in 0..requests {
            self.stream.read_exact(&mut got)?;
            stream(down(self.seed), self.down, &mut wanted);
            if got != wanted {
                return Err(io::Error::other("bytes came that nobody sent"));
            }
            self.down += u64::from(MAX_LEN);
            checked.fetch_add(u64::from(MAX_LEN), Relaxed);
        }
        Ok(())
    }
}

/// Lets all connections exchange at once; returns what went wrong with each that
/// failed.
pub fn exchange_all(
    connections: &mut [Bulk],
    requests: u64,
    patience: Duration,
    checked: &AtomicU64,
) -> Vec<io::Error> {
    thread::scope(|scope| {
        let exchange = |bulk: &'_ mut Bulk| bulk.exchange(requests, patience, checked).err();
        let threads: Vec<_> = connections
            .iter_mut()
            .map(|bulk| scope.spawn(move || exchange(bulk)))
            .collect();
        let ends = threads.into_iter().map(|t| t.join().expect("no panic"));
        ends.flatten().collect()
    })
}
