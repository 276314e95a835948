//! The system calls on a socket that no crate has a safe form of: options by number,
//! the lengths of queues, reading and writing in repair mode. All that is unsafe in
//! this folder is here.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr,
};

use libc::{c_int, c_void, socklen_t};

/// A descriptor of a TCP socket.
#[derive(Clone, Copy)]
pub(super) struct Socket<'a>(BorrowedFd<'a>);

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
    }
}

impl<'a> Socket<'a> {
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self(fd)
    }

    /// An option that is an integer.
    pub fn int(self, level: c_int, name: c_int) -> io::Result<c_int> {
        let mut value = [0; size_of::<c_int>()];
        self.bytes(level, name, &mut value)?;
        Ok(c_int::from_ne_bytes(value))
    }

    /// Reads an option into `value`; returns how many bytes it has.
    pub fn bytes(self, level: c_int, name: c_int, value: &mut [u8]) -> io::Result<usize> {
        let mut len = value.len() as socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, as many as there are, and both
        // outlive the call.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                value.as_mut_ptr().cast(),
                &raw mut len,
            )
        })?;
        Ok(len as usize)
    }

    /// Sets an option that is an integer.
    pub fn set_int(self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        self.set_bytes(level, name, &value.to_ne_bytes())
    }

    /// Sets an option.
    pub fn set_bytes(self, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as it is told, of a slice that is that
        // long and outlives the call.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                value.as_ptr().cast(),
                value.len() as socklen_t,
            )
        })
        .map(drop)
    }

    /// A length of a queue: `request` is one of `SIOCINQ`, `SIOCOUTQ` and `SIOCOUTQNSD`.
    pub fn queued(self, request: libc::Ioctl) -> io::Result<u32> {
        let mut value: c_int = 0;
        // SAFETY: these requests write one integer, which outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut value) })?;
        Ok(value as u32)
    }

    /// Reads from the queue that repair mode is set to, and takes nothing out of it.
    pub fn peek(self, buffer: &mut [u8]) -> io::Result<usize> {
        let (flags, len) = (libc::MSG_PEEK | libc::MSG_DONTWAIT, buffer.len());
        // SAFETY: the buffer is as long as told and outlives the call.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast::<c_void>(),
                len,
                flags,
            )
        };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Writes: in repair mode to the queue it is set to, else to the peer. Does not
    /// wait; returns how much was taken.
    pub fn write(self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the slice is as long as told and outlives the call.
        let len = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                bytes.as_ptr().cast::<c_void>(),
                bytes.len(),
                flags,
            )
        };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Which of `events` (`POLL*`) there are, after waiting for one for so long.
    pub fn poll(self, events: i16, timeout_ms: c_int) -> io::Result<i16> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: one structure, as told, that outlives the call.
        check(unsafe { libc::poll(&raw mut poll, 1, timeout_ms) })?;
        Ok(poll.revents)
    }

    /// `connect(AF_UNSPEC)`: ends the connection for every holder of the socket. In
    /// repair mode nothing is sent; else the peer gets a reset.
    pub fn disconnect(self) -> io::Result<()> {
        // SAFETY: all bytes zero is a value of this structure, of the family AF_UNSPEC.
        let nobody: libc::sockaddr = unsafe { mem::zeroed() };
        // SAFETY: the address is as long as told and outlives the call.
        check(unsafe {
            libc::connect(
                self.0.as_raw_fd(),
                ptr::from_ref(&nobody),
                size_of_val(&nobody) as socklen_t,
            )
        })
        .map(drop)
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
