//! A root of its own on a machine of the lab: for what takes a whole system for its own, such as
//! systemd, whose rules for temporary files empty the `/tmp` of whatever root they find.
//!
//! A program becomes the first process of new mount, pid, IPC and UTS namespaces, in the lab
//! machine's network and cgroup namespaces. Its root is the machine's, read only, under a layer
//! in memory that takes all that is written ([`root`]); what would change the kernel for
//! everybody, it may not. Before the program starts, **it is checked that
//! nothing of the machine can be reached** ([`check`]); if anything can, it is refused.
//!
//! All of it goes with the first process, and that ends with the [`Contained`] or with the
//! thread that made it, however that ends. The lab's cgroups hold whatever it starts.

mod check;
mod inside;
mod root;
mod units;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    capabilities,
    lab::{Lab, Node, own_program, state::Process, wait_until},
};
pub use check::{Outside, breaches};
pub use inside::contain;

/// systemd's program, on any distribution that has it.
pub const SYSTEMD: &str = "/lib/systemd/systemd";

/// How long systemd may take to start what [`units`] gives it.
const BOOT_WITHIN: Duration = Duration::from_secs(30);

/// What the first process says once it is checked, followed by its process id; and what it is
/// told then.
const CONTAINED: &str = "contained ";
const GO: &str = "go";

/// A root of its own, with a first process that runs.
pub struct Contained {
    launcher: std::process::Child,
    init: Process,
    outside: Outside,
    marks: Marks,
    cgroups: BTreeSet<PathBuf>,
}

impl Contained {
    /// Starts systemd on a host of the lab, and waits until it is up.
    pub fn systemd(lab: &Lab, host: u16) -> Result<Self> {
        ensure!(
            Path::new(SYSTEMD).is_file(),
            "there is no systemd on this machine, which need not run it; on Debian and Ubuntu: \
             apt-get install --no-install-recommends systemd"
        );
        let new = Self::start(
            lab,
            host,
            &[SYSTEMD, "--system", "--unit=multi-user.target"],
        )?;
        let mut said = String::new();
        let up = wait_until(BOOT_WITHIN, || {
            let output = new.output("systemctl", &["is-system-running"])?;
            said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok(said == "running" || said == "degraded")
        })?;
        if !up || said == "degraded" {
            let failed = new.output("systemctl", &["--failed", "--no-legend"])?;
            let failed = String::from_utf8_lossy(&failed.stdout).into_owned();
            bail!("systemd is \"{said}\": {failed}\n{}", new.console());
        }
        Ok(new)
    }

    /// The same root on a host of the lab, with a program for a first process that does
    /// nothing.
    pub fn bare(lab: &Lab, host: u16) -> Result<Self> {
        Self::start(lab, host, &["/bin/sleep", "infinity"])
    }

    fn start(lab: &Lab, host: u16, program: &[&str]) -> Result<Self> {
        let marks = Marks::set()?;
        let cgroups = top_cgroups()?;
        let outside = Outside::here(&marks.name)?;
        let base = lab.folder_of(Node::Host(host)).join("root");
        fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
        let mut command = Command::new(own_program()?);
        command.arg("contain").arg(&base).arg("--").args(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = lab.folder_of(Node::Host(host)).join("contained.log");
        command.stderr(File::create(&log)?);
        // Ctrl-C at the terminal is for the test.
        command.process_group(0);
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(inside::die_with_parent) };
        let mut launcher = lab.spawn(Node::Host(host), &mut command)?;
        let first = handshake(&mut launcher, &outside);
        let init = match first {
            Ok(init) => init,
            Err(error) => {
                launcher.kill().ok();
                launcher.wait().ok();
                let why = fs::read_to_string(&log).unwrap_or_default();
                return Err(error.context(why.trim().to_owned()));
            }
        };
        Ok(Self {
            launcher,
            init,
            outside,
            marks,
            cgroups,
        })
    }

    /// Runs a program in it to its end, however that is.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(args).stdin(Stdio::null());
        command
            .output()
            .with_context(|| format!("cannot run {program} in the contained root"))
    }

    /// Runs a program in it, which must end well; what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(program, args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`{program} {}` in the contained root: {}: {text}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(text)
    }

    /// Runs a shell's script in it, which must end well; what it printed.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.run("sh", &["-euc", script])
    }

    /// What `homing ARGS --json` prints in it.
    pub fn homing(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self.run("homing", &all)?;
        serde_json::from_str(&text).with_context(|| format!("`homing {args:?}` printed no JSON"))
    }

    /// Writes a file in it, whose folder it makes. Only root can read it.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        // By a process in there: from outside, absolute links would lead to the machine's files.
        let script = "umask 077; mkdir -p \"$(dirname \"$0\")\"; rm -f \"$0\"; cat >\"$0\"";
        let mut command = self.command("sh")?;
        command.args(["-euc", script, path]).stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no input")?;
        stdin.write_all(content)?;
        drop(stdin);
        ensure!(child.wait()?.success(), "cannot write {path} in the root");
        Ok(())
    }

    /// The first process, as this machine numbers it.
    pub fn init(&self) -> i32 {
        self.init.pid
    }

    /// Ends everything in it, and looks whether the machine is as it was.
    pub fn down(mut self) -> Result<()> {
        self.end();
        self.marks.are_there()?;
        let mark = Path::new("/").join(&self.outside.mark);
        ensure!(
            !mark.exists(),
            "{} came out of the contained root",
            mark.display()
        );
        let new: Vec<_> = top_cgroups()?.difference(&self.cgroups).cloned().collect();
        ensure!(new.is_empty(), "cgroups came out of it: {new:?}");
        Ok(())
    }

    fn command(&self, program: &str) -> Result<Command> {
        ensure!(
            self.init.alive(),
            "the contained root's first process is gone"
        );
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init.pid));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.args(["--root", "--wd", "--", program]);
        command.env_clear().env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.env("SYSTEMD_PAGER", "");
        // It is no child of the first process, and has what this one has.
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(capabilities::withhold_those_of_machine) };
        Ok(command)
    }

    /// What the first process said where it has no journal yet.
    fn console(&self) -> String {
        let text = self.output("cat", &["/dev/console"]);
        let text = text.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn end(&mut self) {
        if self.init.alive() {
            let pid = nix::unistd::Pid::from_raw(self.init.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        // It waits for the first process, and that for all others.
        self.launcher.wait().ok();
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells the first process what the machine has, and lets it go once it has found nothing of
/// it.
fn handshake(launcher: &mut std::process::Child, outside: &Outside) -> Result<Process> {
    let mut stdin = launcher.stdin.take().context("no input")?;
    let stdout = launcher.stdout.take().context("no output")?;
    writeln!(stdin, "{}", serde_json::to_string(outside)?)?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let pid = line.trim().strip_prefix(CONTAINED);
    let pid = pid.context("the root is not contained, and nothing was started in it")?;
    let init = Process::find(pid.parse()?).context("the first process is gone")?;
    // It has written a file into its root.
    let mark = Path::new("/").join(&outside.mark);
    ensure!(
        !mark.exists(),
        "what is written in it comes out at {}; nothing was started in it",
        mark.display()
    );
    writeln!(stdin, "{GO}")?;
    Ok(init)
}

/// Files on the machine, which must neither be seen inside nor go away.
struct Marks {
    name: String,
    paths: Vec<PathBuf>,
}

impl Marks {
    fn set() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        const PREFIX: &str = "homing-contained-";
        sweep(PREFIX)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let paths = check::HIDDEN.map(|folder| Path::new(folder).join(&name));
        let marks = Self {
            name,
            paths: paths.to_vec(),
        };
        for path in &marks.paths {
            File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(marks)
    }

    fn are_there(&self) -> Result<()> {
        for path in &self.paths {
            ensure!(path.is_file(), "{} has gone", path.display());
        }
        Ok(())
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        for path in &self.paths {
            fs::remove_file(path).ok();
        }
    }
}

/// Removes the marks of processes that were killed.
fn sweep(prefix: &str) -> Result<()> {
    for folder in check::HIDDEN {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let of = name.strip_prefix(prefix);
            let pid = of.and_then(|of| of.split('-').next()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                // Another process may do the same.
                fs::remove_file(entry.path()).ok();
            }
        }
    }
    Ok(())
}

/// The cgroups at the top of the machine's hierarchies, but for those of tests, which come and
/// go.
fn top_cgroups() -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(at), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        if !matches!(kind, "cgroup" | "cgroup2") {
            continue;
        }
        for entry in fs::read_dir(at)? {
            let entry = entry?;
            let of_tests = entry.file_name().to_string_lossy().starts_with("homing-");
            if entry.file_type()?.is_dir() && !of_tests {
                all.insert(entry.path());
            }
        }
    }
    Ok(all)
}
