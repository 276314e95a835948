//! What an agent hears of message sockets: from other agents, and from applications.

use std::{cell::RefCell, collections::VecDeque, io, sync::Mutex};

use bytes::Bytes;
use homing_agent::mux::{
    Hint, Outcome, Size,
    carriers::Fate,
    sockets::{
        Limits, Wanted,
        bundle::{self, Note, Said, SocketId},
        core::{Core, Output},
        port::{Came, Port},
    },
};
use homing_agent::pop::Stream;
use homing_client::message::{
    record::{self, Header},
    wire::{Answer, Ask, Request},
};
use homing_common::host::HostId;

const ME: HostId = HostId(1);
const OTHER: HostId = HostId(2);

/// An application that has sent something, and reads nothing.
struct End(Mutex<RefCell<VecDeque<Vec<u8>>>>);

impl End {
    fn new(sent: &[&[u8]]) -> Self {
        let sent = sent.iter().map(|datagram| datagram.to_vec());
        Self(Mutex::new(RefCell::new(sent.collect())))
    }
}

impl Port for End {
    fn receive(&self, into: &mut [u8]) -> io::Result<Came> {
        let sent = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
        let Some(datagram) = sent.borrow_mut().pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if datagram.len() >= into.len() {
            return Ok(Came::TooLong);
        }
        into[..datagram.len()].copy_from_slice(&datagram);
        Ok(Came::Datagram(datagram.len()))
    }

    fn send(&self, _: [&[u8]; 2]) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn is_hung_up(&self) -> bool {
        false
    }
}

/// A machine with a service, and ids that are known: the first is [`SERVICE`].
fn machine(sent: &[&[u8]]) -> Core<End> {
    let limits = Limits {
        unread_per_socket: 10_000,
        unread_total: 100_000,
        ..Limits::default()
    };
    let mut core = Core::new(ME, limits, || 0);
    let offered = core.offer(End::new(sent), "seed", true);
    assert_eq!(offered.map(|(id, _)| id), Ok(SERVICE));
    core
}

/// The first id of a machine without chance.
const SERVICE: SocketId = SocketId(1 << 47);

/// The bytes as each of what they may be, then as what another agent says to a machine
/// and an application sends to it.
pub fn hear(bytes: &[u8]) {
    let _ = (
        Request::decode(bytes),
        Answer::decode(bytes),
        Note::decode(bytes),
    );
    let mut rest = bytes;
    while record::split(&mut rest).is_some() {}
    let mut core = machine(&[bytes]);
    let wanted = Wanted {
        name: "seed",
        host: None,
        batches: false,
        within: 1000,
    };
    let _ = core.connect(End::new(&[bytes]), &wanted, 0);
    core.receive(OTHER, bytes, 0);
    core.readable(SERVICE, 0);
    if let Some((hint, rest)) = bytes.split_first_chunk::<16>() {
        let hint: Hint = *hint;
        core.offered(OTHER, &hint, rest.len());
        core.withdrawn(&hint, rest.len());
    }
    // Whatever another agent may say of what was sent.
    let note = Some(Bytes::copy_from_slice(bytes));
    let outcome = Outcome::Fate(Fate::Delivered(Stream::default()), note);
    for output in core.outputs() {
        if let Output::Ready(host, id, size) = output {
            pull(&mut core, host, id, size, &outcome);
        }
    }
    core.tick(10_000_000);
    core.stop();
}

fn pull(core: &mut Core<End>, host: HostId, id: SocketId, size: Size, outcome: &Outcome) {
    if let Some(pulled) = core.pull(host, id, size) {
        core.ended(host, id, &pulled.body, outcome.clone(), 0);
    }
}

/// What applications and agents say.
pub fn seeds() -> Vec<Vec<u8>> {
    let record = |peer, body: &[u8]| {
        let header = Header {
            peer,
            ..Header::message(body.len())
        };
        [&header.encode()[..], body].concat()
    };
    let ask = Ask::Connect {
        name: "seed",
        host: 2,
        within_ms: 10,
    };
    let request = |ask| {
        let request = Request {
            number: 1,
            batches: true,
            ask,
        };
        request.encode()
    };
    let mut note = Note::default();
    note.push(0, bundle::Why::Wait);
    let said = [
        Said::Bundle {
            turn: 1,
            from: SocketId(5),
            settled: 1,
            records: &[record(SERVICE.0, b"one"), record(SERVICE.0, b"two")].concat(),
        }
        .encode(),
        Said::Open {
            request: 1,
            name: "seed",
        }
        .encode(),
        Said::Opened {
            request: 1,
            result: Ok((SocketId(5), 1000)),
        }
        .encode(),
        Said::GoOn {
            to: SERVICE,
            peer: SocketId(5),
        }
        .encode(),
        Said::Closed {
            socket: SocketId(5),
        }
        .encode(),
    ];
    let mut seeds = vec![
        request(ask),
        request(Ask::Offer { name: "seed" }),
        record(0, b"body"),
        [
            record((2 << 48) | 5, b"a"),
            record((1 << 48) | SERVICE.0, b"b"),
        ]
        .concat(),
        note.encode(),
    ];
    seeds.extend(said.into_iter().map(Vec::from));
    seeds
}
