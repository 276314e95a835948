//! Machines: each is a network namespace with a name, a mount namespace with
//! its own `/sys` and BPF file system, a host name, and a cgroup of its own that
//! it sees as the root.
//!
//! A **keeper**, a process that sleeps, holds a machine's namespaces. All that
//! runs on a machine is in the machine's cgroup, so that nothing survives it.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::{
    plan::{Node, Plan, is_namespace_of},
    state::{Process, RUN},
};

/// Starts a machine's keeper in namespaces of its own. The network namespace and
/// the cgroup must exist.
pub fn keep(plan: &Plan, node: Node) -> Result<(Process, Child)> {
    let what = || {
        format!(
            "cannot start the machine {node} of the lab \"{}\"",
            plan.name
        )
    };
    let net = open_namespace(&plan.namespace(node)).with_context(what)?;
    let procs = with_cgroups(|root| {
        let path = root
            .join(cgroup(&plan.name))
            .join(node.to_string())
            .join("cgroup.procs");
        File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    })?;
    let name = node.to_string();
    let mut command = Command::new("sleep");
    command
        .arg("infinity")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec only system calls are made: no allocation, no
    // lock, nothing that another thread may have been holding.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            nix::unistd::write(&procs, b"0")?;
            unshare(
                CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWUTS,
            )?;
            setns(&net, CloneFlags::CLONE_NEWNET)?;
            if libc::sethostname(name.as_ptr().cast(), name.len()) != 0 {
                return Err(io::Error::last_os_error());
            }
            isolate_mounts()?;
            // A fresh /sys shows this network namespace's interfaces.
            let none = None::<&CStr>;
            umount2(c"/sys", MntFlags::MNT_DETACH).ok();
            mount(
                Some(c"sysfs"),
                c"/sys",
                Some(c"sysfs"),
                MsFlags::empty(),
                none,
            )?;
            mount(
                Some(c"bpf"),
                c"/sys/fs/bpf",
                Some(c"bpf"),
                MsFlags::empty(),
                none,
            )?;
            mount(
                Some(c"cgroup2"),
                c"/sys/fs/cgroup",
                Some(c"cgroup2"),
                MsFlags::empty(),
                none,
            )?;
            Ok(())
        });
    }
    let child = command.spawn().with_context(what)?;
    let process = Process::find(child.id() as i32).with_context(what)?;
    Ok((process, child))
}

/// Makes `command` run on the machine that `keeper` holds: in its namespaces and
/// its cgroup, in the present folder if the machine has it.
pub fn enter(command: &mut Command, keeper: Process) -> Result<()> {
    let open = |kind: &str| {
        File::open(format!("/proc/{}/ns/{kind}", keeper.pid))
            .with_context(|| format!("the machine's keeper, process {}, is gone", keeper.pid))
    };
    let (mnt, net, cgroup, uts) = (open("mnt")?, open("net")?, open("cgroup")?, open("uts")?);
    // Where that pid was taken over by another process since, its namespaces must
    // not be entered.
    if !keeper.alive() {
        bail!("the machine's keeper, process {}, is gone", keeper.pid);
    }
    let folder = std::env::current_dir()
        .ok()
        .and_then(|path| std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).ok());
    // SAFETY: between fork and exec only system calls are made: no allocation, no
    // lock, nothing that another thread may have been holding.
    unsafe {
        command.pre_exec(move || {
            setns(&mnt, CloneFlags::CLONE_NEWNS)?;
            // The cgroup is joined before its namespace: within the namespace, a
            // process from outside of it may not be moved.
            let procs = nix::fcntl::open(
                c"/sys/fs/cgroup/cgroup.procs",
                nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
                nix::sys::stat::Mode::empty(),
            )?;
            nix::unistd::write(&procs, b"0")?;
            setns(&cgroup, CloneFlags::CLONE_NEWCGROUP)?;
            setns(&net, CloneFlags::CLONE_NEWNET)?;
            setns(&uts, CloneFlags::CLONE_NEWUTS)?;
            if let Some(folder) = &folder {
                nix::unistd::chdir(folder.as_c_str()).ok();
            }
            Ok(())
        });
    }
    Ok(())
}

/// Runs `work` on a thread of its own inside the named network namespace.
/// Sockets made and programs started there belong to it.
pub fn in_namespace<T: Send>(
    namespace: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let file = open_namespace(namespace)?;
    on_thread(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {namespace}"))?;
        work()
    })
}

/// Opens a network namespace by the name that `ip netns` gives it.
pub fn open_namespace(namespace: &str) -> Result<File> {
    let path = Path::new("/run/netns").join(namespace);
    File::open(&path)
        .with_context(|| format!("cannot open the network namespace {}", path.display()))
}

/// Makes the cgroups of a lab's machines.
pub fn make_cgroups(plan: &Plan) -> Result<()> {
    with_cgroups(|root| {
        let lab = root.join(cgroup(&plan.name));
        for path in [lab.clone()]
            .into_iter()
            .chain(plan.nodes().iter().map(|n| lab.join(n.to_string())))
        {
            fs::create_dir(&path)
                .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        }
        Ok(())
    })
}

/// Ends everything that runs in a lab and removes its cgroups. Nothing to do is
/// fine.
pub fn remove_cgroups(lab: &str) -> Result<()> {
    with_cgroups(|root| {
        let top = root.join(cgroup(lab));
        if !top.exists() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            kill_all(&top)?;
            match remove_tree(&top) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("cannot remove the cgroup {}", top.display()));
                }
                // Processes take a moment to end.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    })
}

/// The names of labs that have a cgroup.
pub fn labs_with_cgroups() -> Result<Vec<String>> {
    with_cgroups(|root| {
        Ok(fs::read_dir(root)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix(&cgroup("")).map(str::to_owned))
            .collect())
    })
}

/// The process ids in a machine's cgroup.
pub fn processes(lab: &str, node: Node) -> Result<Vec<i32>> {
    with_cgroups(|root| {
        let path = root
            .join(cgroup(lab))
            .join(node.to_string())
            .join("cgroup.procs");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    })
}

/// The processor time that all that ever ran on a machine has taken.
pub fn processor_time(lab: &str, node: Node) -> Result<Duration> {
    with_cgroups(|root| {
        let path = root
            .join(cgroup(lab))
            .join(node.to_string())
            .join("cpu.stat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let us = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
            .with_context(|| format!("no time in {}", path.display()))?;
        Ok(Duration::from_micros(us))
    })
}

/// The network namespaces of a lab that exist.
pub fn namespaces(lab: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_namespace_of(lab, name))
        .collect()
}

/// The name of a lab's cgroup, under the root of the cgroup v2 hierarchy.
fn cgroup(lab: &str) -> String {
    format!("homing-lab-{lab}")
}

/// Runs `work` with the root of the cgroup v2 hierarchy. It is mounted in a mount
/// namespace that lives as long as the call: machines differ in where they have
/// it, and some have it nowhere.
fn with_cgroups<T: Send>(work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    let root = PathBuf::from(RUN).join(".cgroup");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    on_thread(move || {
        unshare(CloneFlags::CLONE_NEWNS)
            .context("cannot make a mount namespace; the lab needs root")?;
        isolate_mounts().context("cannot make the mounts private")?;
        mount(
            Some(c"cgroup2"),
            &root,
            Some(c"cgroup2"),
            MsFlags::empty(),
            None::<&CStr>,
        )
        .context("cannot mount cgroup2; does the kernel have cgroup v2?")?;
        work(&root)
    })
}

/// Keeps this mount namespace's mounts from showing anywhere else.
fn isolate_mounts() -> nix::Result<()> {
    let none = None::<&CStr>;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Kills every process of a cgroup and of those below it.
fn kill_all(top: &Path) -> Result<()> {
    if fs::write(top.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    // Before Linux 5.14 there is no cgroup.kill.
    for group in subgroups(top)?.into_iter().chain([top.to_path_buf()]) {
        for pid in fs::read_to_string(group.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            if let Ok(pid) = pid.parse::<i32>() {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
                    .ok();
            }
        }
    }
    Ok(())
}

fn remove_tree(top: &Path) -> Result<()> {
    for group in subgroups(top)? {
        remove_tree(&group)?;
    }
    Ok(fs::remove_dir(top)?)
}

fn subgroups(top: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(top)?
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}
