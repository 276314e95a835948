//! The core with applications that say what a test wants.

use std::time::Duration;

use homing_common::net::{Address, Port, UDP};

use super::*;

mod moves;
mod random;
mod registrations;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        apps: 3,
        services: 3,
        moves: 4,
        blob: 100,
        blobs: 250,
        ..Limits::default()
    }
}

fn service(port: u16) -> Service {
    Service::new(Address::v4([203, 0, 113, 10]), Port::new(port), TCP)
}

/// The session of a client's port with the service at another.
fn session(client: u16, port: u16) -> Tuple {
    let client = ([198, 51, 100, 7], client).into();
    Tuple::between(client, service(port).endpoint(), TCP)
}

fn connection(session: &Tuple) -> homing_client::Connection {
    homing_client::Connection::new(session.client_endpoint(), session.service_endpoint())
}

/// A core with applications that say what the test wants.
struct Bench {
    core: Core<u32>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        let mut services: Vec<Service> = (1..=5).map(service).collect();
        services.push(Service {
            protocol: UDP,
            ..service(9)
        });
        Self {
            core: Core::new(services, limits),
            now: Instant::now(),
        }
    }

    fn connect(&mut self) -> AppId {
        self.core
            .connected(Peer::default(), self.now)
            .expect("there is room")
    }

    fn say(&mut self, app: AppId, message: Message<'_>) {
        let descriptor = message.has_descriptor().then_some(7);
        self.core
            .received(app, &message.encode(), descriptor, self.now);
    }

    fn register(&mut self, app: AppId, ports: &[u16]) {
        let message = Message::Register {
            protocol: Protocol::new("echo", 1),
            services: ports.iter().map(|&port| service(port).endpoint()).collect(),
        };
        self.say(app, message);
    }

    /// An application that serves these ports and has nothing pending.
    fn ready(&mut self, ports: &[u16]) -> AppId {
        let app = self.connect();
        self.register(app, ports);
        self.say(app, Message::Ready);
        self.core.take_outputs();
        self.sent(app);
        app
    }

    /// What an application has been sent since this was last asked.
    fn sent(&mut self, app: AppId) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.core.next_datagram(app))
            .map(|datagram| datagram.to_vec())
            .collect()
    }

    fn state(&mut self, app: AppId, number: u64, total: u32, offset: u32, part: &[u8]) {
        let message = Message::State {
            number,
            total,
            offset,
            part,
        };
        self.say(app, message);
    }

    /// What is to be done, without that there are messages.
    fn outputs(&mut self) -> Vec<Output<u32>> {
        let mut outputs = self.core.take_outputs();
        outputs.retain(|output| !matches!(output, Output::Send(_)));
        outputs
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.core.tick(self.now);
    }

    fn exported(&mut self, app: AppId, number: u64, session: Tuple, state: &[u8]) {
        self.core.export(number, session, self.now).expect("asked");
        self.state(app, number, state.len() as u32, 0, state);
        self.say(app, Message::Exported { number });
        let state = Blob::from(state.to_vec());
        let descriptor = 7;
        let answer = Answer::Exported {
            descriptor,
            state,
            session,
        };
        assert_eq!(self.outputs(), [Output::Answer(number, Ok(answer))]);
        self.sent(app);
    }

    fn imported(&mut self, app: AppId, number: u64, session: Tuple) {
        let family = Family::V4;
        let asked = self.core.import(number, session, family, self.now);
        asked.expect("asked");
        self.say(app, Message::Imported { number });
        let descriptor = 7;
        let answer = Answer::Imported { descriptor, family };
        assert_eq!(self.outputs(), [Output::Answer(number, Ok(answer))]);
        self.sent(app);
    }

    fn kept(&mut self, app: AppId, number: u64, session: Tuple) {
        self.imported(app, number, session);
        let given = self.core.give(number, Blob::from(vec![1; 50]), self.now);
        given.expect("given");
        self.sent(app);
        self.say(app, Message::Kept { number });
        assert_eq!(self.outputs(), [Output::Answer(number, Ok(Answer::Kept))]);
    }

    /// What the only output closes a connection for, behind what else it causes.
    fn closed(&mut self, app: AppId) -> Closing {
        match self.outputs().pop() {
            Some(Output::Close(id, closing, _)) if id == app => closing,
            other => panic!("not closed: {other:?}"),
        }
    }

    fn assert_empty(&self) {
        assert_eq!(self.core.held_bytes(), 0);
        assert!(self.core.moves.is_empty() && self.core.sessions.is_empty());
        assert!(self.core.due.is_empty());
    }
}

fn failed(number: u64, failure: Failure) -> [Output<u32>; 1] {
    [Output::Answer(number, Err(failure))]
}

fn resume(number: u64, state: bool) -> Vec<u8> {
    Message::Resume { number, state }.encode()
}
