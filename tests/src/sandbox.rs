//! A place of their own for tests that change network, mounts and cgroups.
//!
//! [`run`] gives a closure a thread in a network and a mount namespace of its
//! own, with a BPF file system, and moves the process into a cgroup of its own.
//! All of it is gone when the closure ends, however it ends. Needs root.

use std::{
    fs,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::{Command, id},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use homing_agent::datapath::{LoadOptions, XdpMode};
use homing_common::{
    host::{Encapsulation, HostId},
    net::Address,
    session::SessionKey,
    settings::Settings,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::program::tunnel_v4;

/// One at a time in each process: they share its cgroup.
static ONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Where the closure finds things.
pub struct Sandbox {
    /// A BPF file system, empty.
    pub bpf: PathBuf,
    /// A cgroup v2 that holds this process and nobody else.
    pub cgroup: PathBuf,
    /// A folder for files, empty.
    pub files: PathBuf,
}

impl Sandbox {
    /// What a test loads unless it wants something else: host 1 of a POP with
    /// IP-in-IP tunnels over IPv4, and room for 1,000 sessions.
    pub fn options(&self, interfaces: &[&str]) -> LoadOptions {
        let tunnel = tunnel_v4();
        LoadOptions {
            pin_dir: self.bpf.join("homing/test"),
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            xdp_mode: XdpMode::Native,
            cgroup: self.cgroup.clone(),
            settings: Settings {
                session_key: SessionKey([1, 2]),
                fragments_key: SessionKey([3, 4]),
                tunnel,
                tunnel_address: tunnel.address_of(HostId(1)),
                fabric: Address::v4([10, 1, 0, 1]),
                host: HostId(1),
                encapsulation: Encapsulation::Ipip as u8,
                hop_limit: 8,
                fabric_port: 7946,
                zero: 0,
                closed_entries: 1000,
                fragments_entries: 1000,
            },
            owners_entries: 1000,
            sessions_entries: 1000,
        }
    }
}

/// Runs `test` in a sandbox. Whatever the closure starts, threads and processes
/// alike, is in the sandbox's namespaces too.
pub fn run(test: impl FnOnce(&Sandbox) + Send) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let sandbox = enter().expect("cannot make a sandbox (are you root?)");
            let home = own_cgroup().expect("no cgroup v2");
            fs::create_dir(&sandbox.cgroup).expect("cannot make a cgroup");
            move_to(&sandbox.cgroup).expect("cannot enter the cgroup");
            let result = catch_unwind(AssertUnwindSafe(|| test(&sandbox)));
            move_to(&Path::new(CGROUPS).join(home)).expect("cannot leave the cgroup");
            remove_cgroup(&sandbox.cgroup);
            if let Err(panic) = result {
                resume_unwind(panic);
            }
        });
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    });
}

const RUN: &str = "/run";
const CGROUPS: &str = "/run/cgroup";

fn enter() -> io::Result<Sandbox> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let new = |kind: &str, at: &str| {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)?;
        io::Result::Ok(())
    };
    new("tmpfs", RUN)?;
    new("bpf", "/run/bpf")?;
    new("cgroup2", CGROUPS)?;
    fs::create_dir("/run/files")?;
    ip("link set lo up");
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(Sandbox {
        bpf: "/run/bpf".into(),
        cgroup: Path::new(CGROUPS).join(format!("homing-test-{}-{number}", id())),
        files: "/run/files".into(),
    })
}

/// The cgroup this process is in, relative to the root of all.
fn own_cgroup() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(PathBuf::from)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, text.clone()))
}

fn move_to(cgroup: &Path) -> io::Result<()> {
    let mut procs = fs::File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))?;
    procs.write_all(id().to_string().as_bytes())
}

/// Children that the test has killed may take a moment to be gone.
fn remove_cgroup(cgroup: &Path) {
    eventually("the cgroup is empty", || fs::remove_dir(cgroup).is_ok());
}

/// Runs `ip` with arguments separated by blanks, and insists that it succeeds.
pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_ascii_whitespace())
        .output()
        .expect("cannot run ip");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until `condition` holds; panics if it does not within five seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
