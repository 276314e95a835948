//! Whole Ethernet frames, sent and heard: packet(7) sockets.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
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
        socket.bind(ifindex)?;
        Ok(socket)
    }

    /// A socket that hears the first `snap` bytes of all that leaves by an interface, and
    /// of what arrives by it only if that is asked for, each frame with its time.
    pub fn tap(ifindex: u32, arriving: bool, snap: u32) -> io::Result<Self> {
        let socket = Self::open(0)?;
        if !arriving {
            socket.only_outgoing(snap)?;
        }
        socket.set_int(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        socket.bind(ifindex)?;
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

    /// The next frame of a [tap](Self::tap), if one is there.
    pub fn next<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<Tapped<'a>>> {
        let mut from = address(0, 0);
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut control = [0u64; 8];
        // SAFETY: all bytes zero is a valid value of this plain structure.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: all that the message points to outlives the call, and is as long as told.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        let len = match check(len as i32) {
            Ok(len) => len as usize,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut time_ns = 0;
        // SAFETY: the kernel has filled the control buffer, which is aligned as it must be.
        let first = unsafe { libc::CMSG_FIRSTHDR(&message) };
        // SAFETY: not null, it points into that buffer.
        if let Some(header) = unsafe { first.as_ref() }
            && (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS)
        {
            // SAFETY: a message of this type holds this structure, wherever it may lie.
            let time: libc::timespec = unsafe {
                libc::CMSG_DATA(first)
                    .cast::<libc::timespec>()
                    .read_unaligned()
            };
            time_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        }
        Ok(Some(Tapped {
            time_ns,
            leaves: from.sll_pkttype == libc::PACKET_OUTGOING,
            frame: &buffer[..len.min(buffer.len())],
        }))
    }

    /// How many frames were lost since the last time this was asked, because they came
    /// faster than they were taken.
    pub fn lost(&self) -> io::Result<u32> {
        // `struct tpacket_stats`: frames, and those of them that were dropped.
        let mut counts = [0u32; 2];
        let mut len = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: both live until the call returns, and the length is that of the counts.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &mut len,
            )
        })?;
        Ok(counts[1])
    }

    /// Lets nothing in but the beginning of frames that leave: by the kernel's own
    /// filter, before anything is copied.
    fn only_outgoing(&self, snap: u32) -> io::Result<()> {
        let code = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
        let mut filter = [
            code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, kind),
            code(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                1,
                libc::PACKET_OUTGOING.into(),
            ),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, snap),
            code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program and what it points to live until the call returns.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        })
        .map(drop)
    }

    /// Begins to hear an interface.
    fn bind(&self, ifindex: u32) -> io::Result<()> {
        // What comes in bursts is not to be lost; without the right to it, less is.
        self.set_int(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)
            .ok();
        let at = address(ifindex, libc::ETH_P_ALL as u16);
        // SAFETY: the address lives until the call returns, and its length is told.
        check(unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const at).cast(),
                size_of_val(&at) as libc::socklen_t,
            )
        })
        .map(drop)
    }

    fn open(protocol: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, protocol.to_be().into()) })?;
        // SAFETY: the kernel has just returned this descriptor, and only to us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn set(&self, option: libc::c_int) -> io::Result<()> {
        self.set_int(libc::SOL_PACKET, option, 1)
    }

    fn set_int(
        &self,
        level: libc::c_int,
        option: libc::c_int,
        value: libc::c_int,
    ) -> io::Result<()> {
        // SAFETY: the value is an int, as its length says, and outlives the call.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        })
        .map(drop)
    }
}

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A frame that a tap has heard.
#[derive(Debug)]
pub struct Tapped<'a> {
    /// When the kernel had it, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Whether it left; else it arrived.
    pub leaves: bool,
    /// Its beginning.
    pub frame: &'a [u8],
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
