//! Kernels apart from agents: whose sessions stand, and whose are void.

use std::{
    fs,
    time::{Duration, Instant},
};

use homing_tests::lab::{Lab, Node, fault::Traffic, unique, wait_until};
use serde_json::Value;

use super::common::{FORGOTTEN, PATIENCE, Pop};

/// `pop.kernel_dead_after` as it is unless it is configured.
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// What a loaded test machine may add to a bound.
const SLACK: Duration = Duration::from_secs(2);

/// Hosts in two racks whose agents have these lines in `[pop]`.
pub(super) fn up(name: &str, hosts: u16, lines: &str) -> Pop {
    let mut lab = Lab::builder()
        .name(&unique(name))
        .hosts(hosts)
        .racks(2)
        .no_homing()
        .up()
        .unwrap();
    for host in 1..=hosts {
        let path = lab.folder_of(Node::Host(host)).join("homing.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("[pop]\n", &format!("[pop]\n{lines}"))).unwrap();
    }
    lab.start_all().unwrap();
    let pop = Pop::from(lab);
    pop.wait_kernels("alive", &[]);
    pop
}

impl Pop {
    /// How a host sees another, by a field of `homing hosts`.
    pub(super) fn seen(&self, on: u16, of: u16, field: &str) -> Value {
        let hosts = self.lab.homing_json(on, &["hosts"]).unwrap();
        let list = hosts["hosts"].as_array().unwrap();
        let host = list.iter().find(|host| host["host"] == of);
        host.map_or(Value::Null, |host| host[field].clone())
    }

    /// Waits until all hosts whose agents run, other than these, see all others'
    /// kernels in a state; gives the time it took.
    fn wait_kernels(&self, state: &str, but: &[u16]) -> Duration {
        let hosts = 1..=self.lab.plan().hosts;
        let of: Vec<u16> = hosts.filter(|host| !but.contains(host)).collect();
        self.wait_kernel(&of, state, but)
    }

    /// The same of these hosts' kernels.
    fn wait_kernel(&self, of: &[u16], state: &str, but: &[u16]) -> Duration {
        let start = Instant::now();
        let on: Vec<u16> = self.lab.running();
        let on = on.into_iter().filter(|host| !but.contains(host));
        for on in on {
            for &of in of.iter().filter(|of| **of != on) {
                let mut last = Value::Null;
                let reached = wait_until(PATIENCE, || {
                    last = self.seen(on, of, "kernel");
                    Ok(last == state)
                });
                assert!(
                    reached.unwrap(),
                    "h{on} sees h{of}'s kernel {last}, not {state}"
                );
            }
        }
        start.elapsed()
    }

    /// Entries on a host that lead to another.
    pub(super) fn entries(&self, on: u16, to: u16) -> usize {
        let owners = self.lab.tables(on).unwrap().owners;
        owners.values().filter(|owner| **owner == to).count()
    }

    fn problems(&self, on: u16) -> String {
        self.lab.homing_json(on, &["status"]).unwrap()["problems"].to_string()
    }

    /// Leaves a host as after a reboot: no agent, no connection, nothing of the fast
    /// path is left. `ecmp` is where clients are led from then on.
    pub(super) fn reboot(&mut self, host: u16, ecmp: &[u16]) {
        self.lab.kill(host).unwrap();
        let forget = "ip link set dev eth0 xdp off; rm -rf /sys/fs/bpf/homing; ss -K sport = :443 >/dev/null";
        let host = Node::Host(host);
        self.lab.exec(host, "sh", &["-c", forget]).unwrap();
        self.lab.set_ecmp(ecmp).unwrap();
    }

    pub(super) fn counter(&self, on: u16, name: &str) -> u64 {
        self.lab.gossip_count(on, name).unwrap()
    }
}

#[test]
fn an_agent_that_is_down_for_longer_than_any_timer_takes_nothing_with_it() {
    let lines = "kernel_dead_after = \"1s\"\nvoid_after = \"2s\"\nleave_hold = \"1s\"\n";
    let mut pop = up("kernagent", 3, lines);
    let clients = pop.load(30);
    let entries = pop.entries(1, 2);
    assert!(entries > 0);
    pop.lab.kill(2).unwrap();
    let down = wait_until(PATIENCE, || Ok(pop.seen(1, 2, "state") == "down"));
    assert!(down.unwrap());
    // Nothing to wait for: that nothing happens is the point.
    std::thread::sleep(Duration::from_secs(8));
    for on in [1, 3] {
        assert_eq!(pop.seen(on, 2, "kernel"), "alive");
        assert_eq!(pop.entries(on, 2), entries);
        assert_eq!(pop.counter(on, "voided_hosts"), 0);
        let problems = pop.problems(on);
        assert!(
            problems.contains("host 2 is down") && problems.contains("stand"),
            "{problems}"
        );
    }
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn an_agent_that_restarts_while_another_is_down_keeps_its_sessions_until_its_kernel_ends() {
    let lines = "kernel_dead_after = \"1s\"\nvoid_after = \"2s\"\nleave_hold = \"1s\"\n";
    let mut pop = up("kernrestart", 3, lines);
    let clients = pop.load(30);
    let entries = pop.entries(1, 2);
    assert!(entries > 0);
    pop.lab.kill(2).unwrap();
    let down = wait_until(PATIENCE, || Ok(pop.seen(3, 2, "state") == "down"));
    assert!(down.unwrap());
    pop.lab.kill(1).unwrap();
    pop.lab.start(1).unwrap();
    let told = wait_until(PATIENCE, || Ok(pop.seen(1, 2, "kernel") == "alive"));
    assert!(told.unwrap(), "{}", pop.seen(1, 2, "kernel"));
    // Nothing to wait for: that nothing happens is the point.
    std::thread::sleep(Duration::from_secs(8));
    for on in [1, 3] {
        assert_eq!(pop.seen(on, 2, "state"), "down");
        assert_eq!(pop.seen(on, 2, "kernel"), "alive");
        assert_eq!(pop.entries(on, 2), entries);
        assert_eq!(pop.counter(on, "voided_hosts"), 0);
    }
    let clients = pop.tour(clients);

    pop.lab.set_ecmp(&[1, 3]).unwrap();
    let start = Instant::now();
    let wire = ["link", "set", "dev", "h2", "down"];
    pop.lab.exec(Node::Router, "ip", &wire).unwrap();
    let gone = wait_until(PATIENCE, || {
        Ok([1, 3].iter().all(|on| pop.entries(*on, 2) == 0))
    });
    assert!(gone.unwrap());
    let took = start.elapsed();
    println!("voided everywhere {took:?} after the wire was cut");
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    drop(clients);
    pop.down();
}

#[test]
fn the_only_agent_that_starts_asks_the_kernels_that_were_members_before() {
    let lines = "kernel_dead_after = \"1s\"\nvoid_after = \"2s\"\n";
    let mut pop = up("kernalone", 3, lines);
    let clients = pop.load(30);
    let entries = [2, 3].map(|to| pop.entries(1, to));
    for host in 1..=3 {
        pop.lab.kill(host).unwrap();
    }
    pop.launch(1);
    let asked = |to: u16| {
        wait_until(PATIENCE, || {
            Ok(pop.seen(1, to, "state") == "down" && pop.seen(1, to, "kernel") == "alive")
        })
    };
    for to in [2, 3] {
        assert!(asked(to).unwrap(), "{}", pop.seen(1, to, "kernel"));
    }
    // Nothing to wait for: that nothing happens is the point.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!([2, 3].map(|to| pop.entries(1, to)), entries);
    assert_eq!(pop.counter(1, "voided_hosts"), 0);
    let clients = pop.tour(clients);
    pop.lab.start(2).unwrap();
    pop.lab.start(3).unwrap();
    pop.lab.wait_settled(30, PATIENCE).unwrap();
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_host_that_joins_while_an_agent_is_down_finds_its_sessions() {
    let mut pop = up("kernjoin", 4, "");
    pop.reboot(4, &[1, 2, 3]);
    let old = pop.load(30);
    pop.lab.kill(2).unwrap();
    let down = wait_until(PATIENCE, || Ok(pop.seen(1, 2, "state") == "down"));
    assert!(down.unwrap());
    // Of these no other host has ever heard.
    pop.lab.set_ecmp(&[2]).unwrap();
    let new = pop.unsettled(12);
    pop.launch(4);
    let told = wait_until(PATIENCE, || Ok(pop.seen(4, 2, "kernel") == "alive"));
    assert!(told.unwrap(), "{}", pop.seen(4, 2, "kernel"));
    let synced = wait_until(PATIENCE, || {
        Ok(pop.lab.homing_json(4, &["status"])?["gossip"]["synced"] == true)
    });
    assert!(synced.unwrap(), "{}", pop.problems(4));
    for order in [vec![4], vec![1], vec![3], vec![2], vec![4, 3, 1]] {
        pop.lab.set_ecmp(&order).unwrap();
        for clients in [&old, &new] {
            let live = clients.wait_rounds(2, PATIENCE).unwrap();
            let outcomes = pop.outcomes();
            assert_eq!(live, clients.total(), "by {order:?}:\n{outcomes}");
        }
    }
    assert!(
        pop.counter(4, "ask_told") > 0,
        "others told of the old ones"
    );
    for on in [1, 3, 4] {
        let presumed = pop.counter(on, "ask_presumed");
        assert!(presumed > 0, "who else could have the new ones? (h{on})");
    }
    // Its agent says it itself once it is back.
    pop.lab.start(2).unwrap();
    pop.lab.wait_settled(42, PATIENCE).unwrap();
    let old = pop.tour(old);
    pop.unbroken(old);
    pop.unbroken(new);
    pop.down();
}

#[test]
fn a_kernel_that_is_gone_is_voided_everywhere_in_time() {
    let mut pop = up("kerngone", 4, "");
    let clients = pop.load(40);
    assert!(pop.entries(1, 4) > 0);
    pop.lab.kill(4).unwrap();
    // Its agent alone is down so far.
    pop.lab.set_ecmp(&[1, 2, 3]).unwrap();
    let start = Instant::now();
    let wire = ["link", "set", "dev", "h4", "down"];
    pop.lab.exec(Node::Router, "ip", &wire).unwrap();
    let gone = wait_until(PATIENCE, || Ok((1..=3).all(|on| pop.entries(on, 4) == 0)));
    assert!(gone.unwrap());
    let took = start.elapsed();
    println!("voided everywhere {took:?} after the wire was cut");
    assert!(took < DEAD_AFTER + SLACK, "{took:?}");
    pop.wait_kernel(&[4], "voided", &[]);
    for on in 1..=3 {
        assert_eq!(pop.counter(on, "voided_hosts"), 1, "on {on}");
        let problems = pop.problems(on);
        assert!(problems.contains("host 4 is dead"), "{problems}");
        // Nobody else was touched.
        for of in (1..=3).filter(|of| *of != on) {
            assert!(pop.entries(on, of) > 0);
        }
    }
    // Packets of its sessions are treated as unknown: clients learn of their end.
    let broken = wait_until(PATIENCE, || Ok(clients.live() < clients.total()));
    assert!(broken.unwrap(), "no client noticed that its host is gone");
    drop(clients);
    pop.down();
}

#[test]
fn a_host_that_is_cut_off_voids_nothing_and_all_is_back_when_it_is() {
    let mut pop = up("kerncut", 4, "");
    let clients = pop.load(40);
    let (held, owned) = (pop.lab.tables(4).unwrap().owners.len(), pop.entries(1, 4));
    assert!(held > 0 && owned > 0);
    // Clients still reach it, and ECMP sends nobody elsewhere.
    pop.lab.cut(Traffic::All, &[4], &[1, 2, 3]).unwrap();
    pop.wait_kernel(&[4], "voided", &[4]);
    for on in 1..=3 {
        assert_eq!(pop.entries(on, 4), 0);
    }
    std::thread::sleep(2 * DEAD_AFTER);
    assert_eq!(pop.lab.tables(4).unwrap().owners.len(), held);
    let problems = pop.problems(4);
    assert!(problems.contains("reaches 1 of 4 hosts"), "{problems}");
    assert_eq!(pop.counter(4, "voided_hosts"), 0);
    let live = clients.wait_rounds(3, PATIENCE).unwrap();
    if live != clients.total() {
        let outcomes = pop.outcomes();
        let report = clients.finish().unwrap();
        panic!("connections broke while nothing was moved: {report:#?}\n{outcomes}");
    }

    let start = Instant::now();
    pop.lab.heal().unwrap();
    let back = wait_until(PATIENCE, || {
        Ok((1..=3).all(|on| pop.entries(on, 4) == owned))
    });
    assert!(back.unwrap());
    let took = start.elapsed();
    println!("all was back {took:?} after the cut");
    assert!(took < Duration::from_secs(2) + SLACK, "{took:?}");
    pop.wait_kernels("alive", &[]);
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_kernel_that_one_host_does_not_hear_keeps_its_claims() {
    let mut pop = up("kernpair", 4, "");
    let clients = pop.load(40);
    let entries = pop.entries(3, 2);
    assert!(entries > 0);
    pop.lab.cut(Traffic::All, &[3], &[2]).unwrap();
    // It is one of two that watch it: it asks the others, who hear it.
    let refuted = wait_until(PATIENCE, || Ok(pop.counter(3, "suspicions_refuted") > 0));
    assert!(refuted.unwrap(), "{}", pop.seen(3, 2, "kernel"));
    // Nothing to wait for: that nothing happens is the point.
    std::thread::sleep(2 * DEAD_AFTER);
    for on in 1..=4 {
        assert_eq!(pop.counter(on, "voided_hosts"), 0, "on {on}");
        assert_eq!(pop.counter(on, "kernels_judged_dead"), 0, "on {on}");
    }
    assert_eq!(pop.entries(3, 2), entries);
    pop.lab.heal().unwrap();
    pop.wait_kernels("alive", &[]);
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_kernel_that_comes_and_goes_waits_longer_each_time() {
    /// The first wait: half of `kernel_dead_after`.
    const FIRST: Duration = Duration::from_millis(500);
    const FLAPS: u32 = 5;
    let mut pop = up("kernflap", 3, "kernel_dead_after = \"1s\"\n");
    // Clients reach the host throughout: only the others lose sight of it.
    pop.lab.set_ecmp(&[2]).unwrap();
    let clients = pop.load(30);
    let entries = |pop: &Pop| [1, 3].map(|on| pop.entries(on, 2));
    for flap in 0..FLAPS {
        assert_eq!(entries(&pop), [30, 30]);
        pop.lab.cut(Traffic::All, &[2], &[1, 3]).unwrap();
        let void = wait_until(PATIENCE, || Ok(entries(&pop) == [0, 0]));
        assert!(void.unwrap(), "flap {flap}: {:?} are left", entries(&pop));
        let healed = Instant::now();
        pop.lab.heal().unwrap();
        let first = wait_until(PATIENCE, || Ok(entries(&pop) != [0, 0]));
        let took = healed.elapsed();
        let all = wait_until(PATIENCE, || Ok(entries(&pop) == [30, 30]));
        assert!(
            first.unwrap() && all.unwrap(),
            "flap {flap}: {:?} are back",
            entries(&pop)
        );
        println!("flap {flap}: the first claims are back {took:?} after the cut");
        // None the first time, and twice as long each further time. However slow the
        // machine is, that only adds to it.
        let wait = (1 << flap >> 1) * FIRST;
        assert!(
            took >= wait,
            "flap {flap}: back after {took:?}, not {wait:?}"
        );
    }
    for on in [1, 3] {
        let held = pop.counter(on, "flaps_held");
        assert!(held >= u64::from(FLAPS) - 1, "on {on}: {held}");
    }
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_host_that_begins_a_new_life_loses_the_claims_of_the_old_one() {
    let mut pop = up("kernlife", 3, "");
    let clients = pop.load(30);
    let before = pop.entries(1, 2);
    assert!(before > 0);
    let incarnation = pop.seen(1, 2, "incarnation");
    pop.reboot(2, &[1, 3]);
    pop.lab.start(2).unwrap();
    assert!(pop.seen(1, 2, "incarnation").as_u64() > incarnation.as_u64());
    let void = wait_until(PATIENCE, || {
        Ok([1, 3].iter().all(|on| pop.entries(*on, 2) == 0))
    });
    assert!(void.unwrap(), "{} of {before} left", pop.entries(1, 2));
    pop.wait_kernels("alive", &[]);
    drop(clients);
    // And it is a host like any other again.
    pop.lab.set_ecmp(&[1, 2, 3]).unwrap();
    pop.lab.wait_settled(0, FORGOTTEN).unwrap();
    let clients = pop.load(30);
    assert!(pop.entries(1, 2) > 0);
    pop.unbroken(clients);
    pop.down();
}
