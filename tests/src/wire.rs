//! A wire between two hosts that records, cuts, changes and swallows what carriers say.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    select,
};

/// What a wire does with what the dialer sends, or is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// After so many bytes of the dialer's the connection is closed, both ways.
    CutAfter(usize),
    /// After so many bytes of the answer the connection is closed, both ways.
    CutAnswerAfter(usize),
    /// The dialer's byte at this place is changed.
    FlipAt(usize),
    /// After so many bytes of the dialer's nothing comes through any more, either way.
    SwallowAfter(usize),
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    /// What the dialers said, by connection.
    said: Vec<Vec<u8>>,
    /// What they were answered.
    answered: Vec<Vec<u8>>,
    /// Of which connections nothing comes through any more.
    swallowed: Vec<bool>,
}

/// A wire. A handle: clones are the same wire.
#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<State>>);

impl Wire {
    /// Leads who connects to `at` to `to`, as coming from `from`. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// `at` cannot be listened on.
    pub async fn lead(at: SocketAddr, from: IpAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let wire = Self::default();
        let state = wire.clone();
        tokio::spawn(async move {
            while let Ok((dialer, _)) = listener.accept().await {
                let connected = async {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(SocketAddr::new(from, 0))?;
                    let acceptor = socket.connect(to).await?;
                    dialer.set_nodelay(true)?;
                    acceptor.set_nodelay(true)?;
                    std::io::Result::Ok(acceptor)
                };
                if let Ok(acceptor) = connected.await {
                    let (number, fault) = state.begin();
                    tokio::spawn(state.clone().pass(number, fault, dialer, acceptor));
                }
            }
        });
        Ok(wire)
    }

    /// What the next connections suffer, the first one first. The rest nothing.
    pub fn suffer(&self, faults: &[Fault]) {
        self.state().faults = faults.iter().rev().copied().collect();
    }

    /// What dialers said, by connection.
    pub fn said(&self) -> Vec<Vec<u8>> {
        self.state().said.clone()
    }

    /// What dialers were answered, by connection.
    pub fn answered(&self) -> Vec<Vec<u8>> {
        self.state().answered.clone()
    }

    /// From now on nothing comes through of this connection, either way, and it stays open.
    pub fn swallow(&self, number: usize) {
        self.state().swallowed[number] = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> (usize, Fault) {
        let mut state = self.state();
        state.said.push(Vec::new());
        state.answered.push(Vec::new());
        state.swallowed.push(false);
        let fault = state.faults.pop().unwrap_or(Fault::None);
        (state.said.len() - 1, fault)
    }

    /// Never ready once nothing comes through any more.
    async fn until_through(&self, number: usize) {
        let swallowed = self.state().swallowed[number];
        if swallowed {
            std::future::pending::<()>().await;
        }
    }

    /// Passes on what both say, until the dialer ends or the fault ends all.
    async fn pass(self, number: usize, fault: Fault, dialer: TcpStream, acceptor: TcpStream) {
        let (mut from_dialer, mut to_dialer) = dialer.into_split();
        let (mut from_acceptor, mut to_acceptor) = acceptor.into_split();
        let back = async {
            let mut passed = 0;
            let mut bytes = vec![0; 1 << 16];
            while let Ok(len @ 1..) = from_acceptor.read(&mut bytes).await {
                self.until_through(number).await;
                self.state().answered[number].extend(&bytes[..len]);
                let through = match fault {
                    Fault::CutAnswerAfter(at) => len.min(at - passed),
                    _ => len,
                };
                if to_dialer.write_all(&bytes[..through]).await.is_err() {
                    break;
                }
                passed += through;
                if fault == Fault::CutAnswerAfter(passed) {
                    return;
                }
            }
            drop((from_acceptor, to_dialer));
            std::future::pending::<()>().await;
        };
        let there = async {
            let mut passed = 0;
            let mut bytes = vec![0; 1 << 16];
            while let Ok(len @ 1..) = from_dialer.read(&mut bytes).await {
                self.until_through(number).await;
                let bytes = &mut bytes[..len];
                self.state().said[number].extend(&*bytes);
                let mut through = len;
                match fault {
                    Fault::None | Fault::CutAnswerAfter(_) => {}
                    Fault::CutAfter(at) | Fault::SwallowAfter(at) => through = len.min(at - passed),
                    Fault::FlipAt(at) => {
                        if let Some(byte) = at.checked_sub(passed).and_then(|at| bytes.get_mut(at))
                        {
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
                    Fault::SwallowAfter(_) if through < len => self.swallow(number),
                    _ => {}
                }
            }
        };
        select! {
            () = there => {}
            () = back => {}
        }
    }
}
