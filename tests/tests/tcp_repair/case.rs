//! One connection, brought into a state, moved, and checked to its end.

use std::{
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    thread,
};

use homing_agent::datapath::repair::{Frozen, Restored, Snapshot, State, check, restore};
use homing_tests::random;
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    machine::Machine,
    socket::{PATIENCE, SIOCOUTQNSD, owned, queued, set_int, state, until},
    switch::{A, Switch},
    trace::{self, DOWN, UP},
};

/// What stands in the server's send queue when the session moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Out {
    Nothing,
    /// So many bytes, sent and not acknowledged: at most what a new connection sends.
    Unacknowledged(usize),
    /// So many bytes, of which the client's window is full of the first ones, and the rest
    /// was never sent.
    Unsent(usize),
    /// So many bytes, more than the congestion window: some sent, some never.
    Both(usize),
}

/// Who has shut down writing when the session moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shut {
    Nobody,
    Client,
    /// The server; the client has acknowledged that.
    Server,
    /// The server; the client has not.
    ServerUnacknowledged,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    pub v6: bool,
    /// The service listens on one socket for both versions, and the client comes by IPv4.
    pub mapped: bool,
    /// Bytes that the server has received and not read.
    pub unread: usize,
    pub out: Out,
    pub shut: Shut,
    /// Lines of `/proc/sys/net/` of the client and of host A: B stays as kernels come.
    pub client_settings: Vec<(&'static str, String)>,
    pub host_settings: Vec<(&'static str, String)>,
    /// What the client and the service say the largest window may be.
    pub clamps: [Option<i32>; 2],
    pub mss: Option<u32>,
    pub congestion: Option<&'static str>,
    /// How often the session moves, there and back.
    pub moves: usize,
}

impl Case {
    pub fn new() -> Self {
        Self {
            v6: false,
            mapped: false,
            unread: 0,
            out: Out::Nothing,
            shut: Shut::Nobody,
            client_settings: Vec::new(),
            host_settings: Vec::new(),
            clamps: [None; 2],
            mss: None,
            congestion: None,
            moves: 1,
        }
    }
}

/// A client and two hosts with a listener each.
pub struct Pop {
    pub switch: Switch,
    listeners: Vec<Socket>,
    service: SocketAddr,
    case: Case,
}

const PORT: u16 = 7000;
const SERVICE_V4: &str = "203.0.113.10";
const SERVICE_V6: &str = "2001:db8:1::10";
const CLIENT_V4: &str = "198.51.100.7";
const CLIENT_V6: &str = "2001:db8:7::7";

impl Pop {
    pub fn new(case: &Case) -> Self {
        let machine =
            |addresses: [&str; 2], settings: &[(&str, String)]| Machine::new(&addresses, settings);
        let hosts = [&case.host_settings[..], &[]];
        let hosts = hosts.map(|settings| machine([SERVICE_V4, SERVICE_V6], settings));
        let client = machine([CLIENT_V4, CLIENT_V6], &case.client_settings);
        let switch = Switch::new(client, hosts);
        let address = if case.v6 { SERVICE_V6 } else { SERVICE_V4 };
        let service = SocketAddr::new(address.parse().unwrap(), PORT);
        let listeners = [0, 1].map(|host| switch.host(host).on(|| listener(case, service)));
        Self {
            switch,
            listeners: listeners.into(),
            service,
            case: case.clone(),
        }
    }

    /// A client of host A.
    pub fn connect(&self) -> Talk {
        let case = &self.case;
        let client = self.switch.client().on(|| {
            let client = socket(if case.v6 { Domain::IPV6 } else { Domain::IPV4 });
            if let Some(mss) = case.mss {
                client.set_tcp_mss(mss).unwrap();
            }
            clamp(&client, case.clamps[0]);
            if matches!(case.out, Out::Unsent(_)) {
                client.set_recv_buffer_size(8192).unwrap();
            }
            let from = if case.v6 { CLIENT_V6 } else { CLIENT_V4 };
            let from: SocketAddr = SocketAddr::new(from.parse().unwrap(), 0);
            client.bind(&from.into()).unwrap();
            client
                .connect_timeout(&self.service.into(), PATIENCE)
                .unwrap();
            client
        });
        let (server, _) = self.listeners[A].accept().unwrap();
        let [client, server] = [client, server].map(TcpStream::from);
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        Talk {
            client,
            server,
            said: [0; 2],
            heard: [0; 2],
        }
    }

    /// Takes the connection out of the host it is on: its state, as bytes.
    pub fn take(&self, server: &TcpStream, host: usize) -> Vec<u8> {
        self.switch.host(host).on(|| {
            let frozen = Frozen::enter(owned(server)).unwrap();
            let snapshot = frozen.snapshot().unwrap();
            let bytes = snapshot.encode();
            assert_eq!(frozen.sequence().unwrap(), snapshot.sequence());
            frozen.destroy().unwrap();
            bytes
        })
    }

    /// Puts it into another, beside the listener there.
    pub fn put(&self, bytes: &[u8], host: usize) -> Restored {
        let up = |packet: &[u8]| {
            self.switch.host(host).receive(packet);
            Ok(())
        };
        let both = self.case.v6 || self.case.mapped;
        self.switch.host(host).on(|| {
            let fresh = socket(if both { Domain::IPV6 } else { Domain::IPV4 });
            restore(fresh.into(), Snapshot::decode(bytes).unwrap(), &up).unwrap()
        })
    }

    /// Lets it go on there. The client's packets still wait.
    pub fn activate(&self, restored: Restored, host: usize) -> TcpStream {
        let machine = self.switch.host(host);
        let up = |packet: &[u8]| {
            machine.receive(packet);
            Ok(())
        };
        self.switch.release(host);
        let active = machine.on(|| restored.activate(&up).unwrap());
        assert!(active.flaw.is_none(), "{:?}", active.flaw);
        TcpStream::from(active.socket)
    }

    /// The same, and gives it the packets that wait.
    pub fn go_on(&self, restored: Restored, host: usize) -> TcpStream {
        let server = self.activate(restored, host);
        self.switch.feed();
        server
    }

    /// All of a move.
    pub fn move_to(&self, server: TcpStream, host: usize) -> TcpStream {
        self.switch
            .host(1 - host)
            .on(|| check(server.as_fd()).unwrap());
        self.switch.freeze();
        let bytes = self.take(&server, 1 - host);
        let restored = self.put(&bytes, host);
        self.go_on(restored, host)
    }

    /// Closes a host's listener, and opens it again.
    pub fn restart_listener(&mut self, host: usize) {
        // Ends it whoever else has a descriptor: a child that another test has just forked,
        // and that has not become its program yet.
        let old = self.listeners.remove(host);
        old.shutdown(Shutdown::Both).unwrap();
        drop(old);
        let again = self
            .switch
            .host(host)
            .on(|| listener(&self.case, self.service));
        self.listeners.insert(host, again);
    }
}

fn listener(case: &Case, service: SocketAddr) -> Socket {
    let domain = Domain::for_address(service);
    let listener = socket(if case.mapped { Domain::IPV6 } else { domain });
    listener.set_reuse_address(true).unwrap();
    clamp(&listener, case.clamps[1]);
    if let Some(name) = case.congestion {
        listener.set_tcp_congestion(name.as_bytes()).unwrap();
    }
    // For what the largest cases have in their queues, beyond the machine's limit.
    if case.unread.max(out_len(case.out)) > 100_000 {
        for name in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            set_int(&listener, libc::SOL_SOCKET, name, 4 << 20);
        }
    }
    let at: SocketAddr = if case.mapped {
        format!("[::]:{PORT}").parse().unwrap()
    } else {
        service
    };
    listener.bind(&at.into()).unwrap();
    listener.listen(8).unwrap();
    listener
}

fn socket(domain: Domain) -> Socket {
    Socket::new(domain, Type::STREAM, None).unwrap()
}

fn clamp(socket: &Socket, window: Option<i32>) {
    if let Some(window) = window {
        set_int(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, window);
    }
}

fn out_len(out: Out) -> usize {
    match out {
        Out::Nothing => 0,
        Out::Unacknowledged(len) | Out::Unsent(len) | Out::Both(len) => len,
    }
}

/// What both ends say, each an endless stream of known bytes, and how far they are.
pub struct Talk {
    pub client: TcpStream,
    pub server: TcpStream,
    /// By the client, by the server.
    pub said: [u64; 2],
    heard: [u64; 2],
}

impl Talk {
    pub fn client_says(&mut self, len: usize) {
        self.client.write_all(&part(UP, self.said[0], len)).unwrap();
        self.said[0] += len as u64;
    }

    /// As much as fits into the send queue now.
    pub fn server_says(&mut self, most: usize) -> usize {
        self.server.set_nonblocking(true).unwrap();
        let mut said = 0;
        let all = part(DOWN, self.said[1], most);
        while said < most {
            match self.server.write(&all[said..]) {
                Ok(len) => said += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.server.set_nonblocking(false).unwrap();
        self.said[1] += said as u64;
        said
    }

    /// Both ends hear all that was said, and it is that.
    pub fn hear_all(&mut self) {
        let Self {
            client,
            server,
            said,
            heard,
        } = self;
        thread::scope(|scope| {
            let up = scope.spawn(|| hear(server, UP, heard[0]..said[0]));
            hear(client, DOWN, heard[1]..said[1]);
            up.join().unwrap();
        });
        *heard = *said;
    }

    /// Both ends say and hear so much more, as far as they have not shut down writing.
    pub fn go_on(&mut self, len: usize, shut: Shut) {
        let more = [shut != Shut::Client, !server_shut(shut)];
        let parts =
            [(UP, self.said[0]), (DOWN, self.said[1])].map(|(seed, at)| part(seed, at, len));
        for side in [0, 1].into_iter().filter(|side| more[*side]) {
            self.said[side] += len as u64;
        }
        let [mut client, mut server] = [&self.client, &self.server].map(|s| s.try_clone().unwrap());
        thread::scope(|scope| {
            if more[0] {
                scope.spawn(|| client.write_all(&parts[0]).unwrap());
            }
            if more[1] {
                scope.spawn(|| server.write_all(&parts[1]).unwrap());
            }
            self.hear_all();
        });
    }

    /// Shuts down whatever is still open; both ends hear of the end, and of nothing else.
    pub fn end(mut self, shut: Shut) {
        if shut != Shut::Client {
            self.client.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(self.server.read(&mut [0]).unwrap(), 0, "more than was said");
        if !server_shut(shut) {
            self.server.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(self.client.read(&mut [0]).unwrap(), 0, "more than was said");
    }

    /// Brings the connection into the state that the case is about. Where something is not
    /// to be acknowledged, the client's packets wait in the switch from then on.
    fn prepare(&mut self, pop: &Pop) {
        let Case {
            unread, out, shut, ..
        } = pop.case;
        until("all is acknowledged so far", || {
            queued(&self.server, libc::TIOCOUTQ) == 0
        });
        self.client_says(unread);
        until("the client's data is there", || {
            queued(&self.server, libc::FIONREAD) == unread
        });
        if shut == Shut::Client {
            self.client.shutdown(Shutdown::Write).unwrap();
            until("the client's FIN is there", || {
                state(&self.server) == State::CloseWait as u8
            });
        }
        if matches!(out, Out::Unacknowledged(_) | Out::Both(_)) {
            pop.switch.park();
        }
        let said = self.server_says(out_len(out));
        let not_acknowledged = || queued(&self.server, libc::TIOCOUTQ);
        let never_sent = || queued(&self.server, SIOCOUTQNSD);
        match out {
            Out::Nothing => {}
            Out::Unacknowledged(len) => assert_eq!((not_acknowledged(), never_sent()), (len, 0)),
            Out::Unsent(_) => until("the client's window is full", || {
                never_sent() > 0 && never_sent() == not_acknowledged()
            }),
            Out::Both(_) => assert!(never_sent() > 0 && never_sent() < said),
        }
        // What is frozen on its way would have to be sent again.
        let sent = || self.said[1] - never_sent() as u64;
        until("all that was sent is on the client's wire", || {
            trace::read(&pop.switch.seen()).iter().any(|segment| {
                !segment.from_client && segment.offset + segment.payload.len() as u64 == sent()
            })
        });
        if shut == Shut::ServerUnacknowledged {
            pop.switch.park();
        }
        if server_shut(shut) {
            self.server.shutdown(Shutdown::Write).unwrap();
        }
        if shut == Shut::Server {
            until("the client acknowledges the FIN", || {
                state(&self.server) == State::FinWait2 as u8
            });
        }
    }
}

fn server_shut(shut: Shut) -> bool {
    matches!(shut, Shut::Server | Shut::ServerUnacknowledged)
}

fn part(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut part = vec![0; len];
    random::stream(seed, offset, &mut part);
    part
}

fn hear(stream: &mut TcpStream, seed: u64, range: std::ops::Range<u64>) {
    let mut buffer = vec![0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let most = buffer.len().min((range.end - at) as usize);
        let len = match stream.read(&mut buffer[..most]) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => panic!("after {at} of {} bytes: {error}", range.end),
        };
        assert!(len > 0, "an end after {at} of {} bytes", range.end);
        assert!(
            buffer[..len] == part(seed, at, len),
            "wrong bytes after {at}"
        );
        at += len as u64;
    }
}

/// What a case's trace held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Segments sent again during the moves and until all that stood in queues had arrived:
    /// by the client, by the hosts.
    pub repeated: [usize; 2],
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [client, hosts] = self.repeated;
        write!(
            f,
            "sent again by the client: {client}, by the hosts: {hosts}"
        )
    }
}

/// Plays a case: all bytes arrive both ways, each once; both ends close in order; and on
/// the client's wire there is no reset.
pub fn play(case: &Case) -> Report {
    let pop = Pop::new(case);
    let mut talk = pop.connect();
    talk.go_on(3000, Shut::Nobody);
    talk.prepare(&pop);
    let start = trace::read(&pop.switch.seen()).len();
    let mut host = A;
    for _ in 0..case.moves {
        host = 1 - host;
        talk.server = pop.move_to(talk.server, host);
        talk.server.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(SockRef::from(&talk.server).reuse_address().unwrap());
    }
    talk.hear_all();
    let repeated = trace::repeated(&trace::read(&pop.switch.seen()), start);
    talk.go_on(40_000, case.shut);
    talk.end(case.shut);
    trace::judge(&trace::read(&pop.switch.seen()));
    let report = Report { repeated };
    println!("{case:?}: {report}");
    report
}
