//! Two hosts' machines against each other, with ports and carriers in memory.

mod cases;
mod random;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
    rc::Rc,
};

use bytes::Bytes;
use homing_client::message::{
    record::{self, Fate, Header, Kind},
    wire::Refused,
};
use homing_common::host::HostId;
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

use super::{Core, Output, Wanted};
use crate::{
    mux::{
        Outcome, SHORT_MAX, Size, carriers,
        sockets::{
            Limits, PeerInfo,
            bundle::SocketId,
            port::{Came, Port},
        },
    },
    pop::Stream,
};

/// Both ends of a message socket's descriptor.
#[derive(Clone, Default)]
pub struct Pipe(Rc<RefCell<Ends>>);

#[derive(Default)]
pub struct Ends {
    /// From the application, and to it.
    sent: VecDeque<Vec<u8>>,
    received: VecDeque<Vec<u8>>,
    /// Datagrams that the kernel holds for a reader.
    room: usize,
    closed: bool,
    gone: bool,
}

/// The agent's end.
pub struct End(Pipe);

// SAFETY: the tests have one thread.
unsafe impl Send for End {}

impl Drop for End {
    fn drop(&mut self) {
        self.0.0.borrow_mut().gone = true;
    }
}

impl Port for End {
    fn receive(&self, into: &mut [u8]) -> io::Result<Came> {
        let mut ends = self.0.0.borrow_mut();
        match ends.sent.pop_front() {
            Some(datagram) if datagram.len() >= into.len() => Ok(Came::TooLong),
            Some(datagram) => {
                into[..datagram.len()].copy_from_slice(&datagram);
                Ok(Came::Datagram(datagram.len()))
            }
            None if ends.closed => Ok(Came::End),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn send(&self, parts: [&[u8]; 2]) -> io::Result<()> {
        let mut ends = self.0.0.borrow_mut();
        if ends.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if ends.received.len() >= ends.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        ends.received.push_back(parts.concat());
        Ok(())
    }

    fn is_hung_up(&self) -> bool {
        self.0.0.borrow().closed
    }
}

impl Pipe {
    fn new() -> Self {
        let pipe = Self::default();
        pipe.0.borrow_mut().room = 8;
        pipe
    }

    /// The application sends a datagram.
    fn send(&self, datagram: Vec<u8>) {
        self.0.borrow_mut().sent.push_back(datagram);
    }

    /// The application receives a datagram.
    fn receive(&self) -> Option<Vec<u8>> {
        self.0.borrow_mut().received.pop_front()
    }

    fn close(&self) {
        self.0.borrow_mut().closed = true;
    }

    fn is_gone(&self) -> bool {
        self.0.borrow().gone
    }
}

/// A record, as an application sends it.
pub fn record(header: Header, body: &[u8]) -> Vec<u8> {
    let len = body.len() as u32;
    [&Header { len, ..header }.encode()[..], body].concat()
}

/// A message, with name and flags.
pub fn message(name: u64, flags: u8, body: &[u8]) -> Vec<u8> {
    let header = Header {
        name,
        flags,
        ..Header::message(0)
    };
    record(header, body)
}

/// The records of a datagram.
pub fn records(datagram: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut rest = datagram;
    let records = std::iter::from_fn(|| record::split(&mut rest));
    records
        .map(|(header, body)| (header, body.to_vec()))
        .collect()
}

/// A message of a carrier, on its way.
#[derive(Debug)]
pub struct Flying {
    pub from: HostId,
    pub to: HostId,
    pub source: Option<SocketId>,
    pub body: Bytes,
    pub hint: carriers::Hint,
    pub insists: bool,
}

/// Hosts, and what travels between them.
pub struct Pop {
    pub hosts: BTreeMap<HostId, Core<End>>,
    pub ready: VecDeque<(HostId, HostId, SocketId, Size)>,
    pub flying: VecDeque<Flying>,
    pub connected: BTreeMap<(HostId, u32), Result<SocketId, Refused>>,
    pub now: u64,
}

pub const STREAM: Stream = Stream {
    incarnation: 1,
    generation: 1,
};

impl Pop {
    pub fn new(hosts: u16, limits: Limits) -> Self {
        let make = |host: u16| {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(host.into());
            let random = move || random.random();
            (HostId(host), Core::new(HostId(host), limits, random))
        };
        let mut pop = Self {
            hosts: (1..=hosts).map(make).collect(),
            ready: VecDeque::new(),
            flying: VecDeque::new(),
            connected: BTreeMap::new(),
            now: 1,
        };
        pop.introduce();
        pop
    }

    /// Tells all of all.
    pub fn introduce(&mut self) {
        let info = |core: &Core<End>| PeerInfo {
            stream: STREAM,
            offers: core.offers(),
            draining: false,
        };
        let all: BTreeMap<_, _> = self
            .hosts
            .iter()
            .map(|(host, core)| (*host, info(core)))
            .collect();
        self.hosts
            .values_mut()
            .for_each(|core| core.set_peers(all.clone()));
    }

    pub fn offer(&mut self, host: u16, name: &str, batches: bool) -> (SocketId, Pipe) {
        let pipe = Pipe::new();
        let core = self.hosts.get_mut(&HostId(host)).unwrap();
        let (id, _) = core.offer(End(pipe.clone()), name, batches).unwrap();
        self.introduce();
        (id, pipe)
    }

    pub fn begin_connect(&mut self, host: u16, name: &str, to: Option<u16>) -> (u32, Pipe) {
        let pipe = Pipe::new();
        let wanted = Wanted {
            name,
            host: to.map(HostId),
            batches: false,
            within: 1_000_000,
        };
        let core = self.hosts.get_mut(&HostId(host)).unwrap();
        let request = core.connect(End(pipe.clone()), &wanted, self.now).unwrap();
        (request, pipe)
    }

    pub fn connect(&mut self, host: u16, name: &str) -> (SocketId, Pipe) {
        let (request, pipe) = self.begin_connect(host, name, None);
        self.run();
        let id = self.connected[&(HostId(host), request)].unwrap();
        (id, pipe)
    }

    /// Reads what the application of a message socket has sent, and writes what waits.
    pub fn poll(&mut self, host: HostId, id: SocketId) {
        let now = self.now;
        if let Some(core) = self.hosts.get_mut(&host) {
            core.readable(id, now);
            core.writable(id);
        }
    }

    /// Takes the outputs of a host. Whether there were any.
    pub fn collect(&mut self, host: HostId) -> bool {
        let Some(core) = self.hosts.get_mut(&host) else {
            return false;
        };
        let outputs = core.outputs();
        let any = !outputs.is_empty();
        for output in outputs {
            match output {
                Output::Ready(to, id, size) if to == host => core.loop_back(id, size, self.now),
                Output::Ready(to, id, size) => self.ready.push_back((host, to, id, size)),
                Output::Say(to, body) => self.flying.push_back(Flying::said(host, to, body, false)),
                Output::Insist(to, body) => {
                    self.flying.push_back(Flying::said(host, to, body, true));
                }
                Output::Connected(request, result) => {
                    let result = result.map(|(id, _)| id);
                    self.connected.insert((host, request), result);
                }
                Output::Wake(_) | Output::Gone(_) => {}
            }
        }
        any
    }

    /// Lets a carrier pull from the source whose turn it is.
    pub fn pull(&mut self) -> bool {
        let Some((host, to, id, size)) = self.ready.pop_front() else {
            return false;
        };
        let core = self.hosts.get_mut(&host);
        if let Some(pulled) = core.and_then(|core| core.pull(to, id, size)) {
            assert_eq!(pulled.body.len() > SHORT_MAX, size == Size::Long);
            if pulled.more {
                self.ready.push_back((host, to, id, size));
            }
            self.flying.push_back(Flying {
                from: host,
                to,
                source: Some(id),
                body: pulled.body,
                hint: pulled.hint,
                insists: false,
            });
        }
        true
    }

    /// A message arrives, and its fate is told.
    pub fn arrive(&mut self, flying: Flying) {
        let len = flying.body.len();
        let core = self.hosts.get_mut(&flying.to).unwrap();
        let is_long = len > SHORT_MAX;
        let outcome = if is_long && !core.offered(flying.from, &flying.hint, len) {
            Outcome::Declined
        } else {
            let note = core.receive(flying.from, &flying.body, self.now).note;
            let note = (!note.is_empty()).then(|| Bytes::from(note));
            Outcome::Fate(carriers::Fate::Delivered(STREAM), note)
        };
        self.told(&flying, outcome);
    }

    pub fn told(&mut self, flying: &Flying, outcome: Outcome) {
        if let (Some(source), Some(core)) = (flying.source, self.hosts.get_mut(&flying.from)) {
            core.ended(flying.to, source, &flying.body, outcome, self.now);
        }
    }

    /// Does all that can be done without the applications.
    pub fn run(&mut self) {
        loop {
            let hosts: Vec<_> = self.hosts.keys().copied().collect();
            let mut any = false;
            for host in hosts {
                any |= self.collect(host);
            }
            any |= self.pull();
            if let Some(flying) = self.flying.pop_front() {
                any = true;
                self.arrive(flying);
            }
            if !any {
                return;
            }
        }
    }

    /// Runs, with these message sockets polled until nothing changes.
    pub fn run_with(&mut self, sockets: &[(u16, SocketId)]) {
        loop {
            for &(host, id) in sockets {
                self.poll(HostId(host), id);
            }
            let before = self.messages();
            self.run();
            if self.messages() == before {
                return;
            }
        }
    }

    fn messages(&self) -> Vec<super::Counters> {
        self.hosts.values().map(|core| core.counters).collect()
    }

    pub fn tick(&mut self, by: u64) {
        self.now += by;
        for core in self.hosts.values_mut() {
            core.tick(self.now);
        }
        self.run();
    }
}

impl Flying {
    fn said(from: HostId, to: HostId, body: Bytes, insists: bool) -> Self {
        Self {
            from,
            to,
            source: None,
            body,
            hint: carriers::Hint::default(),
            insists,
        }
    }
}

/// The fate that a record tells, and of which message.
pub fn fate(datagram: &[u8]) -> (u64, Fate) {
    let (header, body) = records(datagram).remove(0);
    assert_eq!((header.kind, body.len()), (Kind::Fate, 0));
    (header.number, Fate::from_code(header.code).unwrap())
}
