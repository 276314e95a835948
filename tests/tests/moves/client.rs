//! A client of a puppet, which checks every byte.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use homing_tests::{
    lab::{Lab, Node, node::in_namespace},
    puppet::seeds,
    random::stream,
};
use socket2::{Domain, SockRef, Socket, Type};

use super::common::{Named, PATIENCE, Session};

/// What a client's socket is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// Bytes of its receive buffer.
    pub buffer: Option<usize>,
    /// The largest segment that it takes.
    pub mss: Option<u32>,
    /// The largest window that it offers.
    pub clamp: Option<i32>,
}

/// One connection.
pub struct Client {
    pub address: SocketAddr,
    pub service: SocketAddr,
    stream: TcpStream,
    said: u64,
    heard: u64,
    /// The same, for others.
    progress: Arc<AtomicU64>,
}

impl Client {
    pub fn connect(lab: &Lab, service: SocketAddr, wish: Wish) -> Self {
        let stream = in_namespace(&lab.namespace(Node::Client(1)), || {
            let socket = Socket::new(Domain::for_address(service), Type::STREAM, None)?;
            if let Some(bytes) = wish.buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            if let Some(mss) = wish.mss {
                socket.set_tcp_mss(mss)?;
            }
            if let Some(window) = wish.clamp {
                clamp(&socket, window)?;
            }
            socket.connect_timeout(&service.into(), PATIENCE)?;
            Ok(TcpStream::from(socket))
        });
        let stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            address: stream.local_addr().unwrap(),
            service,
            stream,
            said: 0,
            heard: 0,
            progress: Arc::default(),
        }
    }

    /// How much it has heard, kept up to date.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    pub fn say(&mut self, len: u64) {
        self.try_say(len).unwrap();
    }

    /// Hears so much, and it is what it must be.
    pub fn hear(&mut self, len: u64) {
        self.try_hear(len).unwrap();
    }

    /// Says so much and hears as much, which is what one that answers says.
    pub fn exchange(&mut self, len: u64) {
        self.try_exchange(len).unwrap();
    }

    pub fn try_exchange(&mut self, len: u64) -> Result<(), String> {
        self.try_say(len)?;
        self.try_hear(len)
    }

    /// Says so much while it hears as much.
    pub fn bulk(&mut self, len: u64) {
        self.try_bulk(len).unwrap();
    }

    pub fn try_bulk(&mut self, len: u64) -> Result<(), String> {
        let mut writer = self.stream.try_clone().unwrap();
        let (client, from) = (self.address, self.said);
        self.said += len;
        thread::scope(|scope| {
            let said = scope.spawn(move || say(&mut writer, client, from, len));
            let heard = self.try_hear(len);
            heard.and(said.join().unwrap())
        })
    }

    /// Ends its side.
    pub fn shut(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Hears the end, and nothing before it.
    pub fn hear_end(&mut self) {
        assert_eq!(self.stream.read(&mut [0; 16]).unwrap(), 0);
    }

    /// Lets go of it with a reset.
    pub fn reset(self) -> SocketAddr {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        self.address
    }

    /// Exchanges a little again and again, until it is asked back.
    pub fn chat(self) -> Chat {
        self.until_asked(|client| {
            // Not too fast for what is captured, and for who else is here.
            thread::sleep(Duration::from_millis(2));
            client.try_exchange(100)
        })
    }

    /// Says a little again and again, and does not wait for answers, until it is asked
    /// back. Something is always on its way, as long as answers come within some hundred
    /// sayings.
    pub fn stream(self) -> Chat {
        self.until_asked(|client| {
            thread::sleep(Duration::from_micros(100));
            client.try_say(100)?;
            let ahead = client.said - client.heard;
            client.try_hear(ahead.saturating_sub(40_000))
        })
    }

    fn until_asked(
        mut self,
        mut what: impl FnMut(&mut Self) -> Result<(), String> + Send + 'static,
    ) -> Chat {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let (address, service) = (self.address, self.service);
        let thread = thread::spawn(move || {
            while !until.load(Relaxed) {
                if let Err(error) = what(&mut self) {
                    return Err((self, error));
                }
            }
            match self.try_hear(self.said - self.heard) {
                Ok(()) => Ok(self),
                Err(error) => Err((self, error)),
            }
        });
        Chat {
            address,
            service,
            stop,
            thread,
        }
    }

    fn try_say(&mut self, len: u64) -> Result<(), String> {
        let from = self.said;
        self.said += len;
        say(&mut self.stream, self.address, from, len)
    }

    fn try_hear(&mut self, len: u64) -> Result<(), String> {
        let seed = seeds(self.address)[1];
        let end = self.heard + len;
        let mut got = vec![0; 64 << 10];
        while self.heard < end {
            let most = got.len().min((end - self.heard) as usize);
            let len = match self.stream.read(&mut got[..most]) {
                Ok(0) => return Err(format!("an end after {} of {end} bytes", self.heard)),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("after {} of {end} bytes: {error}", self.heard)),
            };
            let mut wanted = vec![0; len];
            stream(seed, self.heard, &mut wanted);
            assert!(
                got[..len] == wanted,
                "wrong bytes within {len} from {}",
                self.heard
            );
            self.heard += len as u64;
            self.progress.store(self.heard, Relaxed);
        }
        Ok(())
    }
}

fn say(stream: &mut TcpStream, client: SocketAddr, from: u64, len: u64) -> Result<(), String> {
    const PART: u64 = 64 << 10;
    let mut at = from;
    while at < from + len {
        let mut part = vec![0; PART.min(from + len - at) as usize];
        homing_tests::random::stream(seeds(client)[0], at, &mut part);
        let written = stream.write_all(&part);
        written.map_err(|error| format!("cannot say bytes from {at}: {error}"))?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Bounds the window that a socket offers.
fn clamp(socket: &Socket, window: i32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the value is an integer, as its length says, and outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const window).cast(),
            size_of_val(&window) as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A client that exchanges on a thread of its own.
pub struct Chat {
    pub address: SocketAddr,
    service: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Client, (Client, String)>>,
}

impl Chat {
    /// Ends the exchanges, all of which must have gone well.
    pub fn end(self) -> Client {
        match self.try_end() {
            Ok(client) => client,
            Err((client, error)) => panic!("the session of {}: {error}", client.address),
        }
    }

    /// Ends the exchanges; an error says how they have ended by themselves.
    pub fn try_end(self) -> Result<Client, (Client, String)> {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

impl Session for Chat {
    fn named(&self) -> Named {
        Named(self.address, self.service)
    }
}

impl Session for Client {
    fn named(&self) -> Named {
        Named(self.address, self.service)
    }
}
