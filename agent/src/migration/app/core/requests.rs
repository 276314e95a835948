//! What the agent wants of applications.

use std::time::{Duration, Instant};

use homing_client::{
    Blob,
    wire::{Connection, Family, Message},
};
use homing_common::session::Tuple;

use super::{AppId, Core, Failure, Phase, Step};

/// Messages that may wait for an application, per move that may be pending with it,
/// before it is asked for more: what ends a move always finds room.
const WAITING_PER_MOVE: usize = 4;

impl<D> Core<D> {
    /// Asks for a connection.
    ///
    /// # Errors
    ///
    /// Nobody can be asked.
    pub fn export(&mut self, number: u64, session: Tuple, now: Instant) -> Result<(), Failure> {
        let app = self.room_for(number, &session)?;
        let within = self.limits.export_within;
        self.insert(number, app, session, Step::Exporting(None));
        self.set_until(number, Some(now + within));
        let message = Message::Export {
            number,
            within_ms: millis(within),
            connection: connection(&session),
        };
        self.send(app, message);
        Ok(())
    }

    /// Has the application go on with what it exported, or was asked to export. The
    /// state goes back to it, where the agent has it.
    ///
    /// # Errors
    ///
    /// No such export is pending.
    pub fn resume(&mut self, number: u64, state: Option<Blob>) -> Result<(), Failure> {
        match self.step(number)? {
            Step::Exported => {}
            Step::Exporting(_) => {
                self.counters.resumed += 1;
                self.give_up(number, Failure::NotPending);
                return Ok(());
            }
            _ => return Err(Failure::NotPending),
        }
        let one = self.remove(number).ok_or(Failure::NotPending)?;
        self.counters.resumed += 1;
        // One that did not come from the application may find no room.
        let blob_max = self.blob_max(one.app) as usize;
        let state = state.filter(|state| state.len() <= blob_max && self.has_room(state.len()));
        let has_state = state.is_some();
        if let Some(state) = state {
            self.send_state(one.app, number, state);
        }
        let message = Message::Resume {
            number,
            state: has_state,
        };
        self.send(one.app, message);
        Ok(())
    }

    /// Tells the application that what it exported lives elsewhere.
    ///
    /// # Errors
    ///
    /// No such export is pending.
    pub fn committed(&mut self, number: u64) -> Result<(), Failure> {
        match self.step(number)? {
            Step::Exported => {}
            _ => return Err(Failure::NotPending),
        }
        let one = self.remove(number).ok_or(Failure::NotPending)?;
        self.counters.committed += 1;
        self.send(one.app, Message::Committed { number });
        Ok(())
    }

    /// Asks for a socket of a family, for a connection to come.
    ///
    /// # Errors
    ///
    /// Nobody can be asked.
    pub fn import(
        &mut self,
        number: u64,
        session: Tuple,
        family: Family,
        now: Instant,
    ) -> Result<(), Failure> {
        let app = self.room_for(number, &session)?;
        let within = self.limits.import_within;
        self.insert(number, app, session, Step::Importing(family));
        self.set_until(number, Some(now + within));
        let message = Message::Import {
            number,
            within_ms: millis(within),
            family,
            connection: connection(&session),
        };
        self.send(app, message);
        Ok(())
    }

    /// Gives the application the state of a connection to come, to look at.
    ///
    /// # Errors
    ///
    /// There is no socket for it, or no room for the state.
    pub fn give(&mut self, number: u64, state: Blob, now: Instant) -> Result<(), Failure> {
        let one = self.moves.get(&number).ok_or(Failure::NotPending)?;
        if !matches!(one.step, Step::Imported) {
            return Err(Failure::NotPending);
        }
        if state.len() > self.blob_max(one.app) as usize || !self.has_room(state.len()) {
            self.counters.no_room += 1;
            return Err(Failure::NoRoom);
        }
        let app = self.ask(number, Step::Giving, now)?;
        self.send_state(app, number, state);
        Ok(())
    }

    /// Has the application serve the connection: its socket is live.
    ///
    /// # Errors
    ///
    /// The application has not said that it can.
    pub fn adopt(&mut self, number: u64, now: Instant) -> Result<(), Failure> {
        if !matches!(self.step(number)?, Step::Kept) {
            return Err(Failure::NotPending);
        }
        let app = self.ask(number, Step::Adopting, now)?;
        self.send(app, Message::Adopt { number });
        Ok(())
    }

    /// Has the application close the socket: the connection does not come.
    ///
    /// # Errors
    ///
    /// No such import is pending, or it was told to adopt.
    pub fn drop_import(&mut self, number: u64) -> Result<(), Failure> {
        match self.step(number)? {
            Step::Imported | Step::Kept => {
                let one = self.remove(number).ok_or(Failure::NotPending)?;
                self.send(one.app, Message::Drop { number });
            }
            Step::Importing(_) | Step::Giving => self.give_up(number, Failure::NotPending),
            _ => return Err(Failure::NotPending),
        }
        self.counters.dropped += 1;
        Ok(())
    }

    /// The next step of an import.
    fn ask(&mut self, number: u64, step: Step, now: Instant) -> Result<AppId, Failure> {
        let until = now + self.limits.import_within;
        let one = self.moves.get_mut(&number).ok_or(Failure::NotPending)?;
        one.step = step;
        let app = one.app;
        self.set_until(number, Some(until));
        Ok(app)
    }

    fn step(&self, number: u64) -> Result<&Step, Failure> {
        let one = self.moves.get(&number).ok_or(Failure::NotPending)?;
        Ok(&one.step)
    }

    /// Bytes of the longest state that an application gives and takes.
    pub(super) fn blob_max(&self, app: AppId) -> u32 {
        self.apps.get(&app).map_or(0, |app| app.blob_max)
    }

    /// Whether so many bytes of states more may be held.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= self.limits.blobs
    }

    /// The application that a new move is for.
    fn room_for(&self, number: u64, session: &Tuple) -> Result<AppId, Failure> {
        let id = self.holders.get(&session.service());
        let (&id, app) = id
            .and_then(|id| Some((id, self.apps.get(id)?)))
            .filter(|(_, app)| app.phase == Phase::Ready)
            .ok_or(Failure::NotRegistered)?;
        if self.moves.contains_key(&number) {
            return Err(Failure::NumberInUse);
        }
        if self.sessions.contains_key(session) {
            return Err(Failure::Busy);
        }
        let moves_max = usize::from(app.moves_max);
        if app.moves.len() >= moves_max || app.outbox.len() > WAITING_PER_MOVE * moves_max {
            return Err(Failure::TooMany);
        }
        Ok(id)
    }
}

fn millis(time: Duration) -> u32 {
    time.as_millis().try_into().unwrap_or(u32::MAX)
}

fn connection(session: &Tuple) -> Connection {
    Connection::new(session.client_endpoint(), session.service_endpoint())
}
