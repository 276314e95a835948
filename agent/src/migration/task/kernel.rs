//! The datapath's orders: what a move does to this host's kernel. All of it blocks, for
//! microseconds mostly.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use homing_common::{
    moving::{Moving, Phase},
    session::{Session, SessionKey, Tuple},
};
use socket2::SockRef;

use super::{hold::Hold, kept::Kept};
use crate::{
    bound::Bound,
    datapath::{
        clock::monotonic_ns,
        moving::{Error as MovingError, Move, MovingMap, park::Park},
        repair::{self, Frozen, LIGHT_MAX, Restored, Snapshot},
        sessions::{Recorded, Sessions},
        sockets::Diag,
        stack::Stack,
    },
    migration::{Answer, MoveId, Reason, app::Pending},
};

/// How often a connection is read whose state changes meanwhile: a packet that a program
/// had in its hands when the session was frozen arrives at most once.
const READS_MAX: usize = 3;

/// What each session could repeat.
static NOT_ENDED: Bound = Bound::new();
static FLAWED: Bound = Bound::new();
static UNRECORDED: Bound = Bound::new();
static UNSURE: Bound = Bound::new();

/// This host's kernel, as moves need it.
pub(super) struct Kernel {
    pub moving: Arc<MovingMap>,
    pub park: Park,
    pub sessions: Arc<Sessions>,
    pub session_key: SessionKey,
    pub stack: Stack,
    pub kept: Kept,
}

/// What came of an order: what is held from now on, the answer, and more of the reason.
pub(super) struct Done {
    pub hold: Hold,
    pub answer: Answer,
    pub detail: Option<String>,
}

impl Done {
    fn with(hold: Hold, answer: Answer) -> Self {
        Self {
            hold,
            answer,
            detail: None,
        }
    }

    pub(super) fn cannot(hold: Hold, reason: Reason, detail: impl ToString) -> Self {
        Self {
            hold,
            answer: Answer::Cannot(reason),
            detail: Some(detail.to_string()),
        }
    }
}

impl Kernel {
    /// Writes into the journal.
    pub fn journal(&self, tuple: &Tuple, of: Move, phase: Phase) -> Result<(), MovingError> {
        let written = match phase {
            Phase::Awaiting | Phase::Frozen => self.moving.begin(*tuple, of, phase),
            Phase::Prepared | Phase::Released => self.moving.advance(*tuple, of.number, phase),
        };
        let is_written = |found: &Moving| found.number == of.number && found.phase() == Some(phase);
        match written {
            Err(
                MovingError::Busy { found, .. }
                | MovingError::Other {
                    found: Some(found), ..
                },
            ) if is_written(&found) => Ok(()),
            written => written,
        }
    }

    /// Whether the connection can be carried.
    pub fn check(&self, hold: Hold) -> Done {
        let Hold::Exported(socket) = hold else {
            return Done::cannot(hold, Reason::Gone, "its descriptor is not here");
        };
        match repair::check(socket.as_fd()) {
            Ok(_) => Done::with(Hold::Exported(socket), Answer::Done),
            Err(error) => {
                let reason = reason_of(&error);
                Done::cannot(Hold::Exported(socket), reason, error)
            }
        }
    }

    /// Whether [`Self::read`], or [`Self::activate`], is a matter of microseconds.
    pub fn is_light(&self, hold: &Hold) -> bool {
        match hold {
            Hold::Exported(socket) => repair::queued(socket.as_fd())
                .is_ok_and(|queued| queued.to_send as usize + queued.unread as usize <= LIGHT_MAX),
            Hold::Restored(restored) => restored.is_light(),
            _ => true,
        }
    }

    /// Enters repair mode and reads the state.
    pub fn read(&self, hold: Hold) -> Done {
        let Hold::Exported(socket) = hold else {
            return Done::cannot(hold, Reason::Gone, "its descriptor is not here");
        };
        // The one that is kept if repair mode cannot be entered.
        let spare = match socket.try_clone() {
            Ok(spare) => spare,
            Err(error) => return Done::cannot(Hold::Exported(socket), Reason::Kernel, error),
        };
        let read = |frozen: &Frozen| {
            let mut tries = 1;
            loop {
                match frozen.snapshot() {
                    Err(repair::Error::Changed) if tries < READS_MAX => tries += 1,
                    result => return result,
                }
            }
        };
        let read = Frozen::enter(socket).and_then(|frozen| Ok((read(&frozen)?, frozen)));
        match read {
            Ok((snapshot, frozen)) => {
                let tcp = snapshot.encode();
                let hold = Hold::Frozen(frozen, Some(snapshot.sequence()));
                Done::with(hold, Answer::Read { tcp })
            }
            Err(error) => Done::cannot(Hold::Exported(spare), reason_of(&error), error),
        }
    }

    /// Whether the state is what it was when it was read.
    pub fn recheck(&self, hold: Hold) -> Done {
        let Hold::Frozen(frozen, before) = hold else {
            return Done::cannot(hold, Reason::Gone, "it is not in repair mode");
        };
        let now = frozen.sequence();
        let hold = Hold::Frozen(frozen, before);
        match now {
            Ok(now) if Some(now) == before => Done::with(hold, Answer::Done),
            Ok(_) => Done::with(hold, Answer::Changed),
            Err(error) => Done::cannot(hold, reason_of(&error), error),
        }
    }

    /// Destroys the session's socket at the source, and forgets the session. Gives the
    /// socket's cookie, too, if the session was recorded.
    pub fn destroy(&self, tuple: &Tuple, hold: Hold) -> (Done, Option<u64>) {
        if let Err((hold, error)) = self.silence(tuple, hold) {
            return (Done::cannot(hold, Reason::Kernel, error), None);
        }
        let forgotten = self.sessions.get(tuple).and_then(|session| match session {
            Some(session) => self.sessions.forget(tuple, session.cookie),
            None => Ok(None),
        });
        match forgotten {
            Ok(session) => {
                let done = Done::with(Hold::Nothing, Answer::Done);
                (done, session.map(|session| session.cookie))
            }
            Err(error) => (Done::cannot(Hold::Nothing, Reason::Kernel, error), None),
        }
    }

    /// Lets the connection go on at the source. Gives the socket's cookie, too, if it was
    /// closed meanwhile.
    pub fn resume(&self, tuple: &Tuple, number: u64, hold: Hold) -> (Done, Option<u64>) {
        let gone = |error| (Done::cannot(Hold::Nothing, Reason::Kernel, error), None);
        let hold = match hold {
            Hold::Told(Pending::Export, socket) => match Frozen::enter(socket) {
                Ok(frozen) => Hold::Frozen(frozen, None),
                Err(error) => return gone(io::Error::other(error)),
            },
            hold => hold,
        };
        let (hold, closed) = match hold {
            Hold::Frozen(frozen, _) => {
                let closed = self.forget_closed(tuple, frozen.as_fd());
                match frozen.leave() {
                    Ok(()) => (Hold::Resumed, closed),
                    Err(error) => return gone(error),
                }
            }
            Hold::Exported(socket) => {
                let closed = self.forget_closed(tuple, socket.as_fd());
                (Hold::Exported(socket), closed)
            }
            hold => {
                let detail = "its descriptor is not here";
                return (Done::cannot(hold, Reason::ApplicationGone, detail), None);
            }
        };
        match self.moving.end(tuple, number) {
            Ok(_) => (Done::with(hold, Answer::Done), closed),
            Err(error) => (Done::cannot(hold, Reason::Kernel, error), closed),
        }
    }

    /// Takes the entry of a move from here out of the journal.
    pub fn end(&self, tuple: &Tuple, number: u64) {
        if let Err(error) = self.moving.end(tuple, number)
            && let Some(left_out) = NOT_ENDED.take()
        {
            tracing::error!(
                %error, ?tuple, left_out,
                fix = "restart the agent, which settles what is in MOVING; until then packets of that session are held or sent to the other host",
                "cannot remove a session from MOVING"
            );
        }
    }

    /// The connection's state, and the socket for it.
    pub fn unpack(
        &self,
        tuple: &Tuple,
        tcp: &[u8],
        hold: Hold,
    ) -> Result<(OwnedFd, Snapshot), Done> {
        let Hold::Fresh(socket) = hold else {
            let detail = "there is no socket for it";
            return Err(Done::cannot(hold, Reason::ApplicationGone, detail));
        };
        let detail = match Snapshot::decode(tcp) {
            Ok(snapshot) if snapshot.tuple() == *tuple => return Ok((socket, snapshot)),
            Ok(_) => "the state is another session's".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Done::cannot(
            Hold::Fresh(socket),
            Reason::NotCarried,
            detail,
        ))
    }

    /// Makes the connection of a state, in repair mode.
    pub fn restore(&self, id: MoveId, tcp: &[u8], socket: OwnedFd, snapshot: Snapshot) -> Done {
        if snapshot.loses_ecn() {
            tracing::debug!(tuple = ?snapshot.tuple(), "the session goes on without ECN");
        }
        if let Err(error) = self.kept.write(id, tcp) {
            let detail = format!("cannot keep the connection's state: {error}");
            return Done::cannot(Hold::Fresh(socket), Reason::Kernel, detail);
        }
        match repair::restore(socket, snapshot, &|packet| self.stack.up(packet)) {
            Ok(restored) => Done::with(Hold::Restored(Box::new(restored)), Answer::Done),
            Err(error) => Done::cannot(Hold::Nothing, reason_of(&error), error),
        }
    }

    /// What an application told of that has outlived its agent, at the target.
    pub fn found(&self, id: MoveId, tuple: &Tuple, socket: OwnedFd) -> Done {
        let spare = socket.try_clone();
        let found = || {
            let tcp = self.kept.read(id).map_err(|error| error.to_string())?;
            let snapshot = Snapshot::decode(&tcp).map_err(|error| error.to_string())?;
            if snapshot.tuple() != *tuple {
                return Err("the state is another session's".to_owned());
            }
            Restored::found(socket, snapshot).map_err(|error| error.to_string())
        };
        match (found(), spare) {
            (Ok(restored), _) => Done::with(Hold::Restored(Box::new(restored)), Answer::Done),
            (Err(error), Ok(spare)) => {
                Done::cannot(Hold::Told(Pending::Kept, spare), Reason::Kernel, error)
            }
            (Err(error), Err(_)) => Done::cannot(Hold::Nothing, Reason::Kernel, error),
        }
    }

    /// Leaves repair mode at the target.
    pub fn activate(&self, hold: Hold) -> Done {
        match hold {
            Hold::Active(socket) => Done::with(Hold::Active(socket), Answer::Done),
            Hold::Restored(restored) => match restored.activate(&|packet| self.stack.up(packet)) {
                Ok(active) => {
                    let mut done = Done::with(Hold::Active(active.socket), Answer::Done);
                    if let Some(flaw) = active.flaw {
                        if let Some(left_out) = FLAWED.take() {
                            tracing::warn!(
                                %flaw, left_out,
                                fix = "nothing: the connection is served; if it happens often, make kernel and settings of source and target the same",
                                "a session that has come goes on, but not just as it was"
                            );
                        }
                        done.detail = Some(flaw.to_string());
                    }
                    done
                }
                Err(error) => Done::cannot(Hold::Nothing, reason_of(&error), error),
            },
            hold => Done::cannot(hold, Reason::Gone, "there is no connection"),
        }
    }

    /// Puts the connection onto another fresh socket: that of an application that has
    /// come in the place of the one that had it.
    pub fn transplant(&self, active: OwnedFd, fresh: OwnedFd) -> Done {
        let up = |packet: &[u8]| self.stack.up(packet);
        let transplant = || {
            let frozen = Frozen::enter(active)?;
            let snapshot = frozen.snapshot()?;
            frozen.destroy().map_err(|error| repair::Error::Kernel {
                what: "destroy a socket",
                error,
            })?;
            repair::restore(fresh, snapshot, &up)?.activate(&up)
        };
        match transplant() {
            Ok(active) => Done::with(Hold::Active(active.socket), Answer::Done),
            Err(error) => Done::cannot(Hold::Nothing, reason_of(&error), error),
        }
    }

    /// Records the session as this host's. Says what is recorded.
    pub fn record(&self, tuple: &Tuple, generation: u32, socket: &OwnedFd) -> io::Result<Session> {
        let now = monotonic_ns();
        let session = Session {
            id: tuple.id(&self.session_key),
            cookie: SockRef::from(socket).cookie()?,
            opened_ns: now,
            seen_ns: 0,
            generation,
            flags: 0,
        };
        for _ in 0..2 {
            match self.sessions.record(tuple, session)? {
                Recorded::New => return Ok(session),
                Recorded::Full => {
                    if let Some(left_out) = UNRECORDED.take() {
                        tracing::warn!(
                            ?tuple,
                            left_out,
                            fix = "raise limits.sessions and restart the agent; until then other hosts find the session by asking only",
                            "SESSIONS is full: a session that has come here is not recorded"
                        );
                    }
                    return Ok(session);
                }
                Recorded::Present => match self.sessions.get(tuple)? {
                    Some(found) if found.cookie == session.cookie => return Ok(found),
                    // Of a socket that is no more.
                    Some(found) => drop(self.sessions.forget(tuple, found.cookie)?),
                    None => {}
                },
            }
        }
        Ok(session)
    }

    /// Forgets a session whose socket was closed while the hooks on sockets were mute: by
    /// a reset of the client that was parked, say. Gives the socket's cookie.
    pub fn forget_closed(&self, tuple: &Tuple, socket: BorrowedFd<'_>) -> Option<u64> {
        let forget = || {
            if !repair::is_closed(socket)? {
                return Ok(None);
            }
            let cookie = SockRef::from(&socket).cookie()?;
            let forgotten = self.sessions.forget(tuple, cookie)?;
            Ok(forgotten.map(|session| session.cookie))
        };
        forget().unwrap_or_else(|error: io::Error| {
            if let Some(left_out) = UNSURE.take() {
                tracing::warn!(
                    %error, ?tuple, left_out,
                    fix = "nothing: the next comparison with the kernel's sockets finds out",
                    "cannot tell whether a session has ended"
                );
            }
            None
        })
    }

    /// Drops a copy, or what there was for one, and sends nothing.
    pub fn drop_copy(&self, id: MoveId, tuple: &Tuple, hold: Hold) -> Done {
        if let Err((hold, error)) = self.silence(tuple, hold) {
            return Done::cannot(hold, Reason::Kernel, error);
        }
        if let Ok(Some(session)) = self.sessions.get(tuple)
            && let Err(error) = self.sessions.forget(tuple, session.cookie)
        {
            return Done::cannot(Hold::Nothing, Reason::Kernel, error);
        }
        self.kept.remove(id);
        match self.park.give_up(tuple, id.number) {
            Ok(_) => Done::with(Hold::Nothing, Answer::Done),
            Err(error) => Done::cannot(Hold::Nothing, Reason::Kernel, error),
        }
    }

    /// Sees to it that no socket of the session is left, whoever holds one. While one is
    /// that nobody has given to this agent, the journal's entry must stay: it keeps that
    /// socket from answering.
    fn silence(&self, tuple: &Tuple, hold: Hold) -> Result<(), (Hold, io::Error)> {
        let destroy = |socket: OwnedFd| match Frozen::enter(socket) {
            Ok(frozen) => frozen.destroy(),
            // Not connected: a fresh one, or one that has ended.
            Err(repair::Error::Refused(_)) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        };
        // Who holds one destroys it for all.
        let may_be_left = matches!(hold, Hold::Nothing | Hold::Told(..));
        let destroyed = match hold {
            Hold::Frozen(frozen, _) => frozen.destroy(),
            Hold::Exported(socket) | Hold::Active(socket) | Hold::Told(_, socket) => {
                destroy(socket)
            }
            Hold::Restored(restored) => {
                restored.discard();
                Ok(())
            }
            Hold::Fresh(socket) => {
                drop(socket);
                Ok(())
            }
            Hold::Nothing | Hold::Kept | Hold::Resumed => Ok(()),
        };
        let is_left = destroyed.and_then(|()| Ok(may_be_left && Diag::open()?.has(tuple)?));
        match is_left {
            Ok(false) => Ok(()),
            Ok(true) => Err((
                Hold::Nothing,
                io::Error::other("an application that has not said so has a socket of it"),
            )),
            Err(error) => Err((Hold::Nothing, error)),
        }
    }
}

/// What the other host and the operator are told.
fn reason_of(error: &repair::Error) -> Reason {
    match error {
        repair::Error::Refused(_) => Reason::NotCarried,
        repair::Error::Changed => Reason::Changed,
        _ => Reason::Kernel,
    }
}
