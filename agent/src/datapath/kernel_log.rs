//! What the kernel programs log, handed to the agent's own log.
//!
//! The programs say little: only what a counter cannot. A flood of it is cut to
//! [`LINES_PER_SECOND`]; what was left out is counted in the next line that is
//! not.

use std::{
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

/// Lines that are logged in a second at most.
pub const LINES_PER_SECOND: u32 = 10;

/// The programs' log.
pub struct KernelLog(EbpfLogger<Lines>);

impl KernelLog {
    /// The log of a loaded object. An object without one is not an error.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, Lines::default()) {
            Ok(logger) => Some(Self(logger)),
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel programs' log");
                None
            }
        }
    }

    /// Logs what the programs log, for ever.
    pub async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns its ring buffer's file descriptor, keeps it open,
        // and always returns that same one.
        let mut logger = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE)? };
        loop {
            let mut guard = logger.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}

/// Hands lines to `tracing`, so many a second.
#[derive(Default)]
struct Lines(Mutex<Budget>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = Instant::now();
        let Some(left_out) = self.0.lock().ok().and_then(|mut b| b.take(now)) else {
            return;
        };
        tracing::warn!(level = %record.level(), left_out, "kernel: {}", record.args());
    }

    fn flush(&self) {}
}

/// How much may be logged in the present second.
#[derive(Default)]
struct Budget {
    second: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Budget {
    /// Takes a line: gives the number of lines left out before it, or nothing if
    /// this one is left out too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let second = *self.second.get_or_insert(now);
        if now.duration_since(second) >= Duration::from_secs(1) {
            self.second = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_what_is_left_out_is_counted() {
        let mut budget = Budget::default();
        let start = Instant::now();
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(budget.take(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(budget.take(start), None);
        }
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(7));
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(0));
    }
}
