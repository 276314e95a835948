//! Migration: what a move costs a client and the hosts, and how many there are in a
//! second; beside it, what CRIU takes.
//!
//! Two hosts of a lab with real agents, a server on each whose connections can move
//! ([`application`]), one client. A session goes to and fro while its client exchanges
//! small echoes with it ([`stream`]); windows of time without a move stand between the
//! moves, in the same run, and what a move adds to the longest gap in the stream is its
//! stall. Then thousands of idle sessions are drained from one host to the other.

mod admin;
pub mod application;
pub mod criu;
pub(super) mod figures;
mod report;
mod site;
mod steps;
mod stream;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::{
    application::Work,
    figures::{Distribution, longest_gap, stalls},
    site::{HOSTS, Site},
    steps::Steps,
    stream::{Echoes, connect, connect_many},
};
pub use report::Report;

/// The least that a window is watched: several times what a move takes.
const WINDOW: Duration = Duration::from_millis(20);
/// Between one window and the next, and after the end of a move.
const MARGIN: Duration = Duration::from_millis(5);
/// Echoes before the first window.
const WARM_UP: usize = 2_000;
/// How often a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a drain may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// Bytes that are queued, one case after the other.
const QUEUED: [u32; 3] = [0, 16 << 10, 1 << 20];

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Moves of the session with the stream of echoes; of those with queued data a third
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(3..=100_000))]
    pub moves: u32,
    /// Microseconds from one echo to the next
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    pub interval_us: u32,
    /// Idle sessions that are drained to and fro
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub sessions: u32,
    /// How often
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub drains: u32,
    /// Dumps and restores by CRIU
    #[arg(long, default_value_t = 20)]
    pub criu: u32,
}

/// A session that moves while its client exchanges echoes with it.
pub(crate) struct Streamed {
    /// Bytes that its server has not read, all the while.
    pub unread: u32,
    /// The longest gap of each window without a move.
    pub undisturbed: Distribution,
    /// The longest gap of each window with one.
    pub moved: Distribution,
    /// What the moves added.
    pub stalls: Distribution,
    pub cost: Cost,
}

/// A session that moves with bytes in its send queue.
pub(crate) struct Full {
    /// How many.
    pub unsent: u32,
    pub cost: Cost,
}

/// What the hosts say of moves.
pub(crate) struct Cost {
    /// How long the session was frozen.
    pub freeze: Distribution,
    /// How long all of a move took, up to the confirmation.
    pub took: Distribution,
    /// Where that time went.
    pub steps: Steps,
    /// Segments that the client's kernel has sent again meanwhile.
    pub retransmits: u64,
}

/// Many idle sessions, drained to and fro.
pub(crate) struct Bulk {
    pub sessions: u32,
    /// Moves per second of each drain.
    pub per_s: Vec<f64>,
    pub freeze_us: Vec<Value>,
    pub steps: Steps,
    pub retransmits: u64,
}

/// Runs the benchmark.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    crate::movable::raise_file_limit();
    let rounds = options.criu.div_ceil(2) as usize;
    progress("CRIU, before");
    let mut criu = criu::measure(rounds);
    progress("lab");
    let mut site = Site::build()?;
    site.begin_at_first()?;
    let mut streamed = Vec::new();
    for unread in QUEUED {
        let moves = if unread == 0 {
            options.moves
        } else {
            options.moves / 3
        };
        progress(&format!("{moves} moves, {unread} bytes unread"));
        streamed.push(stream_case(&mut site, options, moves, unread)?);
    }
    let mut full = Vec::new();
    for unsent in QUEUED.into_iter().filter(|bytes| *bytes > 0) {
        let moves = options.moves / 3;
        progress(&format!("{moves} moves, {unsent} bytes unsent"));
        full.push(full_case(&mut site, moves, unsent)?);
    }
    let bulk = bulk_case(&mut site, options, progress)?;
    site.down()?;
    progress("CRIU, after");
    if let Ok(before) = &mut criu {
        match criu::measure(rounds) {
            Ok(after) => before.add(after),
            Err(why) => criu = Err(why),
        }
    }
    Ok(Report {
        interval_us: options.interval_us,
        streamed,
        full,
        bulk,
        criu,
        load: super::load(),
    })
}

fn stream_case(site: &mut Site, options: &Options, moves: u32, unread: u32) -> Result<Streamed> {
    let interval = Duration::from_micros(options.interval_us.into());
    let echoes = Echoes::start(site.lab(), site.service(), interval, unread)?;
    echoes.wait(WARM_UP)?;
    site.wait_sessions(HOSTS[0], 1)?;
    let mut session = Moving::begin(site, echoes.address()?)?;
    let (mut undisturbed, mut moved) = (Vec::new(), Vec::new());
    for _ in 0..moves {
        thread::sleep(MARGIN);
        let window = watch(&echoes, || Ok(()))?;
        undisturbed.push(window);
        thread::sleep(MARGIN);
        moved.push(watch(&echoes, || session.go(site))?);
    }
    let cost = session.end(site)?;
    echoes.wait(WARM_UP)?;
    let arrivals = echoes.finish()?;
    site.wait_sessions_over()?;
    let gaps = |windows: &[Range<u64>]| -> Result<Distribution> {
        let gaps = windows.iter().map(|window| longest_gap(&arrivals, window));
        let gaps: Option<Vec<u64>> = gaps.collect();
        Ok(gaps
            .context("the stream of echoes has an end")?
            .into_iter()
            .collect())
    };
    let (undisturbed, moved) = (gaps(&undisturbed)?, gaps(&moved)?);
    Ok(Streamed {
        unread,
        stalls: stalls(&moved, &undisturbed),
        undisturbed,
        moved,
        cost,
    })
}

/// The window of time in which something happens, of [`WINDOW`] at least.
fn watch(echoes: &Echoes, what: impl FnOnce() -> Result<()>) -> Result<Range<u64>> {
    let start = echoes.now_us();
    let begun = Instant::now();
    what()?;
    let rest = WINDOW.saturating_sub(begun.elapsed()).max(MARGIN);
    thread::sleep(rest);
    Ok(start..echoes.now_us())
}

fn full_case(site: &mut Site, moves: u32, unsent: u32) -> Result<Full> {
    let stream = connect(site.lab(), site.service(), Work::Fill { bytes: unsent })?;
    let mut filled = connect(site.lab(), site.service(), Work::Filled)?;
    filled.write_all(&[0])?;
    filled
        .read_exact(&mut [0])
        .context("the send queue is not filled")?;
    drop(filled);
    site.wait_sessions(HOSTS[0], 1)?;
    let mut session = Moving::begin(site, stream.local_addr()?)?;
    for _ in 0..moves {
        thread::sleep(MARGIN);
        session.go(site)?;
    }
    let cost = session.end(site)?;
    drop(stream);
    site.wait_sessions_over()?;
    Ok(Full { unsent, cost })
}

/// A session that goes to and fro, and what the hosts say of it.
struct Moving {
    client: SocketAddr,
    /// Where it is: the first or the second.
    at: usize,
    freeze: Vec<u64>,
    took: Vec<u64>,
    steps: Steps,
    retransmits: u64,
}

impl Moving {
    fn begin(site: &mut Site, client: SocketAddr) -> Result<Self> {
        Ok(Self {
            client,
            at: 0,
            freeze: Vec::new(),
            took: Vec::new(),
            steps: Steps::of(site)?,
            retransmits: site.client_counts()?.retransmits,
        })
    }

    fn go(&mut self, site: &mut Site) -> Result<()> {
        let (from, to) = (HOSTS[self.at], HOSTS[1 - self.at]);
        let service = site.service();
        let path = format!("/move?client={}&service={service}&to={to}", self.client);
        let moved = site.admin(from).post(&path)?;
        ensure!(moved["outcome"] == "moved", "a move from h{from}: {moved}");
        let us = |name: &str| {
            moved[name]
                .as_u64()
                .with_context(|| format!("no {name} in {moved}"))
        };
        self.freeze.push(us("frozen_us")?);
        self.took.push(us("took_us")?);
        self.at = 1 - self.at;
        Ok(())
    }

    fn end(self, site: &mut Site) -> Result<Cost> {
        Ok(Cost {
            freeze: self.freeze.into_iter().collect(),
            took: self.took.into_iter().collect(),
            steps: Steps::of(site)?.since(&self.steps),
            retransmits: site.client_counts()?.retransmits - self.retransmits,
        })
    }
}

fn bulk_case(site: &mut Site, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Bulk> {
    let Options {
        sessions, drains, ..
    } = *options;
    progress(&format!("{sessions} idle sessions"));
    let work = Work::Echo { behind: 0 };
    let mut clients = connect_many(site.lab(), site.service(), work, sessions as usize)?;
    site.wait_sessions(HOSTS[0], sessions.into())?;
    let steps = Steps::of(site)?;
    let retransmits = site.client_counts()?.retransmits;
    let (mut per_s, mut freeze_us) = (Vec::new(), Vec::new());
    for number in 0..drains {
        progress(&format!("drain {} of {drains}", number + 1));
        let (from, to) = match number % 2 {
            0 => (HOSTS[0], HOSTS[1]),
            _ => (HOSTS[1], HOSTS[0]),
        };
        let run = drain(site, from, to)?;
        let moved = run["moved"]
            .as_u64()
            .context("no count of moved sessions")?;
        ensure!(
            moved == u64::from(sessions),
            "not all sessions have moved: {run}"
        );
        let elapsed = run["elapsed_s"].as_f64().context("no time")?;
        per_s.push(figures::per_second(moved, (elapsed * 1e6) as u64));
        freeze_us.push(run["frozen_us"].clone());
        site.admin(from).post("/undrain")?;
        site.wait_sessions(to, sessions.into())?;
    }
    let bulk = Bulk {
        sessions,
        per_s,
        freeze_us,
        steps: Steps::of(site)?.since(&steps),
        retransmits: site.client_counts()?.retransmits - retransmits,
    };
    progress("all sessions are looked at");
    for client in &mut clients {
        prove(client)?;
    }
    Ok(bulk)
}

/// Drains a host to another, and says how that went.
fn drain(site: &mut Site, from: u16, to: u16) -> Result<Value> {
    let mut drain = site.admin(from).post(&format!("/drain?to={to}"))?;
    let deadline = Instant::now() + DRAIN_WITHIN;
    while drain["run"]["end"].is_null() {
        if Instant::now() > deadline {
            bail!("h{from} is not drained after {DRAIN_WITHIN:?}: {drain}");
        }
        thread::sleep(LOOK_EVERY);
        drain = site.admin(from).get("/drain")?;
    }
    Ok(drain["run"].take())
}

/// An echo comes back.
fn prove(client: &mut TcpStream) -> Result<()> {
    let mut echo = [0; 4];
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.write_all(b"echo")?;
    client
        .read_exact(&mut echo)
        .context("a session that was moved does not answer")?;
    ensure!(
        echo == *b"echo",
        "a session that was moved answers {echo:?}"
    );
    Ok(())
}
