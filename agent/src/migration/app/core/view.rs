//! What can be seen of applications.

use homing_client::{Protocol, wire::Closing};
use homing_common::{net::Service, session::Tuple};

use super::{App, AppId, Core, Limits, Peer, Phase, Step};
use crate::pop::counters::counters;

counters! {
    /// What happened between the agent and applications.
    Counters {
        /// Registrations that were accepted.
        registered,
        /// Applications that were registered and have gone.
        gone,
        /// Connections that could be exported.
        exported,
        /// Exports that the application was told to go on with.
        resumed,
        /// Exports that were committed.
        committed,
        /// Sockets that were made for connections to come.
        imported,
        /// Connections that were adopted.
        adopted,
        /// Imports that were dropped.
        dropped,
        /// Requests that applications refused.
        refused,
        /// Requests that were not answered in time.
        timed_out,
        /// Answers that came after the agent had given up.
        late,
        /// States that there was no room for.
        no_room,
        /// Descriptors that were not what was asked for.
        wrong_descriptor,
        /// Moves that were pending with an application when it connected.
        told_pending,
        /// Connections closed because of another version of the protocol.
        closed_version,
        /// Connections closed because what came was no message.
        closed_malformed,
        /// Connections closed because a message was not the one to send.
        closed_unexpected,
        /// Registrations of what is no TCP service of this host.
        closed_not_a_service,
        /// Registrations of a service that another application has.
        closed_taken,
        /// Applications that came when there were too many, or with too much.
        closed_too_many,
        /// Connections closed because a state was too long.
        closed_too_large,
        /// Applications that did not register, or read, in time.
        closed_slow,
        /// Connections closed because the agent stopped.
        closed_stopping,
    }
}

impl Counters {
    fn count(&mut self, closing: Closing) {
        *match closing {
            Closing::Version => &mut self.closed_version,
            Closing::Malformed => &mut self.closed_malformed,
            Closing::Unexpected => &mut self.closed_unexpected,
            Closing::NotAService => &mut self.closed_not_a_service,
            Closing::Taken => &mut self.closed_taken,
            Closing::TooMany => &mut self.closed_too_many,
            Closing::TooLarge => &mut self.closed_too_large,
            Closing::Slow => &mut self.closed_slow,
            Closing::Stopping => &mut self.closed_stopping,
        } += 1;
    }
}

/// An application that lost its connection for something it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    /// Its process.
    pub peer: Peer,
    /// Why.
    pub closing: Closing,
    /// More.
    pub text: &'static str,
}

/// An application, as it can be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppStatus {
    /// Its connection.
    pub app: AppId,
    /// Its process.
    pub peer: Peer,
    /// What it speaks, once it has registered.
    pub protocol: Option<Protocol>,
    /// What it serves.
    pub services: Vec<Service>,
    /// It has told what is pending, and can be asked.
    pub ready: bool,
    /// Moves that wait for its answer.
    pub asked: usize,
    /// Moves that it waits to be told the end of.
    pub pending: usize,
}

impl<D> Core<D> {
    /// What the application of a service speaks, if one can be asked.
    pub fn registered(&self, service: &Service) -> Option<&Protocol> {
        let app = self.apps.get(self.holders.get(service)?)?;
        app.protocol.as_ref().filter(|_| app.phase == Phase::Ready)
    }

    /// The application that waits to be told to adopt what it can go on from.
    pub fn keeper(&self, number: u64) -> Option<AppId> {
        let one = self.moves.get(&number)?;
        matches!(one.step, Step::Kept).then_some(one.app)
    }

    /// Whether a session takes part in a move that is pending with an application.
    pub fn is_moving(&self, session: &Tuple) -> bool {
        self.sessions.contains_key(session)
    }

    /// All applications, by connection.
    pub fn status(&self) -> Vec<AppStatus> {
        let mut all: Vec<AppStatus> = self
            .apps
            .iter()
            .map(|(&id, app)| AppStatus {
                app: id,
                peer: app.peer,
                protocol: app.protocol.clone(),
                services: app.services.clone(),
                ready: app.phase == Phase::Ready,
                asked: self.count(app, Step::is_asked),
                pending: self.count(app, |step| step.pending().is_some()),
            })
            .collect();
        all.sort_unstable_by_key(|status| status.app);
        all
    }

    fn count(&self, app: &App, counts: impl Fn(&Step) -> bool) -> usize {
        let moves = app.moves.iter().filter_map(|number| self.moves.get(number));
        moves.filter(|one| counts(&one.step)).count()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn count_closed(&mut self, peer: Peer, closing: Closing, text: &'static str) {
        self.counters.count(closing);
        if closing != Closing::Stopping {
            self.closed = Some(Closed {
                peer,
                closing,
                text,
            });
        }
    }

    /// The last application that lost its connection for something it did, since this was
    /// last asked.
    pub fn take_closed(&mut self) -> Option<Closed> {
        self.closed.take()
    }

    /// Counts a descriptor that was not what was asked for.
    pub fn count_wrong_descriptor(&mut self) {
        self.counters.wrong_descriptor += 1;
    }

    /// Bytes of states that are held.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// The limits that hold.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}
