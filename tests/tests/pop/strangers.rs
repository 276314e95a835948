//! What is on the wire by mistake: a second machine with a host's id, another POP,
//! a host with another tunnel network. Each is noticed, reported and harmless.

use std::{fs, os::unix::fs::PermissionsExt as _};

use homing_common::outcome::Outcome;
use homing_tests::lab::{Lab, Node, unique, wait_until};
use serde_json::Value;

use super::common::{PATIENCE, Pop, count};

/// Hosts in one rack, without agents.
fn up(name: &str, hosts: u16) -> Pop {
    let lab = Lab::builder()
        .name(&unique(name))
        .hosts(hosts)
        .racks(1)
        .no_homing()
        .up()
        .unwrap();
    Pop::from(lab)
}

/// Changes a host's configuration: what stands in one place, and its only seed.
fn change(pop: &Pop, host: u16, before: &str, after: &str, seed: u16) {
    let path = pop.lab.folder_of(Node::Host(host)).join("homing.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(before), "{text}");
    let text = text.replace(before, after);
    let (head, rest) = text.split_once("\n[[pop.seeds]]").unwrap();
    let tail = &rest[rest.find("\n[tunnel]").unwrap()..];
    let address = pop.lab.plan().host_v4(seed);
    let seed = format!("[[pop.seeds]]\nhost = {seed}\naddress = \"{address}:7946\"\n");
    fs::write(&path, format!("{head}\n{seed}{tail}")).unwrap();
}

/// Makes a key of another POP; gives what stands in the place of `key_file =` for it.
fn other_key(pop: &Pop) -> String {
    let key = pop.lab.folder().join("other.key");
    fs::write(&key, "77".repeat(32)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    format!("key_file = \"{}\" #", key.display())
}

impl Pop {
    fn problems_of(&self, on: u16) -> Vec<String> {
        let status = self.lab.homing_json(on, &["status"]);
        let problems = status.map_or(Value::Null, |status| status["problems"].clone());
        let list = problems.as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|line| line.as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until a host names a problem that has all these words in it.
    fn wait_problem(&self, on: u16, words: &[&str]) {
        let mut last = Vec::new();
        let named = wait_until(PATIENCE, || {
            last = self.problems_of(on);
            Ok(last
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word))))
        });
        let words_of = |host| format!("h{host}: {}", self.lab.last_words(host));
        let logs: Vec<_> = (1..=self.lab.plan().hosts).map(words_of).collect();
        assert!(
            named.unwrap(),
            "h{on} names {last:?}, not {words:?}\n{}",
            logs.join("\n")
        );
    }

    /// How many members a host counts, itself among them.
    fn alive(&self, on: u16) -> u64 {
        let status = self.lab.homing_json(on, &["status"]).unwrap();
        status["members"]["alive"].as_u64().unwrap()
    }
}

#[test]
fn two_machines_with_one_host_id() {
    let mut pop = up("strid", 3);
    change(&pop, 3, "id = 3\n", "id = 2\n", 1);
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    pop.lab.start(1).unwrap();
    pop.lab.start(2).unwrap();
    let clients = pop.load(20);
    pop.lab.launch(3).unwrap();
    pop.wait_problem(
        1,
        &[
            "host id 2 is used by two machines",
            "10.1.1.12",
            "10.1.1.13",
        ],
    );
    pop.wait_problem(3, &["refuses this host"]);
    assert_eq!((pop.alive(1), pop.alive(2)), (2, 2));
    for order in [[1], [2]] {
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(3, PATIENCE).unwrap(), clients.total());
    }
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn two_pops_with_keys_of_their_own_share_a_wire() {
    let mut pop = up("strkey", 4);
    let other = other_key(&pop);
    for (host, seed) in [(1, 2), (2, 1)] {
        change(&pop, host, "key_file", "key_file", seed);
    }
    for (host, seed) in [(3, 4), (4, 3)] {
        change(&pop, host, "key_file =", &other, seed);
    }
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    for host in 1..=4 {
        pop.lab.launch(host).unwrap();
    }
    for host in 1..=4 {
        pop.wait_problem(host, &["another POP's key"]);
        let whole = wait_until(PATIENCE, || Ok(pop.alive(host) == 2));
        assert!(whole.unwrap(), "h{host} counts {}", pop.alive(host));
    }
    // Each goes on as if it were alone.
    let clients = pop.unsettled(20);
    for order in [[1], [2]] {
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(3, PATIENCE).unwrap(), clients.total());
    }
    for host in 1..=4 {
        let problems = pop.problems_of(host);
        assert_eq!(problems.len(), 1, "h{host}: {problems:?}");
        assert_eq!(
            pop.lab.gossip_count(host, "kernels_judged_dead").unwrap(),
            0
        );
    }
    for host in [3, 4] {
        assert!(pop.lab.tables(host).unwrap().owners.is_empty());
        // Once a minute at most.
        let log = fs::read_to_string(pop.lab.folder_of(Node::Host(host)).join("agent.log"));
        assert_eq!(log.unwrap().matches("another POP's key").count(), 1);
    }
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_host_with_another_tunnel_network() {
    let mut pop = up("strtun", 3);
    change(&pop, 3, "network = \"10.77.", "network = \"10.78.", 1);
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    pop.lab.start(1).unwrap();
    pop.lab.start(2).unwrap();
    let clients = pop.load(20);
    pop.lab.launch(3).unwrap();
    for (on, of) in [(1, 3), (2, 3), (3, 1)] {
        let line = format!("host {of} is refused, because it has another tunnel network");
        pop.wait_problem(on, &[&line]);
    }
    for order in [[1], [2]] {
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(3, PATIENCE).unwrap(), clients.total());
    }
    assert!(pop.lab.tables(3).unwrap().owners.is_empty());
    pop.unbroken(clients);
    pop.down();
}

/// Two POPs that were set up with one key and one tunnel network.
#[test]
fn two_pops_with_one_key_share_a_wire() {
    let mut pop = up("strtwo", 4);
    for (host, seed) in [(1, 2), (2, 1)] {
        change(&pop, host, "key_file", "key_file", seed);
    }
    for (host, seed) in [(3, 1), (4, 3)] {
        change(&pop, host, "\"203.0.113.10\"", "\"203.0.113.77\"", seed);
        change(
            &pop,
            host,
            "\"2001:db8:113::10\"",
            "\"2001:db8:113::77\"",
            seed,
        );
    }
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    pop.lab.start(1).unwrap();
    pop.lab.start(2).unwrap();
    let clients = pop.load(20);
    for host in [3, 4] {
        pop.lab.launch(host).unwrap();
    }
    for (on, of) in [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
        (3, 1),
        (3, 2),
        (4, 1),
        (4, 2),
    ] {
        let line = format!("host {of} is refused, because it answers for none");
        pop.wait_problem(on, &[&line]);
    }
    for host in 1..=4 {
        let whole = wait_until(PATIENCE, || Ok(pop.alive(host) == 2));
        assert!(whole.unwrap(), "h{host} counts {}", pop.alive(host));
    }
    // Nothing of the one goes to the other, where nobody could do anything with it:
    // also not what a host gets that cannot know whose it is.
    pop.lab.kill(1).unwrap();
    for order in [[1], [2]] {
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(3, PATIENCE).unwrap(), clients.total());
        let late = pop.unsettled(20);
        assert_eq!(late.wait_rounds(3, PATIENCE).unwrap(), late.total());
        pop.unbroken(late);
    }
    for host in [3, 4] {
        assert!(pop.lab.tables(host).unwrap().owners.is_empty());
        for end in [Outcome::TunnelNotMember, Outcome::TunnelNotService] {
            assert_eq!(count(&pop, host, end), 0, "{}", pop.outcomes());
        }
    }
    pop.unbroken(clients);
    pop.down();
}

/// What some hosts answer for already, and others not yet: reported, and the POP is one.
#[test]
fn a_service_that_only_one_host_has_is_reported() {
    let mut pop = up("strone", 2);
    let more = "[[services]]\naddress = \"203.0.113.10\"\nport = 9999\nprotocol = \"tcp\"";
    pop.lab.configure(2, more).unwrap();
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    pop.lab.start(1).unwrap();
    pop.lab.start(2).unwrap();
    for (on, of) in [(1, 2), (2, 1)] {
        let line = format!("host {of} answers for other services than this host");
        pop.wait_problem(on, &[&line]);
    }
    let clients = pop.load(20);
    for order in [[1], [2]] {
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(3, PATIENCE).unwrap(), clients.total());
    }
    pop.unbroken(clients);
    pop.down();
}

/// A member comes back with another key: it is a stranger, with the tables of the member
/// that it was. It sends what comes to it of others' sessions to those whom it knew, and
/// resets nothing.
#[test]
fn a_member_that_comes_back_with_another_key_resets_nothing() {
    let mut pop = Pop::up("strback");
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    let clients = pop.load(40);
    pop.lab.stop(3).unwrap();
    let path = pop.lab.folder_of(Node::Host(3)).join("homing.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("key_file =", &other_key(&pop))).unwrap();
    pop.launch(3);
    pop.wait_problem(3, &["another POP's key"]);
    for order in [[1, 3], [3, 2], [3, 1]] {
        let sent_on = |pop: &Pop| count(pop, 3, Outcome::Rendezvous);
        let before = sent_on(&pop);
        pop.lab.set_ecmp(&order).unwrap();
        let came = wait_until(PATIENCE, || Ok(sent_on(&pop) >= before + 20));
        assert!(came.unwrap(), "{}", pop.outcomes());
        pop.lab.set_ecmp(&[1, 2]).unwrap();
        let live = clients.wait_rounds(2, PATIENCE).unwrap();
        assert_eq!(live, clients.total(), "{}", pop.outcomes());
    }
    pop.unbroken(clients);
    pop.down();
}
