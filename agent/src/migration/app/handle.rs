//! What the rest of the agent has of applications.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use homing_client::{Blob, Protocol, wire::Family};
use homing_common::{net::Service, session::Tuple};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    AppStatus, Counters, Event, Failure, Limits,
    core::{Answer, Closed, Core},
    server::mail::Mailboxes,
};

/// Events that wait for their reader; while they do, the applications that they are of
/// are not listened to.
const EVENTS: usize = 256;

/// The applications of this host. Cloned, it is the same.
#[derive(Clone)]
pub struct Apps(pub(super) Arc<Shared>);

/// What applications do by themselves, in order.
pub type Events = mpsc::Receiver<Event>;

/// A connection that an application has exported: it must be [resumed](Apps::resume) or
/// [committed](Apps::committed).
#[derive(Debug)]
#[must_use]
pub struct Exported {
    /// Its descriptor; the application has another one of it.
    pub descriptor: OwnedFd,
    /// What the application knows of it.
    pub state: Blob,
}

/// The last application that lost its connection for something it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TurnedAway {
    /// When.
    pub at: SystemTime,
    /// Which, and why.
    pub closed: Closed,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Times may have changed.
    pub timer: Notify,
    pub events: mpsc::Sender<Event>,
}

pub(super) struct State {
    pub core: Core<OwnedFd>,
    pub waiting: HashMap<u64, oneshot::Sender<Result<Answer<OwnedFd>, Failure>>>,
    pub mailboxes: Mailboxes,
    pub turned_away: Option<TurnedAway>,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Apps {
    /// For the services of this host. [`serve`](super::server::serve) lets applications in.
    pub fn new(services: impl IntoIterator<Item = Service>, limits: Limits) -> (Self, Events) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let state = State {
            core: Core::new(services, limits),
            waiting: HashMap::new(),
            mailboxes: Mailboxes::default(),
            turned_away: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            timer: Notify::new(),
            events,
        };
        (Self(Arc::new(shared)), receiver)
    }

    /// Goes by other services and limits from now on. Applications that are registered keep
    /// their services, and what they were told of the longest state and of moves at once.
    pub fn set(&self, services: impl IntoIterator<Item = Service>, limits: Limits) {
        self.0.lock().core.set(services, limits);
    }

    /// What the application of a service speaks, if there is one that can be asked for
    /// moves.
    pub fn registered(&self, service: &Service) -> Option<Protocol> {
        self.0.lock().core.registered(service).cloned()
    }

    /// Has a connection exported: nobody reads from it or writes to it when this returns.
    /// If this is dropped before, the application goes on.
    ///
    /// # Errors
    ///
    /// It is not, and the application goes on with it.
    pub async fn export(&self, number: u64, session: Tuple) -> Result<Exported, Failure> {
        let asked = |core: &mut Core<OwnedFd>, now| core.export(number, session, now);
        match self.ask(number, asked).await? {
            Answer::Exported {
                descriptor, state, ..
            } => Ok(Exported { descriptor, state }),
            _ => Err(Failure::NotPending),
        }
    }

    /// Has the application go on with a connection that it exported, or was asked to
    /// export, and hands its state back. It must be out of repair mode, with all
    /// its bytes in place.
    ///
    /// # Errors
    ///
    /// No such export is pending: the application has gone, most likely.
    pub fn resume(&self, number: u64, state: Option<Blob>) -> Result<(), Failure> {
        self.tell(|core, _| core.resume(number, state))
    }

    /// Tells the application that a connection that it exported lives elsewhere.
    ///
    /// # Errors
    ///
    /// No such export is pending: the application has gone, most likely.
    pub fn committed(&self, number: u64) -> Result<(), Failure> {
        self.tell(|core, _| core.committed(number))
    }

    /// Has a socket made for a connection to come. If this is dropped before it returns,
    /// the application closes the socket again.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn import(
        &self,
        number: u64,
        session: Tuple,
        family: Family,
    ) -> Result<OwnedFd, Failure> {
        let asked = |core: &mut Core<OwnedFd>, now| core.import(number, session, family, now);
        match self.ask(number, asked).await? {
            Answer::Imported { descriptor, .. } => Ok(descriptor),
            _ => Err(Failure::NotPending),
        }
    }

    /// Gives the application the state of a connection to come, and waits until it has
    /// looked whether it can go on from it. From here on it has the state, whatever
    /// becomes of this agent: so this belongs before *prepared* is said.
    ///
    /// # Errors
    ///
    /// It cannot, and has closed the socket; or, with [`Failure::NoRoom`], nothing has
    /// happened.
    pub async fn give(&self, number: u64, state: Blob) -> Result<(), Failure> {
        self.ask(number, |core, now| core.give(number, state, now))
            .await
            .map(drop)
    }

    /// Whether the application of a connection to come has said that it can go on from its
    /// state, and waits for [`Apps::adopt`]: one that ended a moment ago does not.
    pub fn keeps(&self, number: u64) -> bool {
        let mut state = self.0.lock();
        let keeper = state.core.keeper(number);
        keeper.is_some_and(|app| state.is_there(app))
    }

    /// Has the application serve the connection: its socket must be live, out of repair
    /// mode. The connection is the application's, also if this fails.
    ///
    /// # Errors
    ///
    /// The application has not said that it serves it.
    pub async fn adopt(&self, number: u64) -> Result<(), Failure> {
        self.ask(number, |core, now| core.adopt(number, now))
            .await
            .map(drop)
    }

    /// Has the application close the socket of an import: the connection does not come.
    ///
    /// # Errors
    ///
    /// No such import is pending: the application has gone, most likely.
    pub fn drop_import(&self, number: u64) -> Result<(), Failure> {
        self.tell(|core, _| core.drop_import(number))
    }

    /// All applications that are connected.
    pub fn status(&self) -> Vec<AppStatus> {
        self.0.lock().core.status()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.0.lock().core.counters()
    }

    /// The last application that lost its connection for something it did.
    pub fn turned_away(&self) -> Option<TurnedAway> {
        self.0.lock().turned_away
    }

    /// Bytes of states that are held for applications.
    pub fn held_bytes(&self) -> usize {
        self.0.lock().core.held_bytes()
    }

    fn tell(
        &self,
        what: impl FnOnce(&mut Core<OwnedFd>, Instant) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut state = self.0.lock();
        let told = what(&mut state.core, Instant::now());
        state.dispatch();
        drop(state);
        self.0.timer.notify_one();
        told
    }

    async fn ask(
        &self,
        number: u64,
        what: impl FnOnce(&mut Core<OwnedFd>, Instant) -> Result<(), Failure>,
    ) -> Result<Answer<OwnedFd>, Failure> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.0.lock();
            what(&mut state.core, Instant::now())?;
            state.waiting.insert(number, sender);
            state.dispatch();
        }
        self.0.timer.notify_one();
        receiver.await.unwrap_or(Err(Failure::Gone))
    }
}
