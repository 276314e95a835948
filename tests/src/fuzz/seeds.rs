//! The corpora's beginnings: what a real POP says, frames as clients send them, and
//! the files that people write. The same at every run.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use homing_agent::pop::{MS, SECOND};
use homing_common::{
    ask::Question,
    echo::Echo,
    net::TCP,
    session::{SessionKey, Tuple},
};

use super::{
    moves,
    pop::{self, DOMAINS, Event, Said, Step, Words},
};
use crate::packet::{Ip, Tcp, flags, segment, udp};

/// Messages of one kind and length that are enough.
const ALIKE_MAX: usize = 2;

/// Writes the seeds of every target to a folder of its name in `corpus`. What else
/// is there stays.
pub fn write(corpus: &Path) -> Result<usize> {
    let mut count = 0;
    for (target, seeds) in all() {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (number, seed) in seeds.iter().enumerate() {
            let path = folder.join(format!("seed-{number:03}"));
            fs::write(&path, seed).with_context(|| format!("cannot write {}", path.display()))?;
            count += 1;
        }
    }
    Ok(count)
}

/// The seeds of every target.
pub fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let said = recording();
    let datagrams = said.iter().filter_map(|said| match &said.words {
        Words::Datagram(transmit) => Some(transmit.bytes.as_slice()),
        Words::Carried(_) => None,
    });
    let carried = said.iter().filter_map(|said| match &said.words {
        Words::Datagram(_) => None,
        Words::Carried(bulk) => Some(&bulk.body[..]),
    });
    let is_echo = |bytes: &&[u8]| bytes.starts_with(&Echo::MAGIC);
    let sealed: Vec<&[u8]> = datagrams.clone().filter(|bytes| !is_echo(bytes)).collect();
    let bodies = |channel: u8| {
        let opened = sealed.iter().filter_map(|datagram| pop::open(datagram));
        let bodies = opened.filter(move |(found, _)| *found == channel);
        few(bodies.map(|(_, body)| body))
    };
    let echoes = datagrams.filter(is_echo);
    let mut liveness = bodies(4);
    liveness.extend(few(echoes));
    vec![
        (
            "seal",
            few(sealed
                .iter()
                .map(|datagram| &datagram[..datagram.len() - 16])),
        ),
        ("membership", bodies(1)),
        ("gossip", bodies(2)),
        ("bulk", few(carried)),
        ("ask", bodies(3)),
        ("liveness", liveness),
        ("carrier", super::carrier::seeds()),
        ("messages", super::messages::seeds()),
        ("node", games(&said)),
        ("migration", moves::games()),
        ("snapshot", snapshots()),
        ("frame", frames()),
        ("config", configs()),
        ("keys", keys()),
    ]
}

/// A POP in two domains that opens, closes and asks, and loses a host.
fn recording() -> Vec<Said> {
    let mut events = Vec::new();
    for n in 0..40 {
        events.push((
            3 * SECOND + n * 10 * MS,
            1 + (n % 6) as u16,
            Event::Opens(n),
        ));
    }
    let key = SessionKey([1, 2]);
    let ends = [
        ("198.51.100.7:40312", "203.0.113.10:443"),
        ("[2001:db8:c::7]:40312", "[2001:db8:113::10]:443"),
    ];
    for (n, (client, service)) in ends.into_iter().enumerate() {
        let end = |text: &str| text.parse().expect("an address");
        let tuple = Tuple::between(end(client), end(service), TCP);
        let question = Question {
            tuple,
            id: tuple.id(&key).0,
            seq: [0, 0, 0, 1],
            ack: [0; 4],
            flags: flags::ACK,
            found: 0,
            zero: [0; 6],
        };
        let at = 8 * SECOND + n as u64 * SECOND;
        events.push((at, 2 + n as u16, Event::Parks(question)));
    }
    for n in 0..20 {
        let at = 10 * SECOND + n * 10 * MS;
        events.push((at, 1 + (n % 6) as u16, Event::Closes(n)));
    }
    events.push((11 * SECOND, 6, Event::Dies));
    pop::record(DOMAINS.len(), 15 * SECOND, &events)
}

/// Connections in each state, over both versions of IP (`docs/protocol.md`, "A connection's
/// state").
fn snapshots() -> Vec<Vec<u8>> {
    const ALL_AGREED: u16 = 1 | 1 << 1 | 1 << 4;
    let end = |v6: bool, last: u8, port: u16| {
        let address = if v6 {
            vec![last; 16]
        } else {
            vec![10, 0, 0, last]
        };
        [address, port.to_be_bytes().to_vec()].concat()
    };
    let queue = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let snapshot = |(v6, state): (bool, u8), flags: u16, queues: [&[u8]; 3]| {
        let family = if v6 { 6 } else { 4 };
        let [high, low] = flags.to_be_bytes();
        let clock = u32::from(flags & 1 << 1 != 0);
        let scale = 7 * u8::from(flags & 1 << 4 != 0);
        let words = [1_000, 2_000, 1_460, clock, 3, 4, 5, 6, 7, 8, 9, 10];
        let head = [0, 1, family, state, high, low, scale, scale];
        let words = words.map(u32::to_be_bytes).concat();
        // A name, and no option.
        let names = [&[5], b"cubic".as_slice(), &[0]].concat();
        let ends = [end(v6, 1, 443), end(v6, 2, 40_312)].concat();
        [
            head.to_vec(),
            ends,
            words,
            names,
            queues.map(queue).concat(),
        ]
        .concat()
    };
    vec![
        snapshot((false, 1), ALL_AGREED, [b"sent", b"unsent", b"received"]),
        snapshot((true, 8), 0, [b"", b"", b"received"]),
        snapshot((true, 4), ALL_AGREED | 1 << 5, [b"sent", b"unsent", b""]),
        snapshot((false, 5), ALL_AGREED | 1 << 6, [b""; 3]),
    ]
}

/// The first few of each kind and length.
fn few<'a>(messages: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut seen = std::collections::BTreeMap::new();
    let mut kept = Vec::new();
    for message in messages {
        let kind = message.get(..4).unwrap_or(message).to_vec();
        let alike = seen.entry((kind, message.len())).or_insert(0);
        *alike += 1;
        if *alike <= ALIKE_MAX && kept.len() < 60 {
            kept.push(message.to_vec());
        }
    }
    kept
}

/// The recording, a part at a time.
fn games(said: &[Said]) -> Vec<Vec<u8>> {
    let steps = pop::steps(said);
    let mut games = Vec::new();
    for part in steps.chunks(60).take(12) {
        let mut bytes = Vec::new();
        for step in part {
            step.write(&mut bytes);
        }
        Step::Session(true, games.len() as u8).write(&mut bytes);
        games.push(bytes);
    }
    games
}

fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for v4 in [true, false] {
        let tcp = segment(v4, flags::ACK);
        frames.push(tcp.frame());
        frames.push(tcp.clone().payload(vec![1; 30]).ip().frame(&[(0x8100, 5)]));
        frames.push(tcp.ip().frame(&[(0x88a8, 5), (0x8100, 6)]));
        let inner = tcp.ip().bytes();
        let outer = |protocol, body| {
            let (from, to) = ("10.77.0.33", "10.77.0.16");
            let end = |text: &str| text.parse().expect("an address");
            Ip::new(end(from), end(to), protocol, body).frame(&[])
        };
        frames.push(outer(if v4 { 4 } else { 41 }, inner.clone()));
        frames.push(outer(17, udp(0xc001, 6080, &inner)));
    }
    let mut extended = segment(false, flags::SYN).ip();
    extended.first_header = Some(0);
    extended.options = vec![60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
    frames.push(extended.frame(&[]));
    let mut with_options = Tcp::new("198.51.100.7:1", "203.0.113.10:443", flags::ACK).ip();
    with_options.options = vec![1; 8];
    frames.push(with_options.frame(&[]));
    frames
}

fn configs() -> Vec<Vec<u8>> {
    let example = include_str!("../../../dist/homing.toml");
    let plan = crate::lab::Lab::builder().hosts(3).plan().clone();
    let sockets = crate::lab::Sockets {
        admin: "/run/homing.sock".into(),
        apps: "/run/homing.app.sock".into(),
        mux: "/run/homing.mux.sock".into(),
    };
    vec![
        example.as_bytes().to_vec(),
        plan.config(1, "/etc/homing/pop.key".as_ref(), &sockets)
            .into_bytes(),
        b"[host]\nid = 5000\ndomain = \"\"\n[[services]]\nport = 0\n".to_vec(),
    ]
}

fn keys() -> Vec<Vec<u8>> {
    let (one, other) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
    vec![
        format!("{one}\n").into_bytes(),
        format!("# two keys\nsign {one}\nnext {other}\nsession {one}\n").into_bytes(),
        format!("sign {one}\nsession {other}\nold-session {one}\n").into_bytes(),
        b"0123\n".to_vec(),
    ]
}
