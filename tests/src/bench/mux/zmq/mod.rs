//! ZeroMQ: a DEALER for each of the client's connections, and one ROUTER for all of them.

mod library;

use std::{net::IpAddr, sync::Arc};

use anyhow::{Result, ensure};

pub use self::library::version;
use self::library::{Context, Socket};
use super::{
    case::Case,
    transport::{Listener, Pipe},
};

/// Messages that may wait at either end of a connection: ZeroMQ's own default.
const WAITING: usize = 1000;
/// But not more bytes than these, which is what TCP's send buffer takes: or a gigabyte of
/// large messages would stand before each small one.
const WAITING_BYTES: usize = 4 << 20;
/// Longer than what a ROUTER calls a connection (255 bytes at most).
const IDENTITY: usize = 256;

fn waiting(case: &Case) -> usize {
    (WAITING_BYTES / case.len).min(WAITING)
}

/// Listens for DEALERs.
pub fn listen(at: IpAddr, case: &Case) -> Result<Box<dyn Listener>> {
    let mut socket = Context::new()?.socket(library::ROUTER)?;
    socket.limit(waiting(case))?;
    // What cannot be sent is an error, rather than dropped.
    socket.set(library::ROUTER_MANDATORY, 1)?;
    let address = socket.bind(&format!("tcp://{at}:*"))?;
    Ok(Box::new(Router {
        socket,
        address,
        longest: case.len,
        from: Vec::new(),
    }))
}

/// Opens the connections of a case.
pub fn connect(to: &str, case: &Case) -> Result<Vec<Box<dyn Pipe>>> {
    let context = Context::new()?;
    let open = |_| -> Result<Box<dyn Pipe>> {
        let mut socket = Arc::clone(&context).socket(library::DEALER)?;
        socket.limit(waiting(case))?;
        socket.connect(to)?;
        Ok(Box::new(Dealer {
            socket,
            longest: case.len,
        }))
    };
    (0..case.connections).map(open).collect()
}

struct Dealer {
    socket: Socket,
    longest: usize,
}

impl Pipe for Dealer {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.socket.send(message, false)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Result<()> {
        self.socket.receive(message, self.longest)
    }
}

struct Router {
    socket: Socket,
    address: String,
    longest: usize,
    /// Where the last message came from.
    from: Vec<u8>,
}

impl Listener for Router {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(self: Box<Self>) -> Result<Vec<Box<dyn Pipe>>> {
        Ok(vec![self])
    }
}

impl Pipe for Router {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        ensure!(!self.from.is_empty(), "nobody has sent a message yet");
        self.socket.send(&self.from, true)?;
        self.socket.send(message, false)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Result<()> {
        self.socket.receive(&mut self.from, IDENTITY)?;
        self.socket.receive(message, self.longest)
    }
}
