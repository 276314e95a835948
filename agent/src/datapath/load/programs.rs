//! The kernel programs: verified, pinned, and what the kernel says when it refuses.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf, EbpfError,
    programs::{CgroupSkb, ProgramError, SchedClassifier, SockOps, Xdp},
};

use crate::datapath::{Error, pins::Pins, sys};

pub(in crate::datapath) const XDP_PROGRAM: &str = "homing_xdp";
pub(in crate::datapath) const EGRESS_PROGRAM: &str = "homing_egress";
/// Attached to nothing: the agent runs it.
pub(super) const UP_PROGRAM: &str = "homing_up";
/// Likewise.
pub(super) const ANSWER_PROGRAM: &str = "homing_answer";
pub(super) const SOCKOPS_PROGRAM: &str = "homing_sockops";
pub(super) const SILENCE_PROGRAM: &str = "homing_silence";

/// Has the kernel verify all programs.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    for name in [XDP_PROGRAM, UP_PROGRAM, ANSWER_PROGRAM] {
        load_xdp(ebpf, name)?;
    }
    let egress: &mut SchedClassifier = program_mut(ebpf, EGRESS_PROGRAM)?
        .try_into()
        .map_err(|error| refused(EGRESS_PROGRAM, error))?;
    egress
        .load()
        .map_err(|error| refused(EGRESS_PROGRAM, error))?;
    let silence: &mut CgroupSkb = program_mut(ebpf, SILENCE_PROGRAM)?
        .try_into()
        .map_err(|error| refused(SILENCE_PROGRAM, error))?;
    silence
        .load()
        .map_err(|error| refused(SILENCE_PROGRAM, error))?;
    let sockops: &mut SockOps = program_mut(ebpf, SOCKOPS_PROGRAM)?
        .try_into()
        .map_err(|error| refused(SOCKOPS_PROGRAM, error))?;
    sockops
        .load()
        .map_err(|error| refused(SOCKOPS_PROGRAM, error))
}

/// Has the kernel verify an XDP program.
pub(super) fn load_xdp(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let xdp: &mut Xdp = program_mut(ebpf, name)?
        .try_into()
        .map_err(|error| refused(name, error))?;
    xdp.load().map_err(|error| refused(name, error))
}

fn refused(name: &str, error: ProgramError) -> Error {
    Error::Load {
        why: format!("{name}: {}", why_program(&error)),
    }
}

fn program_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::Program, Error> {
    ebpf.program_mut(name).ok_or_else(|| lacks(name))
}

/// A loaded program.
pub(in crate::datapath) fn fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).ok_or_else(|| lacks(name))?;
    let fd = program.fd().map_err(|error| Error::Load {
        why: why_program(&error),
    })?;
    Ok(fd.as_fd())
}

pub(in crate::datapath) fn lacks(name: &str) -> Error {
    Error::Load {
        why: format!("the object has no {name}"),
    }
}

/// Pins a program in the place of the one that was pinned there before.
pub(super) fn pin(pins: &Pins, name: &str, program: BorrowedFd<'_>) -> Result<(), Error> {
    let pin = pins.programs().join(name);
    let new = pins.programs().join(format!("{name}-new"));
    // Left behind by an agent that was killed here.
    if new.exists() {
        fs::remove_file(&new).map_err(Error::pin("remove", &new))?;
    }
    sys::pin(program, &new).map_err(Error::pin("pin the program", &new))?;
    fs::rename(&new, &pin).map_err(Error::pin("rename to", &pin))
}

/// The reason behind aya's error, with the sources that its text leaves out.
pub(super) fn why(error: &EbpfError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// The kernel's reason to refuse a program, with the end of the verifier's log,
/// where its complaint stands.
fn why_program(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
            let end = lines[lines.len().saturating_sub(8)..].join("\n");
            match end.is_empty() {
                true => io_error.to_string(),
                false => format!("{io_error}; the verifier's log ends:\n{end}\n"),
            }
        }
        error => error.to_string(),
    }
}
