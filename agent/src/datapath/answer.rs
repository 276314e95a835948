//! Asking this host's own kernel which sessions it knows: its sockets, its SYN
//! cookies, and what it closed a moment ago.
//!
//! The answer comes from the kernel itself and not from a table of the agent, which
//! may lag: a handshake in progress is in no table at all. Many questions are
//! answered by one system call, which runs the program `homing_answer` on them.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use homing_common::ask::{Found, QUESTIONS_MAX, Question};

use super::{interface, sys};

/// Asks the kernel.
#[derive(Debug)]
pub struct Answerer {
    program: OwnedFd,
    /// Sockets that are bound to an interface are looked for on this one.
    interface: String,
    /// Its index, which changes when the interface goes and comes back.
    ifindex: AtomicU32,
}

/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;

impl Answerer {
    pub(super) fn new(program: BorrowedFd<'_>, interface: &str) -> io::Result<Self> {
        Ok(Self {
            program: program.try_clone_to_owned()?,
            interface: interface.to_owned(),
            ifindex: AtomicU32::new(index_of(interface)),
        })
    }

    /// Writes the kernel's answer into each question. The answers are those of
    /// one moment each, not all of the same.
    pub fn answer(&self, questions: &mut [Question]) -> io::Result<()> {
        for some in questions.chunks_mut(QUESTIONS_MAX) {
            let run = |ifindex, some: &mut _| sys::run_on(self.program.as_fd(), ifindex, some);
            match run(self.ifindex.load(Ordering::Relaxed), some) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                    let ifindex = index_of(&self.interface);
                    self.ifindex.store(ifindex, Ordering::Relaxed);
                    run(ifindex, some)?;
                }
                result => result?,
            }
        }
        Ok(())
    }
}

fn index_of(interface: &str) -> u32 {
    interface::look_up(interface).map_or(LOOPBACK, |found| found.index)
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
