//! Gossip that is forged, replayed, cut, changed or sealed with another key changes
//! nothing, is counted, and does not keep real gossip from flowing.

use std::time::{Duration, Instant};

use homing_tests::lab::Node;

use super::{
    common::{PATIENCE, Pop},
    forger::{cpu_time, forge, record},
};

/// Forged datagrams in a second, all hosts together.
const RATE: u64 = 8_000;

/// Why a seal drops a datagram, in the words of `homing stats`.
const DROPPED: [&str; 14] = [
    "bad_length",
    "foreign",
    "unknown_version",
    "wrong_key",
    "forged",
    "malformed",
    "wrong_destination",
    "own",
    "own_returned",
    "own_id_elsewhere",
    "no_window",
    "replayed",
    "too_old",
    "unasked",
];
/// What forgery must bring about somewhere.
const SEEN: [&str; 8] = [
    "bad_length",
    "foreign",
    "unknown_version",
    "wrong_key",
    "forged",
    "wrong_destination",
    "own_returned",
    "replayed",
];

fn counts(pop: &Pop, host: u16, names: &[&str]) -> Vec<u64> {
    let count = |name: &&str| pop.lab.gossip_count(host, name).unwrap();
    names.iter().map(count).collect()
}

fn lives(pop: &Pop) -> Vec<(u64, u64, String)> {
    let hosts = pop.lab.homing_json(1, &["hosts"]).unwrap();
    let list = hosts["hosts"].as_array().unwrap();
    list.iter()
        .map(|host| {
            (
                host["incarnation"].as_u64().unwrap(),
                host["generation"].as_u64().unwrap(),
                host["state"].to_string(),
            )
        })
        .collect()
}

#[test]
fn forgeries_change_nothing_and_are_counted() {
    let mut pop = Pop::up("fltforge", 4, 2);
    let hosts: Vec<u16> = (1..=4).collect();
    // Material: gossip of all kinds, of hosts that start, open and close.
    let (recording, records) = record(&pop.lab);
    pop.lab.kill(3).unwrap();
    pop.lab.start(3).unwrap();
    let first = pop.load(40);
    pop.unbroken(first);
    let second = pop.load(40);
    pop.lab.wait_settled(40, PATIENCE).unwrap();
    pop.converges();
    assert!(records.len() > 200, "{}", records.len());

    let before: Vec<Vec<u64>> = hosts.iter().map(|h| counts(&pop, *h, &DROPPED)).collect();
    let lives_before = lives(&pop);
    let cpu_before: Duration = hosts.iter().map(|host| cpu_time(&pop.lab, *host)).sum();
    let start = Instant::now();
    let forging = forge(&pop.lab, records.clone(), RATE, 5);

    // Real gossip flows on, and nothing else is believed.
    let third = pop.load(40);
    let took = pop.converges();
    println!("converged {took:?} after the last was opened, among forgeries");
    pop.tour(&second);
    pop.tour(&third);
    pop.converges();
    assert_eq!(lives(&pop), lives_before);
    let cpu: Duration = hosts.iter().map(|host| cpu_time(&pop.lab, *host)).sum();

    // A host that starts amid replays of what it knew, and of what it said, finds
    // the POP as well.
    pop.lab.kill(2).unwrap();
    pop.lab.start(2).unwrap();
    pop.converges();
    let elapsed = start.elapsed();
    let forged = forging.stop();
    recording.stop();

    let mut sum = vec![0; DROPPED.len()];
    for (host, before) in hosts.iter().zip(&before) {
        let after = counts(&pop, *host, &DROPPED);
        for (index, sum) in sum.iter_mut().enumerate() {
            // The agent of host 2 counts from its start.
            *sum += after[index].saturating_sub(if *host == 2 { 0 } else { before[index] });
        }
    }
    let named: Vec<(&str, u64)> = DROPPED.iter().copied().zip(sum).collect();
    let dropped: u64 = named.iter().map(|(_, count)| count).sum();
    let cpu = cpu - cpu_before;
    println!(
        "{forged} forged datagrams in {elapsed:?}, {dropped} dropped: {named:?}; agents' processor time {cpu:?}"
    );
    assert!(forged > RATE);
    // Those at host 2 before its restart are not among them; and a few went by.
    assert!(dropped * 2 > forged, "{dropped} of {forged}");
    for (name, count) in &named {
        assert!(*count > 0 || !SEEN.contains(name), "no forgery was {name}");
    }
    // All agents together; far less where they are built for speed.
    let each = cpu / forged as u32;
    assert!(each < Duration::from_micros(500), "{each:?} for each");

    // Nor do they fill the logs.
    for host in &hosts {
        let log = pop.lab.folder_of(Node::Host(*host)).join("agent.log");
        let lines = std::fs::read_to_string(log).unwrap().lines().count();
        assert!(lines < 200, "{lines} lines in the log of h{host}");
    }

    pop.lab.wait_settled(80, PATIENCE).unwrap();
    pop.converges();
    assert_eq!(lives(&pop).len(), 4, "hosts that do not exist are members");
    pop.unbroken(second);
    pop.unbroken(third);
    pop.down();
}
