//! The POP's key changes while everything runs.

use aya::maps::HashMap;
use homing_agent::pop::keys::Keys;
use homing_common::session::{Session, Tuple};
use homing_tests::lab::{Node, wait_until};
use serde_json::Value;

use super::common::{PATIENCE, Pop, problems};

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

/// The keys of session ids that every host is heard to tell of its sessions by, if all
/// agree on them.
fn session_keys(pop: &Pop) -> Option<Vec<String>> {
    let mut keys: Vec<Vec<String>> = Vec::new();
    for asked in pop.lab.running() {
        let hosts = pop.lab.homing_json(asked, &["hosts"]).unwrap();
        for host in hosts["hosts"].as_array().unwrap() {
            let of_host = host["session_keys"].as_array().unwrap().iter();
            keys.push(
                of_host
                    .map(|key| key.as_str().unwrap().to_owned())
                    .collect(),
            );
        }
    }
    keys.dedup();
    let [keys] = &keys[..] else { return None };
    Some(keys.clone())
}

fn wait_session_keys(pop: &Pop, wanted: &[&String]) {
    let reached = wait_until(PATIENCE, || {
        Ok(session_keys(pop).is_some_and(|keys| keys.iter().eq(wanted.iter().copied())))
    });
    assert!(reached.unwrap(), "{:?}, not {wanted:?}", session_keys(pop));
}

/// Whether every host's table has all sessions of the others by their ids under each of
/// the keys in the file.
fn all_are_told_by_each_key(pop: &Pop) -> bool {
    let keys = Keys::read(&pop.lab.folder().join("pop.key")).unwrap();
    let keys = [Some(keys.session.key), keys.session.other];
    let hosts = pop.lab.running();
    let tables: Vec<_> = hosts
        .iter()
        .map(|host| pop.lab.tables(*host).unwrap())
        .collect();
    hosts.iter().enumerate().all(|(n, host)| {
        let map = pop.lab.map(*host, "SESSIONS").unwrap();
        let map = HashMap::<_, Tuple, Session>::try_from(map).unwrap();
        let tuples: Vec<_> = map.keys().map(Result::unwrap).collect();
        let ids = tuples.iter().flat_map(|tuple| {
            let keys = keys.iter().flatten();
            keys.map(|key| tuple.id(key))
        });
        let ids: Vec<_> = ids.collect();
        let others = tables.iter().enumerate().filter(|(m, _)| *m != n);
        others
            .into_iter()
            .all(|(_, table)| ids.iter().all(|id| table.owners.get(&id.0) == Some(host)))
    })
}

#[test]
fn the_key_of_session_ids_changes_host_by_host_while_connections_go_on() {
    let mut pop = Pop::up("rekey");
    let mut clients = pop.load(30);
    let key = |pop: &Pop, args: &[&str]| pop.lab.homing_json(1, args).unwrap();
    let name = |value: &Value| value.as_str().unwrap().to_owned();
    let first = name(&key(&pop, &["key", "show"])["session"]);
    let second = name(&key(&pop, &["key", "begin", "--session"])["next_session"]);

    // What is in force is not changed by a reload, which says what to do.
    let error = pop.lab.exec(Node::Host(1), "homing", &["reload"]);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("restart this agent"), "{error}");

    let mut extra = Vec::new();
    let steps = [
        (None, vec![&first, &second]),
        (Some("promote"), vec![&second, &first]),
        (Some("finish"), vec![&second]),
    ];
    for (step, keys) in steps {
        if let Some(step) = step {
            key(&pop, &["key", step, "--session"]);
        }
        for host in [2, 3, 1] {
            pop.lab.stop(host).unwrap();
            pop.lab.start(host).unwrap();
            // Hosts that have the key of this step and of the one before find each
            // other's sessions, old ones and new ones.
            extra.push(pop.unsettled(4));
            clients = pop.tour(clients);
        }
        wait_session_keys(&pop, &keys);
        let told = wait_until(PATIENCE, || Ok(all_are_told_by_each_key(&pop)));
        assert!(told.unwrap(), "{keys:?}");
        for host in 1..=3 {
            let found = problems(&pop.lab, host);
            assert!(found.is_empty(), "{found:?}");
        }
        for some in &extra {
            assert_eq!(some.wait_rounds(2, PATIENCE).unwrap(), 4);
        }
    }
    // Nothing is left of the ids under the first key.
    let open = 30 + 4 * extra.len() as u64;
    pop.lab.wait_settled(open, PATIENCE).unwrap();
    assert_eq!(counted(&pop, "asked_other_key"), 0);

    // One that missed the steps is named on all sides.
    let file = pop.lab.folder().join("pop.key");
    let new = std::fs::read_to_string(&file).unwrap();
    let signs = new.lines().find_map(|line| line.strip_prefix("sign "));
    pop.lab.kill(3).unwrap();
    std::fs::write(&file, signs.unwrap()).unwrap();
    pop.lab.start(3).unwrap();
    for host in 1..=3 {
        let named = || {
            let problems = problems(&pop.lab, host);
            Ok(problems.iter().any(|text| text.contains("left out a step")))
        };
        assert!(
            wait_until(PATIENCE, named).unwrap(),
            "{:?}",
            problems(&pop.lab, host)
        );
    }
    std::fs::write(&file, &new).unwrap();
    pop.lab.kill(3).unwrap();
    pop.lab.start(3).unwrap();
    pop.lab.wait_settled(open, PATIENCE).unwrap();
    for clients in [clients].into_iter().chain(extra) {
        pop.unbroken(clients);
    }
    pop.down();
}
