//! The application's end of the protocol: what the agent asks for becomes calls of the
//! application, and what they return becomes answers.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::task::{JoinError, JoinSet};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    Application, Assembly, Exported, Reason, Refusal, Registration,
    moves::{Done, Move, Moves, Step, state_of},
    outbox::Outbox,
    seqpacket::Socket,
    wire::{BLOB_CEILING, Closing, Connection, Family, MESSAGE_MAX, Message, Pending},
};

/// How a connection to the agent ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The agent closed it and said why.
    Refused(Closing, String),
    /// There was none, or the agent went, or it does not keep to the protocol.
    Lost(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// What the agent should not have said.
fn wrong(what: &str) -> Ended {
    Ended::Lost(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// The application and its moves; they outlive connections to agents.
pub(crate) struct Driver<A: Application> {
    application: Arc<A>,
    moves: Moves<A>,
    tasks: JoinSet<Done<A>>,
    outbox: Outbox<OwnedFd>,
    blob_max: u32,
    /// Counts connections: an answer to an agent that has gone is none to its successor.
    era: u64,
    /// This agent has been told what is pending, and is answered.
    ready: bool,
    registered: bool,
}

impl<A: Application> Driver<A> {
    pub fn new(application: Arc<A>) -> Self {
        Self {
            application,
            moves: Moves::<A>::new(),
            tasks: JoinSet::new(),
            outbox: Outbox::default(),
            blob_max: 0,
            era: 0,
            ready: false,
            registered: false,
        }
    }

    /// Whether the agent has accepted the registration since this was last asked.
    pub fn take_registered(&mut self) -> bool {
        std::mem::take(&mut self.registered)
    }

    /// Serves one agent, until the connection to it ends.
    pub async fn connect(&mut self, registration: &Registration) -> Ended {
        let ended = match Socket::connect(&registration.socket) {
            Ok(socket) => match self.serve(&socket, registration).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            },
            Err(error) => error.into(),
        };
        self.disconnected();
        self.application.unreachable(&describe(&ended));
        ended
    }

    /// Waits before another try.
    pub async fn rest(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.done(done),
            }
        }
    }

    /// Takes back what was in the middle: what the agent has not been told of never
    /// happened.
    fn disconnected(&mut self) {
        self.ready = false;
        self.era += 1;
        self.outbox = Outbox::default();
        for one in self.moves.values_mut() {
            match &mut one.step {
                Step::Exporting { cancelled } => *cancelled = true,
                Step::Exported { back, .. } => *back = None,
                Step::Importing { state, .. } => *state = None,
                Step::Beginning { .. } | Step::Begun { .. } => {}
            }
        }
    }

    async fn serve(
        &mut self,
        socket: &Socket,
        registration: &Registration,
    ) -> Result<std::convert::Infallible, Ended> {
        let register = Message::Register {
            protocol: registration.protocol.clone(),
            services: registration.services.clone(),
        };
        socket.send(&register.encode(), None).await?;
        let mut buffer = Zeroizing::new(vec![0; MESSAGE_MAX]);
        let len = receive(socket, &mut buffer).await?;
        match decode(&buffer[..len])? {
            Message::Registered { blob_max, .. } => self.blob_max = blob_max.min(BLOB_CEILING),
            Message::Closing { closing, text } => {
                return Err(Ended::Refused(closing, text.to_owned()));
            }
            _ => return Err(wrong("the agent did not answer the registration")),
        }
        self.registered = true;
        self.settle().await;
        self.tell_pending()?;
        self.application.registered();

        let mut sending = None;
        loop {
            if sending.is_none() {
                sending = self.outbox.pop();
            }
            tokio::select! {
                sent = send(socket, &sending), if sending.is_some() => {
                    sent?;
                    sending = None;
                }
                received = receive(socket, &mut buffer) => {
                    let len = received?;
                    let result = match decode(&buffer[..len]) {
                        Ok(message) => self.message(message),
                        Err(ended) => Err(ended),
                    };
                    // It may have been part of a state.
                    buffer[..len].zeroize();
                    result?;
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.done(done),
            }
        }
    }

    /// Waits until no move is in the middle: only what has a clear standing can be told.
    async fn settle(&mut self) {
        let is_between =
            |one: &Move<A>| matches!(one.step, Step::Exporting { .. } | Step::Beginning { .. });
        while self.moves.values().any(is_between) {
            let Some(done) = self.tasks.join_next().await else {
                break;
            };
            self.done(done);
        }
    }

    fn tell_pending(&mut self) -> Result<(), Ended> {
        for (&number, one) in &self.moves {
            let (pending, descriptor) = match &one.step {
                Step::Exported { exported, .. } => (Pending::Export, &exported.descriptor),
                Step::Importing { socket, .. } => (Pending::Import, socket),
                Step::Begun { socket, .. } => (Pending::Kept, socket),
                Step::Exporting { .. } | Step::Beginning { .. } => continue,
            };
            let message = Message::Pending {
                number,
                pending,
                connection: one.connection,
            };
            self.outbox.push(message, Some(descriptor.try_clone()?));
        }
        self.outbox.push(Message::Ready, None);
        self.ready = true;
        Ok(())
    }

    fn answer(&mut self, message: Message<'static>, descriptor: Option<OwnedFd>) {
        if self.ready {
            self.outbox.push(message, descriptor);
        }
    }

    fn refuse(&mut self, number: u64, refusal: Refusal) {
        if self.ready {
            self.outbox
                .push_refusal(number, refusal.reason, refusal.text);
        }
    }

    fn message(&mut self, message: Message<'_>) -> Result<(), Ended> {
        match message {
            Message::Export {
                number,
                within_ms,
                connection,
            } => {
                self.insert(number, connection, Step::Exporting { cancelled: false })?;
                let application = Arc::clone(&self.application);
                let within = Duration::from_millis(within_ms.into());
                self.tasks.spawn(async move {
                    Done::Exported(number, application.export(connection, within).await)
                });
            }
            Message::Committed { number } => match self.moves.remove(&number) {
                Some(Move {
                    connection,
                    step: Step::Exported { exported, .. },
                }) => {
                    let application = Arc::clone(&self.application);
                    self.tasks.spawn(async move {
                        application.committed(connection, exported.kept).await;
                        Done::Other
                    });
                }
                Some(_) => return Err(wrong("the agent committed what was not exported")),
                None => {}
            },
            Message::Resume { number, state } => self.resume(number, state)?,
            Message::State {
                number,
                total,
                offset,
                part,
            } => self.state(number, total, offset, part)?,
            Message::Import {
                number,
                family,
                connection,
                ..
            } => match new_socket(family).and_then(|socket| Ok((socket.try_clone()?, socket))) {
                Ok((copy, socket)) => {
                    let state = None;
                    self.insert(number, connection, Step::Importing { socket, state })?;
                    self.answer(Message::Imported { number }, Some(copy));
                }
                Err(error) => self.refuse(number, Refusal::failed(error)),
            },
            Message::Adopt { number } => self.adopt(number)?,
            Message::Drop { number } => {
                match self.moves.get_mut(&number).map(|one| &mut one.step) {
                    Some(Step::Beginning { cancelled, .. }) => *cancelled = true,
                    Some(Step::Importing { .. } | Step::Begun { .. }) => {
                        self.moves.remove(&number);
                    }
                    Some(_) => return Err(wrong("the agent dropped an export")),
                    None => {}
                }
            }
            Message::Closing { closing, text } => {
                return Err(Ended::Refused(closing, text.to_owned()));
            }
            _ => return Err(wrong("the agent said what only applications say")),
        }
        Ok(())
    }

    fn insert(&mut self, number: u64, connection: Connection, step: Step<A>) -> Result<(), Ended> {
        let one = Move { connection, step };
        match self.moves.insert(number, one) {
            None => Ok(()),
            Some(other) => {
                self.moves.insert(number, other);
                Err(wrong("the agent used the number of a move again"))
            }
        }
    }

    fn resume(&mut self, number: u64, state: bool) -> Result<(), Ended> {
        match self.moves.remove(&number) {
            Some(Move {
                connection,
                step: Step::Exported { exported, back },
            }) => {
                self.go_on(connection, exported, back.filter(|_| state));
                Ok(())
            }
            Some(Move {
                connection,
                step: Step::Exporting { .. },
            }) => self.insert(number, connection, Step::Exporting { cancelled: true }),
            Some(_) => Err(wrong("the agent resumed an import")),
            None => Ok(()),
        }
    }

    fn go_on(
        &mut self,
        connection: Connection,
        exported: Exported<A::Kept>,
        back: Option<Assembly>,
    ) {
        let application = Arc::clone(&self.application);
        let state = state_of(back, exported.state);
        self.tasks.spawn(async move {
            application.resume(connection, exported.kept, state).await;
            Done::Other
        });
    }

    fn state(&mut self, number: u64, total: u32, offset: u32, part: &[u8]) -> Result<(), Ended> {
        let Some(one) = self.moves.get_mut(&number) else {
            // Of a move that this side has refused meanwhile.
            return Ok(());
        };
        let assembly = match one.step.assembly() {
            Some(assembly) if total <= self.blob_max => assembly,
            _ => return Err(wrong("the agent sent a state that has no place")),
        };
        let begun = assembly.get_or_insert_with(|| Assembly::new(total));
        if begun.push(total, offset, part).is_err() {
            return Err(wrong("the agent sent parts of a state out of order"));
        }
        if begun.is_whole() && matches!(one.step, Step::Importing { .. }) {
            self.begin(number);
        }
        Ok(())
    }

    /// The whole state of an import is there.
    fn begin(&mut self, number: u64) {
        let Some(Move {
            connection,
            step:
                Step::Importing {
                    socket,
                    state: Some(state),
                },
        }) = self.moves.remove(&number)
        else {
            return;
        };
        let cancelled = false;
        let step = Step::Beginning { socket, cancelled };
        self.moves.insert(number, Move { connection, step });
        let application = Arc::clone(&self.application);
        self.tasks.spawn(async move {
            Done::Begun(number, application.begin(connection, state.finish()).await)
        });
    }

    fn adopt(&mut self, number: u64) -> Result<(), Ended> {
        let Some(Move {
            connection,
            step: Step::Begun { socket, begun },
        }) = self.moves.remove(&number)
        else {
            return Err(wrong(
                "the agent had a connection adopted that is not there",
            ));
        };
        let (application, era) = (Arc::clone(&self.application), self.era);
        self.tasks.spawn(async move {
            let result = application.adopt(connection, begun, socket).await;
            Done::Adopted(era, number, result)
        });
        Ok(())
    }

    fn done(&mut self, done: Result<Done<A>, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match done {
            Done::Exported(number, result) => self.exported(number, result),
            Done::Begun(number, result) => {
                let Some(Move {
                    connection,
                    step: Step::Beginning { socket, cancelled },
                }) = self.moves.remove(&number)
                else {
                    return;
                };
                match result {
                    Ok(_) if cancelled => self.refuse(number, Reason::Cancelled.into()),
                    Ok(begun) => {
                        let step = Step::Begun { socket, begun };
                        self.moves.insert(number, Move { connection, step });
                        self.answer(Message::Kept { number }, None);
                    }
                    Err(refusal) => self.refuse(number, refusal),
                }
            }
            Done::Adopted(era, number, result) if era == self.era => match result {
                Ok(()) => self.answer(Message::Adopted { number }, None),
                Err(refusal) => self.refuse(number, refusal),
            },
            Done::Adopted(..) | Done::Other => {}
        }
    }

    fn exported(&mut self, number: u64, result: Result<Exported<A::Kept>, Refusal>) {
        let Some(Move {
            connection,
            step: Step::Exporting { cancelled },
        }) = self.moves.remove(&number)
        else {
            return;
        };
        let exported = match result {
            Ok(exported) => exported,
            Err(refusal) => return self.refuse(number, refusal),
        };
        let refusal = if cancelled {
            Reason::Cancelled.into()
        } else if exported.state.len() > self.blob_max as usize {
            Reason::TooLarge.into()
        } else {
            match exported.descriptor.try_clone() {
                Ok(copy) => {
                    self.outbox.push_state(number, exported.state.clone());
                    self.answer(Message::Exported { number }, Some(copy));
                    let back = None;
                    let step = Step::Exported { exported, back };
                    self.moves.insert(number, Move { connection, step });
                    return;
                }
                Err(error) => Refusal::failed(error),
            }
        };
        self.refuse(number, refusal);
        self.go_on(connection, exported, None);
    }
}

fn describe(ended: &Ended) -> String {
    match ended {
        Ended::Refused(closing, text) if text.is_empty() => closing.to_string(),
        Ended::Refused(closing, text) => format!("{closing}: {text}"),
        Ended::Lost(error) => error.to_string(),
    }
}

/// A fresh socket: made here, it belongs to the application's cgroup.
fn new_socket(family: Family) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        family,
        SocketType::STREAM,
        flags,
        Some(ipproto::TCP),
    )?)
}

type Sending = (Zeroizing<Vec<u8>>, Option<OwnedFd>);

async fn send(socket: &Socket, sending: &Option<Sending>) -> io::Result<()> {
    match sending {
        Some((datagram, descriptor)) => {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            socket.send(datagram, descriptor).await
        }
        None => Ok(()),
    }
}

async fn receive(socket: &Socket, buffer: &mut [u8]) -> Result<usize, Ended> {
    let received = socket.receive(buffer).await?;
    if received.spoilt || received.descriptor.is_some() {
        return Err(wrong(
            "the agent sent a datagram that is none of the protocol's",
        ));
    }
    match received.len {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        len => Ok(len),
    }
}

fn decode(datagram: &[u8]) -> Result<Message<'_>, Ended> {
    Message::decode(datagram)
        .map_err(|error| wrong(&format!("the agent's message is wrong: {error}")))
}
