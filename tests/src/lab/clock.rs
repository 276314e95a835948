//! Times of day: a machine's clock has no namespace, so that an agent's is set by
//! libfaketime, which stands between it and the C library.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Lab, Node};

/// Where distributions have the library, under a folder by architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

impl Lab {
    /// Makes a host's agent's time of day differ from the machine's by so many seconds.
    /// That is in force at once where it was set at the agent's start, and at its next
    /// start else. The clock that only goes forward is as before.
    pub fn set_clock(&self, host: u16, seconds: i64) -> Result<()> {
        let file = self.clock_of(host);
        let new = file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn clock_of(&self, host: u16) -> PathBuf {
        self.folder_of(Node::Host(host)).join("clock")
    }

    /// Has a program begin with the time of day that was set for a host.
    pub(super) fn give_clock(&self, host: u16, command: &mut Command) -> Result<()> {
        let file = self.clock_of(host);
        if file.exists() {
            command
                .env("LD_PRELOAD", library()?)
                .env("FAKETIME_TIMESTAMP_FILE", file)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Ok(())
    }
}

fn library() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("cannot read /usr/lib")?;
    let mut paths = folders.flatten().map(|folder| folder.path().join(LIBRARY));
    paths
        .find(|path| Path::is_file(path))
        .with_context(|| format!("no /usr/lib/*/{LIBRARY}; run `apt-get install faketime`"))
}
