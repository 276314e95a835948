//! Numbers of the kernel's interface that the libc crate does not have, and what
//! `TCP_INFO` says. From `include/uapi/linux/{tcp,sockios,socket}.h`.

use std::io;

use libc::{IPPROTO_TCP, c_int};

use super::{socket::Socket, state::State};

/// Values of `TCP_REPAIR`.
pub(super) const REPAIR_ON: c_int = 1;
/// Off, and a window probe is sent.
pub(super) const REPAIR_OFF: c_int = 0;
/// Off, without one.
pub(super) const REPAIR_OFF_QUIETLY: c_int = -1;

/// Values of `TCP_REPAIR_QUEUE`.
pub(super) const NO_QUEUE: c_int = 0;
pub(super) const RECEIVE_QUEUE: c_int = 1;
pub(super) const SEND_QUEUE: c_int = 2;

/// Kinds of `struct tcp_repair_opt`, numbered as on the wire.
pub(super) const OPT_MSS: u32 = 2;
pub(super) const OPT_WINDOW: u32 = 3;
pub(super) const OPT_SACK: u32 = 4;
pub(super) const OPT_TIMESTAMP: u32 = 8;

pub(super) const TCP_AO_INFO: c_int = 40;
pub(super) const IPPROTO_MPTCP: c_int = 262;

pub(super) const SNDBUF_LOCK: c_int = 1;
pub(super) const RCVBUF_LOCK: c_int = 2;

/// Bytes in the receive queue.
pub(super) const SIOCINQ: libc::Ioctl = libc::FIONREAD;
/// What is not acknowledged yet of all that was written; a FIN counts as a byte.
pub(super) const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;
/// What of that has never been sent.
pub(super) const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// `TCP_CLOSE`, of the states in `include/net/tcp_states.h`.
const CLOSED: u8 = 7;

/// The beginning of `struct tcp_info`.
pub(super) struct Info([u8; INFO_LEN]);

const INFO_LEN: usize = 20;

impl Info {
    pub fn read(socket: Socket<'_>) -> io::Result<Self> {
        let mut info = [0; INFO_LEN];
        match socket.bytes(IPPROTO_TCP, libc::TCP_INFO, &mut info)? {
            INFO_LEN => Ok(Self(info)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The connection's state, or the number of one that cannot be carried.
    pub fn state(&self) -> Result<State, u8> {
        State::of(self.0[0]).ok_or(self.0[0])
    }

    pub fn is_closed(&self) -> bool {
        self.0[0] == CLOSED
    }

    pub fn timestamps(&self) -> bool {
        self.0[5] & 1 != 0
    }

    pub fn sack(&self) -> bool {
        self.0[5] & 2 != 0
    }

    pub fn scaling(&self) -> bool {
        self.0[5] & 4 != 0
    }

    pub fn ecn(&self) -> bool {
        self.0[5] & 8 != 0
    }

    /// By how many bits windows are shifted: the peer's, and this side's. Two bit
    /// fields, the first of which is the low one where integers are little-endian.
    pub fn scales(&self) -> (u8, u8) {
        match cfg!(target_endian = "little") {
            true => (self.0[6] & 15, self.0[6] >> 4),
            false => (self.0[6] >> 4, self.0[6] & 15),
        }
    }
}
