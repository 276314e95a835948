//! From the opening of a session to its entry in every other host's table, on a
//! real lab: real TCP connections, the kernel's own events, real agents.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    demo::Servers,
    lab::{Lab, Node, node, unique},
    workload::MAGIC,
};

/// Hosts of the lab, in two racks: announcements cross by relays.
const HOSTS: u16 = 6;
/// Connections opened per second, unless asked for otherwise.
pub const RATE: u32 = 5_000;
/// How long.
const TIME: Duration = Duration::from_secs(3);
/// Threads that open connections.
const THREADS: u64 = 4;
/// The port of the checked workload.
const PORT: u16 = 443;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Microseconds that half of the announcements need at most, at the host where
    /// that is most.
    pub p50_us: u64,
    /// The same for 99 of 100.
    pub p99_us: u64,
    /// Connections that were opened per second.
    pub opens_per_s: f64,
}

/// Builds a lab, opens so many connections a second and takes the lab down.
pub fn run(rate: u32) -> Result<Run> {
    let mut lab = Lab::builder()
        .name(&unique("bench"))
        .hosts(HOSTS)
        .racks(2)
        .clients(1)
        .up()?;
    let result = measure(&mut lab, rate);
    lab.down()?;
    result
}

fn measure(lab: &mut Lab, rate: u32) -> Result<Run> {
    let servers = Servers::start(lab)?;
    lab.start_all()?;
    let targets = lab.plan().service(PORT);
    let opened = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let namespace = node::open_namespace(&lab.namespace(Node::Client(1)));
                let (opened, targets) = (&opened, &targets);
                scope.spawn(move || {
                    nix::sched::setns(namespace?, nix::sched::CloneFlags::CLONE_NEWNET)
                        .context("cannot enter the client's network namespace")?;
                    open(start, number, rate, targets, opened)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let joined = thread.join();
            joined.map_err(|_| anyhow!("a thread that opens connections panicked"))?
        })
    })?;
    let took = start.elapsed();
    let mut worst = (0, 0);
    for host in 1..=HOSTS {
        let status = lab.homing_json(host, &["status"])?;
        let latency = &status["gossip"]["open_to_applied_us"];
        let of = |name: &str| {
            let value = latency[name].as_u64();
            value.with_context(|| format!("h{host} has applied nothing: {latency}"))
        };
        worst.0 = worst.0.max(of("p50")?);
        worst.1 = worst.1.max(of("p99")?);
    }
    drop(servers);
    Ok(Run {
        p50_us: worst.0,
        p99_us: worst.1,
        opens_per_s: opened.load(Relaxed) as f64 / took.as_secs_f64(),
    })
}

/// Opens and closes connections at this thread's share of the rate.
fn open(
    start: Instant,
    number: u64,
    rate: u32,
    targets: &[SocketAddr],
    opened: &AtomicU64,
) -> Result<()> {
    let mut hello = MAGIC.to_vec();
    hello.extend([0; 8]);
    let interval = Duration::from_secs(1) * THREADS as u32 / rate;
    let mut next = start + interval * number as u32 / THREADS as u32;
    for target in targets.iter().cycle() {
        if next >= start + TIME {
            break;
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next += interval;
        let mut connection = TcpStream::connect_timeout(target, Duration::from_secs(5))
            .with_context(|| format!("cannot connect to {target}"))?;
        connection.write_all(&hello)?;
        opened.fetch_add(1, Relaxed);
    }
    Ok(())
}
