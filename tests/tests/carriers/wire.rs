//! A wire between two hosts that records, cuts, changes and swallows.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use homing_agent::mux::Peer;
use homing_common::host::HostId;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{Host, PORT, address, life, members};

/// What a wire does with what the dialer sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// After so many bytes the connection is closed, both ways.
    CutAfter(usize),
    /// The byte at this place is changed.
    FlipAt(usize),
    /// After so many bytes nothing comes through any more, either way.
    SwallowAfter(usize),
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    /// What the dialers said, by connection.
    said: Vec<Vec<u8>>,
    /// What they were answered.
    answered: Vec<Vec<u8>>,
}

/// A wire.
#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<State>>);

impl Wire {
    /// Leads what host 1 sends to host 2 over a wire.
    pub async fn between(one: &Host) -> Self {
        let at = SocketAddr::from(([127, 0, 0, 9], PORT));
        let listener = TcpListener::bind(at).await.unwrap();
        let wire = Self::default();
        let state = wire.clone();
        tokio::spawn(async move {
            loop {
                let (dialer, _) = listener.accept().await.unwrap();
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::new(address(1).ip(), 0)).unwrap();
                let Ok(acceptor) = socket.connect(address(2)).await else {
                    continue;
                };
                let (number, fault) = state.begin();
                tokio::spawn(state.clone().pass(number, fault, dialer, acceptor));
            }
        });
        let mut peers = members(&[1, 2, 3]);
        let stream = life(1);
        peers.insert(
            HostId(2),
            Peer {
                address: at,
                stream,
            },
        );
        one.carriers.set_peers(&peers);
        wire
    }

    /// What the next connections suffer, the first one first. The rest nothing.
    pub fn suffer(&self, faults: &[Fault]) {
        self.0.lock().unwrap().faults = faults.iter().rev().copied().collect();
    }

    /// Waits until two hosts have no carriers. Returns what dialers said, by connection.
    pub async fn until_closed(&self, one: &Host, two: &Host) -> Vec<Vec<u8>> {
        one.until_alone().await;
        two.until_alone().await;
        self.said()
    }

    /// What dialers said, by connection.
    pub fn said(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().said.clone()
    }

    /// What dialers were answered, by connection.
    pub fn answered(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().answered.clone()
    }

    fn begin(&self) -> (usize, Fault) {
        let mut state = self.0.lock().unwrap();
        state.said.push(Vec::new());
        state.answered.push(Vec::new());
        let fault = state.faults.pop().unwrap_or(Fault::None);
        (state.said.len() - 1, fault)
    }

    async fn pass(self, number: usize, fault: Fault, dialer: TcpStream, acceptor: TcpStream) {
        for stream in [&dialer, &acceptor] {
            stream.set_nodelay(true).unwrap();
        }
        let (mut from_dialer, mut to_dialer) = dialer.into_split();
        let (mut from_acceptor, mut to_acceptor) = acceptor.into_split();
        let wire = self.clone();
        let swallowed = Arc::new(AtomicBool::new(false));
        let is_swallowed = swallowed.clone();
        let back = tokio::spawn(async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(len @ 1..) = from_acceptor.read(&mut bytes).await {
                if is_swallowed.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                wire.0.lock().unwrap().answered[number].extend(&bytes[..len]);
                if to_dialer.write_all(&bytes[..len]).await.is_err() {
                    break;
                }
            }
        });
        let mut passed = 0;
        let mut bytes = vec![0; 1 << 16];
        while let Ok(len @ 1..) = from_dialer.read(&mut bytes).await {
            let bytes = &mut bytes[..len];
            self.0.lock().unwrap().said[number].extend(&*bytes);
            let mut through = len;
            match fault {
                Fault::None => {}
                Fault::CutAfter(at) | Fault::SwallowAfter(at) => through = len.min(at - passed),
                Fault::FlipAt(at) => {
                    if let Some(byte) = at.checked_sub(passed).and_then(|at| bytes.get_mut(at)) {
                        *byte ^= 1;
                    }
                }
            }
            if to_acceptor.write_all(&bytes[..through]).await.is_err() {
                break;
            }
            passed += through;
            match fault {
                Fault::CutAfter(at) if passed == at => break,
                Fault::SwallowAfter(_) if through < len => {
                    swallowed.store(true, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
        }
        back.abort();
    }
}
