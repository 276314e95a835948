//! Asking this host's own kernel which sessions it knows: its sockets, its SYN
//! cookies, and what it closed a moment ago.
//!
//! The answer comes from the kernel itself and not from a table of the agent, which
//! may lag: a handshake in progress is in no table at all. Many questions are
//! answered by one system call, which runs the program `homing_answer` on them.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use homing_common::ask::{Found, QUESTIONS_MAX, Question};

use super::sys;

/// Asks the kernel.
#[derive(Debug)]
pub struct Answerer {
    program: OwnedFd,
    /// Sockets that are bound to an interface are looked for on this one.
    ifindex: u32,
}

impl Answerer {
    pub(super) fn new(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<Self> {
        Ok(Self {
            program: program.try_clone_to_owned()?,
            ifindex,
        })
    }

    /// Writes the kernel's answer into each question. The answers are those of
    /// one moment each, not all of the same.
    pub fn answer(&self, questions: &mut [Question]) -> io::Result<()> {
        for some in questions.chunks_mut(QUESTIONS_MAX) {
            sys::run_on(self.program.as_fd(), self.ifindex, some)?;
        }
        Ok(())
    }
}

/// The answer in a question.
pub fn found(question: &Question) -> Found {
    match question.found {
        1 => Found::Socket,
        2 => Found::Cookie,
        3 => Found::Closing,
        4 => Found::Closed,
        _ => Found::Nothing,
    }
}
