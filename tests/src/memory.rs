//! A limit on the memory of this process, and of the maps that it makes.

use std::{
    fs::{self, File},
    io::Write as _,
    panic,
    path::{Path, PathBuf},
    process::id,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where the hierarchy is mounted, for this thread alone.
const MOUNTED: &str = "/run";

/// A memory cgroup of this process's own, gone with this.
pub struct Limit {
    root: PathBuf,
    group: PathBuf,
    /// Where the process came from.
    home: PathBuf,
    version: Version,
}

/// The two versions of control groups: a machine has its memory controller in one.
#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The files that limit and say how much memory is used.
    const fn files(self) -> [&'static str; 2] {
        match self {
            Self::One => ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            Self::Two => ["memory.max", "memory.current"],
        }
    }

    /// What stands for no limit.
    const fn none(self) -> &'static str {
        match self {
            Self::One => "-1",
            Self::Two => "max",
        }
    }
}

impl Limit {
    /// Moves this process into a cgroup of its own. The thread that calls this gets a
    /// mount namespace of its own.
    pub fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let path_in = |wanted: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                controllers
                    .split(',')
                    .any(|one| one == wanted)
                    .then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let (version, kind, options, home) = match (path_in("memory"), path_in("")) {
            (Some(home), _) => (Version::One, "cgroup", Some("memory"), home),
            (None, Some(home)) => (Version::Two, "cgroup2", None, home),
            (None, None) => bail!("this process is in no cgroup"),
        };
        let root = PathBuf::from(MOUNTED);
        mount(Some(kind), &root, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("cannot mount {kind}"))?;
        if let Version::Two = version {
            // As systemd does at its start.
            fs::write(root.join("cgroup.subtree_control"), "+memory")
                .context("the kernel limits no memory: is it started with cgroup_disable?")?;
        }
        let group = root.join(format!("homing-memory-{}", id()));
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let home = root.join(home);
        let limit = Self {
            root,
            group,
            home,
            version,
        };
        limit.move_to(&limit.group)?;
        limit.lift_before_panics();
        Ok(limit)
    }

    /// Writing a backtrace takes more memory than there may be.
    fn lift_before_panics(&self) {
        let ([file, _], none) = (self.version.files(), self.version.none());
        let (path, former) = (self.group.join(file), panic::take_hook());
        panic::set_hook(Box::new(move |panic| {
            fs::write(&path, none).ok();
            former(panic);
        }));
    }

    /// Leaves room for so many bytes more than are used now.
    pub fn leave_room(&self, bytes: u64) -> Result<()> {
        let [_, usage] = self.version.files();
        let used: u64 = fs::read_to_string(self.group.join(usage))?.trim().parse()?;
        self.set(&(used + bytes).to_string())
    }

    /// Takes the limit away.
    pub fn lift(&self) -> Result<()> {
        self.set(self.version.none())
    }

    fn set(&self, limit: &str) -> Result<()> {
        let [file, _] = self.version.files();
        let path = self.group.join(file);
        fs::write(&path, limit).with_context(|| format!("cannot write {}", path.display()))
    }

    fn move_to(&self, group: &Path) -> Result<()> {
        let path = group.join("cgroup.procs");
        let open = File::options().write(true).open(&path);
        let moved = open.and_then(|mut procs| procs.write_all(id().to_string().as_bytes()));
        moved.with_context(|| format!("cannot move to {}", path.display()))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // The process may have been in a group that can have none beside subgroups.
        let left = self
            .move_to(&self.home)
            .or_else(|_| self.move_to(&self.root));
        let gone = left.and_then(|()| Ok(fs::remove_dir(&self.group)?));
        if let Err(error) = gone
            && !thread::panicking()
        {
            panic!("cannot remove {}: {error:#}", self.group.display());
        }
    }
}
