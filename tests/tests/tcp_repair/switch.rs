//! The switch between a client and two hosts. It knows one owner of the session at a
//! time, does to packets of a session that moves what the kernel programs do, and keeps
//! what the client's end of its wire carried.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::machine::Machine;

/// The hosts, by number.
pub const A: usize = 0;
pub const B: usize = 1;

pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    client: Machine,
    hosts: [Machine; 2],
    state: Mutex<State>,
    over: AtomicBool,
}

struct State {
    /// The host whose packets reach the client.
    owner: Option<usize>,
    /// Whether not even the owner's do.
    muted: bool,
    /// Whether packets of the client wait in `parked`.
    parks: bool,
    parked: Vec<Vec<u8>>,
    seen: Vec<Seen>,
    /// What hosts sent that do not own the session.
    dropped: Vec<Vec<u8>>,
}

/// A packet on the client's wire.
#[derive(Clone)]
pub struct Seen {
    pub from_client: bool,
    pub packet: Vec<u8>,
}

impl Switch {
    /// Host A owns the session.
    pub fn new(client: Machine, hosts: [Machine; 2]) -> Self {
        let shared = Arc::new(Shared {
            client,
            hosts,
            state: Mutex::new(State {
                owner: Some(A),
                muted: false,
                parks: false,
                parked: Vec::new(),
                seen: Vec::new(),
                dropped: Vec::new(),
            }),
            over: AtomicBool::new(false),
        });
        let threads = [None, Some(A), Some(B)].map(|host| {
            let shared = shared.clone();
            thread::spawn(move || shared.carry(host))
        });
        Self {
            shared,
            threads: threads.into(),
        }
    }

    pub fn client(&self) -> &Machine {
        &self.shared.client
    }

    pub fn host(&self, host: usize) -> &Machine {
        &self.shared.hosts[host]
    }

    /// Packets of the client wait from now on.
    pub fn park(&self) {
        self.shared.lock().parks = true;
    }

    /// The owner hears the client, and nothing that it says reaches the client, until
    /// the session is released.
    pub fn mute(&self) {
        self.shared.lock().muted = true;
    }

    /// They do, and no host's packets reach the client.
    pub fn freeze(&self) {
        let mut state = self.shared.lock();
        state.parks = true;
        state.owner = None;
    }

    /// Packets of this host reach the client. The client's still wait.
    pub fn release(&self, host: usize) {
        let mut state = self.shared.lock();
        state.owner = Some(host);
        state.muted = false;
    }

    /// Packets of the client are for this host; whether it is heard stays as it is.
    pub fn owned_by(&self, host: usize) {
        self.shared.lock().owner = Some(host);
    }

    /// Gives the owner what waits, in order, and then what comes.
    pub fn feed(&self) {
        let mut state = self.shared.lock();
        let owner = state.owner.expect("somebody owns the session");
        for packet in mem::take(&mut state.parked) {
            self.shared.hosts[owner].receive(&packet);
        }
        state.parks = false;
    }

    /// What the client's wire has carried so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// What hosts have sent so far that reached nobody.
    pub fn dropped(&self) -> Vec<Vec<u8>> {
        self.shared.lock().dropped.clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

impl Shared {
    /// Carries what one machine sends: a host, or the client.
    fn carry(&self, host: Option<usize>) {
        let from = host.map_or(&self.client, |host| &self.hosts[host]);
        let mut buffer = vec![0; 2048];
        while !self.over.load(Ordering::Relaxed) {
            let Some(packet) = from.sent(&mut buffer) else {
                continue;
            };
            // TCP alone: no neighbour discovery, no multicast.
            if !is_tcp(packet) {
                continue;
            }
            // Held until the packet has arrived, so that none overtakes another.
            let mut state = self.lock();
            let packet = packet.to_vec();
            if host.is_some() && (host != state.owner || state.muted) {
                state.dropped.push(packet);
                continue;
            }
            state.seen.push(Seen {
                from_client: host.is_none(),
                packet: packet.clone(),
            });
            match (host, state.owner) {
                (Some(_), _) => self.client.receive(&packet),
                (None, Some(owner)) if !state.parks => self.hosts[owner].receive(&packet),
                (None, _) => state.parked.push(packet),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_tcp(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet[9] == 6,
        _ => packet[6] == 6,
    }
}
