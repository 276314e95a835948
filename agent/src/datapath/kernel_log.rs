//! What the kernel programs log, handed to the agent's own log.
//!
//! The programs say little: only what a counter cannot, and what to do about it. A flood
//! of it is cut ([`Bound`]).

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

use crate::bound::Bound;

/// The programs' log.
pub struct KernelLog(EbpfLogger<Lines>);

impl KernelLog {
    /// The log of a loaded object. An object without one is not an error.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, Lines::default()) {
            Ok(logger) => Some(Self(logger)),
            Err(error) => {
                tracing::warn!(
                    %error,
                    fix = "nothing: counters and `homing status` tell what that log would",
                    "cannot read the kernel programs' log"
                );
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
struct Lines(Bound);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some(left_out) = self.0.take() else {
            return;
        };
        tracing::warn!(
            level = %record.level(), left_out,
            fix = "do as the line says; `homing status` names every table that is full",
            "the kernel programs say: {}", record.args()
        );
    }

    fn flush(&self) {}
}
