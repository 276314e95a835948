//! The client: a stream of small echoes, and when each arrived.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use socket2::SockRef;

use super::application::Work;
use crate::lab::{Lab, Node, node};

/// The length of an echo: its number.
const ECHO_LEN: usize = 8;
/// How long an echo may take until the connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a connection from the client's machine.
pub fn connect(lab: &Lab, to: SocketAddr, work: Work) -> Result<TcpStream> {
    node::in_namespace(&lab.namespace(Node::Client(1)), || open(to, work))
}

/// Opens so many connections, all for the same.
pub fn connect_many(lab: &Lab, to: SocketAddr, work: Work, count: usize) -> Result<Vec<TcpStream>> {
    node::in_namespace(&lab.namespace(Node::Client(1)), || {
        (0..count).map(|_| open(to, work)).collect()
    })
}

fn open(to: SocketAddr, work: Work) -> Result<TcpStream> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if matches!(work, Work::Fill { .. }) {
        // Little of what the server writes is to find room here.
        socket.set_recv_buffer_size(4096)?;
    }
    socket
        .connect_timeout(&to.into(), PATIENCE)
        .with_context(|| format!("cannot connect to {to}"))?;
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    // It ends with a reset, and leaves no TIME_WAIT.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(&work.hello())?;
    Ok(stream)
}

/// A stream of echoes that runs until it is finished.
pub struct Echoes {
    stream: TcpStream,
    start: Instant,
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicUsize>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Vec<u64>>>,
}

impl Echoes {
    /// Sends one every `interval`. So many bytes of what is sent stay unread at the
    /// server.
    pub fn start(lab: &Lab, to: SocketAddr, interval: Duration, behind: u32) -> Result<Self> {
        let mut stream = connect(lab, to, Work::Echo { behind })?;
        // What stays unread are the echoes before the first that comes back: so they are
        // numbered as all are.
        let ahead = u64::from(behind) / ECHO_LEN as u64;
        let first: Vec<u8> = (0..ahead).flat_map(u64::to_be_bytes).collect();
        stream.write_all(&first)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (stop, arrived) = (Arc::default(), Arc::default());
        let start = Instant::now();
        let sender = {
            let (stream, stop) = (stream.try_clone()?, Arc::clone(&stop));
            thread::spawn(move || send(stream, ahead, interval, &stop))
        };
        let receiver = {
            let (stream, arrived) = (stream.try_clone()?, Arc::clone(&arrived));
            thread::spawn(move || receive(stream, start, &arrived))
        };
        Ok(Self {
            stream,
            start,
            stop,
            arrived,
            sender,
            receiver,
        })
    }

    /// The client's address.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Now, as arrivals are told: in microseconds.
    pub fn now_us(&self) -> u64 {
        us_since(self.start)
    }

    /// Waits until so many more echoes have arrived.
    pub fn wait(&self, more: usize) -> Result<()> {
        let wanted = self.arrived.load(Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.arrived.load(Relaxed) < wanted {
            let arrived = self.arrived.load(Relaxed);
            ensure!(
                Instant::now() < deadline && !self.receiver.is_finished(),
                "the stream of echoes broke off after {arrived}, before {wanted}"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the stream: when each echo arrived, in microseconds. An echo that is wrong or
    /// did not come is an error.
    pub fn finish(self) -> Result<Vec<u64>> {
        self.stop.store(true, Relaxed);
        let sent = self.sender.join();
        sent.map_err(|_| anyhow!("the sender of echoes panicked"))??;
        self.stream.shutdown(Shutdown::Read)?;
        let received = self.receiver.join();
        received.map_err(|_| anyhow!("the receiver of echoes panicked"))?
    }
}

fn send(mut stream: TcpStream, first: u64, interval: Duration, stop: &AtomicBool) -> Result<()> {
    wake_on_time()?;
    let start = Instant::now();
    for number in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let due = start + interval.mul_f64(number as f64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let echo = (first + number).to_be_bytes();
        stream.write_all(&echo).context("cannot send an echo")?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, start: Instant, arrived: &AtomicUsize) -> Result<Vec<u64>> {
    let mut arrivals: Vec<u64> = Vec::with_capacity(1 << 20);
    let mut buffer = [0; 4096];
    let mut held = 0;
    loop {
        let len = match stream.read(&mut buffer[held..]) {
            // The end that `finish` makes.
            Ok(0) => return Ok(arrivals),
            Ok(len) => held + len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("an echo did not come"),
        };
        let now = us_since(start);
        let (echoes, rest) = buffer[..len].as_chunks::<ECHO_LEN>();
        for echo in echoes {
            let number = u64::from_be_bytes(*echo);
            if number != arrivals.len() as u64 {
                bail!("echo {} came, not {}", number, arrivals.len());
            }
            arrivals.push(now);
        }
        held = rest.len();
        buffer.copy_within(len - held..len, 0);
        arrived.store(arrivals.len(), Relaxed);
    }
}

/// Timers of this thread end on time, not up to 50 µs later.
fn wake_on_time() -> Result<()> {
    nix::sys::prctl::set_timerslack(1).context("cannot set the slack of timers")
}

fn us_since(start: Instant) -> u64 {
    start.elapsed().as_micros() as u64
}
