//! Whole Ethernet frames, sent and heard: packet(7) sockets.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

/// A socket for frames, in the network namespace of the thread that opened it.
pub struct Raw(OwnedFd);

impl Raw {
    /// A socket that only sends, past the interface's queues and filters.
    pub fn sender() -> io::Result<Self> {
        let socket = Self::open(0)?;
        socket.set(libc::PACKET_QDISC_BYPASS)?;
        Ok(socket)
    }

    /// A socket that hears all that arrives by an interface, and nothing that leaves.
    pub fn listener(ifindex: u32) -> io::Result<Self> {
        let socket = Self::open(0)?;
        socket.set(libc::PACKET_IGNORE_OUTGOING)?;
        let at = address(ifindex, libc::ETH_P_ALL as u16);
        // SAFETY: the address lives until the call returns, and its length is told.
        check(unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const at).cast(),
                size_of_val(&at) as libc::socklen_t,
            )
        })?;
        // What comes in bursts is not to be lost; without the right to it, less is.
        let bytes: libc::c_int = 64 << 20;
        // SAFETY: the value is an int, as its length says, and outlives the call.
        unsafe {
            libc::setsockopt(
                socket.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            );
        }
        Ok(socket)
    }

    /// Puts a frame onto an interface.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let to = address(ifindex, 0);
        // SAFETY: frame and address live until the call returns, and their lengths
        // are told.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        check(sent as i32).map(|_| ())
    }

    /// The next frame, or none if none comes for so long. Of a frame that is longer
    /// than `buffer` the rest is lost.
    pub fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        patience: Duration,
    ) -> io::Result<Option<&'a [u8]>> {
        let mut ready = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, as told, that outlives the call.
        let count = check(unsafe { libc::poll(&mut ready, 1, patience.as_millis() as i32) })?;
        if count == 0 {
            return Ok(None);
        }
        // SAFETY: the buffer is as long as told and outlives the call.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let len = check(len as i32)?;
        Ok(Some(&buffer[..len as usize]))
    }

    fn open(protocol: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, protocol.to_be().into()) })?;
        // SAFETY: the kernel has just returned this descriptor, and only to us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn set(&self, option: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the value is an int, as its length says, and outlives the call.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        })
        .map(|_| ())
    }
}

/// The index of an interface of this thread's network namespace.
pub fn index_of(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: the name ends with a zero byte and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn address(ifindex: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: all bytes zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    address
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
