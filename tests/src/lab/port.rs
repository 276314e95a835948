//! An XDP program for the router's ports, so that what hosts send by XDP arrives.
//!
//! A veth device hands a frame from `XDP_TX` to its peer's ring, and wakes the peer
//! only if that has an XDP program of its own (`veth_xdp_flush` in
//! `drivers/net/veth.c`; NAPI by GRO makes the ring, but nobody wakes it). The
//! program passes everything on.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};

/// Loads the program and pins it at `path` on a BPF file system.
pub fn pin(path: &Path) -> Result<()> {
    let program = load().context("cannot load an XDP program; does the kernel have BPF?")?;
    pin_at(&program, path).with_context(|| format!("cannot pin a program at {}", path.display()))
}

/// `r0 = XDP_PASS; exit`, in the form of `struct bpf_insn`.
const INSTRUCTIONS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

// Commands and program types of bpf(2), from <linux/bpf.h>.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`. What is left out counts as
/// zero.
#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    program_type: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The beginning of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn load() -> io::Result<OwnedFd> {
    let attr = ProgramAttr {
        program_type: BPF_PROG_TYPE_XDP,
        instructions_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        name: *b"lab_port_pass\0\0\0",
        ..ProgramAttr::default()
    };
    // SAFETY: `attr` begins as this command's attributes do and its size is told;
    // what it points to lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &attr, size_of_val(&attr)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and only to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pin_at(program: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attr = PinAttr {
        path: path.as_ptr() as u64,
        fd: program.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: as in `load`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &attr, size_of_val(&attr)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
