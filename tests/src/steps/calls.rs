//! Which calls into the kernel are steps of a move, in an agent or an application.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use socket2::{Domain, SockRef, Type};

/// A call that a thread is about to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// `enum bpf_cmd` of the kernel's `linux/bpf.h`.
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_MAP_DELETE_ELEM: u64 = 3;
const BPF_PROG_TEST_RUN: u64 = 10;

/// Options that put a socket into repair mode, and change what it is there
/// (`linux/tcp.h`).
const REPAIR: [(u64, &str); 6] = [
    (libc::TCP_REPAIR as u64, "TCP_REPAIR"),
    (libc::TCP_REPAIR_QUEUE as u64, "TCP_REPAIR_QUEUE"),
    (libc::TCP_QUEUE_SEQ as u64, "TCP_QUEUE_SEQ"),
    (libc::TCP_REPAIR_OPTIONS as u64, "TCP_REPAIR_OPTIONS"),
    (libc::TCP_TIMESTAMP as u64, "TCP_TIMESTAMP"),
    (libc::TCP_REPAIR_WINDOW as u64, "TCP_REPAIR_WINDOW"),
];

/// Reads what a process's calls are about.
pub struct Reader {
    memory: File,
    process: OwnedFd,
}

impl Reader {
    pub fn new(pid: i32) -> Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let process = owned(fd).with_context(|| format!("there is no process {pid}"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        Ok(Self { memory, process })
    }

    /// What a step does; none if the call is none.
    pub fn step(&self, call: &Call) -> Option<String> {
        let [first, second, third, fourth, ..] = call.args;
        match call.number {
            libc::SYS_bpf => self.bpf(first, second),
            libc::SYS_setsockopt if second == libc::SOL_TCP as u64 => {
                let (_, name) = REPAIR.iter().find(|(option, _)| *option == third)?;
                // The value says whether repair mode begins or ends.
                let value = self.word(fourth)?;
                Some(format!("set {name} {value}"))
            }
            libc::SYS_connect => self.connect(first as i32, second),
            libc::SYS_sendmsg | libc::SYS_sendto | libc::SYS_write | libc::SYS_writev => {
                self.send(first as i32)
            }
            _ => None,
        }
    }

    fn bpf(&self, command: u64, attributes: u64) -> Option<String> {
        let what = match command {
            BPF_MAP_UPDATE_ELEM => "write",
            BPF_MAP_DELETE_ELEM => "delete from",
            BPF_PROG_TEST_RUN => return Some("feed a packet".into()),
            _ => return None,
        };
        // The map's descriptor comes first.
        let map = self.descriptor(self.word(attributes)? as i32)?;
        let info = MapData::from_fd(map).ok()?.info().ok()?;
        let name = info.name_as_str()?;
        ["MOVING", "SESSIONS"]
            .contains(&name)
            .then(|| format!("{what} {name}"))
    }

    fn connect(&self, fd: i32, address: u64) -> Option<String> {
        let socket = self.descriptor(fd)?;
        let is_tcp = is_tcp(&SockRef::from(&socket))?;
        let family = self.word(address)? as u16;
        match i32::from(family) {
            _ if !is_tcp => None,
            // connect(2): what is connected is not any more.
            libc::AF_UNSPEC => Some("destroy a socket".into()),
            _ => Some("connect a socket".into()),
        }
    }

    fn send(&self, fd: i32) -> Option<String> {
        let socket = self.descriptor(fd)?;
        let socket = SockRef::from(&socket);
        let is_seqpacket =
            socket.domain().ok()? == Domain::UNIX && socket.r#type().ok()? == Type::SEQPACKET;
        if is_seqpacket {
            return Some("talk to applications".into());
        }
        is_tcp(&socket)?.then(|| "talk to an agent".into())
    }

    /// A copy of one of the process's descriptors.
    fn descriptor(&self, fd: i32) -> Option<OwnedFd> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.process.as_raw_fd(), fd, 0) };
        owned(fd).ok()
    }

    /// Four bytes of the process's memory.
    fn word(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, address).ok()?;
        Some(u32::from_ne_bytes(bytes))
    }
}

/// Whether it is a stream of the internet; none if it is no socket.
fn is_tcp(socket: &SockRef<'_>) -> Option<bool> {
    let is_internet = [Domain::IPV4, Domain::IPV6].contains(&socket.domain().ok()?);
    Some(is_internet && socket.r#type().ok()? == Type::STREAM)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just returned this descriptor, and only to us.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    }
}
