//! The main job, shown in one go: long-lived connections through a POP whose
//! ECMP set changes again and again, first on plain hosts (the **control**), then
//! with Homing; then a large download by curl from nginx.
//!
//! Both halves run on the same lab with the same connections by the same seed; the
//! only difference is that the agents run.

mod download;
pub mod drain;
mod report;

use std::{
    fmt::Display,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    lab::{Lab, Node, Outer, Tunnel},
    random::Random,
    workload::{self, Clients},
};
pub use report::{Gossip, Half, Outcome};

/// How long a connection may be silent before it counts as broken.
const DEADLINE: Duration = Duration::from_secs(8);
/// How long a round of exchanges may take: longer than it takes to find a
/// connection silent.
const ROUND: Duration = Duration::from_secs(20);
/// The port of the checked workload.
const PORT: u16 = 443;

/// What the demo is to be.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Number of hosts
    #[arg(long, default_value_t = 4)]
    pub hosts: u16,
    /// Number of racks: broadcast domains
    #[arg(long, default_value_t = 2)]
    pub racks: u16,
    /// Number of client connections, half of them over IPv6
    #[arg(long, default_value_t = 200)]
    pub clients: u32,
    /// How often the ECMP set changes
    #[arg(long, default_value_t = 10)]
    pub reshuffles: u32,
    /// How packets travel between hosts
    #[arg(long, value_enum, default_value_t = Tunnel::Ipip)]
    pub tunnel: Tunnel,
    /// The family that tunnels and agents use
    #[arg(long, value_enum, default_value_t = Outer::V4)]
    pub outer: Outer,
    /// Size of the download in MiB
    #[arg(long, default_value_t = 256)]
    pub download_mib: u64,
    /// Decides connections and reshuffles (default: chance)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Name of the lab that the demo builds and takes down
    #[arg(long, default_value = "demo")]
    pub lab: String,
    /// Print one JSON object at the end instead of a table
    #[arg(long)]
    pub json: bool,
    /// Only the control, without Homing
    #[arg(long)]
    pub control_only: bool,
}

/// Runs the demo, tells of its progress on standard error, and prints the outcome.
/// Returns whether the claim held.
pub fn run(options: &Options) -> Result<bool> {
    let outcome = play(options)?;
    tell(&outcome, &outcome.failures(), options.json)
}

/// Runs the demo and returns what came of it.
pub fn play(options: &Options) -> Result<Outcome> {
    ensure!(
        options.hosts >= 2,
        "with one host there is nothing to reshuffle: use --hosts 2 or more"
    );
    let started = Instant::now();
    let seed = options.seed.unwrap_or_else(Random::fresh_seed);
    let say = |text: String| eprintln!("[{:5.1} s] {text}", started.elapsed().as_secs_f64());

    say(format!(
        "building a lab: {} hosts in {} racks",
        options.hosts, options.racks
    ));
    let build = || -> Result<(Lab, Servers, download::Web)> {
        let builder = Lab::builder()
            .name(&options.lab)
            .hosts(options.hosts)
            .racks(options.racks)
            .tunnel(options.tunnel)
            .outer(options.outer);
        let lab = builder.no_homing().up()?;
        let servers = Servers::start(&lab)?;
        let web = download::Web::start(&lab, options.download_mib)?;
        Ok((lab, servers, web))
    };
    let (mut lab, mut servers, mut web) = build()?;

    say("control: no Homing".to_owned());
    let (control, _) = half(&mut lab, options, seed, false, &say)?;
    let control_downloads = web.download(
        &mut lab,
        &mut Random::new(seed),
        options.reshuffles.min(2),
        &say,
    )?;
    let mut outcome = Outcome {
        hosts: options.hosts,
        racks: options.racks,
        clients: options.clients,
        reshuffles: options.reshuffles,
        tunnel: options.tunnel,
        outer: options.outer,
        seed,
        control: Half::new(control, control_downloads),
        homing: None,
        gossip: None,
        seconds: 0.0,
    };
    if !options.control_only {
        // A lab of its own: the hosts of the first still have the sockets of all
        // connections that broke, and their agents would find them.
        drop((web, servers));
        lab.down()?;
        (lab, servers, web) = build()?;
        say("starting the agents".to_owned());
        lab.start_all()?;
        say("Homing: same connections, same reshuffles".to_owned());
        let (report, forwarded) = half(&mut lab, options, seed, true, &say)?;
        let downloads = web.download(
            &mut lab,
            &mut Random::new(seed),
            options.reshuffles.max(4),
            &say,
        )?;
        let mut homing = Half::new(report, downloads);
        homing.forwarded_packets = Some(forwarded);
        outcome.homing = Some(homing);
        outcome.gossip = Some(Gossip::worst_of(&lab)?);
    }
    say("taking the lab down".to_owned());
    drop(web);
    drop(servers);
    lab.down()?;
    outcome.seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    Ok(outcome)
}

/// Prints what came of a demo, and how its claim failed. Returns whether it held.
fn tell(outcome: &(impl Serialize + Display), failures: &[String], json: bool) -> Result<bool> {
    if json {
        println!("{}", serde_json::to_string(outcome)?);
    } else {
        print!("\n{outcome}");
    }
    for failure in failures {
        eprintln!("claim failed: {failure}");
    }
    Ok(failures.is_empty())
}

/// Opens the connections, reshuffles under them, and sums up. Also returns how many
/// packets the hosts forwarded to each other.
fn half(
    lab: &mut Lab,
    options: &Options,
    seed: u64,
    homing: bool,
    say: &impl Fn(String),
) -> Result<(workload::Report, u64)> {
    let before = if homing { forwarded(lab)? } else { 0 };
    let clients = Clients::start(
        lab,
        Node::Client(1),
        workload::Options {
            connections: options.clients,
            targets: lab.plan().service(PORT).to_vec(),
            seed,
            interval: Duration::from_millis(200),
            deadline: DEADLINE,
        },
    )?;
    clients.wait_open(Duration::from_secs(20))?;
    clients.wait_rounds(2, ROUND)?;
    say(format!("{} connections exchange data", clients.live()));
    if homing {
        // A reshuffle that comes before an announcement has arrived is a case of its
        // own, which is not what is shown here.
        let settled = lab.wait_settled(u64::from(options.clients), Duration::from_secs(10))?;
        say(format!(
            "every host knows the owner of every session ({} entries)",
            settled.foreign
        ));
    }
    let mut random = Random::new(seed);
    for number in 1..=options.reshuffles {
        let share = lab.reshuffle(&mut random, None)?;
        let live = clients.wait_rounds(2, ROUND)?;
        say(format!(
            "reshuffle {number} of {}: {} ({:.0} % of all flows go elsewhere): {live} of {} connections live",
            options.reshuffles,
            lab.ecmp()
                .iter()
                .map(|host| format!("h{host}"))
                .collect::<Vec<_>>()
                .join(" "),
            share * 100.0,
            clients.total()
        ));
        if live == 0 {
            break;
        }
    }
    let report = clients.finish()?;
    let after = if homing { forwarded(lab)? } else { 0 };
    Ok((report, after - before))
}

fn forwarded(lab: &Lab) -> Result<u64> {
    lab.outcomes(&["forwarded", "redirected", "sent_on"])
}

/// The workload's servers, one per host.
pub struct Servers(Vec<Child>);

impl Servers {
    /// Starts a server on every host, in the host's cgroup, and waits until all
    /// listen.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_ports(lab, &[PORT])
    }

    /// The same for several ports of the services, with a process for each.
    pub fn start_ports(lab: &Lab, ports: &[u16]) -> Result<Self> {
        let mut servers = Self(Vec::new());
        for host in 1..=lab.plan().hosts {
            for port in ports {
                servers.0.push(Self::start_on(lab, host, *port)?);
            }
        }
        Ok(servers)
    }

    fn start_on(lab: &Lab, host: u16, port: u16) -> Result<Child> {
        let log = lab.folder_of(Node::Host(host)).join("serve.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let mut command = Command::new(crate::lab::own_program()?);
        command
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for address in lab.plan().service(port) {
            command.arg("--listen").arg(address.to_string());
        }
        let mut child = lab.spawn(Node::Host(host), &mut command)?;
        let stdout = child.stdout.take().context("no output")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        ensure!(
            line.trim() == "listening",
            "the server on h{host} did not start; see serve.log in {}",
            lab.folder().display()
        );
        Ok(child)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            server.kill().ok();
            server.wait().ok();
        }
    }
}
