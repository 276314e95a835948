//! The side of a contained root that becomes its first process.

use std::{
    convert::Infallible,
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

use super::{CONTAINED, GO, Outside, check, root};
use crate::capabilities;

/// Lets this process, and what it becomes, die with the thread that started it.
pub(super) fn die_with_parent() -> io::Result<()> {
    // SAFETY: this option takes a number, and no pointer.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a root in the empty folder `base`, and starts `program` in it once it has been
/// checked: what `homing-lab contain` does. Returns when the program has ended.
///
/// The builder speaks first, on standard input: one line, an [`Outside`]. It is told
/// `contained PID` on standard output and says `go`.
pub fn contain(base: &Path, program: &[OsString]) -> Result<ExitCode> {
    let outside = line()?;
    let outside: Outside = serde_json::from_str(&outside).context("no word of the machine")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("cannot make namespaces; are you root?")?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Child => {
            let Err(error) = first(base, program, &outside);
            eprintln!("{error:#}");
            Ok(ExitCode::FAILURE)
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(ExitCode::SUCCESS),
            _ => Ok(ExitCode::FAILURE),
        },
    }
}

/// The first process of the new namespaces.
fn first(base: &Path, program: &[OsString], outside: &Outside) -> Result<Infallible> {
    die_with_parent()?;
    // The machine's /proc is still there, and tells its own number of this process.
    let pid = std::fs::read_link("/proc/self").context("cannot read /proc/self")?;
    root::enter(base)?;
    capabilities::withhold_those_of_machine().context("cannot withhold capabilities")?;
    std::fs::write(Path::new("/").join(&outside.mark), "")
        .context("cannot write into the new root")?;
    let breaches = check::breaches(outside);
    if !breaches.is_empty() {
        bail!("not contained: {}", breaches.join("; "));
    }
    println!("{CONTAINED}{}", pid.display());
    ensure!(line()? == GO, "it is not to start");
    let (name, args) = program.split_first().context("no program")?;
    let mut command = Command::new(name);
    command.args(args).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    // What systemd goes by to leave alone what is not its own: clock, modules, devices.
    command.env("container", "homing-test");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let error = command.stderr(Stdio::null()).exec();
    Err(error).with_context(|| format!("cannot run {}", name.display()))
}

fn line() -> Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
