//! The root itself: what is mounted where.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{chdir, pivot_root},
};

use super::units;

/// How much may be written in it, in memory.
const LAYER: &str = "size=1g,mode=755";

/// Folders that begin empty, in memory: the machine's are its own, and what its services,
/// generators and logs are does not matter here.
const EMPTY: [(&str, &str); 6] = [
    ("/tmp", "mode=1777"),
    ("/run", "mode=755"),
    ("/var/tmp", "mode=1777"),
    ("/var/log", "mode=755"),
    ("/etc/systemd/system", "mode=755"),
    ("/lib/systemd/system-generators", "mode=755"),
];

/// Files that are hidden: what makers of images leave there so that packages start nothing,
/// and what has the index of all manual pages made anew with each package, which takes seconds.
const ABSENT: [&str; 2] = ["/usr/sbin/policy-rc.d", "/var/lib/man-db/auto-update"];

/// Parts of `/proc` by which one could change the machine.
const READ_ONLY: [&str; 5] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
];

/// Device files: name, major and minor number.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Makes the root in the empty folder `base`, and makes it this process's. Runs as the first
/// process of a pid namespace, in a mount namespace of its own.
pub fn enter(base: &Path) -> Result<()> {
    let none = None::<&str>;
    // What is mounted from here on is seen nowhere else, and the other way round.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    new("tmpfs", base, LAYER)?;
    let folder = |name: &str| {
        let path = base.join(name);
        fs::create_dir(&path).map(|()| path)
    };
    let (upper, work, root) = (folder("upper")?, folder("work")?, folder("root")?);
    let layers = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    new("overlay", &root, &layers)?;
    chdir(&root)?;
    pivot_root(".", ".").context("cannot change the root")?;
    // The old root lies on the new one.
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the machine's root")?;
    chdir("/")?;
    let units = units::read()?;
    for (path, options) in EMPTY {
        fs::create_dir_all(path)?;
        new("tmpfs", Path::new(path), options)?;
    }
    units::write(&units)?;
    kernel()?;
    devices()?;
    // Of a machine of its own, which mounts nothing.
    fs::write("/etc/fstab", "")?;
    fs::write("/etc/machine-id", "")?;
    for path in ABSENT {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot hide {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the kernel shows.
fn kernel() -> Result<()> {
    new("proc", Path::new("/proc"), "")?;
    for path in READ_ONLY
        .into_iter()
        .filter(|path| Path::new(path).exists())
    {
        let none = None::<&str>;
        mount(Some(path), path, none, MsFlags::MS_BIND, none)?;
        read_only(path)?;
    }
    new("sysfs", Path::new("/sys"), "")?;
    read_only("/sys")?;
    new("cgroup2", Path::new("/sys/fs/cgroup"), "")?;
    new("bpf", Path::new("/sys/fs/bpf"), "mode=700")
}

fn devices() -> Result<()> {
    let dev = Path::new("/dev");
    new("tmpfs", dev, "mode=755")?;
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
            .with_context(|| format!("cannot make {}", path.display()))?;
        // Whatever the umask is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, dev.join(name))?;
    }
    for (name, kind, options) in [
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"),
        ("shm", "tmpfs", "mode=1777"),
    ] {
        fs::create_dir(dev.join(name))?;
        new(kind, &dev.join(name), options)?;
    }
    // A file: who speaks to the console writes down what went wrong.
    Ok(fs::write(dev.join("console"), "")?)
}

fn new(kind: &str, at: &Path, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .map_err(io::Error::from)
        .with_context(|| format!("cannot mount {kind} at {}", at.display()))
}

fn read_only(path: &str) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot make {path} read-only"))
}
