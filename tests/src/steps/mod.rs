//! A process that runs, followed from step to step of a move, and held before the one at
//! which something is to happen: that it is killed, or that something else is.
//!
//! A step is a call into the kernel with an effect that somebody else sees: an entry of
//! the journal, an option of a socket, a message. What a process does between two of them
//! is its own, and dies with it. So who is killed before each step in turn has been
//! killed everywhere that makes a difference. No hook in the program is needed, and none
//! is there.
//!
//! The process is traced (ptrace(2)): all its threads stop at each call, and go on at
//! once unless the call is the step that was asked for. Of the process that is held only
//! the thread that makes this step stands still. The tracer is a process of its own,
//! [`follow`]: within one process, whoever waits for the end of a child that is traced
//! gets its stops.

mod calls;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::lab::own_program;
use calls::{Call, Reader};

/// What the tracer says once nothing that the process does escapes it.
const FOLLOWS: &str = "follows";

/// A process that is followed. It goes on alone when this is dropped.
pub struct Followed {
    tracer: Child,
    lines: mpsc::Receiver<String>,
    at: Option<At>,
    steps: Vec<String>,
}

/// A step, named by how many of its kind come before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At {
    /// Its number, from 1, …
    pub nth: usize,
    /// … among those that have this in their name: empty for all.
    pub of: String,
}

impl At {
    /// The nth step of all, from 1.
    pub fn number(nth: usize) -> Self {
        Self::nth(nth, "")
    }

    /// The nth step, from 1, that has this in its name.
    pub fn nth(nth: usize, of: &str) -> Self {
        Self {
            nth,
            of: of.to_owned(),
        }
    }

    /// Whether it is the last of these.
    fn is_last(&self, steps: &[String]) -> bool {
        let mut of_this_kind = steps.iter().filter(|step| step.contains(&self.of));
        steps.last().is_some_and(|step| step.contains(&self.of))
            && of_this_kind.by_ref().count() == self.nth
    }
}

impl Followed {
    /// Follows a process from now on, and holds it before a step, if that is asked for.
    pub fn attach(pid: i32, at: Option<&At>) -> Result<Self> {
        let pid = pid.to_string();
        let mut command = Command::new(own_program()?);
        command.args(["follow", "--pid", &pid]);
        if let Some(at) = at {
            command.args(["--nth", &at.nth.to_string(), "--of", &at.of]);
        }
        let mut tracer = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the tracer")?;
        let stdout = tracer.stdout.take().context("no output")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let followed = Self {
            tracer,
            lines,
            at: at.cloned(),
            steps: Vec::new(),
        };
        match followed.lines.recv() {
            Ok(line) if line == FOLLOWS => Ok(followed),
            _ => bail!("process {pid} cannot be followed"),
        }
    }

    /// Waits until the process is held, and says before which step; none if `over` came
    /// first, or its end.
    pub fn wait(
        &mut self,
        timeout: Duration,
        mut over: impl FnMut() -> bool,
    ) -> Result<Option<String>> {
        let deadline = Instant::now() + timeout;
        loop {
            // What was over before has had its chance to be held.
            let last = over();
            let ended = self.take(Duration::from_millis(2));
            if self.is_held() {
                return Ok(self.steps.last().cloned());
            }
            if last || ended {
                return Ok(None);
            }
            ensure!(
                Instant::now() < deadline,
                "after {timeout:?} neither the step nor the end: {:?}",
                self.steps
            );
        }
    }

    /// The steps that it came to, the one before which it is held included.
    pub fn steps(&mut self) -> &[String] {
        self.take(Duration::ZERO);
        &self.steps
    }

    /// Lets the process go on alone, unless it has ended.
    pub fn release(self) {}

    fn is_held(&self) -> bool {
        self.at.as_ref().is_some_and(|at| at.is_last(&self.steps))
    }

    /// Takes in what the tracer has said, and what it says for so long; whether the
    /// process has ended.
    fn take(&mut self, patience: Duration) -> bool {
        let mut patience = patience;
        while !self.is_held() {
            match self.lines.recv_timeout(patience) {
                Ok(step) => self.steps.push(step),
                Err(error) => return error == mpsc::RecvTimeoutError::Disconnected,
            }
            patience = Duration::ZERO;
        }
        false
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // The kernel lets all threads go that a process traces when that ends.
        self.tracer.kill().ok();
        self.tracer.wait().ok();
    }
}

/// The tracer: follows a process until that ends, and says each of its steps in a line;
/// holds it before one, after which it says nothing more.
pub fn follow(pid: i32, at: Option<At>) -> Result<()> {
    let mut tracer = Tracer {
        reader: Reader::new(pid)?,
        at,
        holds: false,
        steps: Vec::new(),
    };
    tracer.seize(pid)?;
    println!("{FOLLOWS}");
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..))
                if ended.as_raw() == pid =>
            {
                return Ok(());
            }
            Ok(status) => tracer.take(status)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Tracer {
    reader: Reader,
    at: Option<At>,
    /// Whether a thread is held: what others do does not count.
    holds: bool,
    steps: Vec<String>,
}

impl Tracer {
    /// Stops all threads of a process where they are, and lets them go on to their next
    /// calls.
    fn seize(&mut self, pid: i32) -> Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        let mut seen = BTreeSet::new();
        loop {
            let mut new = threads(pid)?;
            new.retain(|tid| seen.insert(*tid));
            if new.is_empty() {
                return Ok(());
            }
            for tid in new.into_iter().map(Pid::from_raw) {
                match ptrace::seize(tid, options) {
                    // A thread that one which is traced has made is traced; one that has
                    // ended need not be.
                    Err(Errno::EPERM | Errno::ESRCH) => continue,
                    other => other.with_context(|| format!("cannot trace thread {tid}"))?,
                }
                ptrace::interrupt(tid).ok();
                // It stops before it has done anything else.
                match waitpid(tid, Some(WaitPidFlag::__WALL)) {
                    Ok(status) => self.take(status)?,
                    Err(Errno::ECHILD) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    /// Lets a thread that has stopped go on, unless it is to be held.
    fn take(&mut self, status: WaitStatus) -> Result<()> {
        let (tid, signal) = match status {
            WaitStatus::PtraceSyscall(tid) => {
                if self.is_held(tid)? {
                    return Ok(());
                }
                (tid, None)
            }
            WaitStatus::Stopped(tid, signal) => (tid, Some(signal)),
            WaitStatus::PtraceEvent(tid, ..) => (tid, None),
            _ => return Ok(()),
        };
        match ptrace::syscall(tid, signal) {
            // It was killed.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_held(&mut self, tid: Pid) -> Result<bool> {
        let info = match ptrace::syscall_info(tid) {
            Ok(info) => info,
            Err(Errno::ESRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY || self.holds {
            return Ok(false);
        }
        // SAFETY: `op` says that it is the entry of a call.
        let entry = unsafe { info.u.entry };
        let call = Call {
            number: entry.nr as i64,
            args: entry.args,
        };
        let Some(step) = self.reader.step(&call) else {
            return Ok(false);
        };
        println!("{step}");
        self.steps.push(step);
        let at = self.at.as_ref();
        self.holds = at.is_some_and(|at| at.is_last(&self.steps));
        Ok(self.holds)
    }
}

fn threads(pid: i32) -> Result<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("there is no process {pid}"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        os::unix::process::ExitStatusExt as _,
        process::{Child, ChildStdout, Command, Stdio},
    };

    use super::*;

    /// Sends five messages from a thread that begins when it is told to, and says after
    /// each one that it has.
    const SENDER: &str = "
import socket, sys, threading
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def run():
    for number in range(5):
        a.send(b'message')
        print(number, flush=True)
print('ready', flush=True)
sys.stdin.readline()
thread = threading.Thread(target=run)
thread.start()
thread.join()
";

    struct Sender(Child, BufReader<ChildStdout>);

    impl Sender {
        fn start() -> Self {
            let mut child = Command::new("python3")
                .args(["-c", SENDER])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            let mut sender = Self(child, lines);
            assert_eq!(sender.line(), "ready");
            sender
        }

        fn begin(&mut self) {
            self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.1.read_line(&mut line).unwrap();
            line.trim().to_owned()
        }
    }

    #[test]
    fn it_is_held_before_the_step_that_was_asked_for_and_goes_on_when_it_is_let_go() {
        let mut sender = Sender::start();
        let mut followed = Followed::attach(sender.0.id() as i32, Some(&At::number(3))).unwrap();
        sender.begin();
        let step = followed.wait(Duration::from_secs(20), || false).unwrap();
        assert!(step.unwrap().contains("applications"));
        assert_eq!([sender.line(), sender.line()], ["0", "1"]);
        assert_eq!(followed.steps().len(), 3);
        followed.release();
        assert_eq!([(); 3].map(|()| sender.line()), ["2", "3", "4"]);
        assert!(sender.0.wait().unwrap().success());
    }

    #[test]
    fn who_is_killed_there_has_not_made_the_step() {
        let mut sender = Sender::start();
        let mut followed = Followed::attach(sender.0.id() as i32, Some(&At::number(2))).unwrap();
        sender.begin();
        followed.wait(Duration::from_secs(20), || false).unwrap();
        sender.0.kill().unwrap();
        assert_eq!(sender.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        followed.release();
        assert_eq!([sender.line(), sender.line()], ["0", ""]);
    }

    #[test]
    fn who_makes_fewer_steps_is_not_held() {
        let mut sender = Sender::start();
        let mut followed = Followed::attach(sender.0.id() as i32, Some(&At::number(6))).unwrap();
        sender.begin();
        sender.begin();
        let over = || matches!(sender.0.try_wait(), Ok(Some(_)));
        let step = followed.wait(Duration::from_secs(20), over).unwrap();
        assert_eq!((step, followed.steps().len()), (None, 5));
        followed.release();
    }
}
