//! CRIU beside it: dump and restore of a process with one connection.
//!
//! It is another thing: it takes the whole process along and needs nothing of the
//! application, and what is measured is on one machine, without any transfer. It shows
//! what freezing a connection costs by the means that there are without this project.
//!
//! All of it happens in namespaces of its own ([`inside`]): the process that is dumped is
//! the benchmark's own program, holding an echo server with one connection and nothing
//! else.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::waitpid,
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// How CRIU keeps the connection's packets away meanwhile, in the order in which it is
/// tried: a kernel may have one and not the other.
const LOCKS: [&str; 2] = ["nftables", "iptables"];
/// Where the process listens, in a network namespace of its own.
const PORT: u16 = 7000;
/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What CRIU took, microseconds; one of each kind from each round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rounds {
    /// Its version.
    pub version: String,
    /// By what it locked the network.
    pub lock: String,
    /// `criu dump`, from start to end.
    pub dump_us: Vec<u64>,
    /// `criu restore`.
    pub restore_us: Vec<u64>,
    /// From before the dump until the client has an echo from the restored process.
    pub gap_us: Vec<u64>,
}

impl Rounds {
    /// Takes in more rounds.
    pub fn add(&mut self, more: Self) {
        self.dump_us.extend(more.dump_us);
        self.restore_us.extend(more.restore_us);
        self.gap_us.extend(more.gap_us);
    }
}

/// Measures, or says why not.
pub fn measure(rounds: usize) -> Result<Rounds, String> {
    let candidates = candidates();
    if candidates.is_empty() {
        return Err("there is no program `criu`: neither on the path nor in target/tools/bin, where `cargo xtask` puts it if it can".into());
    }
    let mut why = String::new();
    for criu in candidates {
        match outside(&criu, rounds) {
            Ok(rounds) => return Ok(rounds),
            Err(error) => why = format!("{}: {error:#}", criu.display()),
        }
    }
    Err(why)
}

/// The one that `cargo xtask` has provided, and the machine's own.
fn candidates() -> Vec<PathBuf> {
    let provided = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/criu");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut found: Vec<PathBuf> = [provided]
        .into_iter()
        .chain(folders.map(|folder| folder.join("criu")))
        .filter(|path| path.is_file())
        .collect();
    found.dedup();
    found
}

/// Runs [`inside`] in namespaces of its own.
fn outside(criu: &Path, rounds: usize) -> Result<Rounds> {
    let output = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--ipc",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .arg(std::env::current_exe()?)
        .arg("criu")
        .arg(criu)
        .arg(rounds.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("cannot run unshare")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// In namespaces of its own, as their first process: dumps and restores, and prints what
/// that took.
pub fn inside(criu: &Path, rounds: usize) -> Result<()> {
    loopback_up()?;
    // CRIU keeps what it found out about the kernel here, if it is such a file system.
    mount(
        Some(c"tmpfs"),
        c"/run",
        Some(c"tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("cannot mount /run")?;
    let version = Command::new(criu).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.lines().next().and_then(|line| line.split_once(' '));
    let version = version.map_or("", |(_, version)| version).to_owned();
    let mut why = None;
    for lock in LOCKS {
        match by(criu, lock, rounds) {
            Ok(rounds) => {
                println!("{}", serde_json::to_string(&Rounds { version, ..rounds })?);
                return Ok(());
            }
            Err(error) => why = Some(error),
        }
    }
    Err(why.context("no rounds")?.context(format!("CRIU {version}")))
}

fn by(criu: &Path, lock: &str, rounds: usize) -> Result<Rounds> {
    let images = PathBuf::from("/run").join(lock);
    fs::create_dir_all(&images)?;
    let mut victim = Command::new(std::env::current_exe()?);
    victim
        .arg("criu-victim")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: only system calls are made between fork and exec.
    unsafe {
        victim.pre_exec(|| {
            nix::unistd::setsid()?;
            // What was inherited from outside of these namespaces cannot be dumped.
            let cloexec = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            match libc::close_range(3, libc::c_uint::MAX, cloexec) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let pid = Pid::from_raw(victim.spawn()?.id() as i32);
    let mut client = connect()?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut measured = Rounds {
        lock: lock.to_owned(),
        ..Rounds::default()
    };
    for round in 0..=rounds {
        let start = Instant::now();
        let dump = run(criu, "dump", lock, &images, &["--tree", &pid.to_string()])?;
        // Its number must be free again.
        waitpid(pid, None).context("the dumped process is no child")?;
        let restore = run(criu, "restore", lock, &images, &["--restore-detached"])?;
        client.write_all(b"?")?;
        client
            .read_exact(&mut [0])
            .context("no echo from the restored process")?;
        let gap = start.elapsed();
        // The first one fills caches.
        if round > 0 {
            measured.dump_us.push(dump.as_micros() as u64);
            measured.restore_us.push(restore.as_micros() as u64);
            measured.gap_us.push(gap.as_micros() as u64);
        }
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    Ok(measured)
}

fn run(criu: &Path, what: &str, lock: &str, images: &Path, more: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    let output = Command::new(criu)
        .arg(what)
        .args(["--tcp-established", "--network-lock", lock, "--images-dir"])
        .arg(images)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", criu.display()))?;
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().find(|line| line.contains("Error"));
    ensure!(
        output.status.success(),
        "`criu {what}` (network lock {lock}): {}",
        reason.unwrap_or(said.trim())
    );
    Ok(took)
}

/// The process that is dumped: answers one connection, byte by byte.
pub fn victim() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    let (mut stream, _) = listener.accept()?;
    drop(listener);
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Connects once the process listens, which nothing tells.
fn connect() -> Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error).context("the process to be dumped does not listen"),
        }
    }
}

fn loopback_up() -> Result<()> {
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(status.success(), "cannot set lo up");
    Ok(())
}
