//! All of a connection's state, and how it is read from a socket in repair mode.

use std::{fmt, io, net::SocketAddr, os::fd::AsFd as _};

use homing_common::{net::TCP, session::Tuple};
use libc::{IPPROTO_TCP, SOL_SOCKET};

use super::{
    Error, LIGHT_MAX, Said as _,
    kernel::{self, Info, SIOCOUTQNSD},
    options::{self, Setting},
    refusal::{self, ends, queued},
    socket::Socket,
    state::{Sequence, State},
};

/// More than any segment in a send queue holds; so much more than is not acknowledged
/// may stand there, if the peer acknowledged half a segment.
const SEGMENT_MAX: usize = 512 << 10;

/// How far stamps may be ahead of the clock: a few of the largest segments at a very low
/// rate. (What the rate was when they were stamped cannot be known.)
const LEAD_US: u32 = 1_000_000;

/// A connection, as [`restore`](super::restore) needs it. [`Snapshot::encode`] and
/// [`Snapshot::decode`] make bytes of it and back.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// This side's address; IPv4 is never IPv4-mapped.
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) state: State,
    /// See [`Sequence::written`].
    pub(super) written: u32,
    /// See [`Sequence::expected`].
    pub(super) expected: u32,
    /// Sent, and not acknowledged.
    pub(super) sent: Vec<u8>,
    /// Never sent.
    pub(super) unsent: Vec<u8>,
    /// Received, and not read.
    pub(super) received: Vec<u8>,
    /// In FIN_WAIT1: the FIN was never sent either.
    pub(super) fin_unsent: bool,
    /// The application has shut down reading.
    pub(super) read_shut: bool,
    pub(super) window: Window,
    /// The largest window to offer, bytes.
    pub(super) window_clamp: u32,
    /// By how many bits windows are shifted, if both sides agreed to: the peer's, and
    /// this side's.
    pub(super) scales: Option<(u8, u8)>,
    /// The largest segment that the peer takes.
    pub(super) mss: u32,
    pub(super) sack: bool,
    pub(super) ecn: bool,
    pub(super) clock: Option<Clock>,
    pub(super) receive_buffer: Buffer,
    pub(super) send_buffer: Buffer,
    /// The name of the congestion control.
    pub(super) congestion: String,
    /// In ascending order of their numbers.
    pub(super) settings: Vec<Setting>,
}

/// `struct tcp_repair_window`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Window {
    /// The number of the segment that told the peer's window last.
    pub told_at: u32,
    /// The peer's window.
    pub peer: u32,
    /// The largest that it ever told.
    pub peer_max: u32,
    /// The window told to the peer.
    pub own: u32,
    /// What was acknowledged as that was told.
    pub own_at: u32,
}

/// The clock of the timestamps that are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Clock {
    /// No segment has had a later stamp.
    pub value: u32,
    /// It counts microseconds, not milliseconds.
    pub micros: bool,
}

impl Clock {
    /// Of what the kernel calls the time. A paced segment is stamped with the time at which
    /// it is due, and so is what is sent while one is (net/ipv4/tcp_output.c,
    /// `tcp_update_skb_after_send`): stamps may be ahead of the clock. If the clock began
    /// again behind them, the client would take segments for old ones and drop them; that
    /// it jumps ahead is nothing to anyone.
    fn ahead_of(time: u32) -> Self {
        // The lowest bit is the unit, in the place of one of the clock's.
        let micros = time & 1 != 0;
        let lead = if micros { LEAD_US } else { LEAD_US / 1000 };
        Self {
            value: time.wrapping_add(lead + 1),
            micros,
        }
    }
}

/// The size of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Buffer {
    /// As the kernel counts: twice what was asked for.
    pub bytes: u32,
    /// The application has set it, so that the kernel does not adapt it.
    pub locked: bool,
}

impl Snapshot {
    /// The session, as its service sees it.
    pub fn tuple(&self) -> Tuple {
        Tuple::between(self.peer, self.local, TCP)
    }

    /// The connection's state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Where the connection stood.
    pub fn sequence(&self) -> Sequence {
        let fin = u32::from(self.state == State::FinWait1);
        let data = self.sent.len() + self.unsent.len();
        Sequence {
            state: self.state,
            written: self.written,
            unacknowledged: data as u32 + fin,
            expected: self.expected,
            unread: self.received.len() as u32,
        }
    }

    /// The restored socket stands at this number: what it has of the data that was never
    /// sent, and of the FIN after it, is not to be written again.
    pub(super) fn has_written(&mut self, number: u32) {
        let is_shut = self.state.has_sent_fin();
        let data_end = self.written.wrapping_sub(u32::from(is_shut));
        // Beyond the data it is the FIN that was written.
        let missing = data_end.wrapping_sub(number).cast_signed();
        self.fin_unsent &= missing >= 0;
        let missing = missing.max(0) as usize;
        let done = self.unsent.len().saturating_sub(missing);
        self.unsent.drain(..done);
    }

    /// How many bytes there are of data that the peer has not acknowledged, and of data
    /// that the application has not read.
    pub fn queued(&self) -> (usize, usize) {
        (self.sent.len() + self.unsent.len(), self.received.len())
    }

    /// Whether it is restored, and goes on, within microseconds: there is little data, and
    /// nothing that the stack has to be waited for.
    pub fn is_light(&self) -> bool {
        let (to_send, unread) = self.queued();
        let waits = matches!(self.state, State::FinWait2 | State::CloseWait);
        !waits && self.unsent.is_empty() && to_send + unread <= LIGHT_MAX
    }

    /// Whether both sides had agreed on ECN, which cannot be restored.
    pub fn loses_ecn(&self) -> bool {
        self.ecn
    }

    /// The number of the first byte that the peer has not acknowledged.
    pub(super) fn unacknowledged_from(&self) -> u32 {
        let sequence = self.sequence();
        sequence.written.wrapping_sub(sequence.unacknowledged)
    }
}

/// Data does not belong into logs.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("local", &self.local)
            .field("peer", &self.peer)
            .field("sequence", &self.sequence())
            .finish_non_exhaustive()
    }
}

/// Reads the state of a socket in repair mode. The last `unsent` numbers have never been
/// sent.
pub(super) fn read(socket: Socket<'_>, unsent: u32) -> Result<Snapshot, Error> {
    let sequence = sequence(socket)?;
    let (local, peer) = ends(socket.as_fd())?;
    let info = Info::read(socket).said("read TCP_INFO")?;
    let fin = u32::from(sequence.state == State::FinWait1);
    let fin_unsent = fin == 1 && unsent > 0;
    let data = (sequence.unacknowledged - fin) as usize;
    let unsent = (unsent - u32::from(fin_unsent)) as usize;
    if unsent > data {
        return Err(Error::Changed);
    }
    let mut sent = read_send_queue(socket, data)?;
    let unsent = sent.split_off(data - unsent);
    let received = read_receive_queue(socket, sequence.unread as usize)?;
    let tcp = |name| socket.int(IPPROTO_TCP, name);
    let clock = tcp(libc::TCP_TIMESTAMP).said("read the clock of timestamps")? as u32;
    let locks = match socket.int(SOL_SOCKET, libc::SO_BUF_LOCK) {
        // Linux before 5.14 does not tell, and gives no way to unlock either.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => 0,
        locks => locks.said("read SO_BUF_LOCK")?,
    };
    let buffer = |name, lock| -> Result<Buffer, Error> {
        Ok(Buffer {
            bytes: socket
                .int(SOL_SOCKET, name)
                .said("read the size of a buffer")? as u32,
            locked: locks & lock != 0,
        })
    };
    // The peer's FIN shuts reading down as well.
    let hung_up = socket
        .poll(libc::POLLRDHUP, 0)
        .said("ask for the end of reading")?;
    let snapshot = Snapshot {
        local,
        peer,
        state: sequence.state,
        written: sequence.written,
        expected: sequence.expected,
        sent,
        unsent,
        received,
        fin_unsent,
        read_shut: hung_up & libc::POLLRDHUP != 0 && sequence.state != State::CloseWait,
        window: read_window(socket).said("read the windows")?,
        window_clamp: tcp(libc::TCP_WINDOW_CLAMP).said("read TCP_WINDOW_CLAMP")? as u32,
        scales: info.scaling().then(|| info.scales()),
        mss: tcp(libc::TCP_MAXSEG).said("read the MSS")? as u32,
        sack: info.sack(),
        ecn: info.ecn(),
        clock: info.timestamps().then(|| Clock::ahead_of(clock)),
        receive_buffer: buffer(libc::SO_RCVBUF, kernel::RCVBUF_LOCK)?,
        send_buffer: buffer(libc::SO_SNDBUF, kernel::SNDBUF_LOCK)?,
        congestion: read_congestion(socket).said("read the congestion control")?,
        settings: options::read(socket, local.is_ipv4()).said("read the socket's options")?,
    };
    match self::sequence(socket)? == sequence {
        true => Ok(snapshot),
        false => Err(Error::Changed),
    }
}

/// Reads where the connection stands, of a socket in repair mode.
pub(super) fn sequence(socket: Socket<'_>) -> Result<Sequence, Error> {
    let number = |queue| {
        let number = with_queue(socket, queue, || {
            socket.int(IPPROTO_TCP, libc::TCP_QUEUE_SEQ)
        });
        Ok::<_, Error>(number?.said("read a sequence number")? as u32)
    };
    let (written, expected) = (number(kernel::SEND_QUEUE)?, number(kernel::RECEIVE_QUEUE)?);
    let queued = queued(socket)?;
    let sequence = Sequence {
        state: refusal::state(socket)?,
        written,
        unacknowledged: queued.to_send,
        expected,
        unread: queued.unread,
    };
    let fin = u32::from(sequence.state == State::FinWait1);
    // They were read one after the other.
    if sequence.unacknowledged >= fin {
        Ok(sequence)
    } else {
        Err(Error::Changed)
    }
}

/// How much of what is not acknowledged was never sent, a FIN included.
pub(super) fn unsent(socket: Socket<'_>) -> Result<u32, Error> {
    let unsent = socket.queued(SIOCOUTQNSD);
    unsent.said("read the length of a queue")
}

/// Does something with one of the queues, which is chosen for no longer than that: as long
/// as it is the send queue, whatever makes the kernel send (a pacing timer, say) makes it
/// take all that is there for sent, and send nothing.
fn with_queue<T>(socket: Socket<'_>, queue: i32, what: impl FnOnce() -> T) -> Result<T, Error> {
    choose(socket, queue)?;
    let result = what();
    choose(socket, kernel::NO_QUEUE)?;
    Ok(result)
}

pub(super) fn choose(socket: Socket<'_>, queue: i32) -> Result<(), Error> {
    socket
        .set_int(IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue)
        .said("choose a queue")
}

/// The last `len` bytes of the send queue: all that is not acknowledged.
fn read_send_queue(socket: Socket<'_>, len: usize) -> Result<Vec<u8>, Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut data = vec![0; len];
    let peek = |data: &mut Vec<u8>| with_queue(socket, kernel::SEND_QUEUE, || socket.peek(data));
    let read = match peek(&mut data)? {
        // The first segment begins before what is not acknowledged.
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
            data.resize(len + SEGMENT_MAX, 0);
            peek(&mut data)?
        }
        read => read,
    };
    let read = read.said("read the send queue")?;
    let from = read.checked_sub(len).ok_or(Error::Changed)?;
    data.truncate(read);
    Ok(match from {
        0 => data,
        from => data.split_off(from),
    })
}

fn read_receive_queue(socket: Socket<'_>, len: usize) -> Result<Vec<u8>, Error> {
    if len == 0 {
        return Ok(Vec::new());
    }
    // Where the application looked last must not matter here.
    let offset = socket.int(SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    let look_at = |offset| {
        let set = socket.set_int(SOL_SOCKET, libc::SO_PEEK_OFF, offset);
        set.said("set SO_PEEK_OFF")
    };
    if offset >= 0 {
        look_at(-1)?;
    }
    let mut data = vec![0; len];
    let read = with_queue(socket, kernel::RECEIVE_QUEUE, || socket.peek(&mut data));
    if offset >= 0 {
        look_at(offset)?;
    }
    if read?.said("read the receive queue")? == len {
        Ok(data)
    } else {
        Err(Error::Changed)
    }
}

fn read_window(socket: Socket<'_>) -> io::Result<Window> {
    let mut window = [0; 20];
    if socket.bytes(IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &mut window)? != window.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut words = window.chunks_exact(4).map(|word| {
        // Each chunk has four bytes.
        u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
    });
    let mut next = || words.next().unwrap_or_default();
    Ok(Window {
        told_at: next(),
        peer: next(),
        peer_max: next(),
        own: next(),
        own_at: next(),
    })
}

fn read_congestion(socket: Socket<'_>) -> io::Result<String> {
    let mut name = [0; 16];
    let len = socket.bytes(IPPROTO_TCP, libc::TCP_CONGESTION, &mut name)?;
    let name = name[..len].split(|byte| *byte == 0).next();
    let name = name.and_then(|name| str::from_utf8(name).ok());
    match name {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
