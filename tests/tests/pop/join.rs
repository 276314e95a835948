//! A host joins a POP that has many sessions open.

use std::time::{Duration, Instant};

use homing_tests::{
    lab::{Lab, Node, plan::SERVICE_PORTS, unique, wait_until},
    workload::idle::Idle,
};
use serde_json::Value;

use super::common::{PATIENCE, Pop, problems};

/// How long a host may take to learn a hundred thousand sessions. It takes a tenth.
const WITHIN: Duration = Duration::from_secs(2);

/// The foreign sessions that a host knows, and whether it knows all.
fn knows(lab: &Lab, host: u16) -> Option<(u64, bool)> {
    let status: Value = lab.homing_json(host, &["status"]).ok()?;
    Some((
        status["foreign"]["count"].as_u64()?,
        status["gossip"]["in_sync"].as_bool()?,
    ))
}

/// A fourth host joins while `open` sessions are open.
fn joins(name: &str, open: usize) {
    let builder = Lab::builder().name(&unique(name)).hosts(4).racks(2);
    let lab = builder.no_homing().up().unwrap();
    let mut pop = Pop::with_ports(lab, &SERVICE_PORTS);
    for host in 1..=3 {
        pop.lab.launch(host).unwrap();
    }
    pop.lab.wait_ready(PATIENCE).unwrap();
    pop.lab.set_ecmp(&[1, 2, 3]).unwrap();
    let checked = pop.load(20);
    let started = Instant::now();
    let plan = pop.lab.plan();
    let targets: Vec<_> = SERVICE_PORTS
        .iter()
        .flat_map(|port| plan.service(*port))
        .collect();
    let idle = Idle::open(&pop.lab, Node::Client(1), &targets, open / targets.len()).unwrap();
    let all = 20 + open as u64;
    println!("{all} sessions are open after {:?}", started.elapsed());
    pop.lab.wait_settled(all, Duration::from_secs(120)).unwrap();
    println!("… and known to all after {:?}", started.elapsed());

    pop.launch(4);
    let joining = Instant::now();
    // Packets of everybody's sessions reach it before it knows them.
    pop.lab.set_ecmp(&[4]).unwrap();
    let mut seen = Vec::new();
    let synced = wait_until(Duration::from_secs(60), || {
        let now = knows(&pop.lab, 4);
        seen.push((joining.elapsed(), now));
        Ok(now == Some((all, true)))
    });
    let took = joining.elapsed();
    println!("h4 knows them {took:?} after it began to answer: {seen:?}");
    assert!(synced.unwrap(), "{seen:?}\n{}", pop.lab.last_words(4));
    assert!(took < WITHIN, "{took:?}");
    assert_eq!(problems(&pop.lab, 4), Vec::<String>::new());
    assert_eq!(checked.wait_rounds(3, PATIENCE).unwrap(), 20);
    let checked = pop.tour(checked);
    pop.unbroken(checked);

    // All at once go, and are forgotten everywhere.
    let closing = Instant::now();
    drop(idle);
    pop.lab.wait_settled(0, Duration::from_secs(120)).unwrap();
    println!("forgotten everywhere after {:?}", closing.elapsed());
    pop.down();
}

#[test]
fn a_host_that_joins_learns_ten_thousand_sessions() {
    joins("join10k", 10_000);
}

#[test]
#[ignore = "takes long and 3 GB: `cargo xtask test --full`"]
fn a_host_that_joins_learns_a_hundred_thousand_sessions() {
    joins("join100k", 100_000);
}
