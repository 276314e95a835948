//! Draining, shown in one go: thousands of live connections through a POP whose hosts are
//! drained, lose their power and come back, one after the other, while the clients go on.
//!
//! The clients are of three kinds: those of [`movable`](crate::movable), which check every
//! byte both ways; curl, which downloads at a limited rate; and curl and openssl over TLS.

mod report;
mod step;
mod tls;
mod transfers;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use self::{
    report::Outcome,
    step::Host,
    tls::Identity,
    transfers::{Transfer, Transfers},
};
use crate::{
    lab::{Lab, Node, Outer, Tunnel, plan::SERVICE_V4, plan::SERVICE_V6},
    movable::{Clients, HTTP_PORT, NetCounts, Options as ClientOptions, PORT, ServerOptions, Work},
    random::Random,
};
pub use report::{Downloads, Drained};

/// How long a connection may be without progress before it counts as broken.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long all connections may take to open, or to go on: longer than it takes to find
/// one broken.
const PATIENCE: Duration = Duration::from_secs(90);
/// The machine of the clients.
const CLIENT: Node = Node::Client(1);

/// What the demo is to be.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Number of client sessions: half of them over IPv6, one in fifty downloads by curl, as
    /// many over TLS
    #[arg(long, default_value_t = 2000)]
    pub sessions: u32,
    /// Number of hosts
    #[arg(long, default_value_t = 4)]
    pub hosts: u16,
    /// How many of them are drained, one after the other (default: all)
    #[arg(long)]
    pub drains: Option<u16>,
    /// Number of racks: broadcast domains
    #[arg(long, default_value_t = 2)]
    pub racks: u16,
    /// How packets travel between hosts
    #[arg(long, value_enum, default_value_t = Tunnel::Ipip)]
    pub tunnel: Tunnel,
    /// The family that tunnels and agents use
    #[arg(long, value_enum, default_value_t = Outer::V4)]
    pub outer: Outer,
    /// How long a drain may take, in seconds
    #[arg(long, default_value_t = 60)]
    pub deadline: u64,
    /// Decides bytes and routes (default: chance)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Name of the lab that the demo builds and takes down
    #[arg(long, default_value = "demodrain")]
    pub lab: String,
    /// Print one JSON object at the end instead of a table
    #[arg(long)]
    pub json: bool,
    /// Have states move that are a byte off, to see that it is noticed
    #[arg(long, hide = true)]
    pub spoil: bool,
}

/// Runs the demo, tells of its progress on standard error, and prints the outcome.
/// Returns whether the claim held.
pub fn run(options: &Options) -> Result<bool> {
    let outcome = play(options)?;
    super::tell(&outcome, &outcome.failures(), options.json)
}

/// Runs the demo and returns what came of it.
pub fn play(options: &Options) -> Result<Outcome> {
    ensure!(
        options.hosts >= 3,
        "with two hosts one is alone while the other is away: use --hosts 3 or more"
    );
    let started = Instant::now();
    let seed = options.seed.unwrap_or_else(Random::fresh_seed);
    let say = |text: String| eprintln!("[{:5.1} s] {text}", started.elapsed().as_secs_f64());
    say(format!(
        "building a lab: {} hosts in {} racks",
        options.hosts, options.racks
    ));
    let mut lab = Lab::builder()
        .name(&options.lab)
        .hosts(options.hosts)
        .racks(options.racks)
        .tunnel(options.tunnel)
        .outer(options.outer)
        .up()?;
    let identity = Identity::make(&lab)?;
    let serving = ServerOptions {
        spoil: options.spoil,
        ..ServerOptions::default()
    };
    let mut hosts = (1..=options.hosts)
        .map(|host| Host::start(&lab, host, &serving, &identity))
        .collect::<Result<Vec<_>>>()?;
    for host in &hosts {
        host.wait_registered(&lab)?;
    }

    let before = NetCounts::of(&lab, CLIENT)?;
    let load = Load::start(&lab, options, seed, &identity)?;
    load.wait_open()?;
    say(format!(
        "{} sessions exchange data: {}",
        options.sessions,
        load.words()
    ));
    let mut random = Random::new(seed);
    let mut drains = Vec::new();
    for host in 1..=options.drains.unwrap_or(options.hosts).min(options.hosts) {
        let stage = step::Stage {
            load: &load,
            deadline: Duration::from_secs(options.deadline),
            serving: &serving,
            identity: &identity,
        };
        drains.push(step::roll(
            &mut lab,
            &mut hosts,
            host,
            &stage,
            &mut random,
            &say,
        )?);
    }
    say("the clients finish".to_owned());
    let (plain, downloads, tls) = load.finish()?;
    let counts = NetCounts::of(&lab, CLIENT)?.since(before);
    for host in lab.running() {
        step::note_stats(&lab, host)?;
    }
    let version = lab.exec(Node::Host(1), "homing", &["--version"])?;
    say("taking the lab down".to_owned());
    drop(hosts);
    lab.down()?;
    let mut outcome = Outcome::new(options, seed, plain, downloads, tls, counts, drains);
    outcome.version = version.trim().to_owned();
    outcome.seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    Ok(outcome)
}

/// All clients at work.
struct Load {
    plain: Clients,
    downloads: Transfers,
    tls: Transfers,
}

impl Load {
    fn start(lab: &Lab, options: &Options, seed: u64, identity: &Identity) -> Result<Self> {
        // At least one of each family.
        let some = (options.sessions / 50).max(2);
        ensure!(
            options.sessions >= 20,
            "{} sessions are not enough for some of every kind: use --sessions 20 or more",
            options.sessions
        );
        let plain = Clients::start(
            lab,
            CLIENT,
            ClientOptions {
                work: (0..options.sessions - 2 * some).map(work).collect(),
                targets: lab.plan().service(PORT).to_vec(),
                seed,
                deadline: DEADLINE,
            },
        )?;
        let downloads = (0..some).map(|number| download(number, seed)).collect();
        let tls = (0..some).map(|number| identity.transfer(number)).collect();
        Ok(Self {
            plain,
            downloads: Transfers::start(lab, CLIENT, downloads)?,
            tls: Transfers::start(lab, CLIENT, tls)?,
        })
    }

    fn words(&self) -> String {
        format!(
            "{} of plain TCP, {} downloads by curl, {} over TLS",
            self.plain.total(),
            self.downloads.total(),
            self.tls.total()
        )
    }

    fn wait_open(&self) -> Result<()> {
        self.plain.wait_open(PATIENCE)?;
        self.downloads.wait_more(PATIENCE)?;
        self.tls.wait_more(PATIENCE)
    }

    /// Waits until bytes have gone both ways on all that are unbroken, twice: the second
    /// time after this began. Says how many are.
    fn wait_on(&self) -> Result<u64> {
        let live = self.plain.wait_rounds(2, PATIENCE)?;
        self.downloads.wait_more(PATIENCE)?;
        self.tls.wait_more(PATIENCE)?;
        Ok(live + self.downloads.live() + self.tls.live())
    }

    fn total(&self) -> u64 {
        self.plain.total() + self.downloads.total() + self.tls.total()
    }

    /// How many connections were opened so far.
    fn opened(&self) -> u64 {
        self.plain.report().opened + self.downloads.opened() + self.tls.opened()
    }

    fn finish(self) -> Result<(crate::movable::Report, Downloads, Downloads)> {
        // Transfers take their time to end, and so all are told first.
        self.downloads.stop();
        self.tls.stop();
        let plain = self.plain.finish()?;
        Ok((plain, self.downloads.finish()?, self.tls.finish()?))
    }
}

/// What a connection of plain TCP does: slow streams mostly, and some of every other kind.
fn work(number: u32) -> Work {
    let every = Duration::from_millis(250);
    match number % 10 {
        6 => Work::Echo { every, len: 64 },
        7 => Work::Lines { every },
        8 => Work::CloseWait {
            len: 20_000,
            rate: 2_500,
        },
        9 => Work::FinWait {
            len: 5_000,
            up: 2_000,
        },
        _ => Work::Bulk {
            up: 2_000,
            down: 2_000,
        },
    }
}

/// A download by curl: two files on one connection. Every other one is limited at the
/// client, so that the queues on the way are full, the others at the server.
fn download(number: u32, seed: u64) -> Transfer {
    const FAST: u64 = 250_000;
    const SLOW: u64 = 100_000;
    const SECONDS: u64 = 8;
    let host = match number % 2 {
        0 => format!("{SERVICE_V4}"),
        _ => format!("[{SERVICE_V6}]"),
    };
    // JavaScript's numbers, and some others', end at 53 bits.
    let first = (seed >> 16) + 2 * u64::from(number);
    let mut transfer = Transfer::of("curl");
    transfer.arguments(&["--silent", "--show-error", "--fail", "--max-time", "120"]);
    let (len, query) = if number % 4 < 2 {
        transfer.arguments(&["--limit-rate", &FAST.to_string()]);
        // curl takes megabytes before it slows down; what it prints is read as slowly.
        transfer.read_slowly(FAST);
        (FAST * SECONDS, String::new())
    } else {
        (SLOW * SECONDS, format!("rate={SLOW}&"))
    };
    for file_seed in [first, first + 1] {
        let url = format!("http://{host}:{HTTP_PORT}/{len}?{query}seed={file_seed}");
        transfer.arguments(&[&url]);
        transfer.expect(transfers::Content::Stream(file_seed), len);
    }
    transfer
}
