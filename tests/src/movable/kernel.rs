//! What the kernel says of connections: of one, and of all of a network namespace.

use std::{fs, io, mem, os::fd::AsRawFd};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::lab::{Lab, Node, node};

/// `TCP_CLOSE` of `enum` in <net/tcp_states.h>.
const CLOSE: u8 = 7;

/// How a connection stands with the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    /// Segments that were sent again.
    pub retransmits: u64,
    /// It is closed in every respect.
    pub closed: bool,
}

/// Asks for `TCP_INFO`.
pub(super) fn info(socket: &impl AsRawFd) -> io::Result<Info> {
    // SAFETY: all fields are numbers, for which 0 is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Info {
        retransmits: info.tcpi_total_retrans.into(),
        closed: info.tcpi_state == CLOSE,
    })
}

/// How many bytes were written that the other side's kernel has not confirmed.
pub(super) fn unconfirmed(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut len: libc::c_int = 0;
    // SAFETY: the kernel writes an int, which `len` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(len.max(0) as u64)
}

/// Lets this process have as many files as it may. Harmless to repeat.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid `rlimit`, and keep nothing of it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// What a machine's kernel counts of all its TCP connections, whoever's they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NetCounts {
    /// Segments that were sent again (`RetransSegs`).
    pub retransmits: u64,
    /// Connections that a reset ended while they were open, whoever sent it
    /// (`EstabResets`).
    pub resets: u64,
    /// Resets that this machine sent itself, because a program closed a connection without
    /// reading all that had come (`TCPAbortOnClose`).
    pub own_resets: u64,
    /// Connections that could not be established (`AttemptFails`).
    pub failed: u64,
}

impl NetCounts {
    /// Reads them on a machine of the lab.
    pub fn of(lab: &Lab, machine: Node) -> Result<Self> {
        let text = node::in_namespace(&lab.namespace(machine), || {
            // Of this thread, which alone is in that namespace.
            let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            Ok(read("snmp")? + &read("netstat")?)
        })?;
        Self::read(&text).context("/proc/net/snmp and netstat have another form")
    }

    /// Open connections that the other end reset.
    pub fn resets_seen(self) -> u64 {
        self.resets.saturating_sub(self.own_resets)
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            retransmits: self.retransmits - before.retransmits,
            resets: self.resets - before.resets,
            own_resets: self.own_resets - before.own_resets,
            failed: self.failed - before.failed,
        }
    }

    /// Each group has a line of names and a line of numbers, which begin with its name.
    fn read(text: &str) -> Option<Self> {
        let of = |group: &str, wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
            let (names, numbers) = (lines.next()?, lines.next()?);
            let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
            pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
        };
        Some(Self {
            retransmits: of("Tcp:", "RetransSegs")?,
            resets: of("Tcp:", "EstabResets")?,
            own_resets: of("TcpExt:", "TCPAbortOnClose")?,
            failed: of("Tcp:", "AttemptFails")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\n\
            Tcp: MaxConn AttemptFails EstabResets RetransSegs\nTcp: -1 3 7 1\n\
            TcpExt: SyncookiesSent TCPAbortOnClose\nTcpExt: 0 5\n";
        let counts = NetCounts::read(text).unwrap();
        assert_eq!((counts.failed, counts.retransmits), (3, 1));
        assert_eq!(counts.resets_seen(), 2);
        assert!(NetCounts::read("Tcp: RetransSegs\nTcp: 1\n").is_none());
    }
}
