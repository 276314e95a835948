//! A fresh socket becomes the connection of a snapshot.

use std::{
    io, mem,
    net::{SocketAddr, SocketAddrV6},
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use libc::{IPPROTO_TCP, SOL_SOCKET};
use socket2::{Domain, SockAddr, SockRef};

use super::{
    Error, Said as _,
    kernel::{self, Info},
    options::{self, When},
    segment::{ACK, FIN, segment},
    snapshot::{Buffer, Snapshot, Window, choose},
    socket::Socket,
    state::State,
};

/// Hands an IP packet to this host's own stack, past everything that keeps packets of
/// the session away, as if it had come in by the wire. The packets are bare segments in the
/// client's name, for the restored socket alone; nothing else makes a FIN known to it.
pub type Up<'a> = &'a dyn Fn(&[u8]) -> io::Result<()>;

/// What the kernel takes for `TCP_MAXSEG`.
const MAXSEG: std::ops::RangeInclusive<u32> = 88..=32767;

/// A buffer holds segments, which take more than their data: so much more in all.
const BUFFER_SLACK: u32 = 128 << 10;

/// How long a stack that was handed a packet may take to have looked at it, and how long a
/// kernel short of memory may take to find room for what was never sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection at its target, complete but still in repair mode. One that is dropped is
/// taken away in silence, as by [`Restored::discard`].
#[derive(Debug)]
pub struct Restored {
    /// None once it is somebody else's.
    socket: Option<OwnedFd>,
    /// Without what the kernel has by now: queues but the part that was never sent.
    snapshot: Snapshot,
}

/// A connection that goes on at its target.
#[derive(Debug)]
pub struct Active {
    /// Its socket.
    pub socket: OwnedFd,
    /// What could not be made as it was at the source, if anything: an option that this
    /// kernel refuses, say. No data is lost by it.
    pub flaw: Option<Error>,
}

/// Makes of a fresh socket the connection of a snapshot, without a packet: it is in repair
/// mode, and stays silent as long as the kernel programs keep timers' packets from leaving.
///
/// The socket is one that the application has just made: not bound, of a family that fits
/// (one for both versions may carry IPv4). If this fails it is of no more use to anyone.
pub fn restore(socket: OwnedFd, snapshot: Snapshot, up: Up<'_>) -> Result<Restored, Error> {
    // From here on whatever goes wrong takes the connection away again.
    let mut restored = Restored {
        socket: Some(socket),
        snapshot,
    };
    restored.connect()?;
    restored.agree()?;
    restored.fill()?;
    restored.half_close(up)?;
    let Snapshot { sent, received, .. } = &mut restored.snapshot;
    mem::take(sent);
    mem::take(received);
    Ok(restored)
}

impl Restored {
    /// A socket that an earlier life of the agent restored, with the snapshot it was made
    /// of. It is in repair mode still, or again if that agent had begun to activate it:
    /// what was written of the data that was never sent is not written again.
    pub fn found(socket: OwnedFd, mut snapshot: Snapshot) -> Result<Self, Error> {
        snapshot.sent.clear();
        snapshot.received.clear();
        let fd = Socket::new(socket.as_fd());
        let mode = fd.int(IPPROTO_TCP, libc::TCP_REPAIR);
        if mode.said("read TCP_REPAIR")? == 0 {
            fd.set_int(IPPROTO_TCP, libc::TCP_REPAIR, kernel::REPAIR_ON)
                .said("enter repair mode")?;
            choose(fd, kernel::SEND_QUEUE)?;
            let written = fd.int(IPPROTO_TCP, libc::TCP_QUEUE_SEQ);
            let written = written.said("read a sequence number")? as u32;
            choose(fd, kernel::NO_QUEUE)?;
            snapshot.has_written(written);
        }
        Ok(Self {
            socket: Some(socket),
            snapshot,
        })
    }

    /// Whether it goes on within microseconds: see [`Snapshot::is_light`].
    pub fn is_light(&self) -> bool {
        self.snapshot.is_light()
    }

    /// Leaves repair mode: the connection goes on here. The client hears an acknowledgement
    /// of all that has arrived (one that was due at the source may never have been sent),
    /// and what was never sent follows.
    ///
    /// If this fails the connection is aborted, and the client gets a reset: part of what
    /// the application wrote could not be sent.
    pub fn activate(mut self, up: Up<'_>) -> Result<Active, Error> {
        if let Err(error) = self.go_on() {
            // Outside repair mode this sends a reset.
            self.fd()?.disconnect().ok();
            return Err(error);
        }
        let flaw = self.finish(up).err();
        let socket = self.socket.take().ok_or_else(gone)?;
        Ok(Active { socket, flaw })
    }

    /// Takes the connection away again, for every holder of the socket, and sends nothing.
    pub fn discard(self) {}

    fn fd(&self) -> Result<Socket<'_>, Error> {
        let socket = self.socket.as_ref().ok_or_else(gone)?;
        Ok(Socket::new(socket.as_fd()))
    }

    /// Binds and connects, without a SYN.
    fn connect(&self) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        let socket = SockRef::from(&fd);
        // Before repair mode: after it, this would undo that mode's own right to bind
        // beside a listener.
        socket.set_reuse_address(true).said("set SO_REUSEADDR")?;
        // The MSS that is repaired below counts only once the path's MTU changes; this
        // makes it count from the start.
        let mss = snapshot.mss.clamp(*MAXSEG.start(), *MAXSEG.end());
        fd.set_int(IPPROTO_TCP, libc::TCP_MAXSEG, mss as i32)
            .said("set the MSS")?;
        let name = &snapshot.congestion;
        fd.set_bytes(IPPROTO_TCP, libc::TCP_CONGESTION, name.as_bytes())
            .map_err(|error| Error::Congestion {
                name: name.clone(),
                error,
            })?;
        set_options(fd, snapshot, When::Fresh)?;
        let room = |buffer: Buffer, data: usize| buffer.bytes.max(2 * data as u32 + BUFFER_SLACK);
        let (to_send, unread) = snapshot.queued();
        force_buffer(
            fd,
            libc::SO_SNDBUFFORCE,
            room(snapshot.send_buffer, to_send),
        )?;
        force_buffer(
            fd,
            libc::SO_RCVBUFFORCE,
            room(snapshot.receive_buffer, unread),
        )?;
        fd.set_int(IPPROTO_TCP, libc::TCP_REPAIR, kernel::REPAIR_ON)
            .said("enter repair mode")?;
        let (local, peer) = (self.address(snapshot.local)?, self.address(snapshot.peer)?);
        socket.bind(&local).said("bind to the service's address")?;
        let sequence = snapshot.sequence();
        // A FIN that was received comes by a segment below, one that was sent by shutting
        // down: each takes its number then.
        let fin = u32::from(snapshot.state == State::CloseWait);
        let next_read = sequence.expected.wrapping_sub(fin + sequence.unread);
        set_number(fd, kernel::RECEIVE_QUEUE, next_read)?;
        let fin = u32::from(snapshot.state == State::FinWait2);
        let next_sent = snapshot.unacknowledged_from().wrapping_sub(fin);
        set_number(fd, kernel::SEND_QUEUE, next_sent)?;
        socket
            .connect(&peer)
            .said("connect to the client's address")
    }

    /// What both sides agreed on when they connected.
    fn agree(&self) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        // Without an agreement both are zero; left out, this side's would be what this host
        // would offer for itself.
        let (peer, own) = snapshot.scales.unwrap_or_default();
        let mut agreed = vec![
            (kernel::OPT_MSS, snapshot.mss),
            (kernel::OPT_WINDOW, u32::from(peer) | u32::from(own) << 16),
        ];
        if snapshot.sack {
            agreed.push((kernel::OPT_SACK, 0));
        }
        if snapshot.clock.is_some() {
            agreed.push((kernel::OPT_TIMESTAMP, 0));
        }
        let agreed: Vec<u8> = agreed
            .into_iter()
            .flat_map(|(kind, value)| [kind.to_ne_bytes(), value.to_ne_bytes()])
            .flatten()
            .collect();
        fd.set_bytes(IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &agreed)
            .said("restore what was agreed on")?;
        let Some(clock) = snapshot.clock else {
            return Ok(());
        };
        // The lowest bit is the unit.
        let value = match clock.micros {
            true => clock.value | 1,
            false => clock.value.wrapping_add(1) & !1,
        };
        fd.set_int(IPPROTO_TCP, libc::TCP_TIMESTAMP, value as i32)
            .said("set the clock of timestamps")
    }

    /// Data in the queues, as far as it was sent or received.
    fn fill(&self) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        choose(fd, kernel::RECEIVE_QUEUE)?;
        write_all(fd, &snapshot.received).said("fill the receive queue")?;
        choose(fd, kernel::SEND_QUEUE)?;
        write_all(fd, &snapshot.sent).said("fill the send queue")
    }

    /// Shuts down what was shut down, and sets the windows, which all before would change.
    fn half_close(&self, up: Up<'_>) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        let socket = SockRef::from(&fd);
        let Snapshot {
            local,
            peer,
            state,
            expected,
            written,
            ..
        } = *snapshot;
        if state.has_sent_fin() && !snapshot.fin_unsent {
            // With the send queue chosen it counts as sent.
            let shut = socket.shutdown(std::net::Shutdown::Write);
            shut.said("shut down writing")?;
        }
        match state {
            State::Established | State::FinWait1 => {}
            State::FinWait2 => {
                up(&segment(peer, local, expected, written, ACK)).said("hand up a segment")?;
                reach(fd, state)?;
            }
            State::CloseWait => {
                let fin = expected.wrapping_sub(1);
                // Wide open, or a full queue would keep the FIN out.
                let open = Window {
                    told_at: fin,
                    own: 0xffff,
                    own_at: fin,
                    ..snapshot.window
                };
                set_window(fd, open)?;
                let ack = snapshot.unacknowledged_from();
                up(&segment(peer, local, fin, ack, FIN | ACK)).said("hand up a segment")?;
                reach(fd, state)?;
            }
        }
        set_window(fd, snapshot.window)?;
        fd.set_int(
            IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            i32::try_from(snapshot.window_clamp).unwrap_or(i32::MAX),
        )
        .said("set TCP_WINDOW_CLAMP")?;
        if snapshot.read_shut {
            let shut = socket.shutdown(std::net::Shutdown::Read);
            shut.said("shut down reading")?;
        }
        choose(fd, kernel::NO_QUEUE)
    }

    /// All that the connection cannot do without.
    fn go_on(&self) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        // In ESTABLISHED, and in that alone, the kernel's window probe is an
        // acknowledgement, too.
        let off = match snapshot.state {
            State::Established => kernel::REPAIR_OFF,
            _ => kernel::REPAIR_OFF_QUIETLY,
        };
        fd.set_int(IPPROTO_TCP, libc::TCP_REPAIR, off)
            .said("leave repair mode")?;
        set_options(fd, snapshot, When::Active)?;
        write_patiently(fd, &snapshot.unsent).said("send what was never sent")?;
        if snapshot.fin_unsent {
            let shut = SockRef::from(&fd).shutdown(std::net::Shutdown::Write);
            shut.said("shut down writing")?;
        }
        Ok(())
    }

    /// The rest.
    fn finish(&self, up: Up<'_>) -> Result<(), Error> {
        let (fd, snapshot) = (self.fd()?, &self.snapshot);
        // Leaving cleared it, and without it no listener can be started beside this.
        SockRef::from(&fd)
            .set_reuse_address(true)
            .said("set SO_REUSEADDR")?;
        if snapshot.state != State::Established {
            // What is older than all that was acknowledged is answered with an
            // acknowledgement.
            let old = snapshot.window.own_at.wrapping_sub(1);
            let ack = snapshot.unacknowledged_from();
            up(&segment(snapshot.peer, snapshot.local, old, ack, ACK)).said("hand up a segment")?;
        }
        set_options(fd, snapshot, When::Last)?;
        force_buffer(fd, libc::SO_SNDBUFFORCE, snapshot.send_buffer.bytes)?;
        force_buffer(fd, libc::SO_RCVBUFFORCE, snapshot.receive_buffer.bytes)?;
        let lock = |buffer: Buffer, lock| if buffer.locked { lock } else { 0 };
        let locks = lock(snapshot.send_buffer, kernel::SNDBUF_LOCK)
            | lock(snapshot.receive_buffer, kernel::RCVBUF_LOCK);
        match fd.set_int(SOL_SOCKET, libc::SO_BUF_LOCK, locks) {
            // Linux before 5.14: they stay as they are.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
            result => result.said("unlock the buffers"),
        }
    }

    /// An address, as a socket of this family names it.
    fn address(&self, address: SocketAddr) -> Result<SockAddr, Error> {
        let domain = SockRef::from(&self.fd()?)
            .domain()
            .said("read the socket's family")?;
        match address {
            SocketAddr::V4(v4) if domain == Domain::IPV6 => {
                let mapped = v4.ip().to_ipv6_mapped();
                Ok(SocketAddrV6::new(mapped, v4.port(), 0, 0).into())
            }
            SocketAddr::V4(v4) if domain == Domain::IPV4 => Ok(v4.into()),
            SocketAddr::V6(v6) if domain == Domain::IPV6 => Ok(v6.into()),
            SocketAddr::V4(_) => Err(Error::WrongFamily { wanted: "IPv4" }),
            SocketAddr::V6(_) => Err(Error::WrongFamily { wanted: "IPv6" }),
        }
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Nobody is left to be told; in repair mode a close is silent as well.
            Socket::new(socket.as_fd()).disconnect().ok();
        }
    }
}

fn gone() -> Error {
    Error::Kernel {
        what: "use the socket",
        error: io::ErrorKind::NotConnected.into(),
    }
}

fn set_options(fd: Socket<'_>, snapshot: &Snapshot, when: When) -> Result<(), Error> {
    options::write(fd, &snapshot.settings, when).map_err(|(id, error)| Error::Kernel {
        what: "set a socket option",
        error: io::Error::new(error.kind(), format!("option {id}: {error}")),
    })
}

fn set_number(fd: Socket<'_>, queue: i32, number: u32) -> Result<(), Error> {
    choose(fd, queue)?;
    fd.set_int(IPPROTO_TCP, libc::TCP_QUEUE_SEQ, number as i32)
        .said("set a sequence number")
}

fn set_window(fd: Socket<'_>, window: Window) -> Result<(), Error> {
    let Window {
        told_at,
        peer,
        peer_max,
        own,
        own_at,
    } = window;
    let words = [told_at, peer, peer_max, own, own_at].map(u32::to_ne_bytes);
    fd.set_bytes(IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &words.concat())
        .said("set the windows")
}

/// Makes a buffer so large, as the kernel counts, whatever the machine's limit is.
fn force_buffer(fd: Socket<'_>, name: i32, bytes: u32) -> Result<(), Error> {
    // The kernel doubles what it is told.
    let half = i32::try_from(bytes / 2).unwrap_or(i32::MAX);
    fd.set_int(SOL_SOCKET, name, half)
        .said("set the size of a buffer")
}

/// Writes everything at once, or fails.
fn write_all(fd: Socket<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match fd.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => bytes = &bytes[len..],
        }
    }
    Ok(())
}

/// The same, waiting for room if the kernel is short of memory just now: the buffer itself
/// is large enough.
fn write_patiently(fd: Socket<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match fd.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                fd.poll(libc::POLLOUT, 100)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until the stack has looked at a packet: it mostly has when it was handed over, and
/// there is nothing to be woken by.
fn reach(fd: Socket<'_>, state: State) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if Info::read(fd).said("read TCP_INFO")?.state() == Ok(state) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::HalfClosed(state));
        }
        thread::sleep(Duration::from_millis(1));
    }
}
