//! What is known of a lab between two commands: a small file under
//! `/run/homing-lab`, written whole and under a lock.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    fault::Faults,
    plan::{Plan, Sockets},
};

/// Where labs keep their state, locks and sockets: short, because the path of
/// a Unix socket has 108 bytes at most, and empty after a restart of the machine.
pub const RUN: &str = "/run/homing-lab";

/// A process, told from a later one of the same number by its start time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    started_ticks: u64,
}

impl Process {
    /// The process that has this id now; none if there is no such process.
    pub fn find(pid: i32) -> Option<Self> {
        let (state, started_ticks) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, started_ticks })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::find(std::process::id() as i32)
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::find(self.pid) == Some(*self)
    }
}

/// State and start time of a process, from `/proc/PID/stat` (proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A lab as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// What was asked for.
    pub plan: Plan,
    /// Configurations, keys and logs.
    pub folder: PathBuf,
    /// The program `homing`; none in a lab that was never to have agents.
    pub homing: Option<PathBuf>,
    /// Each machine's keeper: the process that holds its namespaces.
    pub keepers: BTreeMap<String, Process>,
    /// Each host's agent, by host id.
    pub agents: BTreeMap<u16, Process>,
    /// The hosts that the router spreads connections over, in order.
    pub ecmp: Vec<u16>,
    /// What goes wrong on the wires.
    pub faults: Faults,
    /// The program that makes it go wrong, once there was a fault.
    pub shim: Option<Process>,
    /// The process that the lab must not outlive; none if it stands until it is
    /// taken down.
    pub owner: Option<Process>,
    /// What clears the lab once the owner is gone.
    pub guard: Option<Process>,
}

impl State {
    /// Reads a lab's state; none if there is no such lab.
    pub fn read(lab: &str) -> Result<Option<Self>> {
        let path = file(lab);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        // What cannot be read is what a crash left, or an older version wrote.
        Ok(serde_json::from_str(&text).ok())
    }

    /// Writes it in one step: a reader sees the old or the new state.
    pub fn write(&self) -> Result<()> {
        let path = file(&self.plan.name);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether the lab stands: all its machines are there, and so is the process
    /// that it must not outlive.
    pub fn stands(&self) -> bool {
        self.keepers.len() == self.plan.nodes().len()
            && self.keepers.values().all(Process::alive)
            && self.owner.is_none_or(|owner| owner.alive())
    }
}

/// The folder of a lab's state and sockets.
pub fn run_folder(lab: &str) -> PathBuf {
    Path::new(RUN).join(lab)
}

/// A host's sockets.
pub fn sockets(lab: &str, host: u16) -> Sockets {
    let path = |of: &str| run_folder(lab).join(format!("h{host}.{of}"));
    Sockets {
        admin: path("sock"),
        apps: path("app.sock"),
        mux: path("mux.sock"),
    }
}

fn file(lab: &str) -> PathBuf {
    run_folder(lab).join("state.json")
}

/// The names of all labs that have left anything in [`RUN`].
pub fn all() -> Result<Vec<String>> {
    let entries = match fs::read_dir(RUN) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {RUN}")),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// Held by who changes a lab.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Locks a lab for a change, waiting a while for who else changes it.
pub fn lock(lab: &str) -> Result<Lock> {
    fs::create_dir_all(RUN).with_context(|| format!("cannot make {RUN}"))?;
    let path = Path::new(RUN).join(format!(".{lab}.lock"));
    let mut file =
        File::create(&path).with_context(|| format!("cannot open the lock {}", path.display()))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Lock(lock)),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = again;
                std::thread::sleep(Duration::from_millis(50));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!(
                    "another command has been working on the lab \"{lab}\" for a minute; try again when it is done"
                )
            }
            Err((_, error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::own().unwrap();
        assert!(own.alive());
        let later = Process {
            started_ticks: own.started_ticks + 1,
            ..own
        };
        assert!(!later.alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        child.wait().unwrap();
        assert!(Process::find(pid).is_none());
    }
}
