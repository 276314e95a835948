//! Datagrams with descriptors on a connected Unix socket (`SOCK_SEQPACKET`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Room for descriptors of one datagram: as many as the kernel lets anybody send
/// (`SCM_MAX_FD`), so that none is cut off, and each one that came is closed.
const DESCRIPTORS: usize = 253;

/// A connected socket.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

/// What came.
#[derive(Debug)]
pub struct Received {
    /// The bytes that were written to the buffer. None: the other end has closed.
    pub len: usize,
    /// The descriptor that came with them.
    pub descriptor: Option<OwnedFd>,
    /// The datagram was longer than the buffer, or came with more than one descriptor, or
    /// with something else: then nothing of it is of use.
    pub spoilt: bool,
}

impl Socket {
    /// Connects to a listening socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Nobody listens, or its owner does not let this process in.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // On a Unix socket this is done at once, or refused: a full backlog is EAGAIN.
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::of(socket)
    }

    /// Takes a connected socket that does not block.
    ///
    /// # Errors
    ///
    /// It cannot be watched.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the
        // `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self(socket))
    }

    /// Waits for the next datagram. May be cancelled without losing one.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.0
            .async_io(Interest::READABLE, |socket| receive(socket.as_fd(), buffer))
            .await
    }

    /// Sends a datagram, once there is room for it. Cancelled, it was not sent.
    ///
    /// # Errors
    ///
    /// The other end has closed.
    pub async fn send(
        &self,
        datagram: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |socket| {
                send(socket.as_fd(), datagram, descriptor)
            })
            .await
    }

    /// Sends a datagram if there is room for it now.
    ///
    /// # Errors
    ///
    /// There is none, or the other end has closed.
    pub fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        send(self.as_fd(), datagram, None)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut buffers, &mut control, flags)?;
    let mut spoilt = message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let mut descriptor = None;
    for ancillary in control.drain() {
        match ancillary {
            RecvAncillaryMessage::ScmRights(descriptors) => {
                for one in descriptors {
                    spoilt |= descriptor.replace(one).is_some();
                }
            }
            _ => spoilt = true,
        }
    }
    Ok(Received {
        len: message.bytes,
        descriptor: descriptor.filter(|_| !spoilt),
        spoilt,
    })
}

fn send(
    socket: BorrowedFd<'_>,
    datagram: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(datagram)], &mut control, flags)?;
    Ok(())
}
