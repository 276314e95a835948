//! What applications say.

use std::{collections::HashSet, net::SocketAddr, time::Instant};

use homing_client::{
    Assembly, Blob, Protocol,
    wire::{Closing, Connection, MOVES_CEILING, Message, Pending, Wrong},
};
use homing_common::{
    net::{Port, Service, TCP},
    session::Tuple,
};

use super::{Answer, AppId, Core, Due, Event, Failure, Left, Output, Phase, Step};

/// Why an application loses its connection.
type Fault = (Closing, &'static str);

const UNEXPECTED: Fault = (
    Closing::Unexpected,
    "it does not answer what was asked last",
);

impl<D> Core<D> {
    /// If a datagram is a registration: other applications that have its services.
    pub fn rivals(&self, id: AppId, datagram: &[u8]) -> Vec<AppId> {
        if self.apps.get(&id).is_none_or(|app| app.phase != Phase::New) {
            return Vec::new();
        }
        let Ok(Message::Register { services, .. }) = Message::decode(datagram) else {
            return Vec::new();
        };
        let holder = |endpoint| self.holders.get(&service(endpoint)).copied();
        let mut rivals: Vec<AppId> = services.iter().filter_map(holder).collect();
        rivals.sort_unstable();
        rivals.dedup();
        rivals
    }

    /// A datagram has come from an application, with or without a descriptor.
    pub fn received(&mut self, id: AppId, datagram: &[u8], descriptor: Option<D>, now: Instant) {
        let Some(phase) = self.apps.get(&id).map(|app| app.phase) else {
            return;
        };
        let result = match Message::decode(datagram) {
            Err(Wrong::Version(_)) => Err((Closing::Version, "this agent speaks version 1")),
            Err(Wrong::Malformed(why)) => Err((Closing::Malformed, why)),
            Ok(message) => self.message(id, phase, message, descriptor, now),
        };
        if let Err((closing, text)) = result {
            self.close(id, closing, text);
        }
    }

    fn message(
        &mut self,
        id: AppId,
        phase: Phase,
        message: Message<'_>,
        descriptor: Option<D>,
        now: Instant,
    ) -> Result<(), Fault> {
        match (phase, message, descriptor) {
            (Phase::New, Message::Register { protocol, services }, None) => {
                self.register(id, protocol, &services, now)
            }
            (
                Phase::Telling,
                Message::Pending {
                    number,
                    pending,
                    connection,
                },
                Some(descriptor),
            ) => self.told_pending(id, number, pending, &connection, descriptor),
            (Phase::Telling, Message::Ready, None) => {
                self.ready(id);
                Ok(())
            }
            (
                Phase::Ready,
                Message::State {
                    number,
                    total,
                    offset,
                    part,
                },
                None,
            ) => self.state(id, number, total, offset, part),
            (Phase::Ready, Message::Exported { number }, Some(descriptor)) => {
                self.exported(id, number, descriptor)
            }
            (Phase::Ready, Message::Imported { number }, Some(descriptor)) => {
                self.imported(id, number, descriptor)
            }
            (Phase::Ready, Message::Kept { number }, None) => self.kept(id, number),
            (Phase::Ready, Message::Adopted { number }, None) => self.adopted(id, number),
            (
                Phase::Ready,
                Message::Refuse {
                    number,
                    reason,
                    text,
                },
                None,
            ) => {
                let text = text.to_owned();
                self.refused(id, number, Failure::Refused { reason, text })
            }
            (_, message, descriptor) if message.has_descriptor() != descriptor.is_some() => Err((
                Closing::Malformed,
                "a descriptor is missing, or one came that is not meant",
            )),
            _ => Err((Closing::Unexpected, "this message is not for now")),
        }
    }

    fn register(
        &mut self,
        id: AppId,
        protocol: Protocol,
        endpoints: &[SocketAddr],
        now: Instant,
    ) -> Result<(), Fault> {
        let services: Vec<Service> = endpoints.iter().map(service).collect();
        if !services.iter().all(|one| self.movable.contains(one)) {
            return Err((
                Closing::NotAService,
                "a service is not of this host's TCP ones",
            ));
        }
        let mut seen = HashSet::new();
        if !services
            .iter()
            .all(|one| seen.insert(one) && !self.holders.contains_key(one))
        {
            return Err((Closing::Taken, "a service is registered already"));
        }
        if self.holders.len() + services.len() > self.limits.services {
            return Err((Closing::TooMany, "there are too many services"));
        }
        let until = now + self.limits.register_within;
        let Some(app) = self.apps.get_mut(&id) else {
            return Ok(());
        };
        if let Some(old) = app.until.replace(until) {
            self.due.remove(&(old, Due::App(id)));
        }
        self.due.insert((until, Due::App(id)));
        app.phase = Phase::Telling;
        (app.blob_max, app.moves_max) = (self.limits.blob, self.limits.moves);
        app.protocol = Some(protocol);
        app.services.clone_from(&services);
        for service in services {
            self.holders.insert(service, id);
        }
        self.counters.registered += 1;
        let message = Message::Registered {
            blob_max: app.blob_max,
            moves_max: app.moves_max,
        };
        self.send(id, message);
        Ok(())
    }

    fn told_pending(
        &mut self,
        id: AppId,
        number: u64,
        pending: Pending,
        connection: &Connection,
        descriptor: D,
    ) -> Result<(), Fault> {
        let session = Tuple::between(connection.client, connection.service, TCP);
        if self.holders.get(&session.service()) != Some(&id) {
            return Err((
                Closing::NotAService,
                "a move is of a service that it has not registered",
            ));
        }
        if self.moves.contains_key(&number) || self.sessions.contains_key(&session) {
            return Err((Closing::Unexpected, "a move is pending already"));
        }
        let told = self.apps.get(&id).map_or(0, |app| app.moves.len());
        if told >= MOVES_CEILING.into() {
            return Err((Closing::TooMany, "too many moves are pending"));
        }
        let step = match pending {
            Pending::Export => Step::Exported,
            Pending::Import => Step::Imported,
            Pending::Kept => Step::Kept,
        };
        self.insert(number, id, session, step);
        self.counters.told_pending += 1;
        let left = Left {
            number,
            session,
            pending,
        };
        let event = Event::Pending {
            app: id,
            left,
            descriptor,
        };
        self.outputs.push(Output::Event(id, event));
        Ok(())
    }

    fn ready(&mut self, id: AppId) {
        let Some(app) = self.apps.get_mut(&id) else {
            return;
        };
        if let Some(until) = app.until.take() {
            self.due.remove(&(until, Due::App(id)));
        }
        app.phase = Phase::Ready;
        if let Some(protocol) = app.protocol.clone() {
            let event = Event::Registered {
                app: id,
                protocol,
                services: app.services.clone(),
            };
            self.outputs.push(Output::Event(id, event));
        }
    }

    fn state(
        &mut self,
        id: AppId,
        number: u64,
        total: u32,
        offset: u32,
        part: &[u8],
    ) -> Result<(), Fault> {
        let has_room = self.has_room(total as usize);
        let blob_max = self.blob_max(id);
        let bytes = &mut self.bytes;
        let one = self.moves.get_mut(&number).filter(|one| one.app == id);
        let one = one.ok_or(UNEXPECTED)?;
        let assembly = match &mut one.step {
            Step::Exporting(assembly) => assembly,
            Step::Owed => return Ok(()),
            _ => return Err(UNEXPECTED),
        };
        if total > blob_max {
            return Err((Closing::TooLarge, "a state is longer than this agent takes"));
        }
        if assembly.is_none() && !has_room {
            self.counters.no_room += 1;
            self.give_up(number, Failure::NoRoom);
            return Ok(());
        }
        let assembly = assembly.get_or_insert_with(|| {
            one.bytes = total as usize;
            *bytes += one.bytes;
            Assembly::new(total)
        });
        let pushed = assembly.push(total, offset, part);
        pushed.map_err(|_| (Closing::Unexpected, "a part of a state is out of order"))
    }

    fn exported(&mut self, id: AppId, number: u64, descriptor: D) -> Result<(), Fault> {
        let one = self.moves.get_mut(&number).filter(|one| one.app == id);
        let one = one.ok_or(UNEXPECTED)?;
        let state = match &mut one.step {
            Step::Exporting(assembly) => match assembly.take() {
                None => Blob::default(),
                Some(assembly) if assembly.is_whole() => assembly.finish(),
                Some(_) => return Err((Closing::Unexpected, "the end of a state is missing")),
            },
            Step::Owed => return self.late(number),
            _ => return Err(UNEXPECTED),
        };
        one.step = Step::Exported;
        let session = one.session;
        self.set_until(number, None);
        self.counters.exported += 1;
        let answer = Answer::Exported {
            descriptor,
            state,
            session,
        };
        self.answer(number, Ok(answer));
        Ok(())
    }

    fn imported(&mut self, id: AppId, number: u64, descriptor: D) -> Result<(), Fault> {
        let one = self.moves.get_mut(&number).filter(|one| one.app == id);
        let one = one.ok_or(UNEXPECTED)?;
        let family = match one.step {
            Step::Importing(family) => family,
            Step::Owed => return self.late(number),
            _ => return Err(UNEXPECTED),
        };
        one.step = Step::Imported;
        self.set_until(number, None);
        self.counters.imported += 1;
        self.answer(number, Ok(Answer::Imported { descriptor, family }));
        Ok(())
    }

    fn kept(&mut self, id: AppId, number: u64) -> Result<(), Fault> {
        let one = self.moves.get_mut(&number).filter(|one| one.app == id);
        let one = one.ok_or(UNEXPECTED)?;
        match one.step {
            Step::Giving => {}
            Step::Owed => return self.late(number),
            _ => return Err(UNEXPECTED),
        }
        one.step = Step::Kept;
        self.set_until(number, None);
        self.answer(number, Ok(Answer::Kept));
        Ok(())
    }

    fn adopted(&mut self, id: AppId, number: u64) -> Result<(), Fault> {
        let one = self.moves.get(&number).filter(|one| one.app == id);
        match one.ok_or(UNEXPECTED)?.step {
            Step::Adopting => {}
            Step::Owed => return self.late(number),
            _ => return Err(UNEXPECTED),
        }
        self.remove(number);
        self.counters.adopted += 1;
        self.answer(number, Ok(Answer::Adopted));
        Ok(())
    }

    fn refused(&mut self, id: AppId, number: u64, failure: Failure) -> Result<(), Fault> {
        let one = self.moves.get(&number).filter(|one| one.app == id);
        match &one.ok_or(UNEXPECTED)?.step {
            Step::Owed => return self.late(number),
            step if step.is_asked() => {}
            _ => return Err(UNEXPECTED),
        }
        self.remove(number);
        self.counters.refused += 1;
        self.answer(number, Err(failure));
        Ok(())
    }

    /// The answer that was owed.
    fn late(&mut self, number: u64) -> Result<(), Fault> {
        self.remove(number);
        self.counters.late += 1;
        Ok(())
    }
}

fn service(endpoint: &SocketAddr) -> Service {
    Service::new(endpoint.ip().into(), Port::new(endpoint.port()), TCP)
}
