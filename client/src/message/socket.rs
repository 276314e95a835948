//! Message sockets for Rust: asked for, sent to and received from without blocking.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg},
};
use tokio::{io::Interest, io::unix::AsyncFd, time::timeout};

use super::{
    record::{self, BATCH_MAX, Fate, HEADER_LEN, Header, Kind, REPEATABLE, TELL},
    wire::{Answer, Ask, DATAGRAM_MAX, Opened, Refused, Request, is_name},
};
use crate::seqpacket::Socket;

/// How much longer than it was told to try the agent is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// Why there is no message socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent refuses it.
    #[error("the agent at {socket} refuses a message socket for {name:?}: {refused}{}{text}", if text.is_empty() { "" } else { ": " }, socket = socket.display())]
    Refused {
        /// The agent's socket.
        socket: PathBuf,
        /// The service.
        name: String,
        /// The kind of reason.
        refused: Refused,
        /// More.
        text: String,
    },
    /// The agent could not be asked.
    #[error("cannot ask the agent at {socket} for a message socket: {error}", socket = socket.display())]
    Agent {
        /// The agent's socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What is asked for cannot be said.
    #[error("a service's name has 1 to 64 bytes and no control characters")]
    Name,
}

/// The agent of this host, as it gives message sockets.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
    batches: bool,
}

impl Agent {
    /// The agent that listens on `socket`, which its configuration calls `mux.socket`.
    pub fn at(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
            batches: true,
        }
    }

    /// Whether several messages may come in one datagram. They may, unless told otherwise:
    /// [`Receiver`] takes them apart. Who uses the descriptor itself may not want to.
    #[must_use]
    pub fn batches(mut self, batches: bool) -> Self {
        self.batches = batches;
        self
    }

    /// A message socket that receives what is sent to a service.
    ///
    /// # Errors
    ///
    /// The agent cannot be asked, or refuses.
    pub async fn offer(&self, name: &str) -> Result<MessageSocket, Error> {
        self.ask(Ask::Offer { name }, name, Duration::ZERO).await
    }

    /// A message socket that is connected to a service: of the host with this id, or of
    /// any host that offers it. It is tried for so long.
    ///
    /// # Errors
    ///
    /// The agent cannot be asked, or refuses.
    pub async fn connect(
        &self,
        name: &str,
        host: Option<u16>,
        within: Duration,
    ) -> Result<MessageSocket, Error> {
        let ask = Ask::Connect {
            name,
            host: host.unwrap_or(0),
            within_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        };
        self.ask(ask, name, within).await
    }

    async fn ask(
        &self,
        ask: Ask<'_>,
        name: &str,
        within: Duration,
    ) -> Result<MessageSocket, Error> {
        if !is_name(name) {
            return Err(Error::Name);
        }
        let failed = |error| Error::Agent {
            socket: self.socket.clone(),
            error,
        };
        let request = Request {
            number: 1,
            batches: self.batches,
            ask,
        };
        let mut buffer = [0; DATAGRAM_MAX];
        let asked = async {
            let agent = Socket::connect(&self.socket)?;
            agent.send(&request.encode(), None).await?;
            agent.receive(&mut buffer).await
        };
        let asked = timeout(within + GRACE, asked).await;
        let received = asked
            .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        let wrong = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidData, why));
        if received.len == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let answer = Answer::decode(&buffer[..received.len]);
        let answer = answer.map_err(|error| wrong(&error.to_string()))?;
        match (answer.result, received.descriptor) {
            (Ok(opened), Some(descriptor)) => MessageSocket::of(descriptor, opened).map_err(failed),
            (Ok(_), None) => Err(wrong("the agent sent no descriptor")),
            (Err((refused, text)), _) => Err(Error::Refused {
                socket: self.socket.clone(),
                name: name.to_owned(),
                refused,
                text: text.to_owned(),
            }),
        }
    }
}

/// A message socket: two halves, which may be used apart.
#[derive(Debug)]
pub struct MessageSocket {
    /// Sends.
    pub sender: Sender,
    /// Receives messages and fates.
    pub receiver: Receiver,
}

/// The half of a message socket that sends.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<AsyncFd<OwnedFd>>,
    message_max: usize,
    peer: u64,
    sent: u64,
}

/// The half of a message socket that receives.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<AsyncFd<OwnedFd>>,
    buffer: Box<[u8]>,
    /// What of the buffer was received and not looked at.
    left: Range<usize>,
}

/// A message that is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outgoing<'a> {
    /// The message.
    pub body: &'a [u8],
    /// Its name: the reply carries the same. 0: it has none.
    pub name: u64,
    /// To whom: [`Received::peer`] of a request. 0: to whom it is connected.
    pub peer: u64,
    /// It may be sent again if nobody knows whether it arrived; it is received once.
    pub repeatable: bool,
    /// Its fate is told also if it was delivered. If it was not, it always is.
    pub tell: bool,
}

impl Outgoing<'_> {
    fn header(&self) -> [u8; HEADER_LEN] {
        let flag = |set, flag| if set { flag } else { 0 };
        Header {
            name: self.name,
            peer: self.peer,
            flags: flag(self.repeatable, REPEATABLE) | flag(self.tell, TELL),
            ..Header::message(self.body.len())
        }
        .encode()
    }
}

/// What was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received<'a> {
    /// A message.
    Message {
        /// The message.
        body: &'a [u8],
        /// The name that its sender has given to it.
        name: u64,
        /// From whom: a reply goes there.
        peer: u64,
    },
    /// What became of a message that was sent.
    Fate {
        /// Its number, as [`Sender::send`] gave it.
        number: u64,
        /// Its name.
        name: u64,
        /// What became of it.
        fate: Fate,
    },
}

impl MessageSocket {
    fn of(descriptor: OwnedFd, opened: Opened) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the
        // `AsyncFd` owns it.
        let socket = Arc::new(unsafe { AsyncFd::register(descriptor) }?);
        let message_max = opened.message_max as usize;
        let receiver = Receiver {
            socket: socket.clone(),
            buffer: vec![0; BATCH_MAX.max(message_max + HEADER_LEN)].into(),
            left: 0..0,
        };
        let sender = Sender {
            socket,
            message_max,
            peer: opened.peer,
            sent: 0,
        };
        Ok(Self { sender, receiver })
    }
}

impl MessageSocket {
    /// The descriptor, which blocks from now on: for whoever sends and receives records
    /// ([`record`]) without a runtime.
    ///
    /// # Errors
    ///
    /// The system refuses; or one of the halves is in use elsewhere.
    pub fn into_descriptor(self) -> io::Result<OwnedFd> {
        drop(self.sender);
        let socket = Arc::into_inner(self.receiver.socket).ok_or(io::ErrorKind::ResourceBusy)?;
        let descriptor = socket.into_inner();
        rustix::io::ioctl_fionbio(&descriptor, false)?;
        Ok(descriptor)
    }
}

impl Sender {
    /// The longest message, in bytes.
    pub fn message_max(&self) -> usize {
        self.message_max
    }

    /// The message socket that this one is connected to; 0 if it offers a service.
    pub fn peer(&self) -> u64 {
        self.peer
    }

    /// Sends a message, once there is room for it. Returns its number, by which its fate
    /// names it. Cancelled, it was not sent.
    ///
    /// # Errors
    ///
    /// `EMSGSIZE`: it is over the limit. `EPIPE` or `ECONNRESET`: the other end has gone,
    /// or the agent has.
    pub async fn send(&mut self, message: &Outgoing<'_>) -> io::Result<u64> {
        if message.body.len() > self.message_max {
            return Err(Errno::MSGSIZE.into());
        }
        self.write([&message.header(), message.body]).await?;
        self.sent += 1;
        Ok(self.sent)
    }

    /// Sends several messages as one datagram, and empties the batch. Returns their
    /// numbers. Cancelled, none was sent.
    ///
    /// # Errors
    ///
    /// `EPIPE` or `ECONNRESET`: the other end has gone, or the agent has.
    pub async fn send_batch(&mut self, batch: &mut Batch) -> io::Result<Range<u64>> {
        let first = self.sent + 1;
        if batch.messages > 0 {
            self.write([&batch.bytes, &[]]).await?;
            self.sent += batch.messages;
            *batch = Batch {
                bytes: std::mem::take(&mut batch.bytes),
                messages: 0,
            };
            batch.bytes.clear();
        }
        Ok(first..self.sent + 1)
    }

    async fn write(&self, parts: [&[u8]; 2]) -> io::Result<()> {
        let parts = parts.map(io::IoSlice::new);
        let send = |socket: &OwnedFd| {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let mut control = SendAncillaryBuffer::default();
            sendmsg(socket.as_fd(), &parts, &mut control, flags)?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// Several messages that are sent as one datagram.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: u64,
}

impl Batch {
    /// Adds a message. False: it does not fit in; send the batch first, and a message
    /// that fits into none by itself.
    #[must_use]
    pub fn push(&mut self, message: &Outgoing<'_>) -> bool {
        let fits = self.bytes.len() + HEADER_LEN + message.body.len() <= BATCH_MAX;
        if fits {
            self.bytes.extend(message.header());
            self.bytes.extend(message.body);
            self.messages += 1;
        }
        fits
    }

    /// How many messages it has.
    pub fn len(&self) -> u64 {
        self.messages
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }
}

impl Receiver {
    /// Waits for the next message or fate. None: the other end has gone, or the agent
    /// has. May be cancelled without losing anything.
    ///
    /// # Errors
    ///
    /// `ECONNRESET`: the same as none, with messages of this end unread. Or the agent does
    /// not speak this protocol.
    pub async fn receive(&mut self) -> io::Result<Option<Received<'_>>> {
        if self.left.is_empty() {
            let buffer = &mut self.buffer;
            let receive = |socket: &OwnedFd| {
                let (_, len) = recv(socket.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT)?;
                Ok(len)
            };
            let len = self.socket.async_io(Interest::READABLE, receive).await?;
            if len == 0 {
                return Ok(None);
            }
            self.left = 0..len;
        }
        let mut rest = &self.buffer[self.left.clone()];
        let before = rest.len();
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a datagram that is no record");
        let (header, body) = record::split(&mut rest).ok_or_else(wrong)?;
        self.left.start += before - rest.len();
        Ok(Some(match header.kind {
            Kind::Message => Received::Message {
                body,
                name: header.name,
                peer: header.peer,
            },
            Kind::Fate => Received::Fate {
                number: header.number,
                name: header.name,
                fate: Fate::from_code(header.code).ok_or_else(wrong)?,
            },
        }))
    }

    /// Whether the next message or fate is there already, because it came together with
    /// the last one.
    pub fn has_more(&self) -> bool {
        !self.left.is_empty()
    }
}
