//! Where the agent's log goes: the journal when systemd runs it, else the
//! standard error, one line per event.

use std::{io, io::IsTerminal, os::fd::AsFd, path::Path};

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::journal::{self, Journal};

/// Sets the log up; `directives` are those of [`EnvFilter`].
pub(super) fn init(directives: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives).context("cannot read the log level")?;
    let sink = if is_journal() {
        let path = Path::new(journal::SOCKET);
        let journal = Journal::open(path)
            .with_context(|| format!("cannot open the journal's socket {}", path.display()))?;
        journal.boxed()
    } else {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal());
        lines.boxed()
    };
    tracing_subscriber::registry()
        .with(sink.with_filter(filter))
        .try_init()
        .context("cannot set the log up")
}

/// Whether the standard error is the journal (systemd.exec(5), `JOURNAL_STREAM`):
/// the variable alone says nothing, it is inherited by whoever redirects.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr().as_fd()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
