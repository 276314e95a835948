//! What clears a lab when the program that built it dies, however it dies.
//!
//! A guard is a process of `homing-lab` that reads from a pipe whose other end only
//! the builder holds. The pipe ends with the builder, and then the guard clears the
//! lab, unless it has been told that the lab stays.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{clear::clear, own_program, state};

/// What the builder says to a guard that is to leave the lab alone.
const STAYS: u8 = b'.';

/// A lab's guard, seen from its builder.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Puts a guard on the lab of this name.
    pub fn set(lab: &str) -> Result<Self> {
        let child = Command::new(own_program()?)
            .args(["guard", "--name", lab])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C at the terminal is not for the guard.
            .process_group(0)
            .spawn()
            .context("cannot start the lab's guard")?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// The lab stays although its builder ends.
    pub fn dismiss(mut self) -> Result<()> {
        if let Some(stdin) = &mut self.0.stdin {
            stdin
                .write_all(&[STAYS])
                .context("the lab's guard is gone")?;
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stdin.take();
        self.0.wait().ok();
    }
}

/// The guard's own part: waits on standard input and clears the lab when it ends.
pub fn guard(lab: &str) -> Result<()> {
    let mut said = [0; 1];
    // An error ends the wait like an end does: either way the builder is gone.
    if matches!(std::io::stdin().read(&mut said), Ok(1)) {
        return Ok(());
    }
    let _lock = state::lock(lab)?;
    // Somebody else may have built a lab of this name meanwhile. Whether the owner
    // is alive says nothing here: a process closes its pipes before it is dead.
    let others = |state: &state::State| state.guard != state::Process::own() && state.stands();
    if !state::State::read(lab)?.as_ref().is_some_and(others) {
        clear(lab)?;
    }
    Ok(())
}
