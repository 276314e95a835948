//! The table of owners against a BPF hash and an LRU hash that hold the same sessions.
//!
//! Look-ups are made by XDP programs that choose one of so many sessions by chance; what
//! choosing costs is measured in the same rounds, and subtracted. Insertions are made
//! some thousand into each in turn. All three hold the same sessions.

use std::{
    fs,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
};
use homing_agent::datapath::owners::{self, Owners};
use homing_common::{
    bench::{Bench, HEADER_LEN, session_id},
    host::{Encapsulation, Host, HostId},
};
use serde_json::{Value, json};

use super::{
    gossip::apply,
    measure::{OBJECT, ROUNDS, load_all, map, median, min, round, time, verdict},
};
use crate::program::{self, in_namespace, tables};

/// Sessions in all three.
const SESSIONS: u32 = 1 << 20;
/// Sessions that go into each before it is another one's turn.
const CHUNK: u32 = 1 << 15;
/// The hosts that own them, in turn: [`VOID`] and those behind it.
const HOSTS: u32 = 8;
/// One of them, whose entries are removed, and written again, so often.
const VOID: HostId = HostId(3);
const VOIDS: usize = 5;
/// Sessions that a large POP has open.
const MANY: u32 = 10_000_000;
/// Room in the LRU hash beyond the sessions, since it removes some before it is full.
const LRU_ROOM: u32 = SESSIONS / 4;

/// What was measured.
pub struct Report {
    bytes_per_session: f64,
    load_factor: f64,
    insert: Figures,
    cold: Figures,
    hot: Figures,
    absent: Figures,
    void_ms: f64,
    /// From the verdict on the host, with its claims.
    verdict_ms: f64,
    many: Many,
}

/// Nanoseconds of the table, the hash and the LRU hash, round by round.
#[derive(Default)]
struct Figures([Vec<f64>; 3]);

/// What ten million sessions take.
struct Many {
    bytes: u64,
    load_factor: f64,
    fill: Duration,
    cold: Vec<f64>,
}

impl Figures {
    fn json(&self, name: &str, into: &mut Value) {
        for (samples, of) in self.0.iter().zip(["", "_hash", "_lru"]) {
            into[format!("{name}_ns{of}")] = round(min(samples)).into();
            into[format!("{name}_ns{of}_median")] = round(median(samples)).into();
        }
    }

    fn line(&self, name: &str) -> String {
        let [table, hash, lru] = self.0.each_ref();
        let ratio = min(table) / min(hash);
        let figure = |samples: &[f64]| format!("{:.1}/{:.1}", min(samples), median(samples));
        let (table, hash, lru) = (figure(table), figure(hash), figure(lru));
        format!("{name:<26}{table:>16}{hash:>16}{lru:>16}{ratio:>8.2}\n")
    }
}

impl Report {
    /// One object, with minima, and medians as `_median`.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "bytes_per_session": (self.bytes_per_session * 100.0).round() / 100.0,
            "load_factor": (self.load_factor * 1000.0).round() / 1000.0,
            "void_host_ms": (self.void_ms * 100.0).round() / 100.0,
            "void_verdict_ms": (self.verdict_ms * 100.0).round() / 100.0,
            "sessions": SESSIONS,
            "ten_million": {
                "bytes": self.many.bytes,
                "load_factor": (self.many.load_factor * 1000.0).round() / 1000.0,
                "fill_s": (self.many.fill.as_secs_f64() * 100.0).round() / 100.0,
                "lookup_cold_ns": round(min(&self.many.cold)),
                "lookup_cold_ns_median": round(median(&self.many.cold)),
            },
        });
        self.insert.json("insert", &mut json);
        self.cold.json("lookup_cold", &mut json);
        self.hot.json("lookup_hot", &mut json);
        self.absent.json("lookup_absent", &mut json);
        json
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let many = &self.many;
        format!(
            "{:<26}{:>16}{:>16}{:>16}{:>8}\n",
            "ns, minimum/median", "table", "hash", "LRU hash", "ratio"
        ) + &self.insert.line("insert")
            + &self.cold.line("look-up, 1,048,576 by chance")
            + &self.hot.line("look-up, one")
            + &self.absent.line("look-up, absent")
            + &format!(
                "{:.2} bytes per session at a load of {:.3}, where it grows next\n\
                 {:.2} ms to void a host with {} of {} sessions, {:.2} ms from the verdict, with its claims\n\
                 10,000,000 sessions: {:.1} MB at a load of {:.3}, filled in {:.2} s, look-up by chance {:.1}/{:.1} ns\n",
                self.bytes_per_session,
                self.load_factor,
                self.void_ms,
                SESSIONS / HOSTS,
                SESSIONS,
                self.verdict_ms,
                many.bytes as f64 / 1e6,
                many.load_factor,
                many.fill.as_secs_f64(),
                min(&many.cold),
                median(&many.cold),
            )
    }
}

/// Runs the benchmark.
pub fn run(progress: &mut (dyn FnMut(&str) + Send)) -> Result<Report> {
    in_namespace(|| measure(progress))
}

fn host_of(number: u32) -> HostId {
    HostId(VOID.0 + (number % HOSTS) as u16)
}

/// An object, and all that can be looked up in it.
struct Case {
    ebpf: Ebpf,
    owners: Owners,
}

impl Case {
    /// With a table of owners for so many sessions, and hashes for so many.
    fn new(entries: u32, hashed: u32) -> Result<Self> {
        let settings = program::settings(program::tunnel_v4(), Encapsulation::Ipip);
        let object =
            fs::read(Path::new(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
        let mut ebpf = EbpfLoader::new()
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("SESSIONS", 1024)
            .map_max_entries("OWNERS_HASH", hashed)
            .map_max_entries("OWNERS_LRU", hashed + hashed / SESSIONS * LRU_ROOM)
            .load(&object)?;
        owners::provide(&tables(&ebpf)?)?;
        load_all(&mut ebpf)?;
        let owners = Owners::open(&tables(&ebpf)?, entries)?;
        let mut hosts: Array<_, Host> = map(&mut ebpf, "HOSTS")?.try_into()?;
        let member = Host {
            flags: Host::MEMBER,
            ..Host::NONE
        };
        for host in (0..HOSTS).map(host_of) {
            hosts.set(host.0.into(), member, 0)?;
        }
        Ok(Self { ebpf, owners })
    }

    /// What looking up costs in each of some programs, beyond choosing among so many
    /// sessions.
    fn look_up(&mut self, sessions: u32, programs: &[&str]) -> Result<Vec<f64>> {
        let bench = Bench {
            state: 1,
            flows: sessions,
            address_offset: 0,
            undo: 0,
            header: [0; HEADER_LEN],
            zero: [0; 6],
        };
        let mut benches: Array<_, Bench> = map(&mut self.ebpf, "BENCH")?.try_into()?;
        benches.set(0, bench, 0)?;
        let frame = [0; 64];
        let base = time(&mut self.ebpf, "bench_session", &frame, verdict::TX)?;
        let costs = programs.iter().map(|program| {
            let cost = time(&mut self.ebpf, program, &frame, verdict::TX)?;
            Ok(cost - base)
        });
        costs.collect()
    }
}

const PROGRAMS: [&str; 3] = ["bench_owners", "bench_owners_hash", "bench_owners_lru"];
/// The same, of sessions that have no entry.
const ABSENT: [&str; 3] = ["bench_absent", "bench_absent_hash", "bench_absent_lru"];

fn measure(progress: &mut dyn FnMut(&str)) -> Result<Report> {
    progress("loading");
    let mut case = Case::new(2 * SESSIONS, SESSIONS)?;
    let insert = insert(&mut case, progress)?;
    let [mut cold, mut hot, mut absent] = <[Figures; 3]>::default();
    for number in 1..=ROUNDS {
        progress(&format!("looking up, round {number} of {ROUNDS}"));
        for (figures, sessions, programs) in [
            (&mut cold, SESSIONS, &PROGRAMS),
            (&mut hot, 1, &PROGRAMS),
            (&mut absent, SESSIONS, &ABSENT),
        ] {
            let costs = case.look_up(sessions, programs)?;
            for (samples, cost) in figures.0.iter_mut().zip(costs) {
                samples.push(cost);
            }
        }
    }
    progress("voiding a host");
    let (void_ms, verdict_ms) = void(&mut case)?;
    drop(case);
    progress("filling a table until it grows");
    let (bytes_per_session, load_factor) = fullest()?;
    progress("ten million sessions");
    let many = many()?;
    Ok(Report {
        bytes_per_session,
        load_factor,
        insert,
        cold,
        hot,
        absent,
        void_ms,
        verdict_ms,
        many,
    })
}

fn insert(case: &mut Case, progress: &mut dyn FnMut(&str)) -> Result<Figures> {
    let mut figures = Figures::default();
    for from in (0..SESSIONS).step_by(CHUNK as usize) {
        progress(&format!("inserting, {from} of {SESSIONS}"));
        let numbers = || from..from + CHUNK;
        let mut note = |index: usize, start: Instant| {
            let each = start.elapsed().as_nanos() as f64 / f64::from(CHUNK);
            figures.0[index].push(each);
        };
        let start = Instant::now();
        for number in numbers() {
            case.owners
                .set(session_id(number.into()), host_of(number))?;
        }
        note(0, start);
        for (index, name) in [(1, "OWNERS_HASH"), (2, "OWNERS_LRU")] {
            let mut map: HashMap<_, u64, u64> = map(&mut case.ebpf, name)?.try_into()?;
            let start = Instant::now();
            fill(&mut map, numbers())?;
            note(index, start);
        }
    }
    ensure!(case.owners.len() == SESSIONS, "{}", case.owners.len());
    Ok(figures)
}

fn fill(
    map: &mut HashMap<&mut MapData, u64, u64>,
    numbers: impl Iterator<Item = u32>,
) -> Result<()> {
    for number in numbers {
        let id = session_id(number.into()).0;
        map.insert(id, u64::from(host_of(number).0), 0)?;
    }
    Ok(())
}

/// Milliseconds to remove a host's entries from the table, and from the verdict on it
/// until its claims are gone as well.
fn void(case: &mut Case) -> Result<(f64, f64)> {
    let (mut passes, mut verdicts) = (Vec::new(), Vec::new());
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    for _ in 0..VOIDS {
        let (mut gone, mut pass) = (0, Duration::ZERO);
        let verdict = apply::void(SESSIONS, HOSTS, VOID, |host| {
            let start = Instant::now();
            gone = case.owners.void(host);
            pass = start.elapsed();
        })?;
        ensure!(gone == SESSIONS / HOSTS, "{gone} entries were voided");
        passes.push(ms(pass));
        verdicts.push(ms(verdict));
        for number in (0..SESSIONS).step_by(HOSTS as usize) {
            case.owners.set(session_id(number.into()), VOID)?;
        }
    }
    Ok((min(&passes), min(&verdicts)))
}

/// Bytes per session and load of a table that grows with the next session.
fn fullest() -> Result<(f64, f64)> {
    let mut case = Case::new(2 * SESSIONS, 1)?;
    let bytes = case.owners.bytes();
    let mut full = 0;
    for number in 0.. {
        case.owners.set(session_id(number), HostId(2))?;
        if case.owners.bytes() > bytes {
            break;
        }
        full = case.owners.len();
    }
    let sessions = f64::from(full);
    Ok((bytes as f64 / sessions, sessions * 8.0 / bytes as f64))
}

fn many() -> Result<Many> {
    let mut case = Case::new(MANY + MANY / 20, 1)?;
    let start = Instant::now();
    for number in 0..MANY {
        case.owners
            .set(session_id(number.into()), host_of(number))?;
    }
    let fill = start.elapsed();
    let bytes = black_box(case.owners.bytes());
    let mut cold = Vec::new();
    for _ in 0..ROUNDS {
        cold.extend(case.look_up(MANY, &PROGRAMS[..1])?);
    }
    Ok(Many {
        bytes,
        load_factor: f64::from(MANY) * 8.0 / bytes as f64,
        fill,
        cold,
    })
}
