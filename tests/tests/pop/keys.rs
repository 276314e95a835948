//! The POP's key changes while everything runs.

use homing_tests::lab::{Node, wait_until};
use serde_json::Value;

use super::common::{PATIENCE, Pop};

/// The key that every host is heard to sign with, if all agree on it.
fn signer(pop: &Pop) -> Option<String> {
    let mut keys = Vec::new();
    for asked in pop.lab.running() {
        let hosts = pop.lab.homing_json(asked, &["hosts"]).unwrap();
        for host in hosts["hosts"].as_array().unwrap() {
            keys.push(host["key"].as_str()?.to_owned());
        }
    }
    keys.dedup();
    let [key] = &keys[..] else { return None };
    Some(key.clone())
}

/// A counter of gossip, summed over the hosts.
fn counted(pop: &Pop, name: &str) -> u64 {
    let count = |host| {
        let stats = pop.lab.homing_json(host, &["stats"]).unwrap();
        let counters = stats["gossip"].as_array().unwrap().clone();
        let counter = counters.iter().find(|counter| counter["name"] == name);
        counter.unwrap()["count"].as_u64().unwrap()
    };
    pop.lab.running().into_iter().map(count).sum()
}

#[test]
fn the_key_changes_host_by_host_while_connections_and_gossip_go_on() {
    let mut pop = Pop::up("rotate");
    let clients = pop.load(30);
    let key = |pop: &Pop, step: &str| pop.lab.homing_json(1, &["key", step]).unwrap();
    let first = key(&pop, "show")["signs"].as_str().unwrap().to_owned();
    let downs = counted(&pop, "downs");
    let refused = |pop: &Pop| pop.lab.outcomes(&["echo_refused"]).unwrap();
    let echoes_refused = refused(&pop);
    let mut clients = Some(clients);
    let mut extra = Vec::new();
    for step in ["begin", "promote", "finish"] {
        key(&pop, step);
        for host in [2, 3, 1] {
            let reloaded = pop.lab.homing_json(host, &["reload"]).unwrap();
            assert_eq!(reloaded["changed"], Value::Bool(true), "{reloaded}");
            // Gossip gets through whichever hosts have changed: new sessions are
            // known everywhere.
            extra.push(pop.unsettled(4));
            let open = 30 + 4 * extra.len() as u64;
            pop.lab.wait_settled(open, PATIENCE).unwrap();
        }
        clients = clients.map(|clients| pop.tour(clients));
    }
    let last = key(&pop, "show")["signs"].as_str().unwrap().to_owned();
    assert_ne!(first, last);
    let all_sign = wait_until(PATIENCE, || Ok(signer(&pop).as_ref() == Some(&last))).unwrap();
    assert!(all_sign, "{:?}, not {last}", signer(&pop));
    assert_eq!(counted(&pop, "downs"), downs, "a host was down meanwhile");
    assert_eq!(counted(&pop, "wrong_key"), 0);
    assert_eq!(refused(&pop), echoes_refused);

    // An agent that comes with the old key finds nobody, and is told apart.
    let file = pop.lab.folder().join("pop.key");
    let new = std::fs::read_to_string(&file).unwrap();
    let old = new.lines().find_map(|line| line.strip_prefix("session "));
    let put = |text: &str| std::fs::write(&file, text).unwrap();
    pop.lab.kill(3).unwrap();
    put(old.unwrap());
    pop.lab.launch(3).unwrap();
    let refused = wait_until(PATIENCE, || {
        let stats = pop.lab.homing_json(1, &["stats"])?;
        Ok(stats["wrong_keys"][&first].as_u64().is_some())
    });
    assert!(refused.unwrap(), "nobody refused the old key");

    // A file that is wrong changes nothing; the right one brings it back.
    put("nonsense");
    let error = pop
        .lab
        .exec(Node::Host(3), "homing", &["reload"])
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("64 hexadecimal digits"),
        "{error:#}"
    );
    put(&new);
    pop.lab.homing_json(3, &["reload"]).unwrap();
    let open = 30 + 4 * extra.len() as u64;
    pop.lab.wait_settled(open, PATIENCE).unwrap();
    for clients in clients.into_iter().chain(extra) {
        pop.unbroken(clients);
    }
    pop.down();
}
