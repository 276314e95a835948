//! What the fuzzer calls: every decoder of what comes from the network, the state
//! machines behind them, and the parsers of what people write.
//!
//! A target takes any bytes and must neither panic nor take without bound of time or
//! memory. `fuzz/` has a program for each (`cargo xtask fuzz`); the corpora are
//! replayed by an ordinary test as well.

pub mod carrier;
pub mod messages;
pub mod moves;
pub mod pop;
pub mod seeds;

use std::{net::SocketAddr, path::Path};

use homing_agent::{
    config::Config,
    datapath::{frame, repair::Snapshot},
    gossip::{
        ask,
        wire::{self, bulk},
    },
    pop::{
        Domain, Fingerprint, Member, Stream,
        keys::{KeyFile, Keys},
        liveness,
        membership::Membership,
        seal::{Identity, Seal},
    },
};
use homing_common::host::HostId;

/// What is done with the bytes.
pub type Target = fn(&[u8]);

/// Every target, by its name.
pub const TARGETS: [(&str, Target); 14] = [
    ("seal", seal),
    ("membership", membership),
    ("gossip", gossip),
    ("bulk", carried),
    ("ask", asks),
    ("liveness", kernels),
    ("carrier", carrier::hear),
    ("messages", messages::hear),
    ("node", node),
    ("migration", migration),
    ("snapshot", snapshots),
    ("frame", frames),
    ("config", config),
    ("keys", keys),
];

/// The POP's key of all targets.
const KEY: [u8; 32] = [7; 32];
/// Where host 1 is.
const HERE: &str = "10.1.1.11:7946";

fn here() -> SocketAddr {
    HERE.parse().expect("an address")
}

/// Datagrams as they come from anybody: to a seal, as they are and with the tag that
/// would be right, which nobody without the key can make.
pub fn seal(bytes: &[u8]) {
    let identity = Identity {
        host: HostId(1),
        stream: Stream {
            incarnation: 5,
            generation: 1,
        },
        address: here(),
    };
    let mut seal = Seal::new(Keys::derive(&KEY), identity, [9; 32]);
    let from = "10.1.1.12:7946".parse().expect("an address");
    // An error is the right answer to nearly everything.
    let _ = seal.open(1, from, bytes);
    if let Some(tagged) = pop::tag(bytes) {
        let _ = seal.open(2, from, &tagged);
        let _ = seal.open(3, from, &tagged);
    }
}

/// Messages of membership, from the member that they name as their sender.
pub fn membership(bytes: &[u8]) {
    let Some((host, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let Some((stream, _)) = rest.split_first_chunk::<16>() else {
        return;
    };
    let Ok(origin) = HostId::try_from(u16::from_be_bytes(*host)) else {
        return;
    };
    let word = |at: usize| {
        let bytes = std::array::from_fn(|n| stream[at + n]);
        u64::from_be_bytes(bytes)
    };
    let stream = Stream {
        incarnation: word(0),
        generation: word(8),
    };
    let domain = Domain::try_from("a").expect("a name");
    let own = Stream {
        incarnation: 5,
        generation: 1,
    };
    let me = Member::starting(HostId(1), own, here(), domain, Fingerprint::default());
    let mut membership = Membership::new(0, me, Vec::new(), [3; 32]);
    for now in [1, 2] {
        membership.receive(now, origin, stream, bytes);
    }
    for _ in 0..20 {
        let next = membership.next_time();
        membership.on_time(next);
    }
}

/// Messages of gossip. What is read is written again as it was, as far as this host
/// writes it.
pub fn gossip(bytes: &[u8]) {
    if let Some(wire::Message::Repair { stream, from, to }) = wire::decode(bytes) {
        let again = wire::encode_repair(stream, from, to);
        let expected = wire::Message::Repair { stream, from, to };
        assert_eq!(wire::decode(&again), Some(expected));
    }
}

/// Messages of gossip that carriers bring.
pub fn carried(bytes: &[u8]) {
    let read = bulk::decode(bytes);
    let again = match read {
        Some(bulk::Message::Pull(pull)) => pull.encode(),
        Some(bulk::Message::Part(part)) => part.encode(),
        None => return,
    };
    assert_eq!(bulk::decode(&again), read);
}

/// Asks and reports.
pub fn asks(bytes: &[u8]) {
    ask::is_message(bytes);
}

/// What hosts say of kernels, and echoes.
pub fn kernels(bytes: &[u8]) {
    liveness::is_message(bytes);
}

/// Whole games with a host of a small POP: see [`pop::Step`].
pub fn node(bytes: &[u8]) {
    pop::play(bytes);
}

/// Whole games with the moves of one host: see [`moves::play`].
pub fn migration(bytes: &[u8]) {
    moves::play(bytes);
}

/// States of connections, as other agents send them. Each has one form.
pub fn snapshots(bytes: &[u8]) {
    if let Ok(snapshot) = Snapshot::decode(bytes) {
        assert_eq!(snapshot.encode(), bytes);
        let (unacknowledged, unread) = snapshot.queued();
        assert!(unacknowledged + unread <= bytes.len());
        snapshot.sequence();
    }
}

/// Frames that the kernel side has parked: their bytes are a client's.
pub fn frames(bytes: &[u8]) {
    frame::segment_numbers(bytes, false);
    frame::segment_numbers(bytes, true);
    if let Some(inner) = frame::without_tunnel(bytes) {
        assert!(inner.len() < bytes.len());
        frame::segment_numbers(&inner, false);
    }
}

/// Configuration files.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let path = Path::new("homing.toml");
        if let Err(problems) = Config::parse(path, text) {
            assert!(!problems.to_string().is_empty());
        }
    }
}

/// Key files.
pub fn keys(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        // What is wrong with it is said in words.
        let _ = KeyFile::parse(text);
    }
}
