//! Where an instance's maps, links and programs are pinned, and the lock that
//! lets one process at a time change them.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::Error;

/// The folder of an instance's pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins in `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of all pins.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The folder of maps that are about to take the place of others.
    pub fn new_maps(&self) -> PathBuf {
        self.root.join("new_maps")
    }

    /// The folder of the tables that the map `OWNERS` holds, by their ids: only with
    /// CAP_SYS_ADMIN could a map be opened that is not pinned.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// The folder of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The folder of the programs.
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// The pin of an interface's XDP link.
    pub fn xdp_link(&self, interface: &str) -> PathBuf {
        self.links()
            .join(format!("{XDP_PREFIX}{}", escape(interface)))
    }

    /// The pin of an interface's egress link.
    pub fn egress_link(&self, interface: &str) -> PathBuf {
        self.links()
            .join(format!("{EGRESS_PREFIX}{}", escape(interface)))
    }

    /// The pin of the link of the hooks on sockets.
    pub fn sockops_link(&self) -> PathBuf {
        self.links().join("sockops")
    }

    /// The pin of the link to what sockets send.
    pub fn silence_link(&self) -> PathBuf {
        self.links().join("silence")
    }

    /// Makes the folders, on a BPF file system, and locks them.
    pub(super) fn create(&self) -> Result<Lock, Error> {
        self.check_file_system()?;
        // A former agent's `unload` may remove the folder between these steps.
        for _ in 0..3 {
            for folder in [
                self.maps(),
                self.new_maps(),
                self.tables(),
                self.links(),
                self.programs(),
            ] {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)
                    .map_err(Error::pin("create the folder", folder))?;
            }
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
        }
        Err(self.busy())
    }

    /// Locks the folders. `None` if there are none.
    pub(super) fn lock(&self) -> Result<Option<Lock>, Error> {
        let folder = match File::open(&self.root) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::pin("open", &self.root)(error)),
        };
        let lock = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(self.busy()),
            Err((_, error)) => return Err(Error::pin("lock", &self.root)(error)),
        };
        // The lock is worth something only if the folder is still the one that
        // others would open.
        let locked = lock.metadata().map(|data| data.ino());
        let current = fs::metadata(&self.root).map(|data| data.ino());
        match (locked, current) {
            (Ok(locked), Ok(current)) if locked == current => Ok(Some(Lock(lock))),
            _ => Ok(None),
        }
    }

    fn busy(&self) -> Error {
        Error::Busy {
            pin_dir: self.root.clone(),
        }
    }

    /// Whether they would be on a BPF file system.
    pub(crate) fn check_file_system(&self) -> Result<(), Error> {
        let existing = self.root.ancestors().find(|path| path.exists());
        let existing = existing.unwrap_or(Path::new("/"));
        let is_bpf = statfs(existing)
            .map_err(Error::pin("examine", existing))?
            .filesystem_type()
            == BPF_FS_MAGIC;
        if is_bpf {
            return Ok(());
        }
        Err(Error::NoBpfFs {
            pin_dir: self.root.clone(),
            mount_point: existing.to_owned(),
        })
    }
}

/// Held: no other process loads or unloads the instance. The kernel releases it
/// when this process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

/// What the names of XDP links' pins begin with.
pub(super) const XDP_PREFIX: &str = "xdp_";
/// What the names of egress links' pins begin with.
pub(super) const EGRESS_PREFIX: &str = "egress_";

/// An interface's name as part of a pin's: the BPF file system reserves the dot,
/// which the names of VLAN interfaces usually have.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pin_has_a_dot_and_no_two_interfaces_share_one() {
        let pins = Pins::new("/sys/fs/bpf/homing/a");
        let names = ["eth0", "eth0.100", "eth0%2e100", "eth0_100", "eth0%252e100"];
        let paths = names.map(|name| pins.xdp_link(name));
        for (n, path) in paths.iter().enumerate() {
            assert!(!path.file_name().unwrap().to_str().unwrap().contains('.'));
            assert!(!paths[..n].contains(path), "{path:?} twice");
        }
        assert_eq!(paths[0], Path::new("/sys/fs/bpf/homing/a/links/xdp_eth0"));
    }

    #[test]
    fn a_place_without_bpf_file_system_is_refused_with_the_command_that_helps() {
        let error = Pins::new("/proc/nowhere/homing").create().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("mount -t bpf bpf /proc"), "{text}");
    }
}
