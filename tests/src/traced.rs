//! A process that stops wherever it calls the kernel, or after each instruction, so that
//! it can be killed there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

/// What the machine's code for a call into the kernel is: `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// A child of this thread, which alone can handle it. It is killed with this.
pub struct Traced {
    pid: Pid,
    /// Whether it stands between a call's entry and its exit.
    inside: bool,
}

/// Where it has stopped: before or behind a call into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The call's number.
    pub call: i64,
    /// Its first argument.
    pub first: u64,
    /// Whether the call is over.
    pub is_over: bool,
}

impl Traced {
    /// Runs a closure in a copy of this process, stopped before it begins. What the
    /// closure changes is changed there alone, but for memory that is shared.
    pub fn fork(run: impl FnOnce()) -> Result<Self> {
        // SAFETY: this thread alone goes on in the copy. It allocates, which the C
        // library allows there, waits for no other thread, and does not return.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let run = AssertUnwindSafe(|| {
                    ptrace::traceme().expect("a parent that traces");
                    kill(Pid::this(), Signal::SIGSTOP).expect("a signal to itself");
                    run();
                });
                let code = i32::from(catch_unwind(run).is_err());
                // SAFETY: ends the copy, which must not go on as if it were the test.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child: pid } => {
                let inside = false;
                let traced = Self { pid, inside };
                let status = waitpid(pid, None)?;
                ensure!(
                    status == WaitStatus::Stopped(pid, Signal::SIGSTOP),
                    "{status:?}"
                );
                let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
                ptrace::setoptions(pid, options)?;
                Ok(traced)
            }
        }
    }

    /// Lets it go on to the next entry or exit of a call; none if it has ended well.
    pub fn to_call(&mut self) -> Result<Option<Stop>> {
        ptrace::syscall(self.pid, None)?;
        match waitpid(self.pid, None)? {
            WaitStatus::PtraceSyscall(_) => {
                self.inside = !self.inside;
                let registers = ptrace::getregs(self.pid)?;
                Ok(Some(Stop {
                    call: registers.orig_rax as i64,
                    first: registers.rdi,
                    is_over: !self.inside,
                }))
            }
            WaitStatus::Exited(_, 0) => Ok(None),
            other => bail!("it was to call the kernel, or to end: {other:?}"),
        }
    }

    /// Lets it do one instruction; false, and nothing done, if that is a call into the
    /// kernel.
    pub fn step(&mut self) -> Result<bool> {
        let at = ptrace::getregs(self.pid)?.rip;
        let code = ptrace::read(self.pid, at as ptrace::AddressType)?;
        if code.to_ne_bytes().starts_with(&SYSCALL) {
            return Ok(false);
        }
        ptrace::step(self.pid, None)?;
        let status = waitpid(self.pid, None)?;
        ensure!(
            status == WaitStatus::Stopped(self.pid, Signal::SIGTRAP),
            "{status:?}"
        );
        Ok(true)
    }

    /// Kills it where it stands. Returns when the kernel has taken back what it held.
    pub fn kill(self) -> Result<()> {
        self.end().context("it cannot be killed")
    }

    fn end(&self) -> Result<()> {
        kill(self.pid, Signal::SIGKILL)?;
        let status = waitpid(self.pid, None)?;
        ensure!(
            status == WaitStatus::Signaled(self.pid, Signal::SIGKILL, false),
            "{status:?}"
        );
        Ok(())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended.
        self.end().ok();
    }
}
