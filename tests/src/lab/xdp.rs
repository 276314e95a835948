//! Small XDP programs of the lab's own, written instruction by instruction: the tests
//! must not depend on what they test to be built.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// An instruction, as `struct bpf_insn` lies in memory.
pub type Instruction = [u8; 8];

/// The verdicts of XDP programs, from <linux/bpf.h>.
pub mod verdict {
    /// The packet is dropped.
    pub const DROP: i32 = 1;
    /// It goes up to the stack.
    pub const PASS: i32 = 2;
    /// It leaves by the interface that it came in by.
    pub const TX: i32 = 3;
}

/// Puts an instruction together: its code, the registers that it writes to and reads
/// from, an offset and a number.
pub const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [n0, n1, n2, n3] = number.to_le_bytes();
    [code, from << 4 | to, o0, o1, n0, n1, n2, n3]
}

// Commands, types and flags of bpf(2), from <linux/bpf.h>.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// Packets that a run hands to a device at once.
const BATCH: u32 = 64;

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

/// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    fd: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// A program in the kernel.
pub struct Program(OwnedFd);

impl Program {
    /// Loads one under a name of at most 15 bytes.
    pub fn load(name: &str, instructions: &[Instruction]) -> io::Result<Self> {
        let mut attr = ProgramAttr {
            program_type: BPF_PROG_TYPE_XDP,
            instructions_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            ..ProgramAttr::default()
        };
        attr.name[..name.len()].copy_from_slice(name.as_bytes());
        let fd = bpf(BPF_PROG_LOAD, &attr)?;
        // SAFETY: the kernel has just returned this descriptor, and only to us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Pins it at a path on a BPF file system.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
        let attr = PinAttr {
            path: path.as_ptr() as u64,
            fd: self.0.as_raw_fd() as u32,
            flags: 0,
        };
        bpf(BPF_OBJ_PIN, &attr).map(drop)
    }

    /// Makes `count` packets of `frame` and runs the program on each, as if it had come
    /// in by an interface of this thread's network namespace; does with each what the
    /// program says. The bytes of a packet may be those that an earlier run of the
    /// program has left.
    pub fn run_live(&self, ifindex: u32, frame: &[u8], count: u32) -> io::Result<()> {
        let context = Context {
            data_end: frame.len() as u32,
            ingress_ifindex: ifindex,
            ..Context::default()
        };
        let attr = RunAttr {
            fd: self.0.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: count,
            context_size_in: size_of_val(&context) as u32,
            context_in: (&raw const context) as u64,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: BATCH.min(count),
            ..RunAttr::default()
        };
        bpf(BPF_PROG_TEST_RUN, &attr).map(drop)
    }
}

/// A command of bpf(2). `attr` begins as the command's attributes do; what it points to
/// is the caller's, and lives until the call returns.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: the attributes outlive the call and their size is told; the kernel reads
    // no more of them, and of these commands writes only to test runs' results, within
    // them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of_val(attr)) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}
