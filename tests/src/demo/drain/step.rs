//! One host's turn: it is drained, loses its power, comes back, and takes sessions again.

use std::{
    fmt,
    fs::File,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{CLIENT, Drained, Load, tls::Identity, tls::TlsServers};
use crate::{
    lab::{Lab, Node, wait_until},
    movable::{NetCounts, Server, ServerOptions},
    random::Random,
};

/// How long a POP may take to notice that a host is gone, or an agent that an application
/// is there.
const NOTICE: Duration = Duration::from_secs(30);
/// How often a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// … and how often that is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The applications of a host.
pub struct Host {
    movable: Server,
    tls: TlsServers,
}

impl Host {
    /// Starts them.
    pub fn start(
        lab: &Lab,
        host: u16,
        serving: &ServerOptions,
        identity: &Identity,
    ) -> Result<Self> {
        Ok(Self {
            movable: lab.start_movable(host, serving)?,
            tls: TlsServers::start(lab, host, identity)?,
        })
    }

    /// Waits until its agent has registered all of them.
    pub fn wait_registered(&self, lab: &Lab) -> Result<()> {
        self.movable.wait_registered(1, NOTICE)?;
        self.tls.wait_registered(lab, NOTICE)
    }
}

/// What all turns have in common.
pub struct Stage<'a> {
    pub load: &'a Load,
    pub deadline: Duration,
    pub serving: &'a ServerOptions,
    pub identity: &'a Identity,
}

/// Gives a host its turn.
pub fn roll(
    lab: &mut Lab,
    hosts: &mut [Host],
    host: u16,
    stage: &Stage<'_>,
    random: &mut Random,
    say: &impl Fn(String),
) -> Result<Drained> {
    let turn = format!("h{host}");
    let (before, opened) = (NetCounts::of(lab, CLIENT)?, stage.load.opened());
    say(format!("{turn}: homing drain"));
    let (answer, empty_s) = drain(lab, host, stage.deadline, say)?;
    let mut drained =
        Drained::read(host, &answer, empty_s).context("`homing drain` has another form")?;
    drained.opened_meanwhile = stage.load.opened() - opened;
    drained.client_retransmits = NetCounts::of(lab, CLIENT)?.since(before).retransmits;
    say(format!("{turn}: {drained}"));

    // The router sends to the others only, in another order, so that most packets come to
    // hosts that do not have their sessions.
    let mut others: Vec<u16> = (1..=lab.plan().hosts).filter(|one| *one != host).collect();
    random.shuffle(&mut others);
    let share = lab.set_ecmp(&others)?;
    let live = stage.load.wait_on()?;
    say(format!(
        "{turn}: out of the ECMP set ({:.0} % of all flows go elsewhere): {live} of {} sessions live",
        share * 100.0,
        stage.load.total()
    ));

    note_stats(lab, host)?;
    lab.cut_power(host)?;
    let start = Instant::now();
    wait_voided(lab, host)?;
    let live = stage.load.wait_on()?;
    say(format!(
        "{turn}: its power is cut, and all others know it after {:.1} s: {live} sessions live",
        start.elapsed().as_secs_f64()
    ));

    lab.power_on(host)?;
    let back = &mut hosts[usize::from(host) - 1];
    *back = Host::start(lab, host, stage.serving, stage.identity)?;
    back.wait_registered(lab)?;
    lab.homing_json(host, &["undrain"])?;
    let share = lab.reshuffle_all(random)?;
    let live = stage.load.wait_on()?;
    drained.client_retransmits_after =
        NetCounts::of(lab, CLIENT)?.since(before).retransmits - drained.client_retransmits;
    say(format!(
        "{turn}: it is back and takes sessions ({:.0} % of all flows go elsewhere): {live} sessions live",
        share * 100.0
    ));
    Ok(drained)
}

/// Drains a host. Gives what `homing drain` says in the end, as JSON, whether all sessions
/// have left or not; and for how long it had gone on when none was left.
fn drain(
    lab: &Lab,
    host: u16,
    deadline: Duration,
    say: &impl Fn(String),
) -> Result<(Value, Option<f64>)> {
    let mut command = Command::new("homing");
    let deadline = format!("{}s", deadline.as_secs());
    command
        .args(["drain", "--deadline", &deadline, "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = lab.spawn(Node::Host(host), &mut command)?;
    let (mut empty_s, mut told) = (None, Instant::now());
    while child.try_wait()?.is_none() {
        std::thread::sleep(LOOK_EVERY);
        let status = lab.homing_json(host, &["drain", "--status"])?;
        let Some(run) = Progress::read(&status["run"]) else {
            continue;
        };
        empty_s = match run.here {
            // One may have appeared since.
            1.. => None,
            0 if run.moved == 0 => None,
            0 => empty_s.or(Some(run.elapsed_s)),
        };
        if run.goes_on && told.elapsed() >= TELL_EVERY {
            say(format!("h{host}: {run}"));
            told = Instant::now();
        }
    }
    let output = child.wait_with_output()?;
    let answer = serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "`homing drain` on h{host}: {}: {}",
            output.status,
            said.trim()
        )
    })?;
    Ok((answer, empty_s))
}

/// Leaves what a host has counted in its folder, for who looks why something broke.
pub fn note_stats(lab: &Lab, host: u16) -> Result<()> {
    let stats = lab.exec(Node::Host(host), "homing", &["stats"])?;
    let path = lab.folder_of(Node::Host(host)).join("stats.txt");
    let mut file = File::options().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{stats}")?)
}

/// How a drain goes.
struct Progress {
    goes_on: bool,
    elapsed_s: f64,
    moved: u64,
    /// Sessions that have not left.
    here: u64,
    time_wait: u64,
}

impl Progress {
    fn read(run: &Value) -> Option<Self> {
        let number = |name: &str| run.get(name).and_then(Value::as_u64);
        let left = run.get("left")?.as_array()?.iter();
        let left = left.map(|why| why["sessions"].as_u64());
        Some(Self {
            goes_on: run.get("end")?.is_null(),
            elapsed_s: run.get("elapsed_s")?.as_f64()?,
            moved: number("moved")?,
            here: number("queued")? + number("moving")? + left.sum::<Option<u64>>()?,
            time_wait: number("time_wait")?,
        })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} moved, {} to go", self.moved, self.here)?;
        if self.here == 0 && self.time_wait > 0 {
            write!(f, "; waits for {} connections in TIME_WAIT", self.time_wait)?;
        }
        Ok(())
    }
}

/// Waits until all others have found a host's kernel dead.
fn wait_voided(lab: &Lab, host: u16) -> Result<()> {
    let mut not_yet = Vec::new();
    let known = wait_until(NOTICE, || {
        not_yet.clear();
        for asked in lab.running() {
            let hosts = lab.homing_json(asked, &["hosts"])?;
            let Some(list) = hosts["hosts"].as_array() else {
                bail!("`homing hosts` has another form: {hosts}");
            };
            let entry = list.iter().find(|entry| entry["host"] == host);
            if entry.is_some_and(|entry| entry["kernel"] != "voided") {
                not_yet.push(asked);
            }
        }
        Ok(not_yet.is_empty())
    })?;
    ensure!(
        known,
        "{not_yet:?} did not find h{host} dead within {NOTICE:?}"
    );
    Ok(())
}
