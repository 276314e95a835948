//! What is known of a client's connection while it goes on.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// One connection's record, or that of several, one after another. The clients' thread
/// writes it, others may read.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub open: AtomicBool,
    pub over: AtomicBool,
    /// The connection that is open now.
    ends: Mutex<Option<(SocketAddr, SocketAddr)>>,
    /// How many were opened.
    pub opened: AtomicU64,
    /// How often bytes have gone both ways: an exchange, or news from both directions.
    pub rounds: AtomicU64,
    /// Bytes that the server has checked and said so.
    pub up: AtomicU64,
    /// Bytes that the client has checked.
    pub down: AtomicU64,
    pub longest_us: AtomicU64,
    pub retransmits: AtomicU64,
    got_up: AtomicBool,
    got_down: AtomicBool,
}

impl Record {
    pub fn begin(&self, ends: (SocketAddr, SocketAddr)) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(ends);
        self.opened.fetch_add(1, Relaxed);
    }

    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes went up, and the server's kernel confirmed them.
    pub fn news_up(&self) {
        self.got_up.store(true, Relaxed);
        self.news();
    }

    /// So many came down and were right.
    pub fn news_down(&self, len: u64) {
        self.down.fetch_add(len, Relaxed);
        self.got_down.store(true, Relaxed);
        self.news();
    }

    fn news(&self) {
        if self.got_up.load(Relaxed) && self.got_down.load(Relaxed) {
            self.got_up.store(false, Relaxed);
            self.got_down.store(false, Relaxed);
            self.round();
        }
    }

    /// There was an exchange.
    pub fn round(&self) {
        self.rounds.fetch_add(1, Relaxed);
        self.open.store(true, Relaxed);
    }

    /// The client waited so long for bytes.
    pub fn waited(&self, time: Duration) {
        self.longest_us.fetch_max(time.as_micros() as u64, Relaxed);
    }
}
