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
    lab::{Lab, Node, node::in_namespace, wait_until},
    random::stream,
    workload::{MAGIC, MAX_LEN, down},
};

use super::common::{FORGOTTEN, PATIENCE, Pop};

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

/// Bulk data both ways over connections of one host, while ECMP sends all of their
/// packets to the others and changes again and again.
pub struct Detour {
    connections: Vec<Bulk>,
    requests: u64,
}

impl Detour {
    /// The host that owns the connections.
    pub const OWNER: u16 = 2;
    /// The hosts that their packets come to, in turn: never the owner.
    const ORDERS: [&[u16]; 5] = [&[1], &[3], &[3, 1], &[1, 3], &[1]];

    /// Opens so many connections, half of them over IPv6, each for so many requests;
    /// from now on their packets come to others.
    pub fn open(pop: &mut Pop, connections: usize, requests: u64) -> Self {
        pop.lab.set_ecmp(&[Self::OWNER]).unwrap();
        let services = pop.lab.plan().service(443);
        let open = |n: usize| Bulk::open(&pop.lab, services[n % 2], n as u64).unwrap();
        let connections: Vec<Bulk> = (0..connections).map(open).collect();
        let sessions = connections.len() as u64;
        pop.lab.wait_settled(sessions, PATIENCE).unwrap();
        pop.lab.set_ecmp(Self::ORDERS[0]).unwrap();
        Self {
            connections,
            requests,
        }
    }

    /// The bytes that go each way.
    pub fn bytes(&self) -> u64 {
        self.connections.len() as u64 * self.requests * u64::from(MAX_LEN)
    }

    /// Exchanges all; every byte must come, and be right. Then the connections close.
    pub fn run(mut self, pop: &mut Pop) {
        let (checked, all) = (AtomicU64::new(0), self.bytes());
        let failed = thread::scope(|scope| {
            let (connections, requests, checked) = (&mut self.connections, self.requests, &checked);
            let exchange =
                scope.spawn(move || exchange_all(connections, requests, PATIENCE, checked));
            for (order, step) in Self::ORDERS[1..].iter().zip(1..) {
                let share = all / Self::ORDERS.len() as u64 * step;
                let reached = || exchange.is_finished() || checked.load(Relaxed) >= share;
                wait_until(8 * PATIENCE, || Ok(reached())).unwrap();
                pop.lab.set_ecmp(order).unwrap();
            }
            exchange.join().unwrap()
        });
        assert!(failed.is_empty(), "{failed:?}\n{}", pop.outcomes());
        assert_eq!(checked.load(Relaxed), all);
        drop(self.connections);
        pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    }
}
