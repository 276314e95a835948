//! Games with the moves of one host: messages from others, commands of its own, and the
//! time. Orders are carried out at once, as if all went well.

use homing_agent::{
    migration::{
        Answer, Command, Limits, Local, MoveId, Moves, Order, Output,
        local::Application,
        wire::{self, Body, Fate, Life, Message, Offer, Parcel, Passed},
    },
    pop::SECOND,
};
use homing_common::{
    host::HostId,
    net::{Address, Port, Service, TCP},
    session::Tuple,
};

/// The host that plays.
const HERE: HostId = HostId(1);
/// The incarnation of its kernel, and what its agent counts moves and tickets from.
const INCARNATION: u64 = 1;
const COUNT: u64 = 7;

/// Host 1 of three, which has all services, and sessions from odd ports.
struct Here;

impl Local for Here {
    fn has_service(&self, _: &Service) -> bool {
        true
    }

    fn drains(&self) -> bool {
        false
    }

    fn application(&self, _: &Service) -> Option<Application> {
        Some(application())
    }

    fn session(&self, tuple: &Tuple) -> Option<u32> {
        (tuple.client_port.0[1] % 2 == 1).then_some(3)
    }

    fn members(&self) -> Vec<HostId> {
        vec![HostId(2), HostId(3)]
    }

    fn reached_since(&self) -> Option<u64> {
        Some(0)
    }
}

fn application() -> Application {
    Application {
        name: "echo".to_owned(),
        version: 1,
    }
}

fn tuple(n: u8) -> Tuple {
    let client = Address::v4([192, 0, 2, 1]);
    let service = Address::v4([198, 51, 100, 1]);
    Tuple::new(
        client,
        Port::new(256 + u16::from(n)),
        service,
        Port::new(80),
        TCP,
    )
}

/// Plays a game: steps of one byte that says whose message follows, two that say how
/// long it is, and the message. Of host 0 it is a command: its length says which session
/// moves to host 2.
pub fn play(mut bytes: &[u8]) {
    let limits = Limits {
        from_here: 4,
        to_here: 4,
        waiting: 4,
        bytes: 1 << 16,
        settling: 2,
        passed_on: 4,
        ..Limits::default()
    };
    let mut now = SECOND;
    let mut moves = Moves::new(now, HERE, INCARNATION, COUNT, limits, &[], &Here);
    while let Some((&[from, high, low], rest)) = bytes.split_first_chunk() {
        now += 1_000;
        if moves.next_time() <= now {
            moves.on_time(now, &Here);
            carry_out(&mut moves, now);
        }
        if from == 0 {
            bytes = rest;
            let command = Command {
                tuple: tuple(low),
                target: HostId(2),
                deadline: u64::MAX,
                application: application(),
                bytes: u32::from(high),
            };
            moves.command(now, &Here, command);
        } else {
            let len = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
            let (message, rest) = rest.split_at(len);
            bytes = rest;
            read(message);
            moves.message(now, &Here, HostId(u16::from(from)), message);
        }
        carry_out(&mut moves, now);
        let load = moves.load();
        assert!(load.from_here <= limits.from_here && load.waiting <= limits.waiting);
        assert!(load.to_here <= limits.to_here);
    }
    // Whatever was said: nothing stays for ever.
    let mut wakes = 0;
    while moves.next_time() != u64::MAX {
        assert!(moves.next_time() > now, "a timer that is always due");
        now = moves.next_time();
        moves.on_time(now, &Here);
        carry_out(&mut moves, now);
        wakes += 1;
        assert!(wakes < 10_000, "a timer that never ends");
    }
    assert!(moves.is_idle());
}

/// What is read is written again as it was.
fn read(bytes: &[u8]) {
    match wire::decode(bytes) {
        Some(Parcel::Direct(message)) => assert_eq!(message.encode(), bytes),
        Some(Parcel::By(passed)) => assert_eq!(passed.encode(), bytes),
        None => {}
    }
}

fn carry_out(moves: &mut Moves, now: u64) {
    while let Some(output) = moves.poll() {
        let Output::Order {
            id, ticket, order, ..
        } = output
        else {
            continue;
        };
        let answer = match order {
            Order::Export => Answer::Exported {
                blob: vec![1; 9].into(),
            },
            Order::Read => Answer::Read { tcp: vec![2; 9] },
            _ => Answer::Done,
        };
        if order.is_answered() {
            moves.answer(now, &Here, id, ticket, answer);
        }
    }
}

/// Games to begin with: a session that comes, one that goes, and moves that are given up.
pub fn games() -> Vec<Vec<u8>> {
    let coming = MoveId {
        source: HostId(2),
        number: 99,
    };
    let going = MoveId {
        source: HERE,
        number: MoveId::number(INCARNATION, COUNT),
    };
    let life = Life {
        tuple: tuple(4),
        generation: 2,
    };
    let offer = Body::Prepare(Offer {
        life,
        application: application(),
        bytes: 20,
        hold_ms: 4_000,
    });
    let state = Body::State {
        ticket: COUNT + 1,
        tcp: b"tcp",
        blob: b"blob",
    };
    let step = |id: MoveId, body: Body<'_>| said(&Message { id, body }.encode());
    let command = vec![0, 0, 5];
    let aborted = Body::Aborted { dropped: true };
    let begun = [step(coming, offer.clone()), step(coming, state)].concat();
    let asked = [command, step(going, Body::Ready { ticket: 5 })].concat();
    let query = Message {
        id: coming,
        body: Body::Query,
    };
    let query = query.encode();
    let passed = Passed {
        origin: HostId(2),
        destination: HostId(3),
        message: &query,
    };
    vec![
        [begun.clone(), step(coming, Body::Release(life))].concat(),
        [begun.clone(), step(coming, Body::Abort(life))].concat(),
        [begun, step(coming, Body::Fate(Fate::Released))].concat(),
        [
            asked.clone(),
            step(going, Body::Prepared),
            step(going, Body::Committed),
        ]
        .concat(),
        [
            asked.clone(),
            step(going, Body::Query),
            step(going, aborted),
        ]
        .concat(),
        [
            asked,
            step(going, Body::Failed(homing_agent::migration::Reason::Kernel)),
        ]
        .concat(),
        step(coming, offer),
        said(&passed.encode()),
        // Nobody answers while others are asked for: timers pass in mid-game.
        [0, 0, 5].repeat(60),
    ]
}

/// A step of a game: host 2 says something.
fn said(message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u16).to_be_bytes();
    [&[2], &len[..], message].concat()
}
