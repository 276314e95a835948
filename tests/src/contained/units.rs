//! What systemd has to start: targets without anything that they want on a real machine, and
//! its journal. Nothing that sweeps up, mounts, sets or asks for devices is even there.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

/// Where packages put their units.
const FOLDER: &str = "/lib/systemd/system";

/// Units of systemd's own that are there. A socket of the journal that a version does not
/// have is done without.
const WANTED: [&str; 14] = [
    "basic.target",
    "sysinit.target",
    "sockets.target",
    "timers.target",
    "paths.target",
    "slices.target",
    "multi-user.target",
    "network.target",
    "network-online.target",
    "shutdown.target",
    "umount.target",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
];

/// Units as they are on the machine.
pub fn read() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut units = Vec::new();
    for name in WANTED {
        match fs::read(Path::new(FOLDER).join(name)) {
            Ok(content) => units.push((name, content)),
            // The check finds out whether systemd is there at all.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        }
    }
    Ok(units)
}

/// Puts them in place of all that the machine has.
pub fn write(units: &[(&str, Vec<u8>)]) -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    let kind = Some("tmpfs");
    mount(kind, FOLDER, kind, MsFlags::empty(), Some("mode=755"))
        .context("cannot hide the machine's units")?;
    for (name, content) in units {
        fs::write(Path::new(FOLDER).join(name), content)?;
    }
    // The journal comes before everything else, as on a real machine.
    let wants = Path::new(FOLDER).join("sysinit.target.wants");
    fs::create_dir(&wants)?;
    let journal = "systemd-journald.service";
    Ok(std::os::unix::fs::symlink(
        format!("../{journal}"),
        wants.join(journal),
    )?)
}
