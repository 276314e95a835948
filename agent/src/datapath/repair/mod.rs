//! A TCP connection taken out of one host's kernel and put into another's: the one
//! place that knows `TCP_REPAIR`.
//!
//! At the source: [`check`] tells what cannot be carried, while the connection goes on.
//! Once the kernel programs keep its packets away, [`Frozen::enter`] stops the socket,
//! [`Frozen::snapshot`] reads its state, [`Frozen::sequence`] says whether anything has
//! changed since, and then [`Frozen::destroy`] ends it in silence for every holder, or
//! [`Frozen::leave`] lets it go on as if nothing had been.
//!
//! At the target: [`restore`] makes of a socket that the application has just made the
//! connection of a [`Snapshot`], [`Restored::activate`] lets it go on, and
//! [`Restored::discard`] takes it away in silence.
//!
//! What is carried: addresses, state (also half-closed), sequence numbers, both queues,
//! windows and their scales, MSS, SACK, the clock of timestamps, congestion control by
//! name, sizes of buffers and whether the application set them, and the socket options in
//! `options.rs`.
//!
//! What is not, and what that does:
//!
//! - congestion window, round-trip times: the connection begins again with ten segments;
//! - segments that came out of order, and what the peer has acknowledged selectively: one
//!   side or the other sends them again;
//! - ECN: no interface restores it. What this side sends is then not ECN-capable, which a
//!   sender may do at any time. Marks on what the peer sends are not echoed, so a router on
//!   that way has to drop where it would have marked: [`Snapshot::loses_ecn`];
//! - what left the socket after its packets began to be dropped and before
//!   [`Frozen::enter`]: it counts as sent, and is sent again as if the network had lost it;
//! - urgent data that was sent and has not been acknowledged: it arrives as ordinary data.
//!
//! Repair mode keeps nothing off the wire: what arrives is still acknowledged, and timers
//! still send. So packets of the session must be dropped or diverted, both ways, from
//! before [`Frozen::enter`] and from before [`restore`] on.

mod codec;
mod kernel;
mod options;
mod refusal;
mod restore;
mod segment;
mod snapshot;
mod socket;
mod state;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use libc::IPPROTO_TCP;
use socket2::SockRef;

pub use codec::Malformed;
pub use refusal::{Queued, Refusal, check};
pub use restore::{Active, Restored, Up, restore};
pub use snapshot::Snapshot;
pub use state::{Sequence, State};

use self::socket::Socket;

/// How much may stand in each of the two queues, bytes.
pub const QUEUE_MAX: u32 = 8 << 20;
/// What stands in both together at most that the kernel gives and takes in microseconds.
pub const LIGHT_MAX: usize = 64 << 10;

/// Why a connection could not be read, ended or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is of a kind that cannot be carried.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Data arrived, was read or was written while the state was being read.
    #[error("the connection changed while it was read; something still reads, writes or delivers")]
    Changed,
    /// The fresh socket is of the wrong kind.
    #[error(
        "the application's fresh socket is no {wanted} socket, or accepts {wanted} only in part"
    )]
    WrongFamily {
        /// "IPv4" or "IPv6".
        wanted: &'static str,
    },
    /// The target's kernel lacks the connection's congestion control.
    #[error(
        "this kernel has no congestion control {name:?} ({error}); load the module tcp_{name} on \
         every host"
    )]
    Congestion {
        /// Its name.
        name: String,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The stack did not take up what the half-closed state is made of.
    #[error("the restored socket did not reach the state {0:?}")]
    HalfClosed(State),
    /// The kernel refused something.
    #[error("cannot {what}: {error}")]
    Kernel {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// Says what a system call was for.
trait Said<T> {
    fn said(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Said<T> for io::Result<T> {
    fn said(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Kernel { what, error })
    }
}

/// A connection at its source, in repair mode. One that is dropped goes on, as after
/// [`Frozen::leave`].
#[derive(Debug)]
pub struct Frozen {
    socket: OwnedFd,
    /// How much was never sent when repair mode began. What the kernel has sent since did
    /// not leave the host.
    unsent: u32,
    /// What `SO_REUSEADDR` was: leaving repair mode clears it.
    reuse: bool,
    /// Whether to leave repair mode at the end.
    leave: bool,
}

impl Frozen {
    /// Enters repair mode. A socket that is in it already, because an agent died there,
    /// is taken as it is.
    ///
    /// From here on reads of the application fail with `EPERM` and writes with `EINVAL`;
    /// one that was waiting already may still take data, so it must have stopped before.
    pub fn enter(socket: OwnedFd) -> Result<Self, Error> {
        let fd = Socket::new(socket.as_fd());
        refusal::state(fd)?;
        let found = fd
            .int(IPPROTO_TCP, libc::TCP_REPAIR)
            .said("read TCP_REPAIR")?
            != 0;
        // In repair mode the option reads as set; without it a listener could not be
        // started again beside the connection, so that is the better guess.
        let reuse = found
            || SockRef::from(&socket)
                .reuse_address()
                .said("read SO_REUSEADDR")?;
        if !found {
            fd.set_int(IPPROTO_TCP, libc::TCP_REPAIR, kernel::REPAIR_ON)
                .said("enter repair mode")?;
        }
        let mut frozen = Self {
            socket,
            unsent: 0,
            reuse,
            leave: true,
        };
        frozen.unsent = snapshot::unsent(frozen.fd())?;
        frozen.refuse_sockmap()?;
        Ok(frozen)
    }

    /// Reads all of the connection's state.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        snapshot::read(self.fd(), self.unsent)
    }

    /// Where the connection stands now. Unless it is what [`Snapshot::sequence`] says, the
    /// snapshot is not true any more.
    pub fn sequence(&self) -> Result<Sequence, Error> {
        snapshot::sequence(self.fd())
    }

    /// Leaves repair mode and sends nothing: the connection goes on.
    pub fn leave(mut self) -> io::Result<()> {
        self.leave = false;
        self.thaw()
    }

    /// Ends the connection for every holder of its socket, and sends nothing. To them it
    /// looks aborted (`ECONNABORTED`).
    pub fn destroy(mut self) -> io::Result<()> {
        self.fd().disconnect()?;
        self.leave = false;
        // A closed socket in repair mode would be in nobody's way; but nobody would
        // expect it either.
        self.thaw()
    }

    fn thaw(&self) -> io::Result<()> {
        let off = kernel::REPAIR_OFF_QUIETLY;
        self.fd().set_int(IPPROTO_TCP, libc::TCP_REPAIR, off)?;
        SockRef::from(&self.socket).set_reuse_address(self.reuse)
    }

    fn fd(&self) -> Socket<'_> {
        Socket::new(self.socket.as_fd())
    }

    /// In repair mode, and with no queue chosen, TCP refuses to read. Where it does not, it
    /// is not TCP that reads: a sockmap has put itself before it (net/ipv4/tcp_bpf.c).
    fn refuse_sockmap(&self) -> Result<(), Error> {
        let fd = self.fd();
        fd.set_int(IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, kernel::NO_QUEUE)
            .said("choose no queue")?;
        match fd.peek(&mut [0]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            _ => Err(Refusal::Sockmap.into()),
        }
    }
}

impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How much data a connection has in its queues just now.
///
/// # Errors
///
/// It is more than can be carried, or the kernel does not tell.
pub fn queued(socket: BorrowedFd<'_>) -> Result<Queued, Error> {
    refusal::queued(Socket::new(socket))
}

/// Whether a socket's connection is closed, in every direction and for good.
pub fn is_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(kernel::Info::read(Socket::new(socket))?.is_closed())
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.leave {
            // Nobody is left to be told; whoever holds the socket can try again.
            self.thaw().ok();
        }
    }
}
