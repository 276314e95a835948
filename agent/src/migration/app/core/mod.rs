//! The registered applications and the moves that are pending with them: what comes from
//! applications, what the agent wants of them, and the time go in; messages, answers and
//! events come out. It holds no descriptor: `D` only passes through.

mod messages;
mod requests;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Instant,
};

use homing_client::{
    Assembly, Blob, Protocol, Reason,
    outbox::Outbox,
    wire::{Closing, Family, Message, Pending},
};
use homing_common::{
    net::{Service, TCP},
    session::Tuple,
};
use zeroize::Zeroizing;

use super::Limits;
pub use view::{AppStatus, Closed, Counters};

/// One connection of an application; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AppId(pub u64);

/// Who is at the other end of an application's connection, as the kernel says
/// (`SO_PEERCRED`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// The process; 0 where it is of another PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Why an application does not do its part in a move.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody has registered the service.
    #[error("no application has registered the service")]
    NotRegistered,
    /// The connection takes part in a move already.
    #[error("the connection takes part in another move")]
    Busy,
    /// Another move has this number.
    #[error("another move has this number")]
    NumberInUse,
    /// So many moves are pending with the application as may be.
    #[error("too many moves are pending with the application")]
    TooMany,
    /// There is no room for the state.
    #[error("the agent has no room for the connection's state")]
    NoRoom,
    /// The application refuses.
    #[error("{reason}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        /// Why.
        reason: Reason,
        /// More.
        text: String,
    },
    /// The application has not answered in time.
    #[error("the application has not answered in time")]
    TimedOut,
    /// The application has gone.
    #[error("the application has gone")]
    Gone,
    /// What the application gave is not what was asked for; here is why.
    #[error("the application gave a wrong descriptor: {0}")]
    Descriptor(&'static str),
    /// The move is not where this could be done.
    #[error("no such move is pending with an application")]
    NotPending,
}

/// What an application answered.
#[derive(PartialEq, Eq, Debug)]
pub enum Answer<D> {
    /// The connection is quiet.
    Exported {
        /// Its descriptor, not looked at yet.
        descriptor: D,
        /// Its state.
        state: Blob,
        /// What was asked for.
        session: Tuple,
    },
    /// There is a socket.
    Imported {
        /// Its descriptor, not looked at yet.
        descriptor: D,
        /// What was asked for.
        family: Family,
    },
    /// It can go on from the state.
    Kept,
    /// It serves the connection.
    Adopted,
}

/// A move that was pending with an application that has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// Its number.
    pub number: u64,
    /// The session.
    pub session: Tuple,
    /// How far it was.
    pub pending: Pending,
}

/// What applications do by themselves.
#[derive(PartialEq, Eq, Debug)]
pub enum Event<D = std::os::fd::OwnedFd> {
    /// One has told all that is pending with it: it can be asked for moves.
    Registered {
        /// Its connection.
        app: AppId,
        /// What it speaks.
        protocol: Protocol,
        /// What it serves.
        services: Vec<Service>,
    },
    /// One that connects tells of a move that it knows from another agent, or from an
    /// earlier connection. It must be settled as any other.
    Pending {
        /// Its connection.
        app: AppId,
        /// The move.
        left: Left,
        /// Its descriptor: of the connection, or of the socket for it.
        descriptor: D,
    },
    /// One has gone. Moves that waited for its answer have failed; these are the others.
    Gone {
        /// Its connection.
        app: AppId,
        /// By number.
        moves: Vec<Left>,
    },
}

/// What is to be done.
#[derive(PartialEq, Eq, Debug)]
pub enum Output<D> {
    /// There are messages for an application: see [`Core::next_datagram`].
    Send(AppId),
    /// A request is answered.
    Answer(u64, Result<Answer<D>, Failure>),
    /// Tell.
    Event(AppId, Event<D>),
    /// Say why and close its connection; it is forgotten already.
    Close(AppId, Closing, &'static str),
}

/// How far an application is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Connected.
    New,
    /// Registered; it tells what is pending.
    Telling,
    /// Can be asked.
    Ready,
}

struct App {
    peer: Peer,
    phase: Phase,
    /// By when it must be ready.
    until: Option<Instant>,
    protocol: Option<Protocol>,
    services: Vec<Service>,
    /// The longest state, and how many moves at once: as it was told when it registered.
    blob_max: u32,
    moves_max: u16,
    moves: BTreeSet<u64>,
    outbox: Outbox<std::convert::Infallible>,
}

/// A move that is pending with an application.
struct Move {
    app: AppId,
    session: Tuple,
    step: Step,
    /// By when the application must answer.
    until: Option<Instant>,
    /// Bytes of its state that count as held.
    bytes: usize,
}

enum Step {
    /// Asked to export; so much of the state has come.
    Exporting(Option<Assembly>),
    /// Exported.
    Exported,
    /// Asked for a socket.
    Importing(Family),
    /// There is a socket.
    Imported,
    /// The state is being looked at.
    Giving,
    /// The application can go on from it.
    Kept,
    /// Asked to adopt.
    Adopting,
    /// This end is through with it, but the application has not answered yet what it was
    /// asked last. Until then number and session are taken.
    Owed,
}

impl Step {
    /// What it is to somebody who has not asked for anything.
    fn pending(&self) -> Option<Pending> {
        match self {
            Self::Exported => Some(Pending::Export),
            Self::Imported => Some(Pending::Import),
            Self::Kept => Some(Pending::Kept),
            _ => None,
        }
    }

    /// Whether somebody waits for an answer.
    fn is_asked(&self) -> bool {
        matches!(
            self,
            Self::Exporting(_) | Self::Importing(_) | Self::Giving | Self::Adopting
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    App(AppId),
    Move(u64),
}

/// Those of the services that can be registered.
fn movable(services: impl IntoIterator<Item = Service>) -> HashSet<Service> {
    let services = services.into_iter();
    services.filter(|service| service.protocol == TCP).collect()
}

/// See the module.
pub struct Core<D> {
    limits: Limits,
    /// What may be registered.
    movable: HashSet<Service>,
    apps: HashMap<AppId, App>,
    holders: HashMap<Service, AppId>,
    moves: HashMap<u64, Move>,
    sessions: HashMap<Tuple, u64>,
    due: BTreeSet<(Instant, Due)>,
    /// Bytes of all states that are held.
    bytes: usize,
    next: u64,
    counters: Counters,
    closed: Option<Closed>,
    outputs: Vec<Output<D>>,
}

impl<D> Core<D> {
    /// Without applications. Of the services, those of TCP may be registered.
    pub fn new(services: impl IntoIterator<Item = Service>, limits: Limits) -> Self {
        Self {
            limits: limits.within_ceilings(),
            movable: movable(services),
            apps: HashMap::new(),
            holders: HashMap::new(),
            moves: HashMap::new(),
            sessions: HashMap::new(),
            due: BTreeSet::new(),
            bytes: 0,
            next: 1,
            counters: Counters::default(),
            closed: None,
            outputs: Vec::new(),
        }
    }

    /// Goes by other services and limits from now on. Applications that are registered keep
    /// their services, and what they were told of the longest state and of moves at once.
    pub fn set(&mut self, services: impl IntoIterator<Item = Service>, limits: Limits) {
        self.movable = movable(services);
        self.limits = limits.within_ceilings();
    }

    /// What is to be done since this was last asked.
    pub fn take_outputs(&mut self) -> Vec<Output<D>> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Core::tick`] is due next.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    /// The next datagram for an application. It counts as sent.
    pub fn next_datagram(&mut self, app: AppId) -> Option<Zeroizing<Vec<u8>>> {
        let outbox = &mut self.apps.get_mut(&app)?.outbox;
        let held = outbox.state_bytes();
        let (datagram, _) = outbox.pop()?;
        self.bytes -= held - outbox.state_bytes();
        Some(datagram)
    }

    /// A process has connected.
    ///
    /// # Errors
    ///
    /// So many are connected as may be.
    pub fn connected(&mut self, peer: Peer, now: Instant) -> Result<AppId, Closing> {
        if self.apps.len() >= self.limits.apps {
            let (closing, text) = (Closing::TooMany, "so many are connected as may be");
            self.count_closed(peer, closing, text);
            return Err(closing);
        }
        let id = AppId(self.next);
        self.next += 1;
        let until = now + self.limits.register_within;
        self.due.insert((until, Due::App(id)));
        let app = App {
            peer,
            phase: Phase::New,
            until: Some(until),
            protocol: None,
            services: Vec::new(),
            blob_max: self.limits.blob,
            moves_max: self.limits.moves,
            moves: BTreeSet::new(),
            outbox: Outbox::default(),
        };
        self.apps.insert(id, app);
        Ok(id)
    }

    /// An application's connection has ended.
    pub fn gone(&mut self, id: AppId) {
        let Some(app) = self.apps.remove(&id) else {
            return;
        };
        if let Some(until) = app.until {
            self.due.remove(&(until, Due::App(id)));
        }
        for service in &app.services {
            self.holders.remove(service);
        }
        self.bytes -= app.outbox.state_bytes();
        let mut left = Vec::new();
        for number in app.moves {
            let Some(one) = self.remove(number) else {
                continue;
            };
            if one.step.is_asked() {
                self.answer(number, Err(Failure::Gone));
            } else if let Some(pending) = one.step.pending() {
                left.push(Left {
                    number,
                    session: one.session,
                    pending,
                });
            }
        }
        if app.phase != Phase::New {
            self.counters.gone += 1;
            let moves = left;
            let event = Event::Gone { app: id, moves };
            self.outputs.push(Output::Event(id, event));
        }
    }

    /// Ends an application's registration and connection, and says why.
    pub fn close(&mut self, id: AppId, closing: Closing, text: &'static str) {
        if let Some(&App { peer, .. }) = self.apps.get(&id) {
            self.count_closed(peer, closing, text);
            self.gone(id);
            self.outputs.push(Output::Close(id, closing, text));
        }
    }

    /// Ends all of them.
    pub fn close_all(&mut self) {
        let mut all: Vec<AppId> = self.apps.keys().copied().collect();
        all.sort_unstable();
        for id in all {
            self.close(id, Closing::Stopping, "");
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        while let Some(&(at, due)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            match due {
                Due::App(id) => self.close(id, Closing::Slow, "the registration took too long"),
                Due::Move(number) => self.timed_out(number),
            }
        }
    }

    fn timed_out(&mut self, number: u64) {
        let Some(one) = self.moves.get_mut(&number) else {
            return;
        };
        one.until = None;
        self.counters.timed_out += 1;
        self.give_up(number, Failure::TimedOut);
    }

    /// Ends a request that was not answered, and takes back what was asked for.
    fn give_up(&mut self, number: u64, failure: Failure) {
        let Some(one) = self.moves.get_mut(&number) else {
            return;
        };
        let app = one.app;
        let message = match one.step {
            Step::Exporting(_) => Some(Message::Resume {
                number,
                state: false,
            }),
            Step::Importing(_) | Step::Giving => Some(Message::Drop { number }),
            // It has the connection. It may still answer, or go.
            _ => None,
        };
        one.step = Step::Owed;
        self.bytes -= std::mem::take(&mut one.bytes);
        self.set_until(number, None);
        if let Some(message) = message {
            self.send(app, message);
        }
        self.answer(number, Err(failure));
    }

    fn answer(&mut self, number: u64, answer: Result<Answer<D>, Failure>) {
        self.outputs.push(Output::Answer(number, answer));
    }

    fn send(&mut self, id: AppId, message: Message<'static>) {
        if let Some(app) = self.apps.get_mut(&id) {
            app.outbox.push(message, None);
            self.outputs.push(Output::Send(id));
        }
    }

    fn send_state(&mut self, id: AppId, number: u64, state: Blob) {
        if let Some(app) = self.apps.get_mut(&id) {
            self.bytes += state.len();
            app.outbox.push_state(number, state);
            self.outputs.push(Output::Send(id));
        }
    }

    fn insert(&mut self, number: u64, app: AppId, session: Tuple, step: Step) {
        let one = Move {
            app,
            session,
            step,
            until: None,
            bytes: 0,
        };
        self.moves.insert(number, one);
        self.sessions.insert(session, number);
        if let Some(app) = self.apps.get_mut(&app) {
            app.moves.insert(number);
        }
    }

    /// Forgets a move.
    fn remove(&mut self, number: u64) -> Option<Move> {
        self.set_until(number, None);
        let one = self.moves.remove(&number)?;
        self.sessions.remove(&one.session);
        self.bytes -= one.bytes;
        if let Some(app) = self.apps.get_mut(&one.app) {
            app.moves.remove(&number);
        }
        Some(one)
    }

    fn set_until(&mut self, number: u64, until: Option<Instant>) {
        let Some(one) = self.moves.get_mut(&number) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut one.until, until) {
            self.due.remove(&(old, Due::Move(number)));
        }
        if let Some(new) = until {
            self.due.insert((new, Due::Move(number)));
        }
    }
}
