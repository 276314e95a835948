//! `homing-lab`: builds and runs labs, the demo, and the workload's two ends.
//! `cargo xtask lab …` and `cargo xtask demo` run it.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use homing_tests::{
    contained, demo,
    lab::{
        self, Lab, Node, Outer, Tunnel,
        fault::{Fault, Traffic, wire},
        plan, state,
    },
    puppet,
    random::Random,
    steps,
    workload::{Clients, Options, idle, server},
};

#[derive(Parser)]
#[command(
    name = "homing-lab",
    about = "A POP in network namespaces of this machine",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build a lab and start its agents
    Up(Up),
    /// Take a lab down, whatever state it is in
    Down {
        #[command(flatten)]
        which: Which,
        /// All labs of this machine
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a program on a machine of the lab: `exec h1 -- homing status`
    Exec {
        #[command(flatten)]
        which: Which,
        /// The machine: router, h1, h2, … or c1, c2, …
        node: Node,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// Show the lab's machines, agents and ECMP set
    Status {
        #[command(flatten)]
        which: Which,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Put other hosts, in another order, behind the service addresses
    Reshuffle {
        #[command(flatten)]
        which: Which,
        /// Makes the choice repeatable
        #[arg(long)]
        seed: Option<u64>,
        /// How many hosts stay in the set (default: half or more, by chance)
        #[arg(long)]
        keep: Option<u16>,
        /// Exactly these hosts, in this order: `--to 2,1,4`
        #[arg(long, value_delimiter = ',', conflicts_with_all = ["seed", "keep"])]
        to: Option<Vec<u16>>,
    },
    /// Start the agent of a host, or all that do not run
    Start {
        #[command(flatten)]
        which: Which,
        /// The host: h1, h2, …
        node: Option<Node>,
    },
    /// Ask the agent of a host to leave and end (SIGTERM)
    Stop {
        #[command(flatten)]
        which: Which,
        /// The host: h1, h2, …
        node: Node,
    },
    /// Kill the agent of a host on the spot (SIGKILL)
    Kill {
        #[command(flatten)]
        which: Which,
        /// The host: h1, h2, …
        node: Node,
    },
    /// Let frames be lost, doubled, held or cut off between machines
    Fault(FaultArgs),
    /// Take all faults off
    Heal {
        #[command(flatten)]
        which: Which,
    },
    /// Hold checked connections from a client machine to the servers that `serve` runs
    Load {
        #[command(flatten)]
        which: Which,
        /// The client machine
        #[arg(long, default_value = "c1")]
        from: Node,
        /// The services' port, on both addresses
        #[arg(long, default_value_t = 443)]
        port: u16,
        /// How many connections
        #[arg(long, default_value_t = 100)]
        connections: u32,
        /// For how long
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Decides all lengths and bytes
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Serve the checked workload: `lab exec h1 -- homing-lab serve`
    Serve {
        /// The addresses to listen on (default: the service addresses, port 443)
        #[arg(long)]
        listen: Vec<SocketAddr>,
    },
    /// Hold connections that say nothing until standard input ends
    #[command(hide = true)]
    Hold {
        /// Where to connect to
        #[arg(long)]
        target: SocketAddr,
        /// How many connections
        #[arg(long)]
        count: usize,
    },
    /// Serve, movably, and do what standard input says (what tests start)
    #[command(hide = true)]
    Puppet {
        /// Where the host's agent listens for applications
        #[arg(long)]
        agent: PathBuf,
    },
    /// Follow a process from step to step (what tests start)
    #[command(hide = true)]
    Follow {
        /// The process
        #[arg(long)]
        pid: i32,
        /// Hold it before this step, counted from 1 …
        #[arg(long)]
        nth: Option<usize>,
        /// … among those that have this in their name
        #[arg(long, default_value = "", requires = "nth")]
        of: String,
    },
    /// Make a lab's faults (what `fault` starts)
    #[command(hide = true)]
    Shim {
        #[command(flatten)]
        which: Which,
    },
    /// Wait for the end of standard input, then clear a lab (what a builder starts)
    #[command(hide = true)]
    Guard {
        #[command(flatten)]
        which: Which,
    },
    /// Run a program as the first process of a root of its own (what tests start)
    #[command(hide = true)]
    Contain {
        /// An empty folder
        base: PathBuf,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// The main job, shown: connections that survive ECMP reshuffles
    #[command(args_conflicts_with_subcommands = true)]
    Demo {
        #[command(flatten)]
        options: demo::Options,
        #[command(subcommand)]
        other: Option<OtherDemo>,
    },
}

#[derive(Subcommand)]
enum OtherDemo {
    /// Drains, shown: sessions that move off each host in turn, before its power is cut
    Drain(demo::drain::Options),
}

#[derive(Args)]
struct Which {
    /// The lab's name
    #[arg(long, default_value = plan::DEFAULT_NAME)]
    name: String,
}

#[derive(Args)]
struct FaultArgs {
    #[command(flatten)]
    which: Which,
    /// The senders it concerns: `--from h1,h2` (default: all machines)
    #[arg(long, value_delimiter = ',')]
    from: Vec<Node>,
    /// The receivers it concerns (default: all machines)
    #[arg(long, value_delimiter = ',')]
    to: Vec<Node>,
    /// The same in the other direction
    #[arg(long)]
    both_ways: bool,
    /// The traffic it concerns
    #[arg(long, value_enum, default_value = "gossip")]
    traffic: Traffic,
    /// How many of a hundred frames are lost; 100 is a cut
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss: f64,
    /// How many of a hundred frames arrive twice
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    duplicate: f64,
    /// How long frames are held, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,
    /// How much longer at most, by chance: reorders frames
    #[arg(long, value_name = "MS", default_value_t = 0)]
    jitter: u64,
    /// Makes chance repeatable
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    which: Which,
    /// Number of hosts
    #[arg(long, default_value_t = 4)]
    hosts: u16,
    /// Number of racks: broadcast domains
    #[arg(long, default_value_t = 2)]
    racks: u16,
    /// Number of client machines
    #[arg(long, default_value_t = 1)]
    clients: u16,
    /// How packets travel between hosts
    #[arg(long, value_enum, default_value_t = Tunnel::Ipip)]
    tunnel: Tunnel,
    /// The family that tunnels and agents use
    #[arg(long, value_enum, default_value_t = Outer::V4)]
    outer: Outer,
    /// Plain hosts without agents
    #[arg(long)]
    no_homing: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up(up) => bring_up(&up)?,
        Action::Down { which, all } => {
            let names = if all { state::all()? } else { vec![which.name] };
            for name in names {
                let any = lab::down(&name)?;
                println!(
                    "lab \"{name}\": {}",
                    if any { "taken down" } else { "there was none" }
                );
            }
        }
        Action::Exec {
            which,
            node,
            program,
        } => {
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            Lab::open(&which.name)?.place(node, &mut command)?;
            return Err(command.exec())
                .with_context(|| format!("cannot run {}", program[0].display()));
        }
        Action::Status { which, json } => {
            let status = lab::status::Status::of(&Lab::open(&which.name)?);
            if json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print!("{status}");
            }
        }
        Action::Reshuffle {
            which,
            seed,
            keep,
            to,
        } => {
            let mut lab = Lab::open(&which.name)?;
            let share = match to {
                Some(hosts) => lab.set_ecmp(&hosts)?,
                None => lab.reshuffle(
                    &mut Random::new(seed.unwrap_or_else(Random::fresh_seed)),
                    keep,
                )?,
            };
            println!(
                "ECMP set: {}; {:.0} % of all flows go elsewhere",
                hosts_of(lab.ecmp()),
                share * 100.0
            );
        }
        Action::Start { which, node } => {
            let mut lab = Lab::open(&which.name)?;
            match node {
                Some(node) => lab.start(host_of(node)?)?,
                None => lab.start_all()?,
            }
        }
        Action::Stop { which, node } => Lab::open(&which.name)?.stop(host_of(node)?)?,
        Action::Kill { which, node } => Lab::open(&which.name)?.kill(host_of(node)?)?,
        Action::Fault(args) => lay_fault(args)?,
        Action::Heal { which } => {
            let mut lab = Lab::open(&which.name)?;
            lab.heal()?;
            println!("healed; so far: {:?}", lab.faults_tally()?);
        }
        Action::Shim { which } => wire::run(&which.name)?,
        Action::Load {
            which,
            from,
            port,
            connections,
            seconds,
            seed,
        } => {
            let lab = Lab::open(&which.name)?;
            let options = Options {
                connections,
                targets: lab.plan().service(port).to_vec(),
                seed,
                interval: Duration::from_millis(200),
                deadline: Duration::from_secs(10),
            };
            let clients = Clients::start(&lab, from, options)?;
            std::thread::sleep(Duration::from_secs(seconds));
            let report = clients.finish()?;
            println!("{}", serde_json::to_string_pretty(&report)?);
            if report.broken + report.not_opened > 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Serve { mut listen } => {
            if listen.is_empty() {
                listen = vec![
                    (plan::SERVICE_V4, 443).into(),
                    (plan::SERVICE_V6, 443).into(),
                ];
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(server::serve(&listen, || println!("listening")))?;
        }
        Action::Hold { target, count } => idle::hold(target, count)?,
        Action::Puppet { agent } => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(puppet::app::run(agent))?,
        Action::Follow { pid, nth, of } => {
            steps::follow(pid, nth.map(|nth| steps::At { nth, of }))?;
        }
        Action::Contain { base, program } => return contained::contain(&base, &program),
        Action::Guard { which } => lab::guard::guard(&which.name)?,
        Action::Demo { options, other } => {
            let held = match other {
                None => demo::run(&options)?,
                Some(OtherDemo::Drain(options)) => demo::drain::run(&options)?,
            };
            if !held {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lay_fault(args: FaultArgs) -> Result<()> {
    let mut lab = Lab::open(&args.which.name)?;
    if let Some(seed) = args.seed {
        lab.seed_faults(seed)?;
    }
    let fault = Fault {
        from: args.from,
        to: args.to,
        traffic: args.traffic,
        loss_percent: args.loss,
        duplicate_percent: args.duplicate,
        delay_ms: args.delay,
        jitter_ms: args.jitter,
    };
    lab.fault(fault.clone())?;
    if args.both_ways {
        lab.fault(Fault {
            from: fault.to.clone(),
            to: fault.from.clone(),
            ..fault
        })?;
    }
    for fault in &lab.faults().list {
        println!("{fault:?}");
    }
    Ok(())
}

fn bring_up(up: &Up) -> Result<()> {
    let mut builder = Lab::builder()
        .name(&up.which.name)
        .hosts(up.hosts)
        .racks(up.racks)
        .clients(up.clients)
        .tunnel(up.tunnel)
        .outer(up.outer)
        .stays();
    if up.no_homing {
        builder = builder.no_homing();
    }
    let lab = builder.up()?;
    let name = match up.which.name.as_str() {
        plan::DEFAULT_NAME => String::new(),
        name => format!(" --name {name}"),
    };
    print!("{}", lab::status::Status::of(&lab));
    println!(
        "services: {} and {}, ports {:?}",
        plan::SERVICE_V4,
        plan::SERVICE_V6,
        plan::SERVICE_PORTS
    );
    println!("configurations and logs: {}", lab.folder().display());
    println!("try: cargo xtask lab exec{name} h1 -- homing status");
    println!(
        "     cargo xtask lab exec{name} c1 -- curl http://{}:8080/",
        plan::SERVICE_V4
    );
    println!("     cargo xtask lab reshuffle{name}");
    Ok(())
}

fn host_of(node: Node) -> Result<u16> {
    match node {
        Node::Host(host) => Ok(host),
        _ => bail!("{node} is no host: only hosts have an agent"),
    }
}

fn hosts_of(ecmp: &[u16]) -> String {
    ecmp.iter()
        .map(|host| format!("h{host}"))
        .collect::<Vec<_>>()
        .join(" ")
}
