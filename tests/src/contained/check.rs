//! Whether a process is contained: nothing that it does reaches the machine.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

use crate::capabilities;

/// Folders of the machine in which the builder has left a mark.
pub const HIDDEN: [&str; 3] = ["/tmp", "/run", "/var/tmp"];

/// Namespaces that must be others.
const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];

/// What the kernel makes up, or keeps in memory: no file system of the machine's disks.
const HARMLESS: [&str; 7] = [
    "overlay", "tmpfs", "proc", "sysfs", "cgroup2", "bpf", "devpts",
];

/// The machine, as who builds a root on it knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outside {
    /// The name of a file that the builder has in each folder of [`HIDDEN`], and that the
    /// first process makes in its root.
    pub(super) mark: String,
    namespaces: BTreeMap<String, PathBuf>,
}

impl Outside {
    /// What this process is in.
    pub fn here(mark: &str) -> Result<Self> {
        let own = |kind: &str| {
            let namespace = namespace(kind);
            let namespace = namespace.with_context(|| format!("cannot tell the {kind} namespace"));
            Ok((kind.to_owned(), namespace?))
        };
        let namespaces = NAMESPACES.into_iter().map(own).collect::<Result<_>>()?;
        Ok(Self {
            mark: mark.to_owned(),
            namespaces,
        })
    }
}

/// Ways in which this process can reach the machine that `outside` tells of. Only where there
/// is none may a system be started.
pub fn breaches(outside: &Outside) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    must(
        std::process::id() == 1,
        "this is not the first process of a pid namespace".to_owned(),
    );
    let own = fs::read_link("/proc/self");
    must(
        own.is_ok_and(|own| own == Path::new("1")),
        "/proc is another's".to_owned(),
    );
    for (kind, theirs) in &outside.namespaces {
        must(
            namespace(kind).is_ok_and(|own| own != *theirs),
            format!("the {kind} namespace is the machine's"),
        );
    }
    for folder in HIDDEN {
        let mark = Path::new(folder).join(&outside.mark);
        let hidden =
            fs::symlink_metadata(&mark).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        must(hidden, format!("{folder} is the machine's"));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    must(!mounts.is_empty(), "mounts cannot be read".to_owned());
    for mount in mounts.lines().filter_map(Mount::read) {
        let at = mount.at;
        must(
            !mount.is_shared,
            format!("what is mounted at {at} is seen elsewhere"),
        );
        must(
            HARMLESS.contains(&mount.kind),
            format!("{at} is a {} of the machine", mount.kind),
        );
    }
    for path in ["/sys", "/proc/sys", "/proc/sysrq-trigger"] {
        let is_read_only =
            statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
        // A kernel may lack the last one.
        must(
            is_read_only || !Path::new(path).exists(),
            format!("{path} can be written"),
        );
    }
    for capability in capabilities::left_of_machine() {
        must(false, format!("{capability} can be had"));
    }
    // The root of all cgroups has no type.
    must(
        Path::new("/sys/fs/cgroup/cgroup.type").is_file(),
        "the cgroups are the machine's".to_owned(),
    );
    // Some kernels put two files of their own into each new one.
    let by_kernel = |name: &str| matches!(name, "maps.debug" | "progs.debug");
    must(
        names("/sys/fs/bpf").is_ok_and(|names| names.iter().all(|name| by_kernel(name))),
        "the BPF file system is another's".to_owned(),
    );
    const INTERFACES: &str = "/sys/class/net";
    for name in names(INTERFACES).unwrap_or_default() {
        let device = Path::new(INTERFACES).join(&name).join("device");
        must(
            !device.exists(),
            format!("{name} is a network device of the machine"),
        );
    }
    found
}

fn namespace(kind: &str) -> io::Result<PathBuf> {
    fs::read_link(Path::new("/proc/self/ns").join(kind))
}

/// What is in a folder.
fn names(folder: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount<'a> {
    at: &'a str,
    kind: &'a str,
    is_shared: bool,
}

impl<'a> Mount<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (about, rest) = line.split_once(" - ")?;
        let mut about = about.split(' ').skip(4);
        let at = about.next()?;
        let mut tags = about.skip(1);
        let is_shared = tags.any(|tag| tag.starts_with("shared:") || tag.starts_with("master:"));
        Some(Self {
            at,
            kind: rest.split(' ').next()?,
            is_shared,
        })
    }
}
